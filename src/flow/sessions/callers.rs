//! The callers that wait: first until the intake has taken in what they named, then until
//! their pushes are settled. [`step`] decides for one caller when it is answered, and how
//! much that answer knows.
//!
//! Must not know: what a caller is answered, sockets, the clock.

use std::time::Duration;

use crate::types::{Mono, SessionId};

/// How long a caller waits that has not chosen a timeout, while its cache is away.
pub(crate) const SHORT_WAIT: Duration = Duration::from_secs(10);

/// How long a caller waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Patience {
    /// It waits until everything is settled, not only until it is taken in.
    pub(crate) wait: bool,
    /// It has chosen its deadline, and waits for it also while the cache is away.
    pub(crate) patient: bool,
    /// When it asked.
    pub(crate) since: Mono,
    pub(crate) deadline: Mono,
}

/// What a caller waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The intake, which takes in what it named.
    Taking,
    /// Its pushes.
    Settling,
}

/// What happens to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The intake has finished its naming.
    Named,
    /// Everything that it waits for is settled.
    Settled,
    /// Time passed.
    Tick,
    /// Time passed in which nothing could be uploaded for it.
    Away,
    /// The daemon stops.
    Stop {
        /// The requests under way cannot settle everything that it waits for.
        hopeless: bool,
    },
    /// The daemon has ended.
    End,
}

/// How much an answer knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Knows {
    /// Everything is settled.
    All,
    /// Everything is taken in, and the caller does not wait for more.
    TakenIn,
    /// What is settled by now: the deadline has come, or the daemon stops.
    Settled,
    /// What is settled by now, because nothing can be uploaded.
    Away,
    /// Not even everything that there is to push.
    NotAll,
}

/// What becomes of a caller: it waits, or it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Waits(Stage),
    Answered(Knows),
}

/// Decides what becomes of a caller. `stopping`: the daemon stops.
///
/// ```text
///  asks ──► Taking ── named ──► Settling ── settled ──► answered: all
///             │  │                 │
///             │  └─ named, it does not wait, or the daemon stops ──► answered: what is taken in
///             │                    └─ deadline, cache away, stop in vain, end ──► answered: what is settled
///             └─ deadline, stop, end ──► answered: not all is known
/// ```
fn step(stage: Stage, event: Event, patience: &Patience, stopping: bool, now: Mono) -> Next {
    let late = patience.deadline <= now;
    let out_of_patience = !patience.patient && now.since(patience.since) >= SHORT_WAIT;
    match (stage, event) {
        (Stage::Taking, Event::Named) if patience.wait && !stopping => Next::Waits(Stage::Settling),
        (Stage::Taking, Event::Named) => Next::Answered(Knows::TakenIn),
        (Stage::Taking, Event::Tick) if late => Next::Answered(Knows::NotAll),
        (Stage::Taking, Event::Stop { .. } | Event::End) => Next::Answered(Knows::NotAll),
        (Stage::Settling, Event::Settled) => Next::Answered(Knows::All),
        (Stage::Settling, Event::Tick) if late => Next::Answered(Knows::Settled),
        (Stage::Settling, Event::Away) if out_of_patience => Next::Answered(Knows::Away),
        (Stage::Settling, Event::Stop { hopeless: true } | Event::End) => Next::Answered(Knows::Settled),
        // Its group is settled, and what it named is not in it yet.
        (Stage::Taking, Event::Settled | Event::Tick | Event::Away)
        | (Stage::Settling, Event::Named | Event::Tick | Event::Away | Event::Stop { hopeless: false }) => {
            Next::Waits(stage)
        }
    }
}

/// A caller that waits.
#[derive(Debug)]
struct Waiting<T> {
    stage: Stage,
    naming: u64,
    group: SessionId,
    patience: Patience,
    caller: T,
}

/// All callers that wait, in the order in which they came. `T` is a caller.
#[derive(Debug)]
pub(crate) struct Callers<T> {
    all: Vec<Waiting<T>>,
    stopping: bool,
}

impl<T> Default for Callers<T> {
    fn default() -> Self {
        Self { all: Vec::new(), stopping: false }
    }
}

impl<T> Callers<T> {
    /// Adds a caller of a naming for a group of pushes.
    pub(crate) fn add(&mut self, naming: u64, group: SessionId, patience: Patience, caller: T) {
        self.all.push(Waiting { stage: Stage::Taking, naming, group, patience, caller });
    }

    /// Hands an event to the callers for which `event` returns one, and removes and returns
    /// those that are to be answered.
    fn each(&mut self, now: Mono, event: impl Fn(&Waiting<T>) -> Option<Event>) -> Vec<(Knows, T)> {
        let stopping = self.stopping;
        let is_answered = |waiting: &mut Waiting<T>| {
            let event = event(waiting)?;
            match step(waiting.stage, event, &waiting.patience, stopping, now) {
                Next::Waits(stage) => {
                    waiting.stage = stage;
                    None
                }
                Next::Answered(knows) => Some(knows),
            }
        };
        let mut answered = Vec::new();
        for mut waiting in std::mem::take(&mut self.all) {
            match is_answered(&mut waiting) {
                None => self.all.push(waiting),
                Some(knows) => answered.push((knows, waiting.caller)),
            }
        }
        answered
    }

