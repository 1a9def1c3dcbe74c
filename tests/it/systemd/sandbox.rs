//! The unit's sandbox, its stop, and a dynamic user.

use crate::support::container::{Container, until};

/// Configuration: the built-in cache, and slow uploads.
fn slowly(c: &Container, rate: &str, drain: &str) {
    c.write(
        "/etc/flywheel/flywheel.toml",
        &format!("[push]\nmax_rate = \"{rate}\"\n[drain]\ntimeout = \"{drain}\"\n[client]\nenable = false\n"),
    );
}

/// A shell command that adds a path of this number of KiB that does not compress.
fn build(c: &Container, name: &str, kib: u32) -> String {
    c.build_as("job", name, &format!("dd if=/dev/urandom of=$out bs=1024 count={kib} status=none"))
}

fn uploading(c: &Container) {
    until("an upload", || (c.status()["queue"]["uploading"].as_u64() > Some(0)).then_some(()));
}

#[test]
fn a_stop_lets_uploads_end() {
    let Some(c) = Container::installed() else { return };
    slowly(&c, "512KiB", "60s");
    c.ok("systemctl restart flywheeld");
    let path = build(&c, "slow", 1536);
    uploading(&c);
    c.ok("systemctl stop flywheeld");
    assert_eq!(c.show("flywheeld.service", "Result"), "success");
    assert!(!c.log().contains("killing"), "{}", c.log());
    // Everything was in the cache when the service ended: nothing is left for the next start.
    let have = c.ok("find /var/lib/flywheel/cache -type f -size +1000k");
    assert_eq!(have.lines().count(), 1, "{have}");
    slowly(&c, "1", "1s");
    c.ok("systemctl start flywheeld");
    assert!(c.serves(8742, &path));
}

/// Runs another program in the unit's sandbox.
fn in_the_units_sandbox(c: &Container, command: &str) -> String {
    let unit = c.read("/usr/lib/systemd/system/flywheeld.service");
    let unit = unit
        .replace("Type=notify", "Type=oneshot")
        .replace("\nExecStart=/usr/bin/flywheeld\n", &format!("\nExecStart={command}\n"));
    let lines = unit
        .lines()
        .filter(|l| !["Restart=", "RestartPrevent", "WatchdogSec="].iter().any(|k| l.starts_with(k)));
    c.write("/run/systemd/system/probe.service", &lines.collect::<Vec<_>>().join("\n"));
    let said = c.run("systemctl daemon-reload && systemctl start probe; systemctl show --value -p Result probe; journalctl -q -o cat -u probe");
    assert!(said.out.starts_with("success\n"), "{said:?}");
    said.out
}

#[test]
fn nix_works_within_the_units_sandbox() {
    let Some(c) = Container::installed() else { return };
    // Nix evaluates, asks the nix-daemon, and leaves a link that is a GC root.
    let expression = "derivation { name = \"kept\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; args = [ \"-c\" \"echo kept > $out\" ]; }";
    c.write(
        "/etc/kept.nix",
        &expression.replace("x86_64-linux", &format!("{}-linux", std::env::consts::ARCH)),
    );
    let path = c.ok_as("job", "nix-build --no-out-link /etc/kept.nix");
    let nix = "/usr/bin/nix --extra-experimental-features nix-command build --file /etc/kept.nix --max-jobs 0 --out-link /var/lib/flywheel/kept";
    in_the_units_sandbox(&c, nix);
    assert_eq!(c.ok("readlink /var/lib/flywheel/kept"), path);
    c.ok("nix-store --gc");
    c.ok(&format!("test -e {path}"));
}

#[test]
fn the_service_writes_nothing_of_others_and_strangers_do_not_reach_it() {
    let Some(c) = Container::installed() else { return };
    let path = c.build_as("job", "target", "echo target > $out");
    let probe = format!(
        "#!/bin/sh\nid -un\ngrep -E '^(CapEff|NoNewPrivs)' /proc/self/status\n\
         for file in /nix/store/new {path} /nix/var/nix/db/db.sqlite /nix/var/nix/gcroots/new /etc/flywheel/new \\\n\
         /etc/passwd /usr/bin/new /root/new /home/new /var/lib/new /boot/new; do\n\
         (: >> \"$file\") 2>/dev/null && echo \"wrote $file\"\ndone\n\
         (: > /var/lib/flywheel/own) && echo 'wrote its own'\nrm -f /var/lib/flywheel/own\ntrue\n"
    );
    c.write("/usr/local/bin/probe", &probe);
    c.ok("chmod 755 /usr/local/bin/probe");
    let said = in_the_units_sandbox(&c, "/usr/local/bin/probe");
    let wrote: Vec<&str> = said.lines().filter_map(|line| line.strip_prefix("wrote ")).collect();
    assert_eq!(wrote, ["its own"], "{said}");
    assert!(said.contains("\nflywheel\n") && said.contains("NoNewPrivs:\t1"), "{said}");
    assert!(said.contains("CapEff:\t0000000000000000"), "{said}");
    assert_eq!(c.ok("stat -c '%a %U %G' /run/flywheel/control.sock"), "660 flywheel flywheel");
    let stranger = c.run("runuser -u nobody -- flywheelctl --strict status");
    assert_eq!(stranger.code, 5, "{stranger:?}");
    assert!(stranger.err.contains("you may not use the flywheel daemon"), "{stranger:?}");
    c.ok_as("job", "flywheelctl --strict status");
}

#[test]
fn a_dynamic_user_reads_the_store() {
    let Some(c) = Container::installed() else { return };
    c.write(
        "/etc/systemd/system/flywheeld.service.d/dynamic.conf",
        "[Service]\nDynamicUser=yes\nUser=flywheel-dynamic\nSupplementaryGroups=nix-users\nRuntimeDirectory=\n",
    );
    c.ok("systemctl daemon-reload && systemctl restart flywheeld");
    let path = build(&c, "by-dynamic-user", 1);
    c.ok_as("job", "flywheelctl --strict status");
    until("in the cache", || c.serves(8742, &path).then_some(()));
    assert_ne!(c.ok("ps -o uid= -C flywheeld").trim(), c.ok("id -u flywheel"));
    // The nix-daemon protects the path while the service runs; links do not, because their
    // directory belongs to another user.
    assert!(c.log().contains("not while it is stopped"), "{}", c.log());
}
