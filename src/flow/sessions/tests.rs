//! Tests of the life cycle: the whole table, random events against a model with
//! restarts, and the limits and queues.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::types::CacheId;

mod ends;
mod openings;

const TUNING: Tuning = Tuning {
    open_of_user: 3,
    live_of_user: 5,
    live: 8,
    namings_of_user: 2,
    namings_at_intake: 2,
    callers: 3,
    grace: Duration::from_secs(2),
    restart_grace: Duration::from_secs(10),
    open_longest: Duration::from_secs(3_600),
    rounds: 3,
};
const NOW: Mono = Mono(100_000);

const STATES: [&str; 12] = [
    "open",
    "unwatched",
    "too long",
    "orphaned",
    "overdue",
    "taking1",
    "taking1 abandoned",
    "taking2",
    "settling",
    "settling abandoned",
    "settling last",
    "closed",
];

fn state(name: &str) -> SessionState {
    let abandoned = name.ends_with("abandoned");
    match name {
        "open" => SessionState::Open { until: None },
        "unwatched" => SessionState::Open { until: Some(Mono(NOW.0 + 1)) },
        "too long" => SessionState::Open { until: Some(NOW) },
        "orphaned" => SessionState::Orphaned { until: Mono(NOW.0 + 1) },
        "overdue" => SessionState::Orphaned { until: NOW },
        "taking2" => SessionState::Taking { namings: 2, abandoned, round: 0 },
        "taking1" | "taking1 abandoned" => SessionState::Taking { namings: 1, abandoned, round: 0 },
        "settling" | "settling abandoned" => SessionState::Settling { abandoned, round: 0 },
        "settling last" => SessionState::Settling { abandoned, round: TUNING.rounds - 1 },
        "closed" => SessionState::Closed,
        other => panic!("{other}"),
    }
}

fn show(state: SessionState) -> String {
    let suffix = |abandoned, round| {
        let round = match round {
            0 => String::new(),
            last if last == TUNING.rounds - 1 => " last".to_owned(),
            round => format!(" round{round}"),
        };
        format!("{}{round}", if abandoned { " abandoned" } else { "" })
    };
    match state {
        SessionState::Open { until: None } => "open".into(),
        SessionState::Open { until: Some(until) } if until <= NOW => "too long".into(),
        SessionState::Open { .. } => "unwatched".into(),
        SessionState::Orphaned { until } if until == NOW => "overdue".into(),
        SessionState::Orphaned { until } => format!("orphaned+{}", until.since(NOW).as_millis()),
        SessionState::Taking { namings, abandoned, round } => {
            format!("taking{namings}{}", suffix(abandoned, round))
        }
        SessionState::Settling { abandoned, round } => format!("settling{}", suffix(abandoned, round)),
        SessionState::Closed => "closed".into(),
    }
}

