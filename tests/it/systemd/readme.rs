//! The commands with which the README installs the Debian package, run as they are written.

use std::fs;
use std::io::Write;
use std::process::Stdio;

use crate::support::container::{Container, package, until};
use crate::support::daemon::CommandResult;
use crate::support::documents::blocks;

const TOKEN: &str = "a-token-that-was-pasted";

#[test]
fn the_package_is_installed_as_the_readme_says() {
    let install = blocks("README.md", "sh").into_iter().find(|b| b.contains("apt install")).unwrap();
    let Some(c) = Container::boot() else { return };
    c.ok("useradd gitlab-runner");
    for line in install.lines() {
        if line == "packaging/deb.sh" {
            // The container has no Rust: the package was made outside of it, by the same script.
            let deb = package();
            fs::create_dir_all(c.path("/root/target/debian")).unwrap();
            let name = deb.file_name().unwrap().to_str().unwrap();
            fs::copy(&deb, c.path(&format!("/root/target/debian/{name}"))).unwrap();
            continue;
        }
        let mut command = c.command(&format!("cd && {line}"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut input = child.stdin.take().unwrap();
        // A command that does not read its standard input has closed it.
        let _ = input.write_all(format!("{TOKEN}\n").as_bytes());
        drop(input);
        let said = CommandResult::of(&child.wait_with_output().unwrap());
        // The server does not exist, which the last command reports after it has done its work.
        let wanted = if line.starts_with("flywheelctl setup") { 3 } else { 0 };
        assert_eq!(said.code, wanted, "{line}: {said:?}");
    }
    assert_eq!(
        c.ok("cat /etc/credstore/attic-token; stat -c %a /etc/credstore/attic-token"),
        format!("{TOKEN}\n600")
    );
    assert_eq!(c.ok("systemctl is-active flywheeld"), "active");
    assert!(c.ok("id -nG gitlab-runner").split(' ').any(|group| group == "flywheel"));
    // The server does not exist; the daemon tried to reach it.
    until("the configured cache", || {
        let cache = c.status()["cache"][0].clone();
        let asked = cache["reason"].as_str().is_some_and(|r| r.contains("https://attic.example.com"));
        (cache["name"] == "main" && asked).then_some(())
    });
    // No packaged configuration file was edited, so an upgrade asks nothing.
    assert_eq!(c.ok("dpkg --verify flywheel"), "");

    // What the installed README and pages link to and name is installed.
    let home = "/usr/share/doc/flywheel";
    let pages = c.ok(&format!("cd {home} && ls README.md SECURITY.md docs/*.md"));
    assert!(pages.lines().count() > 15, "{pages}");
    let mut absent = Vec::new();
    for page in pages.lines() {
        let text = c.read(&format!("{home}/{page}"));
        let from = page.rsplit_once('/').map_or("", |(dir, _)| dir);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
        let links =
            links.filter(|to| !to.is_empty() && !to.contains(':')).map(|to| format!("{home}/{from}/{to}"));
        let named = text.split('`').skip(1).step_by(2);
        let named = named.filter(|n| n.starts_with("packaging/") && !n.contains([' ', '*', '…', '<']));
        // Programs that make packages, of use in the sources only.
        let named = named.filter(|n| !(n.ends_with(".sh") && *n != "packaging/quickstart.sh"));
        let all = links.chain(named.map(|n| format!("{home}/{n}")));
        absent.extend(all.filter(|file| !c.path(file).exists()).map(|file| format!("{page}: {file}")));
    }
    assert!(absent.is_empty(), "{absent:#?}");
    // The installed quick start uses the installed programs.
    let said = c.run(&format!("{home}/packaging/quickstart.sh"));
    assert_eq!(said.code, 0, "{said:?}");
}
