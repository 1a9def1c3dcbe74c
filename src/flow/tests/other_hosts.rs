//! Many hosts that build the same paths, the last of them a large one, over lines of the
//! same speed: how much they send of it in all.

use std::collections::HashMap;
use std::time::Duration;

use super::super::{Action, CacheLimits, Event, Flow, NewPush};
use super::sim::{Server, Sim};
use super::{admit, push};
use crate::types::{Mono, PushId};

const MAIN: crate::types::CacheId = super::MAIN;
const SMALL: PushId = 60;
const LARGE: PushId = 1_000;
const NAR: u64 = 200 << 20;
/// How long one host alone sends the large path.
const UPLOAD: Duration = Duration::from_secs(8);
const ANSWER: Duration = Duration::from_millis(5);

struct Cache {
    /// From when on each path is there.
    there: HashMap<PushId, Mono>,
    /// When the first of the uploads of the large path that have begun will be done.
    first: Option<Mono>,
    /// What was sent of the large path: 1 is all of it.
    sent: f64,
    /// When each host knew that the large path is there.
    done: Vec<Option<Mono>>,
}

impl Cache {
    fn has(&self, id: PushId, now: Mono) -> bool {
        self.there.get(&id).is_some_and(|at| *at <= now)
    }

    /// The end of an upload of the large path that begins now.
    fn upload(&mut self, now: Mono) -> (Mono, Event) {
        let end = now.after(UPLOAD);
        if self.has(LARGE, now) {
            return (now.after(ANSWER), Event::Arrived(LARGE));
        }
        let first = *self.first.get_or_insert(end);
        // The daemon asks again after each second or tenth of the time.
        let mut asks = now;
        while asks < end {
            asks = asks.after((asks.since(now) / 10).max(Duration::from_secs(1)));
            if asks >= first && asks < end {
                self.sent += asks.since(now).as_secs_f64() / UPLOAD.as_secs_f64();
                return (asks, Event::Arrived(LARGE));
            }
        }
        self.sent += 1.0;
        (end, Event::Uploaded(LARGE, UPLOAD))
    }
}

impl Server for Cache {
    fn request(&mut self, _host: usize, action: &Action, now: Mono) -> Option<(Mono, Event)> {
        Some(match action {
            Action::Ask(cache, ids) => {
                let (present, missing) = ids.iter().partition(|id| self.has(**id, now));
                (now.after(ANSWER), Event::Asked { cache: *cache, present, missing })
            }
            Action::Upload(_, LARGE, _) => self.upload(now),
            Action::Upload(_, id, _) => (now.after(4 * ANSWER), Event::Uploaded(*id, 4 * ANSWER)),
            Action::Probe(cache) => (now.after(ANSWER), Event::Probed(*cache, Ok(()))),
            _ => return None,
        })
    }

    fn ended(&mut self, host: usize, event: &Event, now: Mono) {
        match event {
            Event::Uploaded(id, _) => {
                let at = self.there.entry(*id).or_insert(now);
                *at = now.min(*at);
                if *id == LARGE {
                    self.done[host] = Some(now);
                }
            }
            Event::Arrived(LARGE) => self.done[host] = Some(now),
            Event::Asked { present, .. } if present.contains(&LARGE) => self.done[host] = Some(now),
            _ => {}
        }
    }
}

/// Whether the hosts have built the paths, or only have them.
#[derive(Clone, Copy, PartialEq)]
enum Paths {
    Built,
    Fetched,
}