    /// The intake has finished a naming.
    pub(crate) fn named(&mut self, naming: u64, now: Mono) -> Vec<(Knows, T)> {
        self.each(now, |waiting| (waiting.naming == naming).then_some(Event::Named))
    }

    /// Everything of a group is settled.
    pub(crate) fn settled(&mut self, group: SessionId, now: Mono) -> Vec<(Knows, T)> {
        self.each(now, |waiting| (waiting.group == group).then_some(Event::Settled))
    }

    /// Time passed.
    pub(crate) fn tick(&mut self, now: Mono) -> Vec<(Knows, T)> {
        self.each(now, |_| Some(Event::Tick))
    }

    /// Time passed. `is_away`: nothing can be uploaded for this group.
    pub(crate) fn away(&mut self, now: Mono, is_away: impl Fn(SessionId) -> bool) -> Vec<(Knows, T)> {
        self.each(now, |waiting| is_away(waiting.group).then_some(Event::Away))
    }

    /// The daemon stops: from now on nobody waits for pushes anew. `is_hopeless`: the
    /// requests under way cannot settle this group.
    pub(crate) fn stop(&mut self, now: Mono, is_hopeless: impl Fn(SessionId) -> bool) -> Vec<(Knows, T)> {
        self.stopping = true;
        self.each(now, |waiting| Some(Event::Stop { hopeless: is_hopeless(waiting.group) }))
    }

    /// The daemon has ended: all are answered.
    pub(crate) fn end(&mut self, now: Mono) -> Vec<(Knows, T)> {
        self.each(now, |_| Some(Event::End))
    }

    /// Forgets the callers for which this is true: nobody hears their answers.
    pub(crate) fn forget(&mut self, is_gone: impl Fn(&T) -> bool) {
        self.all.retain(|waiting| !is_gone(&waiting.caller));
    }