fn events() -> [(&'static str, SessionEvent); 8] {
    use SessionEvent as Event;
    let all = [
        ("end", Event::End),
        ("anchor gone", Event::AnchorGone),
        ("caller gone", Event::CallerGone),
        ("named", Event::Named),
        ("quiet", Event::Quiet { uploaded: false }),
        ("tick", Event::Tick),
        ("uploaded", Event::Quiet { uploaded: true }),
        ("join", Event::Join),
    ];
    // A new event must be added above.
    for (_, event) in all {
        match event {
            Event::End
            | Event::AnchorGone
            | Event::CallerGone
            | Event::Join
            | Event::Named
            | Event::Quiet { .. }
            | Event::Tick => {}
        }
    }
    all
}

/// Rows of `state | event | state after | actions`. A pair without a row changes nothing
/// and has no actions.
const TABLE: &str = "
open               | end         | taking1            | ByJob
open               | anchor gone | orphaned+2000      |
open               | caller gone | taking1 abandoned  | CallerGone take
unwatched          | end         | taking1            | ByJob
unwatched          | anchor gone | orphaned+2000      |
unwatched          | caller gone | taking1 abandoned  | CallerGone take
too long           | end         | taking1            | ByJob
too long           | anchor gone | orphaned+2000      |
too long           | caller gone | taking1 abandoned  | CallerGone take
too long           | tick        | taking1 abandoned  | OpenTooLong take
orphaned           | end         | taking1            | ByJob
orphaned           | caller gone | taking1 abandoned  | CallerGone take
overdue            | end         | taking1            | ByJob
overdue            | caller gone | taking1 abandoned  | CallerGone take
overdue            | tick        | taking1 abandoned  | AnchorGone take
taking1            | end         | taking2            |
taking1            | named       | settling           | flush
taking1 abandoned  | end         | taking2            | rejoined
taking1 abandoned  | named       | settling abandoned | flush
taking2            | end         | taking3            |
taking2            | named       | taking1            |
settling           | end         | taking1            |
settling           | uploaded    | taking1 round1     | confirm
settling           | quiet       | closed             | close
settling abandoned | end         | taking1            | rejoined
settling abandoned | uploaded    | taking1 abandoned round1 | confirm
settling abandoned | quiet       | closed             | close abandoned
settling last      | end         | taking1 last       |
settling last      | uploaded    | closed             | unstable close
settling last      | quiet       | closed             | close
taking1 abandoned  | join        | taking1            | rejoined
";

fn word(action: SessionAction) -> &'static str {
    match action {
        SessionAction::Drain(Ended::ByJob) => "ByJob",
        SessionAction::Drain(Ended::AnchorGone) => "AnchorGone",
        SessionAction::Drain(Ended::CallerGone) => "CallerGone",
        SessionAction::Drain(Ended::OpenTooLong) => "OpenTooLong",
        SessionAction::Rejoined => "rejoined",
        SessionAction::Take => "take",
        SessionAction::Confirm => "confirm",
        SessionAction::WarnUnstable => "unstable",
        SessionAction::Flush => "flush",
        SessionAction::Close { abandoned: false } => "close",
        SessionAction::Close { abandoned: true } => "close abandoned",
    }
}

#[test]
fn the_whole_table() {
    let mut rows: Vec<Vec<&str>> =
        TABLE.trim().lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for from in STATES {
        for (what, event) in events() {
            let mut life = SessionLife::new(&TUNING, state(from));
            let before = show(life.state);
            let actions: Vec<_> = life.step(event, NOW).into_iter().map(word).collect();
            let row = rows.iter().position(|row| row[0] == from && row[1] == what).map(|at| rows.remove(at));
            let (to, expected) = row.map_or((before, ""), |row| (row[2].to_owned(), row[3]));
            assert_eq!(show(life.state), to, "{from}, {what}");
            assert_eq!(actions.join(" "), expected, "{from}, {what}");
        }
    }
    assert_eq!(rows, Vec::<Vec<&str>>::new(), "rows that nothing tested");
}

#[test]
fn an_anchor_that_ends_just_before_the_end_of_its_session_leads_to_one_end() {
    let mut life = SessionLife::open(&TUNING, true, NOW);
    assert_eq!(life.step(SessionEvent::AnchorGone, NOW), []);
    assert!(life.is_open(), "its window stays open");
    let due = life.due().unwrap();
    assert_eq!(life.step(SessionEvent::Tick, Mono(due.0 - 1)), []);
    assert_eq!(life.step(SessionEvent::End, due), [SessionAction::Drain(Ended::ByJob)]);
    assert_eq!(life.step(SessionEvent::Tick, Mono(due.0 + 60_000)), []);
    assert_eq!(life.step(SessionEvent::AnchorGone, due), []);
}

#[test]
fn a_push_is_never_open() {
    assert!(!SessionLife::draining(&TUNING, false).is_open());
}

