//! The concurrency limit against models of servers, on simulated time. What
//! counts in the end is the benchmark against real servers; here each kind of
//! server is met in a moment and always in the same way.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use super::super::concurrency::{ConcurrencyLimit, Round};
use super::super::retry::Rng;
use crate::types::Mono;

/// How a server spends its time on an upload. All times are in microseconds.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// SQLite: a part in parallel on two processors, then one write at a time,
    /// which takes longer by 2 % for each that waits.
    Serial,
    /// The built-in cache: so long on one of two processors, then commits of everything that is
    /// ready, each of which takes so long.
    GroupCommit(u64, u64),
    /// So many workers, each needing so long.
    Workers(usize, u64),
}

/// A built-in cache on a busy machine with a slow disk.
const SLOW_COMMIT: Kind = Kind::GroupCommit(1_400, 2_000);
/// One on a machine that has nothing else to do.
const QUICK_COMMIT: Kind = Kind::GroupCommit(250, 500);

#[derive(Debug, Clone, Copy)]
struct Scenario {
    name: &'static str,
    kind: Kind,
    round_trip: u64,
    uploads: usize,
    /// From, until, and how many times slower meanwhile.
    slow: Option<(u64, u64, u64)>,
    /// Answers 429 to more than so many a second.
    rate: Option<u64>,
}

struct Server {
    kind: Kind,
    /// When each processor or worker is free.
    free: BinaryHeap<Reverse<u64>>,
    /// When the lock, or the commit that runs, is free.
    lock: u64,
    /// When the commit after it ends, if one is to follow.
    next: u64,
}

impl Server {
    fn new(kind: Kind) -> Self {
        let workers = if let Kind::Workers(workers, _) = kind { workers } else { 2 };
        Self { kind, free: (0..workers).map(|_| Reverse(0)).collect(), lock: 0, next: 0 }
    }

    /// When an upload that arrives now is done. Uploads arrive in order.
    fn done(&mut self, now: u64, factor: u64, noise: u64) -> u64 {
        let work = match self.kind {
            Kind::Serial => 3_000,
            Kind::GroupCommit(work, _) => work,
            Kind::Workers(_, each) => each,
        };
        let Reverse(free) = self.free.pop().unwrap();
        // 75 to 125 %.
        let worked = now.max(free) + work * factor * (75 + noise % 51) / 100;
        self.free.push(Reverse(worked));
        match self.kind {
            Kind::Workers(..) => worked,
            Kind::Serial => {
                let waiting = self.lock.saturating_sub(worked) / 2_500;
                let start = worked.max(self.lock);
                self.lock = start + 2_500 * factor * (100 + (2 * waiting).min(100)) / 100;
                self.lock
            }
            Kind::GroupCommit(_, commit) => {
                if worked >= self.next {
                    self.lock = worked;
                    self.next = worked + commit * factor;
                    return self.next;
                }
                // The commit that runs ends at `next`; this one joins the one after.
                if self.lock < self.next && worked > self.lock {
                    self.lock = self.next;
                    self.next = self.lock + commit * factor;
                }
                self.next
            }
        }
    }
}

/// One upload that comes back: when, which, its beginning and its round, and
/// whether it was refused.
type Back = Reverse<(u64, usize, u64, Round, bool)>;

