//! Tests of ends: which session is meant, and what becomes of one that is not live.

use super::super::ends::Count;
use super::*;

/// Rows of `open sessions of the job | its draining one | open ones of no job | meant`.
const IN_A_JOB: &str = "
none    | none | none    | recorded, or none is open
none    | none | one     | recorded, or 1
none    | none | several | recorded, or several are open
none    | 7    | none    | 7
none    | 7    | one     | 7
none    | 7    | several | 7
one     | none | none    | 1
one     | none | one     | 1
one     | none | several | 1
one     | 7    | none    | 1
one     | 7    | one     | 1
one     | 7    | several | 1
several | none | none    | several of the job
several | none | one     | several of the job
several | none | several | several of the job
several | 7    | none    | several of the job
several | 7    | one     | several of the job
several | 7    | several | several of the job
";

fn say(meant: Meant) -> String {
    let none = |why| match why {
        NoSession::Unknown => "unknown",
        NoSession::AnotherUsers => "another user's",
        NoSession::NoneOpen => "none is open",
        NoSession::SeveralOpen => "several are open",
        NoSession::SeveralOfJob => "several of the job",
    };
    match meant {
        Meant::Live(row) => row.to_string(),
        Meant::Recorded(Otherwise::End(row)) => format!("recorded, or {row}"),
        Meant::Recorded(Otherwise::Refuse(why)) => format!("recorded, or {}", none(why)),
        Meant::Refused(why) => none(why).to_owned(),
    }
}

#[test]
fn the_whole_table_of_what_is_meant() {
    let counts = [("none", Count::None), ("one", Count::One(1)), ("several", Count::Several)];
    let mut rows: Vec<Vec<&str>> =
        IN_A_JOB.trim().lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for (of_job, open) in counts {
        for (of_draining, draining) in [("none", None), ("7", Some(7))] {
            for (of_others, others) in counts {
                let is_row = |row: &Vec<&str>| row[..3] == [of_job, of_draining, of_others];
                let row = rows.remove(rows.iter().position(is_row).expect("a row for each case"));
                assert_eq!(say(meant(Target::Job { open, draining, others })), row[3], "{row:?}");
            }
        }
    }
    assert_eq!(rows, Vec::<Vec<&str>>::new(), "rows that nothing tested");
    for (target, expected) in [
        (Target::Only(Count::One(1)), "1"),
        (Target::Only(Count::None), "none is open"),
        (Target::Only(Count::Several), "several are open"),
        (Target::Id(Some((4, true))), "4"),
        (Target::Id(Some((4, false))), "another user's"),
        (Target::Id(None), "recorded, or unknown"),
    ] {
        assert_eq!(say(meant(target)), expected, "{target:?}");
    }
}

#[test]
fn an_end_without_an_id_finds_the_session_of_its_own_job() {
    let one = |row, open, job| Candidate { row, open, job };
    let (own, another, nobody) = (JobOf::Caller, JobOf::Another, JobOf::Nobody);
    let meant = |in_job, live: &[Candidate]| say(meant(Target::unnamed(in_job, live)));
    // A job that ended a session without waiting and has begun another one.
    assert_eq!(meant(true, &[one(1, false, own), one(2, true, own)]), "2");
    // It ends the latest again.
    assert_eq!(meant(true, &[one(1, false, own), one(2, false, own)]), "2");
    assert_eq!(meant(true, &[one(1, true, another)]), "recorded, or none is open");
    // A repeated end must not end a session that somebody has opened by hand.
    assert_eq!(meant(true, &[one(1, true, nobody), one(2, true, another)]), "recorded, or 1");
    assert_eq!(meant(false, &[one(1, true, nobody), one(2, false, nobody)]), "1");
    assert_eq!(meant(false, &[one(1, true, nobody), one(2, true, another)]), "several are open");
    assert_eq!(meant(false, &[]), "none is open");
}