/// What the ledger has, how the session goes on, when something is due, and what is done.
#[test]
fn the_whole_table_of_a_restart() {
    let open = |anchor, open_for| Left::Open { anchor, open_for: Duration::from_secs(open_for) };
    let draining = |abandoned| Left::Draining { abandoned };
    let after = |seconds| Some(NOW.after(Duration::from_secs(seconds)));
    let rows = [
        (open(AnchorNow::Runs, 0), true, None, Resume::Watch),
        (open(AnchorNow::Runs, 9_000), true, None, Resume::Watch),
        (open(AnchorNow::Ended, 0), true, after(10), Resume::Wait),
        (open(AnchorNow::None, 0), true, after(3_600), Resume::Wait),
        (open(AnchorNow::None, 600), true, after(3_000), Resume::Wait),
        // The clock went forward by a year while no daemon ran.
        (open(AnchorNow::None, 365 * 24 * 3_600), true, after(10), Resume::Wait),
        (draining(false), false, None, Resume::Take),
        (draining(true), false, None, Resume::Take),
    ];
    for (left, is_open, due, resume) in rows {
        let (mut life, does) = SessionLife::restored(&TUNING, left, NOW);
        assert_eq!((life.is_open(), life.due(), does), (is_open, due, resume), "{left:?}");
        if !is_open {
            // Its end after the restart is one more naming, and nothing is taken in twice.
            assert_eq!(life.step(SessionEvent::Named, NOW), [SessionAction::Flush]);
            let close = SessionAction::Close { abandoned: left == draining(true) };
            assert_eq!(life.step(SessionEvent::Quiet { uploaded: false }, NOW), [close]);
        }
    }
}

#[test]
fn a_session_without_an_anchor_does_not_stay_open_for_ever() {
    let mut life = SessionLife::open(&TUNING, false, NOW);
    let due = life.due().unwrap();
    assert_eq!(due, NOW.after(TUNING.open_longest));
    assert_eq!(life.step(SessionEvent::Tick, Mono(due.0 - 1)), []);
    let drain = SessionAction::Drain(Ended::OpenTooLong);
    assert_eq!(life.step(SessionEvent::Tick, due), [drain, SessionAction::Take]);
    assert_eq!(life.step(SessionEvent::End, due), [SessionAction::Rejoined]);
}

#[test]
fn sessions_that_are_being_opened_count() {
    let mut limits = SessionLimits::new(TUNING);
    for _ in 0..3 {
        limits.begin(1, true).unwrap();
    }
    let refused = limits.begin(1, true).unwrap_err().to_string();
    assert!(refused.contains("uid 1 has 3 open sessions"), "{refused}");
    // Pushes are not open, but they are live.
    limits.begin(1, false).unwrap();
    limits.begin(1, false).unwrap();
    let refused = limits.begin(1, false).unwrap_err().to_string();
    assert!(refused.contains("5 sessions and pushes"), "{refused}");
    // Another user has places of their own, up to the limit of all.
    for _ in 0..3 {
        limits.begin(2, true).unwrap();
    }
    assert!(limits.begin(3, true).unwrap_err().to_string().starts_with("8 sessions"));
    limits.end(1, false);
    limits.drain(1);
    limits.begin(1, true).unwrap();
}

#[test]
fn users_take_turns_and_the_intake_has_one_naming_of_each() {
    let mut queue = NamingQueue::<(), _>::new(TUNING);
    for n in 0..2 {
        queue.push(1, None, ("a", n), false).unwrap();
    }
    assert_eq!(queue.push(1, None, ("a", 2), false), Err(("a", 2)), "the user's queue is full");
    queue.push(1, None, ("a", 2), true).unwrap();
    queue.push(2, None, ("b", 0), false).unwrap();
    queue.push(3, None, ("c", 0), false).unwrap();
    assert_eq!(queue.next(), Some((1, ("a", 0))));
    assert_eq!(queue.next(), Some((2, ("b", 0))), "not the first user's second");
    assert_eq!(queue.next(), None, "the intake has enough");
    queue.finished(1);
    assert_eq!(queue.next(), Some((3, ("c", 0))), "others first");
    queue.finished(2);
    assert_eq!(queue.next(), Some((1, ("a", 1))));
    // The intake could not take it.
    queue.put_back(1, ("a", 1));
    assert_eq!(queue.next(), Some((1, ("a", 1))));
    queue.finished(1);
    assert_eq!(queue.next(), Some((1, ("a", 2))));
    queue.finished(1);
    assert_eq!(queue.next(), None);
}