/// Microseconds until all uploads are confirmed.
fn run(scenario: Scenario, mut limit: ConcurrencyLimit) -> u64 {
    let mut server = Server::new(scenario.kind);
    let mut rng = Rng::new(7);
    let (mut now, mut under_way, mut connections, mut done) = (0, 0_u32, 0_u32, 0);
    let mut ready: VecDeque<usize> = (0..scenario.uploads).collect();
    let mut back: BinaryHeap<Back> = BinaryHeap::new();
    let mut resting: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
    let mut bucket = (0, 20_000_000);
    limit.round_trip(Duration::from_micros(scenario.round_trip + 1_500));
    while done < scenario.uploads {
        while under_way < limit.limit() {
            let Some(upload) = ready.pop_front() else { break };
            let round = limit.began(Mono(now / 1000), under_way);
            under_way += 1;
            let mut sent = now + scenario.round_trip / 2;
            if under_way > connections {
                connections += 1;
                sent += 2 * scenario.round_trip;
            }
            let factor =
                scenario.slow.map_or(1, |(from, until, f)| if (from..until).contains(&now) { f } else { 1 });
            // A bucket of 20 that is refilled at the rate, in millionths.
            let refused = scenario.rate.is_some_and(|rate| {
                bucket.1 = (bucket.1 + (now - bucket.0) * rate).min(20_000_000);
                bucket.0 = now;
                let refused = bucket.1 < 1_000_000;
                bucket.1 -= if refused { 0 } else { 1_000_000 };
                refused
            });
            let answered = if refused { sent + 500 } else { server.done(sent, factor, rng.below(u64::MAX)) };
            back.push(Reverse((answered + scenario.round_trip / 2, upload, now, round, refused)));
        }
        let next_rest = resting.peek().map_or(u64::MAX, |Reverse((at, _))| *at);
        if back.peek().is_none_or(|Reverse((at, ..))| *at > next_rest) {
            let Reverse((at, upload)) = resting.pop().unwrap();
            now = now.max(at);
            ready.push_back(upload);
            continue;
        }
        let Reverse((at, upload, began, round, refused)) = back.pop().unwrap();
        now = at;
        let held_back = !ready.is_empty() && under_way >= limit.limit();
        under_way -= 1;
        if refused {
            limit.strained(Mono(now / 1000), round, true);
            resting.push(Reverse((now + 1_000_000, upload)));
        } else {
            done += 1;
            limit.succeeded(Mono(now / 1000), round, Duration::from_micros(now - began), held_back);
        }
    }
    now
}

/// What the limiter needs, relative to the best fixed number.
fn against_the_best(scenario: Scenario) -> (f64, u32) {
    let fixed = |n: u32| run(scenario, ConcurrencyLimit::new(n, n));
    let (best, n) = [1, 2, 4, 8, 16, 32, 64, 128].map(|n| (fixed(n), n)).into_iter().min().unwrap();
    let auto = run(scenario, ConcurrencyLimit::new(1, 256));
    let ratio =
        |a: u64, b: u64| Duration::from_micros(a).as_secs_f64() / Duration::from_micros(b).as_secs_f64();
    (ratio(auto, best), n)
}

#[test]
fn it_finds_the_knee_of_each_kind_of_server() {
    let base =
        Scenario { name: "", kind: Kind::Serial, round_trip: 0, uploads: 2_000, slow: None, rate: None };
    let scenarios = [
        Scenario { name: "serial, 0 ms", ..base },
        Scenario { name: "serial, 50 ms", round_trip: 50_000, ..base },
        Scenario { name: "group commit, 0 ms", kind: SLOW_COMMIT, ..base },
        Scenario { name: "quick commit, 0 ms", kind: QUICK_COMMIT, uploads: 1_000, ..base },
        Scenario {
            name: "quick commit, 20 ms",
            kind: QUICK_COMMIT,
            uploads: 1_000,
            round_trip: 20_000,
            ..base
        },
        Scenario {
            name: "quick commit, 50 ms",
            kind: QUICK_COMMIT,
            uploads: 1_000,
            round_trip: 50_000,
            ..base
        },
        Scenario {
            name: "quick commit, 100 ms",
            kind: QUICK_COMMIT,
            uploads: 1_000,
            round_trip: 100_000,
            ..base
        },
        Scenario { name: "group commit, 20 ms", kind: SLOW_COMMIT, round_trip: 20_000, ..base },
        Scenario {
            name: "group commit, 100 ms",
            kind: SLOW_COMMIT,
            round_trip: 100_000,
            uploads: 4_000,
            ..base
        },
        Scenario { name: "8 workers, 50 ms", kind: Kind::Workers(8, 8_000), round_trip: 50_000, ..base },
        Scenario { name: "128 workers of 300 ms", kind: Kind::Workers(128, 300_000), ..base },
        Scenario { name: "five times slower for a while", slow: Some((3_000_000, 8_000_000, 5)), ..base },
        Scenario {
            name: "429 above 200 a second, 50 ms",
            kind: SLOW_COMMIT,
            round_trip: 50_000,
            rate: Some(200),
            ..base
        },
        Scenario {
            name: "100 uploads at 100 ms",
            kind: SLOW_COMMIT,
            round_trip: 100_000,
            uploads: 100,
            ..base
        },
    ];
    let results = scenarios.map(|s| (s.name, against_the_best(s)));
    let count = results.iter().map(|_| 1.0).sum::<f64>();
    let mean = results.iter().map(|(_, (ratio, _))| ratio.ln()).sum::<f64>() / count;
    assert!(results.iter().all(|(_, (ratio, _))| *ratio < 1.5), "{results:#?}");
    assert!(mean.exp() < 1.1, "{} on average: {results:#?}", mean.exp());
}

