//! HTTP faults, one row of the table each. For each row five paths are built and pushed; the fault
//! begins and twenty more are built, until the fault was met as often as the row says; the fault
//! ends and five more are built. Then all thirty are in the cache, byte for byte, or have failed
//! with the reason that the row names and are pushed after a reload.
//!
//! The faults that stop `attic watch-store` are in `watch_store.rs`.

use super::proxy::{Call, Fault, Kind};
use super::{Rig, met, set, until, upload_of};

/// One row of the table.
struct Row {
    fault: Fault,
    /// Selects the requests that meet the fault.
    on: fn(&Call) -> bool,
    /// The number of times that the fault is met before it ends.
    times: usize,
    then: Then,
}

/// What happens after the fault has ended.
#[derive(Clone, Copy)]
enum Then {
    /// The daemon recovers without help.
    Heals,
    /// The daemon recovers after a reload; nothing has failed.
    Reload,
    /// The paths that met the fault have failed with this class, and their referrers with
    /// `reference`.
    Parks(&'static str),
}
use Then::{Heals, Parks, Reload};

macro_rules! rows {
    ($($name:ident: $fault:expr, $on:expr, $times:expr, $then:expr;)*) => {
        $(#[test] fn $name() { run(&Row { fault: $fault, on: $on, times: $times, then: $then }); })*
    };
}

rows! {
    reset_before_the_body: Fault::Reset(0), uploads, 6, Heals;
    reset_amid_the_body: Fault::Reset(9_000), uploads, 6, Heals;
    stalled_amid_the_body: Fault::Stall(4_096), uploads, 4, Heals;
    no_answer: Fault::Mute, uploads, 4, Heals;
    slow: Fault::Slow(100_000), uploads, 20, Heals;
    request_timeout_408: Fault::Answer(408, ""), uploads, 6, Heals;
    internal_error_500: Fault::Answer(500, ""), uploads, 6, Heals;
    bad_gateway_502: Fault::Answer(502, ""), uploads, 6, Heals;
    unavailable_503: Fault::Answer(503, ""), uploads, 6, Heals;
    too_many_requests_429: Fault::Answer(429, "Retry-After: 1\r\n"), uploads, 3, Heals;
    waits_as_problem_details_say_429: Fault::Problem(429, 1), uploads, 3, Heals;
    unauthorized_401: Fault::Answer(401, ""), uploads, 1, Reload;
    forbidden_403: Fault::Answer(403, ""), uploads, 1, Reload;
    too_large_413: Fault::Answer(413, ""), one_path, 1, Parks("too-large");
    no_such_cache_404: Fault::Answer(404, ""), one_path, 1, Parks("no-such-cache");
    bad_request_400: Fault::Answer(400, ""), one_path, 1, Parks("rejected");
    bad_hash_400_twice: Fault::BadHash, one_path, 2, Parks("mismatch");
    cut_before_the_answer: Fault::Cut(0), uploads, 6, Heals;
    cut_amid_the_answer: Fault::Cut(40), uploads, 6, Heals;
    answered_twice: Fault::Double, uploads, 20, Heals;
    flapping: Fault::Reset(0), every_other, 12, Heals;
    questions_reset: Fault::Reset(0), questions, 3, Heals;
    questions_muted: Fault::Mute, questions, 1, Heals;
    questions_500: Fault::Answer(500, ""), questions, 3, Heals;
    questions_cut: Fault::Cut(30), questions, 3, Heals;
    questions_401: Fault::Answer(401, ""), questions, 1, Reload;
    everything_503: Fault::Answer(503, "Retry-After: 0\r\n"), |_| true, 6, Heals;
}

fn uploads(call: &Call) -> bool {
    call.kind == Kind::Upload
}

fn questions(call: &Call) -> bool {
    call.kind == Kind::Missing
}

fn one_path(call: &Call) -> bool {
    upload_of(call, |name| name == "during-0")
}

fn every_other(call: &Call) -> bool {
    call.before.is_multiple_of(2)
}

fn run(row: &Row) {
    // The daemon notices a stall after this time, so that no test waits a minute for it.
    let rig = Rig::with("stall_timeout = \"1s\"", "");
    rig.site.build(&set("before", 1, 5, 20_000));
    rig.whole(|_| None);
    let (fault, on) = (row.fault, row.on);
    rig.proxy.rule(move |call| if on(call) { fault } else { Fault::Pass });
    rig.site.build(&set("during", 2, 10, 20_000));
    rig.proxy.until("the fault is met", met(row.times));
    match row.then {
        Heals => {}
        Reload => {
            let refused = || (rig.daemon.status()["cache"][0]["state"] == "unauthorized").then_some(());
            until("the refusal is seen", refused);
            assert_eq!(rig.daemon.status()["queue"]["parked"], 0);
        }
        Parks(class) => rig.whole(|name| match name {
            "during-0" => Some(class),
            name => name.starts_with("during-0-").then_some("reference"),
        }),
    }
    rig.proxy.pass();
    rig.site.build(&set("after", 1, 5, 20_000));
    if let Reload | Parks(_) = row.then {
        assert_eq!(rig.daemon.ctl(&["reload"]).code, 0);
    }
    rig.whole(|_| None);
    rig.nothing_twice();
}

/// Statuses that pass by themselves: of servers, of proxies, and of those before a server
/// (460: AWS; 499: nginx; 520 and above: Cloudflare).
const PASSING: [u16; 20] =
    [408, 409, 421, 423, 425, 429, 460, 499, 503, 520, 521, 522, 523, 524, 525, 526, 527, 528, 529, 530];

/// The first upload of each path meets another one.
#[test]
fn each_status_that_passes() {
    let rig = Rig::with("stall_timeout = \"1s\"", "");
    let mut statuses = PASSING.into_iter();
    rig.proxy.rule(move |call| match call {
        Call { kind: Kind::Upload, before: 0, .. } => {
            statuses.next().map_or(Fault::Pass, |status| Fault::Answer(status, ""))
        }
        _ => Fault::Pass,
    });
    rig.site.build(&set("during", 2, 10, 20_000));
    rig.proxy.until("each status was the answer", met(PASSING.len()));
    rig.whole(|_| None);
    rig.nothing_twice();
}
