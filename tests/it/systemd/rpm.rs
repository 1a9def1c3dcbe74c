//! The RPM package: its files, and its scriptlets in a container with systemd. No Fedora is
//! needed: the files are unpacked, and the scriptlets run with the numbers that rpm gives them.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::container::{Container, package, rpm_package};
use crate::support::daemon::CommandResult;

/// Whether packages can be made and read; prints why not.
fn possible() -> bool {
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|o| o.status.success());
    let possible = has("rpmbuild") && has("dpkg-shlibdeps");
    if !possible {
        eprintln!("skipped: rpmbuild or dpkg-shlibdeps is not here (apt-get install rpm dpkg-dev)");
    }
    possible
}

/// What `rpm --query` prints of the package.
fn query(rpm: &Path, args: &[&str]) -> String {
    let said =
        CommandResult::of(&Command::new("rpm").args(["-q"]).args(args).arg("-p").arg(rpm).output().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
    said.out
}

#[test]
fn it_has_the_files_of_the_debian_package() {
    if !possible() {
        return;
    }
    let (rpm, deb) = (rpm_package(), package());
    let in_rpm: BTreeSet<String> = query(&rpm, &["--list"]).lines().map(str::to_owned).collect();
    let listed = CommandResult::of(&Command::new("dpkg-deb").arg("--contents").arg(deb).output().unwrap());
    let in_deb = listed.out.lines().filter(|line| !line.starts_with('d')).map(|line| {
        let path = line.split_whitespace().nth(5).unwrap().trim_start_matches('.');
        path.replace("vendor-completions", "site-functions")
    });
    let of_debian = |path: &String| path.ends_with("/copyright") || path.ends_with("/changelog.gz");
    let missing: Vec<String> =
        in_deb.filter(|path| !of_debian(path)).filter(|path| !in_rpm.contains(path)).collect();
    assert!(in_rpm.len() > 80 && missing.is_empty(), "{missing:?}");
    assert!(in_rpm.contains("/usr/share/licenses/flywheel/LICENSE-MIT"), "{in_rpm:?}");
    // An upgrade keeps a changed file, and examples need no interpreter.
    assert_eq!(query(&rpm, &["--configfiles"]).trim(), "/etc/flywheel/flywheel.toml");
    let needs = query(&rpm, &["--requires"]);
    assert!(needs.contains("systemd >= 249") && !needs.contains("/bin/bash"), "{needs}");
}

/// Unpacks the package in the container.
fn unpack(c: &Container, rpm: &Path) {
    let mut archive = Command::new("rpm2archive")
        .arg("-")
        .stdin(File::open(rpm).unwrap())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let files = archive.stdout.take().unwrap();
    // Through the links of the container's root to its own directories.
    let unpacked = Command::new("tar")
        .args(["-xz", "--keep-directory-symlink", "-C"])
        .arg(c.path("/"))
        .stdin(files)
        .output()
        .unwrap();
    assert!(unpacked.status.success() && archive.wait().unwrap().success(), "{unpacked:?}");
}

/// Runs a scriptlet as rpm does; `left` is how many versions are installed afterwards.
fn scriptlet(c: &Container, rpm: &Path, tag: &str, left: u32) {
    let script = query(rpm, &["--queryformat", &format!("%{{{tag}}}")]);
    c.write("/root/scriptlet", &script);
    c.ok(&format!("sh -e /root/scriptlet {left}"));
}

#[test]
fn its_scriptlets_install_upgrade_and_remove() {
    if !possible() {
        return;
    }
    let Some(c) = Container::boot() else { return };
    let rpm = rpm_package();
    unpack(&c, &rpm);
    scriptlet(&c, &rpm, "POSTIN", 1);
    assert_eq!(c.ok("systemctl is-active flywheeld; systemctl is-enabled flywheeld"), "active\nenabled");
    let process = c.ok("cat /proc/$(systemctl show --value -p MainPID flywheeld)/status");
    let user = c.ok("id -u flywheel");
    assert!(process.contains(&format!("Uid:\t{user}\t")), "{process}");
    assert_eq!(c.run("systemctl is-enabled flywheeld-cache.socket").out, "disabled\n");
    c.ok("flywheelctl --strict session start");

    // The new version's files are there when the old one's scriptlet runs.
    let before = c.show("flywheeld.service", "MainPID");
    unpack(&c, &rpm);
    scriptlet(&c, &rpm, "POSTIN", 2);
    scriptlet(&c, &rpm, "POSTUN", 1);
    assert_ne!(c.show("flywheeld.service", "MainPID"), before);
    assert_eq!(c.ok("systemctl is-active flywheeld"), "active");

    scriptlet(&c, &rpm, "PREUN", 0);
    assert_eq!(c.run("systemctl is-active flywheeld.service flywheeld.socket").out, "inactive\ninactive\n");
    c.ok("rm /usr/lib/systemd/system/flywheel*");
    scriptlet(&c, &rpm, "POSTUN", 0);
    assert_eq!(c.run("systemctl list-unit-files 'flywheel*' --no-legend --no-pager").out, "");
    c.ok("test -e /var/lib/flywheel/ledger.sqlite && test ! -e /run/flywheel");
}