#[test]
fn a_fixed_number_never_moves() {
    let mut limit = ConcurrencyLimit::new(5, 5);
    limit.round_trip(Duration::from_millis(200));
    for n in 0..200 {
        let round = limit.began(Mono(n), 4);
        limit.succeeded(Mono(n), round, Duration::from_millis(n), true);
        limit.strained(Mono(n), round, true);
        assert_eq!(limit.limit(), 5);
    }
    limit.restart();
    assert_eq!(limit.limit(), 5);
}

/// One path that fails each time must not slow down the others.
#[test]
fn one_failure_in_a_round_is_the_paths_own() {
    let mut limit = ConcurrencyLimit::new(1, 64);
    limit.round_trip(Duration::from_millis(100));
    let round = limit.began(Mono(0), 0);
    limit.strained(Mono(1), round, false);
    assert_eq!(limit.limit(), 64);
    limit.strained(Mono(2), round, false);
    assert_eq!(limit.limit(), 32, "the second one counts");
}

#[test]
fn many_failures_at_once_count_once() {
    let mut limit = ConcurrencyLimit::new(1, 64);
    limit.round_trip(Duration::from_millis(100));
    assert_eq!(limit.limit(), 64);
    let rounds: Vec<Round> = (0..64).map(|n| limit.began(Mono(0), n)).collect();
    rounds.into_iter().for_each(|round| limit.strained(Mono(100), round, true));
    assert_eq!(limit.limit(), 32);
    // One that began afterwards counts again.
    let later = limit.began(Mono(101), 3);
    limit.strained(Mono(200), later, true);
    assert_eq!(limit.limit(), 16);
}

#[test]
fn bounds_hold_whatever_happens() {
    let mut rng = Rng::new(3);
    for (least, most) in [(1, 1), (1, 2), (2, 16), (1, 256), (7, 9)] {
        let mut limit = ConcurrencyLimit::new(least, most);
        let mut now = 0;
        let mut round = 0;
        for _ in 0..5_000 {
            now += rng.below(u64::MAX) % 40_000;
            match rng.below(u64::MAX) % 8 {
                0 => limit.strained(Mono(now), round, rng.below(2) == 0),
                1 => limit.restart(),
                2 => limit.round_trip(Duration::from_micros(rng.below(u64::MAX) % 1_000_000)),
                3 => round = limit.began(Mono(now), 0),
                _ => {
                    round = limit.began(Mono(now), 1);
                    limit.succeeded(
                        Mono(now),
                        round,
                        Duration::from_micros(rng.below(u64::MAX) % 100_000),
                        true,
                    );
                }
            }
            assert!((least..=most).contains(&limit.limit()), "{limit:?}");
        }
    }
}
