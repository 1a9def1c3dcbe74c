//! Uploads that end without a verdict: the body was sent, and no answer of the cache came. The cache
//! is asked before such a path is sent again, and nothing else suffers.

use std::time::Duration;

use super::proxy::{Call, Fault, Kind, Proxy};
use super::{Rig, met, set, until, upload_of};

fn rig() -> Rig {
    let rig = Rig::with("stall_timeout = \"1s\"", "");
    rig.site.build(&set("before", 1, 5, 20_000));
    rig.whole(|_| None);
    rig
}

/// The cache's breaker stayed open, whatever happened to single uploads.
fn assert_never_away(rig: &Rig) {
    assert_eq!(rig.daemon.status()["cache"][0]["state"], "online");
    rig.daemon.assert_logged(0, "does not answer");
    rig.daemon.assert_logged(0, "has not answered");
}

/// The server stores each path and is slower than the daemon waits, or than a proxy does.
#[test]
fn a_path_that_was_stored_is_not_sent_again() {
    for instead in [None, Some(504)] {
        let rig = rig();
        rig.proxy.rule(move |call| match call.kind {
            Kind::Upload if call.before == 0 => Fault::Stored(instead),
            _ => Fault::Pass,
        });
        rig.site.build(&set("during", 2, 3, 200_000));
        rig.proxy.until("the fault is met", met(2));
        rig.whole(|_| None);
        let during = |proxy: &Proxy| {
            let seen = proxy.seen();
            seen.uploads().filter(|call| call.path[33..].starts_with("during")).count()
        };
        assert_eq!(during(&rig.proxy), 6, "each path was sent once: {instead:?}");
        assert_never_away(&rig);
    }
}

/// A proxy gives up on one path each time, and the cache never gets it. The waits between the tries
/// take minutes; a reload ends each of them.
#[test]
fn a_path_that_never_arrives_fails_and_costs_no_other() {
    let rig = rig();
    let is_lost = |call: &Call| upload_of(call, |name| name == "during-0");
    rig.proxy.rule(move |call| if is_lost(call) { Fault::Lost(504) } else { Fault::Pass });
    rig.site.build(&set("during", 2, 3, 20_000));
    for tries in 1..=5 {
        let status = until("the try has ended", || {
            let status = rig.daemon.status();
            (status["cache"][0]["counts"]["failures"] == tries).then_some(status)
        });
        if tries < 5 {
            assert_eq!(status["queue"]["failed"], 0, "nothing fails so soon: {status}");
            assert_eq!(rig.daemon.ctl(&["reload"]).code, 0);
        }
    }
    rig.whole(|name| match name {
        "during-0" => Some("no-verdict"),
        name => name.starts_with("during-0-").then_some("reference"),
    });
    let calls = rig.proxy.seen().calls;
    let sent: Vec<usize> = (0..calls.len()).filter(|n| is_lost(&calls[*n])).collect();
    assert_eq!(sent.len(), 5, "a handful of tries");
    for pair in sent.windows(2) {
        let asked = calls[pair[0]..pair[1]].iter().any(|call| call.kind == Kind::Missing);
        assert!(asked, "the cache is asked before the path is sent again");
    }
    assert_never_away(&rig);
    let reason = rig.daemon.status()["failed"].to_string();
    assert!(reason.contains("504") && reason.contains("proxy_read_timeout"), "what to look at: {reason}");
    rig.proxy.pass();
    assert_eq!(rig.daemon.ctl(&["reload"]).code, 0);
    rig.whole(|_| None);
    rig.nothing_twice();
}

/// A server that needs longer for a path than the daemon waits at first, and that drops a request
/// whose client has left, as atticd does.
#[test]
fn patience_grows_until_a_slow_server_has_stored_the_path() {
    let rig = rig();
    rig.proxy.rule(|call| {
        let slow = upload_of(call, |name| name == "during-0");
        if slow { Fault::Late(Duration::from_millis(1_500)) } else { Fault::Pass }
    });
    rig.site.build(&set("during", 2, 3, 20_000));
    rig.whole(|_| None);
    let seen = rig.proxy.seen();
    let tries: Vec<_> = seen.uploads().filter(|call| upload_of(call, |name| name == "during-0")).collect();
    assert!((2..=3).contains(&tries.len()), "{tries:?}");
    assert_never_away(&rig);
    rig.nothing_twice();
}
