//! A thousand daemons, and a server that is away for a minute.
//!
//! Figures. During the outage each daemon probes at most once in 90 ms and on
//! average once in 495 ms (the cap is 900 ms, the jitter begins at a tenth of
//! it). A thousand daemons make about 2,000 probes a second, and fewer than
//! 2,500 in any second. After the outage, which all notice within a second,
//! there is work for five seconds at full capacity. A daemon that is refused for
//! lack of room waits up to 8 s: fewer than five requests a second of each
//! daemon are refused, in all fewer than two for every three that are served,
//! and the server is never idle.
//!
//! A server that answers probes but refuses the work gets less than one upload a
//! second of each daemon, however long the queues are.

use crate::types::Mono;
use std::time::Duration;

use super::super::{Action, CacheLimits, Event, Failure, Flow};
use super::sim::{Server, Sim};
use super::{admit, missing, push};

const HOSTS: usize = 1_000;
const PATHS: usize = 20;
const BACK: Mono = Mono(60_000);
/// Requests that the server handles at a time. An upload takes 50 ms, which makes
/// 4,000 a second.
const ROOM: usize = 200;

struct Host {
    probed_since: bool,
    first_try_ok: bool,
    first_upload: Option<Mono>,
    done: usize,
}

/// The server's behaviour until [`BACK`].
#[derive(Clone, Copy)]
enum Before {
    Away,
    /// It answers probes and queries, and refuses every upload with a transient error.
    Overloaded,
}

struct Crowded {
    before: Before,
    hosts: Vec<Host>,
    running: usize,
    probes: Vec<u32>,
    refused: Vec<u32>,
    served: Vec<u32>,
    finished: Mono,
}

fn good(action: &Action) -> Option<(Event, u64)> {
    Some(match action {
        Action::Ask(_, ids) => (missing(ids.clone()), 5),
        Action::Upload(_, id, _) => (Event::Uploaded(*id, super::TOOK), 50),
        Action::Probe(c) => (Event::Probed(*c, Ok(())), 5),
        _ => return None,
    })
}

fn failed(action: &Action, failure: Failure) -> Event {
    match action {
        Action::Ask(cache, _) => Event::AskFailed { cache: *cache, failure },
        Action::Upload(_, id, _) => Event::UploadFailed(*id, failure),
        Action::Probe(cache) => Event::Probed(*cache, Err(failure)),
        other => panic!("not a request: {other:?}"),
    }
}

impl Server for Crowded {
    fn request(&mut self, host: usize, action: &Action, now: Mono) -> Option<(Mono, Event)> {
        let second = (now.0 / 1_000) as usize;
        match action {
            Action::Upload(..) if now >= BACK => {
                self.hosts[host].first_upload.get_or_insert(now);
            }
            Action::Probe(_) => self.probes[second] += 1,
            _ => {}
        }
        let (good, ms) = good(action)?;
        let after = |ms| now.after(Duration::from_millis(ms));
        let probe = matches!(action, Action::Probe(_));
        if now < BACK {
            return Some(match self.before {
                Before::Away => (after(2), failed(action, Failure::Unreachable)),
                Before::Overloaded if !matches!(action, Action::Upload(..)) => (after(ms), good),
                Before::Overloaded => {
                    self.refused[second] += 1;
                    (after(2), failed(action, Failure::Transient { retry_after: None }))
                }
            });
        }
        let first = probe && !std::mem::replace(&mut self.hosts[host].probed_since, true);
        if self.running >= ROOM {
            self.refused[second] += 1;
            return Some((after(2), failed(action, Failure::Transient { retry_after: None })));
        }
        if probe {
            self.hosts[host].first_try_ok |= first;
        }
        self.running += 1;
        self.served[second] += 1;
        Some((after(ms), good))
    }

    fn ended(&mut self, host: usize, event: &Event, now: Mono) {
        match event {
            Event::Uploaded(_, _) => {
                self.running = self.running.saturating_sub(1);
                self.hosts[host].done += 1;
                self.finished = now;
            }
            // Requests before the return were not counted.
            Event::Asked { .. } | Event::Probed(_, Ok(())) => self.running = self.running.saturating_sub(1),
            _ => {}
        }
    }
}

fn run(before: Before, hosts: usize, paths: usize) -> Sim<Crowded> {
    let count = hosts;
    let hosts = (0..count).map(|n| Flow::new(&[CacheLimits { least: 2, most: 8 }], n as u64)).collect();
    let host = || Host { probed_since: false, first_try_ok: false, first_upload: None, done: 0 };
    let server = Crowded {
        before,
        hosts: (0..count).map(|_| host()).collect(),
        running: 0,
        probes: vec![0; 400],
        refused: vec![0; 400],
        served: vec![0; 400],
        finished: Mono(0),
    };
    let mut sim = Sim::new(hosts, server);
    for host in 0..count {
        // All begin at the same moment, so that only the jitter spreads them.
        let pushes = (1..=paths as i64).map(|id| push(id, &[], &[])).collect();
        sim.at(Mono(0), host, admit(pushes));
    }
    sim.run(Mono(300_000));
    assert!(sim.server.hosts.iter().all(|h| h.done == paths), "everything arrives");
    sim
}

#[test]
fn a_thousand_daemons_survive_an_outage_of_a_minute() {
    let sim = run(Before::Away, HOSTS, PATHS);
    let s = &sim.server;
    let worst = s.probes[5..60].iter().max().unwrap();
    assert!(*worst < 2_500, "{worst} probes in one second of the outage");

    let (refused, served) = (s.refused.iter().sum::<u32>(), s.served.iter().sum::<u32>());
    assert!(s.refused.iter().all(|n| *n < 5 * HOSTS as u32), "less than five a second of each daemon");
    assert!(refused < served * 2 / 3, "{refused} refused for {served} served");
    assert!(s.served[60..64].iter().all(|n| *n > 4_000), "the server is kept busy");
    assert!(s.finished < Mono(BACK.0 + 30_000), "done at {:?}", s.finished);

    let answered = || s.hosts.iter().filter(|h| h.first_try_ok);
    assert!(answered().count() > 50, "some find room at once");
    let late: Vec<_> = answered()
        .filter(|h| h.first_upload.is_none_or(|at| at.0 > BACK.0 + 1_000))
        .map(|h| h.first_upload)
        .collect();
    assert!(
        late.is_empty(),
        "{late:?}: each daemon whose probe was answered uploads within a second of the return"
    );
}

#[test]
fn a_server_that_answers_probes_but_not_the_work_gets_few_uploads() {
    // Long queues, so that the load is not low for lack of work.
    let sim = run(Before::Overloaded, 100, 1_000);
    let s = &sim.server;
    let worst = s.refused[20..60].iter().max().unwrap();
    assert!(*worst < 100, "{worst} uploads refused in one second, of 100 daemons");
    assert!(s.finished < Mono(BACK.0 + 60_000), "done at {:?}", s.finished);
}