#[test]
fn needed_namings_do_not_use_up_a_users_limit() {
    let mut queue = NamingQueue::<(), _>::new(TUNING);
    for n in 0..TUNING.namings_of_user {
        queue.push(1, None, ("end", n), true).unwrap();
    }
    for n in 0..TUNING.namings_of_user {
        queue.push(1, None, ("flush", n), false).unwrap();
    }
    assert!(queue.push(1, None, ("flush", TUNING.namings_of_user), false).is_err());
}

#[test]
fn equal_requests_of_a_user_that_wait_share_a_naming() {
    let push = |rules, gid, cache, paths| Subject::Push(PushSubject { rules, gid, cache, paths });
    let first = push(0, 100, None, "a b");
    let mut queue = NamingQueue::new(TUNING);
    queue.push(1, Some(first.clone()), 7, false).unwrap();
    assert_eq!(queue.equal(1, &first), Some(&7));
    assert_eq!(queue.equal(2, &first), None, "another user's");
    for other in [
        push(1, 100, None, "a b"),
        push(0, 101, None, "a b"),
        push(0, 100, Some(CacheId(0)), "a b"),
        push(0, 100, None, "a"),
        Subject::End(3, "a b"),
        Subject::Flush,
    ] {
        assert_eq!(queue.equal(1, &other), None, "{other:?}");
    }
    // The intake has it: its answer would be older than the question.
    assert_eq!(queue.next(), Some((1, 7)));
    assert_eq!(queue.equal(1, &first), None);
    queue.put_back(1, 7);
    assert_eq!(queue.equal(1, &first), Some(&7));
    queue.push(1, None, 8, true).unwrap();
    assert_eq!(queue.equal(1, &Subject::Flush), None, "nobody asks for the daemon's own");
}