    /// The callers that wait for pushes, each with the group that it waits for.
    pub(crate) fn settling(&mut self) -> impl Iterator<Item = (SessionId, &mut T)> {
        let settling = self.all.iter_mut().filter(|waiting| waiting.stage == Stage::Settling);
        settling.map(|waiting| (waiting.group, &mut waiting.caller))
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether somebody waits for the pushes of this group.
    pub(crate) fn waits_for(&self, group: SessionId) -> bool {
        self.all.iter().any(|waiting| waiting.stage == Stage::Settling && waiting.group == group)
    }

    /// Whether somebody waits for this naming.
    pub(crate) fn waits_in(&self, naming: u64) -> bool {
        self.all.iter().any(|waiting| waiting.stage == Stage::Taking && waiting.naming == naming)
    }

    /// When the next [`Self::tick`] is due.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        self.all.iter().map(|waiting| waiting.patience.deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Mono = Mono(100_000);

    /// Rows of `what it waits for | event | what becomes of it`. A pair without a row
    /// changes nothing.
    const TABLE: &str = "
taking   | named              | settling
taking   | named, no wait     | answered TakenIn
taking   | named, stopping    | answered TakenIn
taking   | late               | answered NotAll
taking   | stop               | answered NotAll
taking   | hopeless stop      | answered NotAll
taking   | end                | answered NotAll
settling | settled            | answered All
settling | late               | answered Settled
settling | away for long      | answered Away
settling | hopeless stop      | answered Settled
settling | end                | answered Settled
";

    fn patience(wait: bool, patient: bool, late: bool, long: bool) -> Patience {
        let since = if long { Mono(NOW.0 - 10_000) } else { Mono(NOW.0 - 9_999) };
        Patience { wait, patient, since, deadline: if late { NOW } else { Mono(NOW.0 + 1) } }
    }

    /// What happens, the caller's patience, and whether the daemon stops.
    fn events() -> [(&'static str, Event, Patience, bool); 12] {
        let usual = patience(true, true, false, true);
        [
            ("named", Event::Named, usual, false),
            ("named, no wait", Event::Named, patience(false, true, false, true), false),
            ("named, stopping", Event::Named, usual, true),
            ("settled", Event::Settled, usual, false),
            ("tick", Event::Tick, patience(true, false, false, true), false),
            ("late", Event::Tick, patience(true, true, true, false), false),
            ("away", Event::Away, patience(true, false, false, false), false),
            ("away, patient", Event::Away, usual, false),
            ("away for long", Event::Away, patience(true, false, false, true), false),
            ("stop", Event::Stop { hopeless: false }, usual, true),
            ("hopeless stop", Event::Stop { hopeless: true }, usual, true),
            ("end", Event::End, usual, true),
        ]
    }

    #[test]
    fn the_whole_table() {
        let mut rows: Vec<Vec<&str>> =
            TABLE.trim().lines().map(|line| line.split('|').map(str::trim).collect()).collect();
        for (from, stage) in [("taking", Stage::Taking), ("settling", Stage::Settling)] {
            for (what, event, patience, stopping) in events() {
                let row =
                    rows.iter().position(|row| row[0] == from && row[1] == what).map(|at| rows.remove(at));
                let shown = match step(stage, event, &patience, stopping, NOW) {
                    Next::Waits(Stage::Taking) => "taking".to_owned(),
                    Next::Waits(Stage::Settling) => "settling".to_owned(),
                    Next::Answered(knows) => format!("answered {knows:?}"),
                };
                assert_eq!(shown, row.map_or(from, |row| row[2]), "{from}, {what}");
            }
        }
        assert_eq!(rows, Vec::<Vec<&str>>::new(), "rows that nothing tested");
    }

    #[test]
    fn a_stop_answers_a_thousand_callers_once_each_and_in_order() {
        let mut callers = Callers::default();
        for n in 0..1_000 {
            let group = i64::from(n % 7);
            callers.add(u64::from(n), group, patience(true, true, false, false), n);
            if n % 2 == 0 {
                assert_eq!(callers.named(u64::from(n), NOW), []);
            }
        }
        // What is under way may settle the groups but the third.
        let answered = callers.stop(NOW, |group| group == 3);
        let expected = |n: &u32| n % 2 == 1 || n % 7 == 3;
        let hopeless: Vec<u32> = answered.into_iter().map(|(_, caller)| caller).collect();
        assert_eq!(hopeless, (0..1_000).filter(expected).collect::<Vec<_>>());
        let rest: Vec<u32> = callers.end(NOW).into_iter().map(|(_, caller)| caller).collect();
        assert_eq!(rest, (0..1_000).filter(|n| !expected(n)).collect::<Vec<_>>());
        assert_eq!(callers.len(), 0);
    }

    /// A caller that has closed its connection, in either stage, is not answered, and takes
    /// nothing from the others of its naming.
    #[test]
    fn a_caller_that_has_left_is_forgotten_in_either_stage() {
        for taken_in in [false, true] {
            let mut callers = Callers::default();
            for n in 0..3 {
                callers.add(7, 1, patience(true, true, false, false), n);
            }
            if taken_in {
                assert_eq!(callers.named(7, NOW), []);
            }
            callers.forget(|caller| *caller == 1);
            assert_eq!(callers.named(7, NOW), []);
            assert_eq!(callers.settled(1, NOW), [(Knows::All, 0), (Knows::All, 2)]);
        }
    }

    /// Random events: each caller is answered once, by its deadline when time passes, with
    /// "all" only after its naming and then its group have ended, and in the order in which
    /// they came.
    #[test]
    fn every_caller_is_answered_once_and_in_time() {
        use proptest::prelude::*;
        let op = (0..6_u8, 0..3_i64, any::<bool>(), any::<bool>(), 0..4_000_u64);
        proptest!(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() },
            |(ops in prop::collection::vec(op, 0..80))| {
            let (mut callers, mut now, mut stopping) = (Callers::default(), Mono(0), false);
            // Number, group, when it is late, and whether its naming is finished.
            let mut open: Vec<(u64, i64, Mono, bool)> = Vec::new();
            for (n, (op, group, wait, patient, later)) in (0_u64..).zip(ops) {
                now = now.after(Duration::from_millis(later));
                let answers = match op {
                    0 if !stopping => {
                        let deadline = now.after(Duration::from_millis(later * 4));
                        callers.add(n, group, Patience { wait, patient, since: now, deadline }, n);
                        open.push((n, group, deadline, false));
                        Vec::new()
                    }
                    1 => {
                        let Some((naming, .., named)) = open.iter_mut().find(|open| !open.3) else { continue };
                        *named = true;
                        callers.named(*naming, now)
                    }
                    2 => callers.settled(group, now),
                    3 => callers.away(now, |away| away == group),
                    4 if n % 16 == 0 => {
                        stopping = true;
                        callers.stop(now, |hopeless| hopeless == group)
                    }
                    _ => callers.tick(now),
                };
                let mut last = None;
                for (knows, caller) in answers {
                    prop_assert!(last < Some(caller), "out of order");
                    last = Some(caller);
                    let at = open.iter().position(|(n, ..)| *n == caller);
                    prop_assert!(at.is_some(), "{} is answered twice", caller);
                    let (_, of, _, named) = open.remove(at.unwrap());
                    prop_assert_eq!(knows == Knows::NotAll, !named);
                    prop_assert!(knows != Knows::All || (op == 2 && of == group));
                }
                if op == 5 {
                    prop_assert!(open.iter().all(|(_, _, deadline, _)| *deadline > now), "one is late");
                }
                prop_assert_eq!(callers.next_deadline(), open.iter().map(|open| open.2).min());
                let left: Vec<u64> = callers.all.iter().map(|waiting| waiting.caller).collect();
                prop_assert_eq!(left, open.iter().map(|open| open.0).collect::<Vec<_>>());
            }
            prop_assert_eq!(callers.end(now).len(), open.len());
        });
    }
}
