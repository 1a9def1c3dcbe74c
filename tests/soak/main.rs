//! The soak test: for the given number of minutes all faults at the same time. Builds in sessions,
//! network faults, collections, kills and stops; the daemon's memory and descriptors are recorded.
//! Run by hand with `tests/soak.sh MINUTES`, which plots the record.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    dead_code
)]

mod faults;
#[path = "../it/support/mod.rs"]
mod support;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use faults::proxy::{Call, Fault, Kind};
use faults::{COLLECTED, Dice, Rig, set, until};

/// The exit statuses that `session end --strict` may have here: paths failed, paths pending, no
/// daemon.
const PARTLY: i32 = 3;
const PENDING: i32 = 4;
const NOBODY: i32 = 5;

/// The faults that uploads and questions meet, chosen at random.
const WEATHER: &[(&str, Fault)] = &[
    ("fair", Fault::Pass),
    ("fair", Fault::Pass),
    ("slow", Fault::Slow(200_000)),
    ("resets", Fault::Reset(5_000)),
    ("500", Fault::Answer(500, "")),
    ("503", Fault::Answer(503, "Retry-After: 1\r\n")),
    ("429", Fault::Answer(429, "Retry-After: 1\r\n")),
    ("413", Fault::Answer(413, "")),
    ("cut answers", Fault::Cut(10)),
    ("doubled answers", Fault::Double),
    ("no answers", Fault::Mute),
    ("stalls", Fault::Stall(4_096)),
    ("400", Fault::Answer(400, "")),
    ("401", Fault::Answer(401, "")),
];

