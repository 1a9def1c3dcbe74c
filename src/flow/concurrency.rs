//! How many small uploads to one cache run at a time.
//!
//! A server that is not saturated answers an upload as quickly with eight
//! others under way as with four. From some number on, the *knee*, uploads wait
//! for each other at the server, and more of them at a time only make each one
//! slower. The limiter looks for the knee from outside: it compares how long
//! uploads take now with how long they took when few were under way.
//!
//! It works in rounds. A round is as many completed uploads as may be under way,
//! and says one thing: the lower quartile of their durations, with its
//! uncertainty. After each round in which the limit really held uploads back:
//!
//! - while starting, the number is multiplied by 2 to 3 as long as uploads take at
//!   most the *allowed* time: 1.25 times the *base*, which is the shortest quartile
//!   seen, or 5 ms more than the base, whichever is longer. The shorter the time,
//!   the larger the factor;
//! - afterwards it moves by `n × clamp(allowed ÷ time, 0.5, 1) + 0.7 × √n`
//!   (the step of Netflix's Gradient2 limiter, with the queue of Vegas as the
//!   measure);
//! - when uploads are slower than allowed, the limiter now and then lowers the
//!   number for one round. If uploads become clearly quicker, they were waiting
//!   for each other, and the number is halved as long as nearly as many uploads
//!   are done per second. If not, the server has become slower, and the slower
//!   time is the new base. Without this test a slow server looks like a full one.
//!
//! A request for a pause (429 or 503 with `Retry-After`) or the second failure
//! in a round halves the number, once for all uploads that were under way.
//!
//! Sources: Netflix, concurrency-limits (`VegasLimit`, `Gradient2Limit`);
//! L. Kleinrock on power (throughput over delay); BBR (the shortest round trip
//! as the base); RFC 5681 (slow start, multiplicative decrease).
//!
//! Must not know: what an upload is, how large it is, and which clock `now` is
//! read from. Large uploads are counted elsewhere, because their duration says
//! more about the line than about the server.

use std::time::Duration;

use crate::types::Mono;

/// An upload is as quick as one on an idle server while it takes at most this
/// many times the base…
const SLACK: f64 = 1.25;
/// …or at most this many seconds more. On a short line the time of an upload is
/// that of a few context switches, and a queue this long costs nobody anything,
/// while a server that has several uploads at hand commits them together.
const QUEUE: f64 = 0.005;
/// The limit grows by this many times its square root in a round.
const GROWTH: f64 = 0.7;
/// Uploads per second that the first limit is made for, at the round trip seen.
const FIRST_RATE: f64 = 2000.0;
/// Bounds of the first limit.
const FIRST: (f64, f64) = (8.0, 96.0);
/// Bounds of the factor by which the limit grows in a round while starting.
const START_GROWTH: (f64, f64) = (2.0, 3.0);
/// Fewest uploads in a round while starting, or with fewer than eight at a time.
const ROUND_SHORT: usize = 8;
/// Fewest uploads in any other round.
const ROUND: usize = 16;
/// The base is at most this many round trips and [`BASE_EXTRA`] seconds.
const BASE_ROUND_TRIPS: f64 = 3.0;
const BASE_EXTRA: f64 = 0.02;
/// How long after a test the next one may begin, and how soon when uploads have
/// been too slow for [`STUCK`] rounds.
const TEST_EVERY: Duration = Duration::from_secs(10);
const TEST_SOON: Duration = Duration::from_secs(2);
const STUCK: u32 = 3;
/// Up to this limit a slow round counts as stuck: above, the step alone brings
/// the number down.
const STUCK_BELOW: f64 = 16.0;
/// Uploads are clearly quicker when they take less than this part of before.
const QUICKER: f64 = 0.8;
/// A test goes on while at least this part of the uploads per second is left.
const KEPT: f64 = 0.92;
/// While it runs, a test does not go below this many.
const TEST_LEAST: f64 = 2.0;
/// After a failure the limit does not grow beyond three quarters of where it was…
const ROOF: f64 = 0.75;
/// …for this long.
const ROOF_FOR: Duration = Duration::from_secs(5);
/// After a pause of this length the connections are new, and the server may be
/// another one: the limiter starts again, with half of what it had.
const PAUSE: Duration = Duration::from_secs(30);
/// After a shorter pause only the round begins anew.
const SHORT_PAUSE: Duration = Duration::from_secs(1);

/// Tells in which round an upload began. Later rounds compare as greater.
pub(super) type Round = u32;

