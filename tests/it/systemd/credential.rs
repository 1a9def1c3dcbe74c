//! The push token as a systemd credential: its file may be readable by root alone, a host without a
//! token starts, and nobody else can read the token.

use crate::support::container::{Container, until};

/// Another daemon serves as a remote cache. It pushes nothing; its token is the credential.
const REMOTE: &str = r#"
systemd-run --quiet --unit=remote --property=Type=notify --property=DynamicUser=yes --property=StateDirectory=remote \
    flywheeld --config /etc/remote.toml
cat /var/lib/private/remote/embedded-push-token
"#;

const REMOTE_CONFIG: &str = "socket = \"/var/lib/remote/socket\"\nstate_dir = \"/var/lib/remote\"\n\
    [embedded]\nlisten = \"127.0.0.1:9999\"\n[caches.main]\nendpoints = \"embedded\"\n\
    [push.filter]\nnames = [\"!*\"]\n[client]\nenable = false\n";

/// Starts the remote cache on port 9999; returns its token.
pub(super) fn remote(c: &Container) -> String {
    c.write("/etc/remote.toml", REMOTE_CONFIG);
    let token = c.ok(REMOTE);
    assert!(token.len() > 16, "{token}");
    token
}

#[test]
fn the_token_is_a_systemd_credential() {
    let Some(c) = Container::installed() else { return };
    // Without a token the service runs (the package started it) and reports that the cache needs
    // one.
    assert_eq!(c.ok("systemctl is-active flywheeld; ls /etc/credstore"), "active");
    let token = remote(&c);
    c.write(
        "/etc/flywheel/flywheel.toml",
        "[caches.main]\nendpoints = \"http://127.0.0.1:9999\"\n[client]\nenable = false\n",
    );
    c.ok("systemctl restart flywheeld");
    let path = c.build_as("job", "secretive", "echo x > $out");
    until("unauthorized", || (c.status()["cache"][0]["state"] == "unauthorized").then_some(()));
    assert!(!c.serves(9999, &path));
    // A check of the configuration looks where systemd looks for the credential.
    let warns = || c.ok("flywheeld --check-config 2>&1").contains("cache main: no token");
    assert!(warns());

    c.ok(&format!(
        "install -m 0600 /dev/null /etc/credstore/attic-token && echo '{token}' >/etc/credstore/attic-token"
    ));
    assert!(!warns());
    c.ok("systemctl restart flywheeld");
    until("in the cache", || c.serves(9999, &path).then_some(()));

    // Only root and the daemon can read it: it is in no job, argument, environment, log or ledger.
    assert_ne!(c.run_as("job", "cat /run/credentials/flywheeld.service/attic-token").code, 0);
    let pid = c.show("flywheeld.service", "MainPID");
    let script = format!(
        "grep -l -a -F '{token}' /proc/{pid}/cmdline /proc/{pid}/environ /var/lib/flywheel/ledger.sqlite* /etc/flywheel/*; \
         journalctl --no-pager | grep -F '{token}'; flywheelctl --json status | grep -F '{token}'"
    );
    assert_eq!(c.run(&script).out, "");
    assert_eq!(c.show("flywheeld.service", "LimitCORE"), "0");
}
