//! Many daemons and one server in simulated time. A heap has the events to come,
//! so a run takes as long as its events, not as its simulated time.

use crate::types::Mono;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::super::{Action, Event, Flow};

/// The server that the daemons send requests to.
pub(super) trait Server {
    /// A request begins. Returns when it ends and with which event, or `None` if the
    /// action is not a request.
    fn request(&mut self, host: usize, action: &Action, now: Mono) -> Option<(Mono, Event)>;
    /// Is called before an event is delivered.
    fn ended(&mut self, _host: usize, _event: &Event, _now: Mono) {}
}

pub(super) struct Sim<S> {
    pub(super) hosts: Vec<Flow>,
    pub(super) server: S,
    pub(super) now: Mono,
    heap: BinaryHeap<Reverse<(Mono, u64, usize)>>,
    events: Vec<Option<Event>>,
    ticks: Vec<Option<Mono>>,
}

impl<S: Server> Sim<S> {
    pub(super) fn new(hosts: Vec<Flow>, server: S) -> Self {
        let ticks = vec![None; hosts.len()];
        Self { hosts, server, now: Mono(0), heap: BinaryHeap::new(), events: Vec::new(), ticks }
    }

    pub(super) fn at(&mut self, at: Mono, host: usize, event: Event) {
        self.heap.push(Reverse((at, self.events.len() as u64, host)));
        self.events.push(Some(event));
    }

    /// Runs until no event is left, or until `end`.
    pub(super) fn run(&mut self, end: Mono) {
        while let Some(&Reverse((at, number, host))) = self.heap.peek() {
            if at > end {
                break;
            }
            self.heap.pop();
            self.now = at;
            let Some(event) = self.events[number as usize].take() else { continue };
            if event == Event::Tick {
                if self.ticks[host] != Some(at) {
                    continue;
                }
                self.ticks[host] = None;
            }
            self.server.ended(host, &event, at);
            for action in self.hosts[host].step(event, at) {
                if let Some((then, event)) = self.server.request(host, &action, at) {
                    self.at(then, host, event);
                }
            }
            if let Some(due) = self.hosts[host].next_deadline() {
                assert!(due > at, "a deadline in the past: {due:?} at {at:?}");
                if self.ticks[host].is_none_or(|t| due < t) {
                    self.ticks[host] = Some(due);
                    self.at(due, host, Event::Tick);
                }
            }
        }
    }
}