/// The number of small uploads that may run at a time to one cache.
#[derive(Debug, Clone)]
pub(super) struct ConcurrencyLimit {
    least: f64,
    most: f64,
    /// May run now; not rounded.
    limit: f64,
    /// What the limit began with.
    first: f64,
    phase: Phase,
    /// The next full round is on new connections and says nothing about latency.
    cold: bool,
    /// The shortest time of an upload, in seconds.
    base: Option<f64>,
    /// The largest base that a first round may set, in seconds.
    base_most: Option<f64>,
    /// The last round's time.
    last: Option<Time>,
    round: Round,
    /// Durations of this round's uploads, in seconds.
    taken: Vec<f64>,
    /// How many of these ended while the limit held others back.
    held_back: usize,
    /// Failures since this round began.
    failures: u32,
    /// Failures of uploads that began in this round or before count as one.
    failed_in: Option<Round>,
    /// No growth beyond `.0` until `.1`.
    roof: Option<(f64, Mono)>,
    tested_at: Mono,
    /// Slow rounds in a row.
    stuck: u32,
    /// When an upload last ended.
    ended_at: Option<Mono>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Phase {
    /// Is multiplied after each round.
    Starting,
    /// Moves a little with each round.
    Steady,
    /// Fewer than `top` run, to see whether uploads become quicker. `from`: the
    /// number before, less than `top` if they did. `starting`: what it was before.
    Testing { top: f64, from: f64, starting: bool },
}

/// The lower quartile of a round, in seconds, and its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Time {
    quartile: f64,
    doubt: f64,
}

impl Time {
    fn of(taken: &mut [f64]) -> Self {
        taken.sort_by(f64::total_cmp);
        let quantile = |quarters: usize| taken[(taken.len() - 1) * quarters / 4];
        let count = u32::try_from(taken.len()).map_or(f64::MAX, f64::from);
        let quartile = quantile(1);
        Self { quartile, doubt: (quantile(3) - quartile) / count.sqrt() }
    }

    fn high(self) -> f64 {
        self.quartile + self.doubt
    }

    fn low(self) -> f64 {
        (self.quartile - self.doubt).max(0.0)
    }
}

impl ConcurrencyLimit {
    /// Starts a limiter that stays between the two numbers, both included. When
    /// they are equal it never moves.
    pub(super) fn new(least: u32, most: u32) -> Self {
        let most = f64::from(most.max(1));
        let least = f64::from(least).clamp(1.0, most);
        let limit = FIRST.0.clamp(least, most);
        Self {
            least,
            most,
            limit,
            first: limit,
            phase: Phase::Starting,
            cold: true,
            base: None,
            base_most: None,
            last: None,
            round: 0,
            taken: Vec::new(),
            held_back: 0,
            failures: 0,
            failed_in: None,
            roof: None,
            tested_at: Mono::default(),
            stuck: 0,
            ended_at: None,
        }
    }

    /// Returns how many may run, at least one.
    pub(super) fn limit(&self) -> u32 {
        // Between 1 and `most`, which is a u32.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
        let limit = self.limit as u32;
        limit.max(1)
    }

    /// Takes note of the round trip of a request, before the first upload: it
    /// tells where to begin. Later calls change nothing.
    pub(super) fn round_trip(&mut self, took: Duration) {
        if self.base_most.is_some() || self.ended_at.is_some() {
            return;
        }
        let took = took.as_secs_f64();
        self.limit = (took * FIRST_RATE).clamp(FIRST.0, FIRST.1).clamp(self.least, self.most);
        self.first = self.limit;
        self.base_most = Some(BASE_ROUND_TRIPS * took + BASE_EXTRA);
    }

    /// An upload begins while `under_way` others run. Returns its round, for
    /// [`Self::succeeded`] and [`Self::strained`].
    pub(super) fn began(&mut self, now: Mono, under_way: u32) -> Round {
        if under_way == 0
            && let Some(ended) = self.ended_at
        {
            let pause = now.since(ended);
            if pause > PAUSE {
                self.limit = self.limit.min(self.first.max(self.limit / 2.0));
                self.start_again();
            } else if pause > SHORT_PAUSE {
                self.new_round();
            }
        }
        self.round
    }

    /// An upload of round `began` was confirmed after `took`. `held_back`:
    /// others wait that only the limit keeps from running.
    pub(super) fn succeeded(&mut self, now: Mono, began: Round, took: Duration, held_back: bool) {
        self.ended_at = Some(now);
        if began < self.round || self.least >= self.most {
            return;
        }
        self.taken.push(took.as_secs_f64());
        self.held_back += usize::from(held_back);
        let n = usize::try_from(self.limit()).unwrap_or(usize::MAX);
        let needed = match self.phase {
            Phase::Starting => ROUND_SHORT.max(n / 2),
            _ if n < 8 => ROUND_SHORT.max(n),
            _ => ROUND.max(n),
        };
        if self.taken.len() >= needed {
            self.end_round(now);
        }
    }

    /// An upload of round `began` failed in a way that may tell of a server with
    /// too much to do. `asked`: the server asked for a pause. Without that, one
    /// failure in a round may be the path's own, and only the second counts.
    pub(super) fn strained(&mut self, now: Mono, began: Round, asked: bool) {
        self.ended_at = Some(now);
        self.failures += 1;
        if !asked && self.failures < 2 {
            return;
        }
        if self.least >= self.most || self.failed_in.is_some_and(|cut| began <= cut) {
            return;
        }
        self.failed_in = Some(self.round);
        self.roof = Some(((self.limit * ROOF).max(self.least), now.after(ROOF_FOR)));
        self.phase = Phase::Steady;
        self.limit = (self.limit / 2.0).max(self.least);
        self.new_round();
    }

