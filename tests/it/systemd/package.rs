//! The Debian package in a Debian that systemd runs: installed, used by another
//! user, upgraded, removed and purged.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::container::{Container, package};

/// systemd understands each line of the units, and their exposure is at most the value below.
fn units_are_sound(c: &Container) {
    assert_eq!(
        c.run(
            "systemd-analyze verify --man=no flywheeld.service flywheeld.socket flywheeld-cache.socket flywheel-verify.service flywheel-verify.timer 2>&1"
        )
        .out,
        ""
    );
    // In tenths: 1.5.
    let judged = c.run("systemd-analyze security --threshold=15 --no-pager flywheeld.service");
    assert_eq!(judged.code, 0, "{}", judged.out);
    let process = c.ok("cat /proc/$(systemctl show --value -p MainPID flywheeld)/status");
    let field = |name: &str| {
        let line =
            process.lines().find(|l| l.starts_with(name)).unwrap_or_else(|| panic!("{name}: {process}"));
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs:"), "1");
    assert_eq!(field("Uid:"), c.ok("id -u flywheel"));
}

/// Everything that is promised beside the programs is installed and works.
fn files_are_of_use(c: &Container) {
    let pages = c.ok("cd /usr/share/man && gunzip -t man?/flywheel* && ls man?");
    for page in [
        "flywheeld.8",
        "flywheelctl.1",
        "flywheelctl-session-end.1",
        "flywheelctl-run.1",
        "flywheel.toml.5",
        "flywheel-errors.7",
    ] {
        assert!(pages.contains(page), "{page}: {pages}");
    }
    let end = c.ok("gunzip -c /usr/share/man/man1/flywheelctl-session-end.1.gz");
    assert!(end.contains("Also push these store paths"), "{end}");
    c.ok("bash -n /usr/share/bash-completion/completions/flywheelctl");
    c.ok("grep -q session /usr/share/zsh/vendor-completions/_flywheelctl");
    c.ok("grep -q session /usr/share/fish/vendor_completions.d/flywheelctl.fish");
    c.ok("/usr/lib/flywheel/flywheel-hook");
    c.ok("runuser -u flywheel -- flywheeld --check-config --config /etc/flywheel/flywheel.toml");
    c.ok("test -f /usr/share/doc/flywheel/copyright && cd / && md5sum --quiet -c /var/lib/dpkg/info/flywheel.md5sums");
}

#[test]
fn the_package_installs_upgrades_and_is_purged() {
    let Some(c) = Container::installed() else { return };
    assert_eq!(c.ok("systemctl is-active flywheeld; systemctl is-enabled flywheeld"), "active\nenabled");
    units_are_sound(&c);
    files_are_of_use(&c);

    // A job of another user: its build is in the cache and attributed to it.
    let session = c.ok_as("job", "flywheelctl session start --anchor-pid $$ >id; nix-build --no-out-link - <<'EOF'\nderivation { name = \"one\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo one > $out; sleep 0.2\" ]; PATH = \"/usr/bin:/bin\"; }\nEOF\nflywheelctl --json session end $(cat id) | tee summary");
    let summary: Value = serde_json::from_str(session.lines().last().unwrap()).unwrap();
    let one = session.lines().find(|l| l.starts_with("/nix/store/")).unwrap();
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &1.into()), "{summary}");
    // The built path's maker is known, through the nix-daemon; that of its sources may be known as
    // well.
    let shown = c.ok_as("job", "flywheelctl --json session show $(cat id)");
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let entry = shown["paths"].as_array().unwrap().iter().find(|p| p["path"] == one).unwrap();
    assert_eq!(entry["evidence"], "process", "{shown}");
    assert!(c.serves(8742, one));
    // Pending paths are protected in both ways, without root.
    let status = c.status();
    assert_eq!(status["warnings"], Value::Array(Vec::new()), "{status}");
    // A user outside of the group gets an error that says so.
    let refused = c.run_as("guest", "flywheelctl --strict session start");
    assert_eq!(refused.code, 5);
    assert!(refused.err.contains("group"), "{refused:?}");

    upgrade(&c);
    removal(&c);
}

/// The service is restarted and not killed, and an open session goes on.
fn upgrade(c: &Container) {
    let before = c.show("flywheeld.service", "MainPID");
    c.ok("echo '# mine' >>/etc/flywheel/flywheel.toml");
    let session = c.ok_as(
        "job",
        "sleep 600 >/dev/null 2>&1 & flywheelctl session start --label upgrade --anchor-pid $!",
    );
    c.install();
    assert_ne!(c.show("flywheeld.service", "MainPID"), before);
    assert_eq!(c.ok("systemctl is-active flywheeld"), "active");
    assert!(c.read("/etc/flywheel/flywheel.toml").ends_with("# mine\n"));
    assert!(!c.log().contains("killing"), "{}", c.log());
    c.ok_as("job", &format!("flywheelctl --strict session end {session}"));
    // A unit that an administrator disabled stays disabled.
    c.ok("systemctl disable flywheeld.service 2>/dev/null");
    c.install();
    assert_eq!(c.run("systemctl is-enabled flywheeld").out, "disabled\n");
}

fn removal(c: &Container) {
    c.ok("dpkg --remove flywheel");
    assert_eq!(c.run("systemctl is-active flywheeld").out, "inactive\n");
    let kept = c.ok("ls -d /etc/flywheel/flywheel.toml /var/lib/flywheel/ledger.sqlite");
    assert_eq!(kept.lines().count(), 2, "{kept}");
    c.ok("dpkg --purge flywheel");
    let left = c.ok(
        "rm /root/flywheel.deb; { find / -xdev -iname '*flywheel*'; find /run /nix /tmp /var -xdev '(' -user flywheel -o -iname '*flywheel*' ')'; } \
         | grep -v -e ^/proc -e ^/sys | sort -u",
    );
    assert_eq!(left, "", "left behind");
    assert_eq!(c.run("systemctl list-unit-files 'flywheel*' --no-legend --no-pager").out, "");
}

/// Runs also where no container can be made.
#[test]
fn the_package_as_lintian_sees_it() {
    if Command::new("dpkg-shlibdeps").arg("--version").output().is_err() {
        return eprintln!("skipped: dpkg-shlibdeps is not here (apt-get install dpkg-dev)");
    }
    let deb = package();
    let mut lintian = Command::new("lintian");
    let Ok(said) = lintian
        .args(["--fail-on", "error,warning", "--suppress-tags", "initial-upload-closes-no-bugs"])
        .arg(deb)
        .output()
    else {
        return eprintln!("skipped: lintian is not here (apt-get install lintian)");
    };
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
}

#[test]
fn shellcheck_finds_nothing() {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scripts: Vec<_> =
        ["packaging", "packaging/container", "packaging/debian", "docs", "tests", "tests/container"]
            .iter()
            .flat_map(|dir| std::fs::read_dir(home.join(dir)).unwrap())
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.is_file()
                    && std::fs::read_to_string(path)
                        .is_ok_and(|t| t.starts_with("#!/") || t.starts_with("# shellcheck shell="))
            })
            .filter(|path| path.extension().is_none_or(|extension| extension != "py"))
            .collect();
    scripts.sort();
    assert!(scripts.len() >= 9, "{scripts:?}");
    match Command::new("shellcheck").arg("--severity=warning").args(&scripts).output() {
        Ok(said) => assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout)),
        Err(_) => eprintln!("skipped: shellcheck is not here (apt-get install shellcheck)"),
    }
}
