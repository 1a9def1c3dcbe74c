//! When large uploads begin on a host that is one of many which build the same paths.
//!
//! Hosts know nothing of each other, but the cache shows their work: it has paths that this
//! host has just built and nobody here has uploaded, or gets one while this host is sending
//! it. With others, each large upload waits for a moment that is drawn by lot, and the cache
//! is asked again before it begins. Then most hosts find the path there, or break their
//! upload off early. The share of paths from elsewhere tells how many hosts there are at
//! least: hosts that upload a small path at the same moment do not notice each other.
//!
//! A host that has seen no others waits for nothing.
//!
//! With `n` hosts that draw between 0 and `(n - 1) / 2` durations of the upload, the sum of
//! what all of them send is twice the path at most, on average: each of the others begins
//! during the first upload with a probability of `2 / (n - 1)`, and has then sent half.
//!
//! Must not know: why a path is pushed, and which clock `now` is read from.

use std::collections::BTreeSet;
use std::time::Duration;

use super::retry::Rng;
use crate::types::{Mono, PushId};

/// Uploads of NARs from this many bytes on are spread. They are broken off when the path
/// comes from elsewhere.
const SPREAD_FROM: u64 = 16 << 20;
/// About how many of the latest paths count, so at most this many hosts are seen.
const LATEST: f64 = 128.0;
/// How many hosts there are taken to be at least when there are others.
const HOSTS: f64 = 12.0;
/// Fewer paths from elsewhere than this are no sign of other hosts.
const FEWEST: f64 = 3.0;
/// What is known of other hosts counts until none was seen for this long.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// Upper bound of the moments that are drawn.
const LATEST_MOMENT: Duration = Duration::from_secs(120);
/// Bytes per second of a large upload, before there was one.
const FIRST_RATE: f64 = 25e6;
/// Most paths that are observed at a time: others say nothing new.
const OBSERVED: usize = 256;
/// Most large uploads that wait for their moment at a time.
const WAITING: usize = 1_024;

/// What one cache has shown of other hosts.
#[derive(Debug, Default)]
pub(super) struct OtherHosts {
    /// Pushes of paths that this host has built, and that nobody was asked about.
    observed: BTreeSet<PushId>,
    /// How many paths came from here and from elsewhere. Older ones count less.
    here: f64,
    elsewhere: f64,
    /// When a path came from elsewhere.
    seen_at: Option<Mono>,
    /// Bytes per second of large uploads.
    rate: Option<f64>,
    /// Large pushes whose moment was drawn.
    drawn: BTreeSet<PushId>,
}

impl OtherHosts {
    /// Observes the push of a path that this host has built.
    pub(super) fn observe(&mut self, push: PushId) {
        if self.observed.len() < OBSERVED {
            self.observed.insert(push);
        }
    }

    /// Notes that a push is not known any more. `from`: who has put the path into the cache,
    /// if that is known.
    pub(super) fn left(&mut self, push: PushId, from: Option<Origin>, now: Mono) {
        self.drawn.remove(&push);
        if !self.observed.remove(&push) {
            return;
        }
        match from {
            Some(Origin::Here) => self.count(1.0, 0.0),
            Some(Origin::Elsewhere) => self.seen(now),
            None => {}
        }
    }

    /// Notes that a path came into the cache from elsewhere: just now, while this host was
    /// sending it, or soon after this host had built it.
    pub(super) fn seen(&mut self, now: Mono) {
        self.count(0.0, 1.0);
        self.seen_at = Some(now);
    }

    fn count(&mut self, here: f64, elsewhere: f64) {
        let fading = 1.0 - 1.0 / LATEST;
        self.here = self.here * fading + here;
        self.elsewhere = self.elsewhere * fading + elsewhere;
    }

    /// Notes how long a large upload took.
    pub(super) fn sent(&mut self, bytes: u64, took: Duration) {
        let rate = bytes as f64 / took.as_secs_f64().max(0.001);
        self.rate = Some(self.rate.map_or(rate, |before| before * 0.7 + rate * 0.3));
    }

