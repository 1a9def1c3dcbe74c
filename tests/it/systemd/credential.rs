//! The push token as a systemd credential: only root needs to read its file, a
//! host without one starts, and nobody else gets to see it.

use crate::support::container::{Container, until};

/// Another daemon as the cache far away, which pushes nothing of its own: its
/// token is the one to be handed in.
const REMOTE: &str = r#"
systemd-run --quiet --unit=remote --property=Type=notify --property=DynamicUser=yes --property=StateDirectory=remote \
    flywheeld --config /etc/remote.toml
cat /var/lib/private/remote/embedded-push-token
"#;

const REMOTE_CONFIG: &str = "socket = \"/var/lib/remote/socket\"\nstate_dir = \"/var/lib/remote\"\n\
    [embedded]\nlisten = \"127.0.0.1:9999\"\n[caches.main]\nendpoints = \"embedded\"\n\
    [push.filter]\nnames = [\"!*\"]\n[client]\nenable = false\n";

#[test]
fn the_token_is_a_systemd_credential() {
    let Some(c) = Container::installed() else { return };
    // Without any token it runs (the package started it) and says so of a cache that wants one.
    assert_eq!(c.ok("systemctl is-active flywheeld; ls /etc/credstore"), "active");
    c.write("/etc/remote.toml", REMOTE_CONFIG);
    let token = c.ok(REMOTE);
    assert!(token.len() > 16, "{token}");
    c.write(
        "/etc/flywheel/flywheel.toml",
        "[caches.main]\nendpoints = \"http://127.0.0.1:9999\"\n[client]\nenable = false\n",
    );
    c.ok("systemctl restart flywheeld");
    let path = c.build_as("job", "secretive", "echo x > $out");
    until("unauthorized", || (c.status()["cache"][0]["state"] == "unauthorized").then_some(()));
    assert!(!c.serves(9999, &path));

    c.ok(&format!(
        "install -m 0600 /dev/null /etc/credstore/attic-token && echo '{token}' >/etc/credstore/attic-token"
    ));
    c.ok("systemctl restart flywheeld");
    until("in the cache", || c.serves(9999, &path).then_some(()));

    // Nobody but root and the daemon sees it: not a job, not an argument, not the environment, not a log, not the ledger.
    assert_ne!(c.run_as("job", "cat /run/credentials/flywheeld.service/attic-token").code, 0);
    let pid = c.show("flywheeld.service", "MainPID");
    let told = format!(
        "grep -l -a -F '{token}' /proc/{pid}/cmdline /proc/{pid}/environ /var/lib/flywheel/ledger.sqlite* /etc/flywheel/*; \
         journalctl --no-pager | grep -F '{token}'; flywheelctl --json status | grep -F '{token}'"
    );
    assert_eq!(c.run(&told).out, "");
    assert_eq!(c.show("flywheeld.service", "LimitCORE"), "0");
}