/// What was sent of the large path, and how many seconds after its build the first and the
/// last host knew that it is there.
fn run(hosts: usize, paths: Paths, seed: u64, awaited: bool) -> (f64, f64, f64) {
    let flows = (0..hosts)
        .map(|n| Flow::new(&[CacheLimits { least: 2, most: 64 }], seed * 1_000 + n as u64))
        .collect();
    let server = Cache { there: HashMap::new(), first: None, sent: 0.0, done: vec![None; hosts] };
    let mut sim = Sim::new(flows, server);
    let new = |id, nar_size| NewPush { nar_size, built: paths == Paths::Built, ..push(id, &[], &[1]) };
    for host in 0..hosts {
        // Hosts differ by up to half a second in when a build is done.
        let late = |id: PushId| (id as u64 * 7_919 + host as u64 * 104_729 + seed * 1_299_709) % 500;
        for id in 1..=SMALL {
            sim.at(Mono(id as u64 * 200 + late(id)), host, admit(vec![new(id, 1_000)]));
        }
        // All end the large build in the same millisecond.
        sim.at(Mono(20_000), host, admit(vec![new(LARGE, NAR)]));
        if awaited {
            sim.at(Mono(20_001), host, Event::Flush(1));
        }
    }
    sim.run(Mono(600_000));
    let done: Vec<f64> =
        sim.server.done.iter().map(|at| at.unwrap().since(Mono(20_000)).as_secs_f64()).collect();
    let first = done.iter().copied().fold(f64::MAX, f64::min);
    (sim.server.sent, first, done.iter().copied().fold(0.0, f64::max))
}

fn average(hosts: usize, paths: Paths, awaited: bool) -> (f64, f64, f64) {
    let runs: Vec<_> = (0..20).map(|seed| run(hosts, paths, seed, awaited)).collect();
    let mean = |of: fn(&(f64, f64, f64)) -> f64| runs.iter().map(of).sum::<f64>() / runs.len() as f64;
    (mean(|run| run.0), mean(|run| run.1), mean(|run| run.2))
}

#[test]
fn eight_hosts_send_a_large_path_about_twice() {
    let (sent, first, last) = average(8, Paths::Built, false);
    assert!(sent < 2.2, "{sent} times the path");
    assert!(first < 2.0 * UPLOAD.as_secs_f64(), "{first} s until it is there");
    assert!(last < 7.0 * UPLOAD.as_secs_f64(), "{last} s until all know it");
    let (before, ..) = average(8, Paths::Fetched, false);
    assert!(before > 7.9, "without a sign of other hosts all begin at once: {before}");
}

#[test]
fn a_hundred_hosts_send_a_large_path_about_ten_times() {
    let (sent, first, _) = average(100, Paths::Built, false);
    assert!(sent < 12.0, "{sent} times the path");
    assert!(first < 2.0 * UPLOAD.as_secs_f64(), "{first} s until it is there");
}

#[test]
fn a_lone_host_and_a_job_that_waits_for_the_path_alone_lose_no_time() {
    let alone = UPLOAD.as_secs_f64() + 2.0 * ANSWER.as_secs_f64();
    let (sent, first, _) = average(1, Paths::Built, false);
    assert!(sent <= 1.0 && first <= alone, "{sent} times, {first} s");
    let (_, _, last) = average(8, Paths::Built, true);
    assert!(last <= 1.01 * alone, "{last} s");
}

#[test]
fn a_caller_that_comes_later_ends_the_wait() {
    let mut flow = Flow::new(&[CacheLimits { least: 2, most: 64 }], 3);
    let large = |id| NewPush { nar_size: NAR, built: true, ..push(id, &[], &[1]) };
    let all = |ids: &[PushId]| Event::Asked { cache: MAIN, present: ids.to_vec(), missing: Vec::new() };
    let small: Vec<PushId> = (1..=20).collect();
    let built = |id: &PushId| NewPush { built: true, ..push(*id, &[], &[]) };
    flow.step(admit(small.iter().map(built).collect()), Mono(1));
    flow.step(all(&small), Mono(10));
    flow.step(admit(vec![large(LARGE)]), Mono(20));
    flow.step(super::missing([LARGE]), Mono(30));
    assert!(matches!(super::phase(&flow, LARGE), Some(super::Phase::Resting(_))), "it waits for its moment");
    let asked = flow.step(Event::Flush(1), Mono(40));
    assert!(asked.contains(&Action::Ask(MAIN, vec![LARGE])), "{asked:?}");
    let begun = flow.step(super::missing([LARGE]), Mono(50));
    assert_eq!(super::uploads(&begun), [LARGE]);
}