    /// How many hosts there seem to be, this one included. 1: no other was noticed.
    fn hosts(&self, now: Mono) -> f64 {
        let known = self.seen_at.is_some_and(|at| now.since(at) < FORGOTTEN);
        if !known || self.elsewhere < FEWEST {
            return 1.0;
        }
        ((self.here + self.elsewhere + 1.0) / (self.here + 1.0)).max(HOSTS)
    }

    /// Draws how long a large upload waits before the cache is asked again. `None`: it may
    /// begin now, because it need not be spread or has waited already.
    pub(super) fn draw(&mut self, push: PushId, nar_size: u64, now: Mono, rng: &mut Rng) -> Option<Duration> {
        let hosts = self.hosts(now);
        if nar_size < SPREAD_FROM || hosts <= 1.0 || self.drawn.len() >= WAITING || !self.drawn.insert(push) {
            return None;
        }
        let upload = nar_size as f64 / self.rate.unwrap_or(FIRST_RATE);
        let longest = LATEST_MOMENT.as_secs_f64();
        let most = Duration::from_secs_f64((upload * (hosts - 1.0) / 2.0).min(longest));
        Some(Duration::from_millis(rng.below(u64::try_from(most.as_millis()).unwrap_or(u64::MAX))))
    }

    /// Whether a push waits for its moment, or has waited for it.
    pub(super) fn has_drawn(&self, push: PushId) -> bool {
        self.drawn.contains(&push)
    }
}

/// Who has put a path into the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Here,
    Elsewhere,
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const NOW: Mono = Mono(1_000);

    fn after(here: i64, elsewhere: i64) -> OtherHosts {
        let mut others = OtherHosts::default();
        for push in 0..here + elsewhere {
            others.observe(push);
            let from = if push % (here + elsewhere) < here { Origin::Here } else { Origin::Elsewhere };
            others.left(push, Some(from), NOW);
        }
        others
    }

    #[test]
    fn a_host_that_has_seen_no_others_waits_for_nothing() {
        let mut rng = Rng::new(1);
        let mut alone = after(50, 0);
        assert_eq!(alone.draw(1_000, 200 * MIB, NOW, &mut rng), None);
        let mut twice = after(50, 2);
        assert_eq!(
            twice.draw(1_000, 200 * MIB, NOW, &mut rng),
            None,
            "two paths may have been there for long"
        );
        let mut later = after(5, 35);
        let then = NOW.after(FORGOTTEN);
        assert_eq!(later.draw(1_000, 200 * MIB, then, &mut rng), None, "they have left");
        let mut small = after(5, 35);
        assert_eq!(small.draw(1_000, SPREAD_FROM - 1, NOW, &mut rng), None);
    }

    #[test]
    fn the_moments_are_spread_over_the_time_that_the_hosts_need() {
        let mut others = after(5, 35);
        others.sent(100_000_000, Duration::from_secs(4));
        let mut rng = Rng::new(1);
        let drawn: Vec<f64> = (0..500)
            .map(|push| {
                let wait = others.draw(1_000 + push, 200 * MIB, NOW, &mut rng).unwrap();
                assert_eq!(others.draw(1_000 + push, 200 * MIB, NOW, &mut rng), None, "one moment for each");
                others.left(1_000 + push, None, NOW);
                wait.as_secs_f64()
            })
            .collect();
        // Twelve hosts, 8.4 s for each upload.
        let most = drawn.iter().copied().fold(0.0, f64::max);
        assert!((43.0..46.5).contains(&most), "{most}");
        let first = drawn.chunks(8).map(|hosts| hosts.iter().copied().fold(f64::MAX, f64::min));
        let first = first.sum::<f64>() / 62.0;
        assert!(first < 8.0, "of eight hosts the first begins after {first} s on average");
    }

    #[test]
    fn old_paths_count_less_than_new_ones() {
        let mut others = after(0, 500);
        assert!((64.0..=129.0).contains(&others.hosts(NOW)), "{}", others.hosts(NOW));
        for push in 0..500 {
            others.observe(push);
            others.left(push, Some(Origin::Here), NOW);
        }
        assert!(others.hosts(NOW) < 1.1, "{}", others.hosts(NOW));
    }
}
