//! A daemon that hangs, a reboot with paths pending, and a job that connects while no daemon runs.
//! Nothing is lost.

use crate::support::container::{Container, until};

/// Configuration: the built-in cache, and uploads at this rate.
fn at_rate(c: &Container, rate: &str) {
    let text =
        format!("[push]\nmax_rate = \"{rate}\"\n[drain]\ntimeout = \"1s\"\n[client]\nenable = false\n");
    c.write("/etc/flywheel/flywheel.toml", &text);
}

/// Adds paths that take very long at 1 KiB/s.
fn pending(c: &Container) -> Vec<String> {
    at_rate(c, "1KiB");
    c.ok("systemctl restart flywheeld");
    let build =
        |n| c.build_as("job", &format!("p{n}"), "dd if=/dev/urandom of=$out bs=1024 count=300 status=none");
    let paths = (0..3).map(build).collect();
    until("an upload", || (c.status()["queue"]["uploading"].as_u64() > Some(0)).then_some(()));
    paths
}

fn all_arrive(c: &Container, paths: &[String]) {
    until("all in the cache", || paths.iter().all(|p| c.serves(8742, p)).then_some(()));
}

#[test]
fn a_hung_daemon_is_restarted_by_the_watchdog() {
    let Some(c) = Container::installed() else { return };
    assert_ne!(c.show("flywheeld.service", "WatchdogUSec"), "0");
    c.write("/etc/systemd/system/flywheeld.service.d/soon.conf", "[Service]\nWatchdogSec=2s\n");
    c.ok("systemctl daemon-reload");
    let paths = pending(&c);
    let pid = c.show("flywheeld.service", "MainPID");
    // The watchdog leaves a daemon alone that works.
    assert_eq!(c.show("flywheeld.service", "NRestarts"), "0");
    at_rate(&c, "0");
    c.ok(&format!("kill -STOP {pid}"));
    until("a new one", || {
        (c.show("flywheeld.service", "NRestarts") == "1"
            && c.show("flywheeld.service", "ActiveState") == "active")
            .then_some(())
    });
    assert!(c.log().contains("Watchdog timeout"), "{}", c.log());
    all_arrive(&c, &paths);
    // There is no core dump that could contain the token.
    assert_eq!(c.run("find / -xdev -name 'core*' -newer /root/flywheel.deb -size +100k").out, "");
}

#[test]
fn a_reboot_with_paths_pending() {
    let Some(mut c) = Container::installed() else { return };
    let paths = pending(&c);
    // While something is pending, the service's own user delays the shutdown.
    let list = "busctl --json=short call org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager ListInhibitors";
    let inhibitors = until("an inhibitor", || Some(c.ok(list)).filter(|list| list.contains("flywheel")));
    assert!(inhibitors.contains("\"shutdown:sleep\"") && inhibitors.contains("\"delay\""), "{inhibitors}");
    assert!(!paths.iter().any(|p| c.serves(8742, p)));
    at_rate(&c, "0");
    c.reboot();
    all_arrive(&c, &paths);
    until("nothing is behind", || (c.status()["store"]["lag"] == 0).then_some(()));
    // With nothing pending, the shutdown is not delayed.
    until("no inhibitor", || (!c.ok(list).contains("flywheel")).then_some(()));
}

#[test]
fn the_socket_unit_starts_the_daemon() {
    let Some(c) = Container::installed() else { return };
    assert_eq!(
        c.ok("systemctl is-active flywheeld.socket; systemctl is-enabled flywheeld.socket"),
        "active\nenabled"
    );
    assert_eq!(c.ok("stat -c '%a %G' /run/flywheel/control.sock"), "660 flywheel");
    c.ok("systemctl stop flywheeld.service 2>/dev/null");
    assert_eq!(c.run("systemctl is-active flywheeld.service").out, "inactive\n");
    // Connecting starts the daemon, and SO_PEERCRED names the caller also on systemd's socket.
    let session = c.ok_as("job", "flywheelctl --strict session start");
    assert_eq!(c.ok("systemctl is-active flywheeld.service"), "active");
    assert!(c.ok("journalctl -o json -u flywheeld FLYWHEEL_UID=$(id -u job)").contains(&session));
    // The socket file stays over a restart.
    let inode = c.ok("stat -c %i /run/flywheel/control.sock");
    c.ok("systemctl restart flywheeld.service");
    assert_eq!(c.ok("stat -c %i /run/flywheel/control.sock"), inode);
    // Without the socket unit the daemon makes its own socket.
    c.ok("systemctl stop flywheeld.socket flywheeld.service && systemctl mask --runtime --now flywheeld.socket 2>/dev/null");
    c.ok("systemctl start flywheeld.service");
    assert_eq!(c.ok("stat -c '%a %G' /run/flywheel/control.sock"), "660 flywheel");
    c.ok_as("job", "flywheelctl --strict status >/dev/null");
}