/// Rows of `recorded | live now, not live, or not live at the second look | what becomes of the end`.
const RETURNS: &str = "
nothing              | live     | Nothing
nothing              | not live | Nothing
nothing              | again    | Nothing
nothing              | stopping | Stopping
forbidden            | live     | AnotherUsers
forbidden            | not live | AnotherUsers
forbidden            | again    | AnotherUsers
forbidden            | stopping | AnotherUsers
live                 | live     | End
live                 | not live | LookAgain
live                 | again    | Report { early: true }
live                 | stopping | Stopping
closed               | live     | End
closed               | not live | Report { early: false }
closed               | again    | Report { early: false }
closed               | stopping | Report { early: false }
closed, more is named| live     | End
closed, more is named| not live | Rejoin { limited: true }
closed, more is named| again    | Rejoin { limited: true }
closed, more is named| stopping | Stopping
abandoned            | live     | End
abandoned            | not live | Rejoin { limited: false }
abandoned            | again    | Rejoin { limited: false }
abandoned            | stopping | Stopping
";

#[test]
fn the_whole_table_of_ends_of_sessions_that_are_not_live() {
    let records = [
        ("nothing", Record::None),
        ("forbidden", Record::Forbidden),
        ("live", Record::Live),
        ("closed", Record::Closed { names_more: false }),
        ("closed, more is named", Record::Closed { names_more: true }),
        ("abandoned", Record::Abandoned),
    ];
    let moment = |live, again, stopping| Moment { live, again, stopping };
    let moments = [
        ("live", moment(true, false, false)),
        ("not live", moment(false, false, false)),
        ("again", moment(false, true, false)),
        ("stopping", moment(false, false, true)),
    ];
    let mut rows: Vec<Vec<&str>> =
        RETURNS.trim().lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for (recorded, record) in records {
        for (now, moment) in moments {
            let is_row = |row: &Vec<&str>| row[..2] == [recorded, now];
            let row = rows.remove(rows.iter().position(is_row).expect("a row for each case"));
            assert_eq!(format!("{:?}", returns(record, moment)), row[2], "{row:?}");
        }
    }
    assert_eq!(rows, Vec::<Vec<&str>>::new(), "rows that nothing tested");
    // Live and stopping: nothing begins.
    assert_eq!(returns(Record::Abandoned, moment(true, false, true)), Return::Stopping);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Ends of one session by several callers whose look-ups come back late and in any order,
    /// with the session closing and the daemon restarting in between: every caller that named
    /// paths gets an answer that covers them, and a closed session is not opened without need.
    #[test]
    fn late_ends_cover_what_they_name(ops in prop::collection::vec((0..6_u8, 0..4_usize), 0..80)) {
        // What the ledger has: abandoned, or closed; and the paths that are the session's.
        let (mut abandoned, mut own) = (true, 0_u8);
        // Live: the namings that are not finished.
        let mut live: Option<Vec<u8>> = None;
        // Look-ups under way: what they name, what they read, whether for the second time.
        let mut looking: Vec<(u8, Record, bool)> = Vec::new();
        let read = |live: bool, abandoned: bool, own: u8, names: u8| match (live, abandoned) {
            (true, _) => Record::Live,
            (false, true) => Record::Abandoned,
            (false, false) => Record::Closed { names_more: names & !own != 0 },
        };
        for (op, which) in ops {
            let names = 1_u8 << which;
            match op {
                // An end is asked for.
                0 | 1 => match &mut live {
                    Some(namings) => namings.push(names),
                    None => looking.push((names, read(false, abandoned, own, names), false)),
                },
                // A look-up comes back.
                2 | 3 if which < looking.len() => {
                    let (names, record, again) = looking.remove(which);
                    match returns(record, Moment { live: live.is_some(), again, stopping: false }) {
                        Return::End => live.as_mut().unwrap().push(names),
                        Return::Rejoin { limited } => {
                            prop_assert!(live.is_none());
                            prop_assert!(record == Record::Abandoned || limited);
                            live = Some(vec![names]);
                            abandoned = false;
                        }
                        Return::Report { early } => {
                            prop_assert!(early || own & names == names, "{names} is not in {own}");
                            prop_assert!(!early || again);
                        }
                        Return::LookAgain => {
                            prop_assert!(!again);
                            looking.push((names, read(live.is_some(), abandoned, own, names), true));
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                // The intake finishes all namings, and the session closes.
                4 => if let Some(namings) = live.take() {
                    own = namings.into_iter().fold(own, |own, names| own | names);
                },
                // A kill: it is restored as draining, and closes without what was being named. Who
                // waits asks again, and finds it closed.
                5 => {
                    let waiting = live.take().unwrap_or_default();
                    looking.clear();
                    for names in waiting {
                        looking.push((names, read(false, abandoned, own, names), false));
                    }
                }
                _ => {}
            }
        }
    }
}