/// A session in the model: what its callers and the daemon have done so far.
#[derive(Debug, Clone, Copy)]
struct Model {
    ended: bool,
    abandoned: bool,
    namings: u32,
    round: u32,
    orphan_until: Option<Mono>,
    closed: bool,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random events and restarts: a session drains once, is closed once and only after
    /// every naming, and counts as abandoned if and only if its job never ended it.
    #[test]
    fn random_events_agree_with_the_model(events in prop::collection::vec((0..9_usize, 0..3_000_u64), 0..60)) {
        let mut life = SessionLife::open(&TUNING, true, Mono(0));
        let mut model = Model { ended: false, abandoned: false, namings: 0, round: 0, orphan_until: None, closed: false };
        let mut now = Mono(0);
        for (event, later) in events {
            now = Mono(now.0 + later);
            if event == 8 {
                // A kill: the ledger has open, or draining with its mark, or closed.
                if model.closed {
                    continue;
                }
                let left = if model.ended {
                    (model.namings, model.round) = (1, 0);
                    Left::Draining { abandoned: model.abandoned }
                } else {
                    let orphaned = model.orphan_until.is_some();
                    model.orphan_until = orphaned.then(|| now.after(TUNING.restart_grace));
                    let anchor = if orphaned { AnchorNow::Ended } else { AnchorNow::Runs };
                    Left::Open { anchor, open_for: Duration::from_millis(now.0) }
                };
                life = SessionLife::restored(&TUNING, left, now).0;
                continue;
            }
            let event = super::tests::events()[event].1;
            // The daemon finishes only namings that have begun, and flushes after the last.
            if event == SessionEvent::Named && model.namings == 0 {
                continue;
            }
            let open = !model.ended;
            let quiet = matches!(event, SessionEvent::Quiet { .. }) && model.ended && model.namings == 0 && !model.closed;
            let again = quiet && event == SessionEvent::Quiet { uploaded: true } && model.round + 1 < TUNING.rounds;
            let expected_close = quiet && !again;
            let abandons = open
                && (event == SessionEvent::CallerGone
                    || (event == SessionEvent::Tick && model.orphan_until.is_some_and(|until| until <= now)));
            match event {
                SessionEvent::End if !model.closed => {
                    model.namings += 1;
                    model.abandoned = false;
                    model.ended = true;
                }
                SessionEvent::AnchorGone if open => {
                    model.orphan_until.get_or_insert(now.after(TUNING.grace));
                }
                SessionEvent::Join if model.namings > 0 => model.abandoned = false,
                SessionEvent::Named => model.namings -= 1,
                _ => {}
            }
            if again {
                model.namings = 1;
                model.round += 1;
            }
            if abandons {
                model.ended = true;
                model.abandoned = true;
                model.namings += 1;
            }
            let actions = life.step(event, now);
            let drains = actions.iter().filter(|action| matches!(action, SessionAction::Drain(_))).count();
            prop_assert_eq!(drains, usize::from(open && model.ended), "{:?}", event);
            prop_assert_eq!(actions.contains(&SessionAction::Take), abandons);
            prop_assert_eq!(actions.contains(&SessionAction::Confirm), again);
            let flush = event == SessionEvent::Named && model.namings == 0;
            prop_assert_eq!(actions.contains(&SessionAction::Flush), flush);
            let close = SessionAction::Close { abandoned: model.abandoned };
            prop_assert_eq!(actions.contains(&close), expected_close);
            model.closed |= expected_close;
            prop_assert_eq!(life.is_open(), !model.ended);
            prop_assert_eq!(life.due(), model.orphan_until.filter(|_| !model.ended));
        }
    }

    /// No naming is lost or doubled, each user's are in order, and the bounds hold.
    #[test]
    fn namings_keep_their_order(ops in prop::collection::vec((0..4_u8, 1..5_u32), 0..200)) {
        let mut queue = NamingQueue::<(), _>::new(TUNING);
        let mut waiting: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        let mut at_intake: BTreeMap<u32, u32> = BTreeMap::new();
        for (n, (op, uid)) in (0_u32..).zip(ops) {
            match op {
                0 => {
                    let full = waiting.get(&uid).map_or(0, Vec::len) >= TUNING.namings_of_user;
                    prop_assert_eq!(queue.push(uid, None, n, false).is_err(), full);
                    if !full {
                        waiting.entry(uid).or_default().push(n);
                    }
                }
                1 => {
                    prop_assert_eq!(queue.has_next(), at_intake.len() < TUNING.namings_at_intake
                        && waiting.iter().any(|(uid, queue)| !queue.is_empty() && !at_intake.contains_key(uid)));
                    if let Some((uid, naming)) = queue.next() {
                        prop_assert_eq!(waiting.get_mut(&uid).unwrap().remove(0), naming);
                        prop_assert!(at_intake.insert(uid, naming).is_none(), "two of one user");
                        prop_assert!(at_intake.len() <= TUNING.namings_at_intake);
                    }
                }
                2 => {
                    at_intake.remove(&uid);
                    queue.finished(uid);
                }
                _ => if let Some(naming) = at_intake.remove(&uid) {
                    queue.put_back(uid, naming);
                    waiting.entry(uid).or_default().insert(0, naming);
                },
            }
        }
        at_intake.into_keys().for_each(|uid| queue.finished(uid));
        while let Some((uid, naming)) = queue.next() {
            prop_assert_eq!(waiting.get_mut(&uid).unwrap().remove(0), naming);
            queue.finished(uid);
        }
        prop_assert!(waiting.values().all(Vec::is_empty), "lost: {:?}", waiting);
    }
}