/// systemd holds the port of the built-in cache: nobody else can listen there while the daemon is
/// stopped, and a reader starts it.
#[test]
fn the_socket_unit_of_the_built_in_cache_holds_its_port() {
    let Some(c) = Container::installed() else { return };
    assert_eq!(c.run("systemctl is-enabled flywheeld-cache.socket").out, "disabled\n");
    let path = c.build_as("job", "held", "echo held > $out");
    until("it is in the cache", || c.serves(8742, &path).then_some(()));
    c.ok("systemctl stop flywheeld.socket flywheeld.service 2>/dev/null");
    c.ok("systemctl enable --now flywheeld-cache.socket flywheeld.socket 2>/dev/null");
    assert_eq!(c.run("systemctl is-active flywheeld.service").out, "inactive\n");
    let stranger = "perl -MIO::Socket::INET -e 'exit !IO::Socket::INET->new(LocalAddr => \"127.0.0.1:8742\", Listen => 1)'";
    assert_ne!(c.run_as("guest", stranger).code, 0, "the port is taken");
    assert!(c.serves(8742, &path), "a reader starts the daemon");
    assert_eq!(c.ok("systemctl is-active flywheeld.service"), "active");
    // Both sockets were passed, and the daemon tells them apart.
    c.ok_as("job", "flywheelctl --strict status >/dev/null");
    let next = c.build_as("job", "next", "echo next > $out");
    until("it is in the cache as well", || c.serves(8742, &next).then_some(()));
}

/// Jobs that connect do not start it again and again.
#[test]
fn a_bad_configuration_waits_for_the_administrator() {
    let Some(c) = Container::installed() else { return };
    c.write("/etc/flywheel/flywheel.toml.d/mine.toml", "nonsense = 1\n");
    c.run("systemctl restart flywheeld.service");
    let starts = || {
        c.ok("journalctl --sync; journalctl -u flywheeld.service -o cat")
            .matches("Starting flywheeld.service")
            .count()
    };
    until("it has failed", || (c.show("flywheeld.service", "ActiveState") == "failed").then_some(()));
    until("the socket is closed", || (c.show("flywheeld.socket", "ActiveState") == "inactive").then_some(()));
    let before = starts();
    assert!(before <= 4, "{}", c.log());
    for _ in 0..5 {
        let said = c.run_as("job", "flywheelctl session start");
        assert!(said.code == 0 && said.err.contains("no flywheel daemon"), "{said:?}");
    }
    assert_eq!(starts(), before, "{}", c.log());
    let doctor = c.run("flywheelctl doctor");
    assert_eq!(doctor.code, 5, "{doctor:?}");
    assert!(
        doctor.out.contains("its configuration cannot be used") && doctor.out.contains("nonsense"),
        "{doctor:?}"
    );
    // One command of the administrator starts both again.
    c.ok("rm /etc/flywheel/flywheel.toml.d/mine.toml && systemctl restart flywheeld");
    assert_eq!(c.show("flywheeld.socket", "ActiveState"), "active");
    c.ok_as("job", "flywheelctl status >/dev/null");
}

/// Who may read the journal sees a session's entries with their explanations.
#[test]
fn logs_shows_the_journal_of_a_session() {
    let Some(c) = Container::installed() else { return };
    let session = c.ok_as(
        "job",
        "flywheelctl session start --label of-logs --anchor-pid $$ && flywheelctl session end >/dev/null",
    );
    let shown = until("it is written", || {
        let shown = c.ok(&format!("journalctl --sync; flywheelctl logs {session} --explain"));
        shown.contains("watch-store pushed 0").then_some(shown)
    });
    assert!(shown.contains(&session) && shown.contains("Subject: Session"), "{shown}");
    assert!(!shown.contains("is ready at"), "only its own entries: {shown}");
    assert!(c.ok("flywheelctl logs").contains("is ready at"));
    let refused = c.run_as("job", "flywheelctl logs");
    assert_eq!(refused.code, 5, "{refused:?}");
    assert!(refused.err.contains("systemd-journal"), "{refused:?}");
    c.ok("usermod -aG systemd-journal job");
    assert!(c.ok_as("job", "flywheelctl logs").contains("is ready at"));
}

#[test]
fn systemctl_reload_reports_the_result() {
    let Some(c) = Container::installed() else { return };
    let own =
        |c: &Container| (c.show("flywheeld.service", "MainPID"), c.show("flywheeld.service", "ActiveState"));
    let good = "[history]\nkeep = \"1d\"\n[client]\nenable = false\n";
    let before = own(&c);
    c.write("/etc/flywheel/flywheel.toml", good);
    c.ok("systemctl reload flywheeld");
    c.write("/etc/flywheel/flywheel.toml", "nonsense = 1\n");
    assert_ne!(c.run("systemctl reload flywheeld").code, 0, "{}", c.log());
    assert!(c.log().contains("nonsense"), "{}", c.log());
    c.ok_as("job", "flywheelctl --strict status >/dev/null");
    assert_eq!(own(&c), before);

    // With notify-reload systemd sends a signal and waits until the daemon reports that it is
    // ready again.
    c.write("/etc/flywheel/flywheel.toml", good);
    c.ok("install -D -m 0644 /usr/share/doc/flywheel/examples/notify-reload.conf -t /etc/systemd/system/flywheeld.service.d");
    c.ok("systemctl daemon-reload && systemctl restart flywheeld");
    let before = own(&c);
    assert_eq!(c.show("flywheeld.service", "Type"), "notify-reload");
    c.ok("systemctl reload flywheeld");
    assert_eq!(own(&c), before);
    // The reason is in the log only, and nothing has changed.
    c.write("/etc/flywheel/flywheel.toml", "folly = 1\n");
    c.run("systemctl reload flywheeld");
    assert!(c.ok("journalctl --sync && journalctl -o json -u flywheeld").contains("folly"), "{}", c.log());
    assert_eq!(own(&c), before);
}
