//! `flywheelctl setup` on a host that systemd runs: one command from the package to a cache that is
//! written and read, and nothing is changed twice.

use super::credential::remote;
use crate::support::container::Container;

const SETUP: &str =
    "flywheelctl setup --server http://127.0.0.1:9999 --user guest --token-stdin </root/token";

#[test]
fn setup_makes_a_host_push_and_read_and_changes_nothing_twice() {
    let Some(c) = Container::installed() else { return };
    let token = remote(&c);
    c.write("/root/token", &token);
    let planned = c.ok(&format!("{} --dry-run", SETUP.replace(" <", " --yes <")));
    assert!(
        planned.contains("This would be done:") && planned.contains("/etc/credstore/attic-token"),
        "{planned}"
    );
    assert_eq!(c.run("ls /etc/flywheel/flywheel.toml.d /etc/credstore").out.matches("setup").count(), 0);

    let said = c.run(SETUP);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!format!("{said:?}").contains(&token), "the token is not shown");
    assert!(said.out.contains("returned it") && !said.out.contains("BAD"), "{said:?}");
    assert_eq!(c.ok("stat -c '%a %U' /etc/credstore/attic-token"), "600 root");
    assert_eq!(c.ok("tail -n 1 /etc/nix/nix.conf"), "!include flywheel.conf");
    assert!(c.ok("id -nG guest").split(' ').any(|group| group == "flywheel"));
    // A job of the new user pushes, and Nix reads the cache.
    let path = c.build_as("guest", "set-up", "echo x > $out");
    c.ok_as("guest", &format!("flywheelctl push --wait {path}"));
    assert!(c.serves(9999, &path));
    let conf = c.ok_as("guest", "nix --extra-experimental-features nix-command config show");
    for line in ["http://127.0.0.1:9999/main", "fallback = true"] {
        assert!(conf.contains(line), "{line}: {conf}");
    }

    let pid = c.show("flywheeld.service", "MainPID");
    let again = c.run(SETUP);
    assert_eq!(again.code, 0, "{again:?}");
    assert!(again.out.contains("There is nothing to change."), "{again:?}");
    assert_eq!(c.show("flywheeld.service", "MainPID"), pid, "nothing was restarted");
    assert_eq!(c.ok("grep -c flywheel.conf /etc/nix/nix.conf"), "1");

    // A configuration that cannot be used is taken back.
    c.write(
        "/etc/flywheel/flywheel.toml.d/10-mine.toml",
        "[caches.other]\nendpoints = \"embedded\"\nnonsense = 1\n",
    );
    let refused = c.run("flywheelctl setup --built-in --cache local --yes");
    assert_eq!(refused.code, 2, "{refused:?}");
    assert!(refused.err.contains("taken back") && refused.err.contains("nonsense"), "{refused:?}");
    assert!(c.read("/etc/flywheel/flywheel.toml.d/60-setup.toml").contains("127.0.0.1:9999"));
}