    /// The cache is back after an outage: many hosts see that at the same
    /// moment, so each begins with little.
    pub(super) fn restart(&mut self) {
        self.limit = self.limit.min(TEST_LEAST.max(self.least));
        self.start_again();
    }

    fn start_again(&mut self) {
        self.phase = Phase::Starting;
        self.cold = true;
        self.new_round();
    }

    /// Uploads that are under way belong to an earlier round from here on.
    fn new_round(&mut self) {
        self.round = self.round.wrapping_add(1);
        self.taken.clear();
        self.held_back = 0;
        self.failures = 0;
    }

    fn end_round(&mut self, now: Mono) {
        let full = self.held_back * 2 >= self.taken.len();
        let time = Time::of(&mut self.taken);
        self.new_round();
        if std::mem::take(&mut self.cold) {
            if self.phase == Phase::Starting && full {
                self.multiply(START_GROWTH.1, now);
            }
            return;
        }
        let before = self.last.replace(time);
        let base = *self.base.get_or_insert(self.base_most.map_or(time.high(), |most| time.high().min(most)));
        let ratio = time.low() / (base * SLACK).max(base + QUEUE);
        self.base = Some(base.min(time.high()));
        match self.phase {
            Phase::Testing { top, from, starting } => {
                self.tested(now, (top, from, starting), time, before);
            }
            _ if !full => {}
            Phase::Starting if ratio <= 1.0 => {
                self.multiply((START_GROWTH.0 / ratio).clamp(START_GROWTH.0, START_GROWTH.1), now);
                if self.limit >= self.ceiling(now) {
                    self.phase = Phase::Steady;
                }
            }
            Phase::Starting => self.test(4.0),
            Phase::Steady => self.steady(now, time, ratio),
        }
    }

    fn steady(&mut self, now: Mono, time: Time, ratio: f64) {
        let n = self.limit;
        let slow = ratio > 1.0;
        self.stuck = if slow && n <= STUCK_BELOW { self.stuck + 1 } else { 0 };
        let moved = n * ratio.max(1.0).recip().max(0.5) + GROWTH * n.sqrt();
        let bounded = if moved > n { moved.min(self.ceiling(now).max(n)) } else { moved };
        self.limit = bounded.clamp(self.least, self.most);
        let stuck = self.stuck >= STUCK;
        if stuck && n < 2.0 {
            // One upload at a time waits for no other of this host.
            self.base = Some(time.high());
            self.stuck = 0;
            self.phase = Phase::Starting;
        } else if slow && n >= 2.0 && now >= self.tested_at.after(if stuck { TEST_SOON } else { TEST_EVERY })
        {
            self.test(2.0);
        }
    }

    fn multiply(&mut self, factor: f64, now: Mono) {
        self.limit = self.limit.max((self.limit * factor).min(self.ceiling(now)));
    }

    fn ceiling(&self, now: Mono) -> f64 {
        match self.roof {
            Some((roof, until)) if now < until => roof.min(self.most),
            _ => self.most,
        }
    }

    fn test(&mut self, part: f64) {
        let starting = self.phase == Phase::Starting;
        self.phase = Phase::Testing { top: self.limit, from: self.limit, starting };
        self.limit = (self.limit / part).max(self.least);
    }

    /// A round with fewer uploads at a time than `from` has ended.
    fn tested(
        &mut self,
        now: Mono,
        (top, from, starting): (f64, f64, bool),
        time: Time,
        before: Option<Time>,
    ) {
        let n = self.limit;
        let least = TEST_LEAST.max(self.least);
        let is_first = from >= top;
        let succeeded = before.is_some_and(|before| {
            if is_first {
                time.high() < QUICKER * before.low()
            } else {
                // Uploads per second are the number at a time divided by the time of one.
                n / time.quartile >= KEPT * from / before.quartile
            }
        });
        self.phase = Phase::Steady;
        match (succeeded, is_first) {
            (true, _) if n > least => {
                self.phase = Phase::Testing { top, from: n, starting };
                self.limit = (n / 2.0).max(least);
                return;
            }
            (true, _) => {}
            // The knee is between the two.
            (false, false) => self.limit = from,
            // Uploads do not wait for each other.
            (false, true) => {
                self.limit = top;
                let is_slower = self.base.is_none_or(|base| time.high() > base);
                if is_slower && (starting || top <= STUCK_BELOW) {
                    self.base = Some(time.high());
                }
                if starting || is_slower && top <= STUCK_BELOW && self.stuck >= STUCK {
                    self.phase = Phase::Starting;
                }
            }
        }
        self.tested_at = now;
        self.stuck = 0;
    }
}
