//! The repository of packages for apt and dnf: it is signed, apt installs from it, and what was
//! changed on the way is refused.

use std::path::Path;
use std::process::Command;

use crate::support::container::{Container, package, rpm_package};
use crate::support::daemon::CommandResult;
use crate::support::users::set_mode;

const KEY: &str = "packages@flywheel.invalid";

/// Whether the programs are there that make a repository; prints which is missing.
fn possible() -> bool {
    ["apt-ftparchive", "createrepo_c", "gpg", "rpmbuild"].iter().all(|program| {
        let found = Command::new(program).arg("--version").output().is_ok();
        if !found {
            eprintln!("skipped: {program} is not installed");
        }
        found
    })
}

/// Runs a program with a keyring of the test's own. Returns what it printed.
fn with_keys(home: &Path, program: &str, args: &[&str]) -> CommandResult {
    let mut command = Command::new(program);
    command.args(args).env("GNUPGHOME", home).current_dir(env!("CARGO_MANIFEST_DIR"));
    CommandResult::of(&command.output().unwrap())
}

#[test]
fn apt_installs_from_a_signed_repository_and_refuses_a_changed_one() {
    if !possible() {
        return;
    }
    let Some(c) = Container::boot() else { return };
    let home = tempfile::tempdir().unwrap();
    set_mode(home.path(), 0o700);
    let key =
        ["--batch", "--quiet", "--passphrase", "", "--quick-generate-key", KEY, "ed25519", "sign", "never"];
    let made = with_keys(home.path(), "gpg", &key);
    assert_eq!(made.code, 0, "{made:?}");
    let to = home.path().join("packages");
    let to = to.to_str().unwrap();
    let (deb, rpm) = (package(), rpm_package());
    let packages = [deb.to_str().unwrap(), rpm.to_str().unwrap()];
    let args = [&[to, KEY, "file:///srv/packages"][..], &packages].concat();
    let made = with_keys(home.path(), "packaging/repository.sh", &args);
    assert_eq!(made.code, 0, "{made:?}");
    let copied = Command::new("cp").args(["-r", to]).arg(c.path("/srv")).status().unwrap();
    assert!(copied.success());

    c.ok("rm -f /etc/apt/sources.list && cp /srv/packages/flywheel.sources /etc/apt/sources.list.d");
    c.ok("apt-get update && apt-get install -y --no-install-recommends flywheel");
    assert_eq!(c.ok("systemctl is-active flywheeld"), "active");
    // dnf reads the list of packages if its signature is right.
    let list = format!("{to}/rpm/repodata/repomd.xml");
    let verified = with_keys(home.path(), "gpg", &["--verify", &format!("{list}.asc"), &list]);
    assert_eq!(verified.code, 0, "{verified:?}");
    assert!(c.ok("cat /srv/packages/flywheel.repo").contains("repo_gpgcheck=1"));

    // Somebody between changes the list of packages, and its name in the signed file.
    c.ok("cd /srv/packages/deb/dists/stable && sed -i 's/^Version:.*/Version: 9/' main/*/Packages && gzip -fk main/*/Packages");
    let refused = c.run("rm -rf /var/lib/apt/lists && apt-get update 2>&1");
    assert!(refused.code != 0 && refused.out.contains("Hash Sum mismatch"), "{refused:?}");
    c.ok("cd /srv/packages/deb/dists/stable && sed -i 's/^Origin:.*/Origin: another/' InRelease");
    let refused = c.run("rm -rf /var/lib/apt/lists && apt-get update 2>&1");
    assert!(refused.code != 0 && refused.out.contains("not signed"), "{refused:?}");
}