fn main() {
    let mut args = std::env::args().skip(1);
    let minutes: f64 = args.next().and_then(|m| m.parse().ok()).unwrap_or_else(|| {
        eprintln!("usage: soak MINUTES TABLE");
        std::process::exit(2)
    });
    let table = PathBuf::from(args.next().unwrap_or_else(|| "soak.tsv".to_owned()));
    let end = Instant::now() + Duration::from_secs_f64(minutes * 60.0);
    let mut dice = Dice::new();
    let mut rig = Rig::with("stall_timeout = \"2s\"", "[drain]\ntimeout = \"3s\"");
    let (over, pid) = (AtomicBool::new(false), AtomicU32::new(rig.daemon.pid()));
    let done = Mutex::new(Done::default());
    std::thread::scope(|scope| {
        scope.spawn(|| sample(&over, &pid, &table, end));
        let site = rig.site.clone();
        // Sessions around builds, two at a time.
        for lane in 0..2_u64 {
            let (site, socket) = (site.clone(), rig.daemon.socket());
            let (over, done) = (&over, &done);
            let mut dice = Dice::like(&dice, lane);
            scope.spawn(move || {
                for turn in 0.. {
                    if over.load(Ordering::Acquire) {
                        return;
                    }
                    let (wide, long) = (1 + dice.below(3) as usize, 2 + dice.below(8) as usize);
                    let size = [200, 5_000, 50_000, 400_000][dice.below(4) as usize];
                    let build = set(&format!("lane{lane}-{turn}"), wide, long, size);
                    let status = faults::client(&socket, &["session", "start", "--label", "soak"]);
                    site.build(&build);
                    let session = status.out.trim().to_owned();
                    if !session.is_empty() {
                        // The session's anchor is this process, which lives on, so nothing else
                        // ends the session.
                        until("somebody hears of the session's end", || {
                            let end = ["--strict", "session", "end", &session, "--timeout", "3s"];
                            let code = faults::client(&socket, &end).code;
                            assert!([0, PARTLY, PENDING, NOBODY].contains(&code), "{session}: status {code}");
                            (code != NOBODY || over.load(Ordering::Acquire)).then_some(())
                        });
                    }
                    done.lock().unwrap().builds += 1;
                }
            });
        }
        // Nix's collector, now and then.
        let (collect, over_too, done_too) = (site.clone(), &over, &done);
        scope.spawn(move || {
            while !over_too.load(Ordering::Acquire) {
                let gc = collect.run("nix-collect-garbage", &[]);
                let said = String::from_utf8_lossy(&gc.stderr);
                match gc.status.code() {
                    Some(0) => done_too.lock().unwrap().collections += 1,
                    // The collector of Nix 2.8 sometimes aborts when another Nix is busy
                    // ("terminate called without an active exception"); that is not this test's
                    // concern.
                    None => {
                        eprintln!("the collector died ({}): {said}", gc.status);
                        done_too.lock().unwrap().collector_deaths += 1;
                    }
                    Some(_) => panic!("{}: {said}", gc.status),
                }
                std::thread::sleep(Duration::from_secs(3));
            }
        });
        while Instant::now() < end {
            let (name, fault) = WEATHER[dice.below(WEATHER.len() as u64) as usize];
            let mut lots = Dice::like(&dice, 7);
            rig.proxy.rule(move |call: &Call| {
                let hit = matches!(call.kind, Kind::Upload | Kind::Missing) && lots.below(3) == 0;
                // Only paths are refused for good, never questions.
                let for_good = matches!(name, "413" | "400");
                if hit && (call.kind == Kind::Upload || !for_good) { fault } else { Fault::Pass }
            });
            done.lock().unwrap().weather += 1;
            std::thread::sleep(Duration::from_millis(500 + dice.below(4_000)));
            if name == "401" {
                // As after a renewed token: otherwise the cache is asked only once a minute.
                rig.proxy.pass();
                rig.daemon.ctl(&["reload"]);
            }
            match dice.below(8) {
                0 => {
                    rig.daemon.kill();
                    rig.daemon.up();
                    done.lock().unwrap().kills += 1;
                }
                1 => {
                    rig.daemon.signal(rustix::process::Signal::TERM);
                    rig.daemon.ended();
                    rig.daemon.up();
                    done.lock().unwrap().stops += 1;
                }
                2 => {
                    rig.proxy.down();
                    std::thread::sleep(Duration::from_millis(dice.below(3_000)));
                    rig.proxy.up();
                    done.lock().unwrap().outages += 1;
                }
                _ => {}
            }
            pid.store(rig.daemon.pid(), Ordering::Release);
        }
        over.store(true, Ordering::Release);
        rig.proxy.pass();
    });
    assert_eq!(rig.daemon.ctl(&["reload"]).code, 0);
    rig.daemon.flush();
    until("a ledger with nothing unsettled", || rig.unsettled().is_empty().then_some(()));
    let items = rig.items();
    let mut gone = 0;
    for base in rig.site.built() {
        if items.get(&base).is_none_or(|item| item.state == COLLECTED) {
            assert!(!rig.daemon.nix.store_dir().join(&base).exists(), "{base} is there and was not taken in");
            rig.site.forget(&base);
            gone += 1;
        }
    }
    rig.whole(|_| None);
    let done = done.into_inner().unwrap();
    println!("{done:?}");
    println!(
        "{} paths in the cache, byte for byte; {gone} collected before they were seen",
        rig.site.built().len()
    );
    println!("{} requests; the table: {}", rig.proxy.seen().calls.len(), table.display());
}

#[derive(Debug, Default)]
struct Done {
    builds: u32,
    collections: u32,
    collector_deaths: u32,
    weather: u32,
    kills: u32,
    stops: u32,
    outages: u32,
}

/// Twice a second: seconds, MiB resident, open descriptors, threads, start time of the process.
fn sample(over: &AtomicBool, pid: &AtomicU32, table: &std::path::Path, end: Instant) {
    let begin = Instant::now();
    let mut text = String::from("#seconds\tMiB\tdescriptors\tthreads\tpid\n");
    while !over.load(Ordering::Acquire) || Instant::now() < end {
        let pid = pid.load(Ordering::Acquire);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            status.lines().find_map(|l| l.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
        };
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or(0);
        if let (Some(kib), Some(threads)) = (field("VmRSS:"), field("Threads:")) {
            let (at, mib) = (begin.elapsed().as_secs_f64(), kib as f64 / 1024.0);
            let _ = writeln!(text, "{at:.1}\t{mib:.1}\t{descriptors}\t{threads}\t{pid}");
            std::fs::write(table, &text).unwrap();
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
