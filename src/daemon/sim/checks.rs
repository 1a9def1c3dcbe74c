//! The invariants of a run, each as a function of the world and of what happened.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::caches::Cache;
use super::configuration::CACHES;
use super::jobs::{Job, cache_of};
use super::store::{Made, Store};
use crate::control::messages::{Outcome, Summary};

/// What a violation is reported as.
pub(super) type Check = Result<(), String>;

/// A hash is the beginning of a base name.
pub(super) fn hash(base: &str) -> &str {
    &base[..32]
}

/// The closure of a path is in the cache when the path is put there, or the cache has
/// said so at `since` or later.
pub(super) fn closure_is_there(store: &Store, cache: &Cache, base: &str, since: u64) -> Check {
    for part in store.closure(base) {
        let part_hash = hash(&part);
        let said = cache.confirmed.get(part_hash).is_some_and(|at| *at >= since);
        if !cache.has.contains(part_hash) && !said {
            return Err(format!("{base} was put into the cache without {part} of its closure"));
        }
    }
    Ok(())
}

/// A path goes only to caches of its maker, of its sessions, of who named it, or of who
/// needs it.
pub(super) fn may_go_there(store: &Store, cache: u16, base: &str) -> Check {
    let needs = store.needing(base).iter().any(|other| store.made[other].allowed.contains(&cache));
    if needs { Ok(()) } else { Err(format!("{base} was put into cache {cache}, where nobody may have it")) }
}

/// The summary's categories add up to the session's paths, in the ledger.
pub(super) fn adds_up(ledger: &Connection, id: &str, summary: &Summary) -> Check {
    let sum = summary.pushed
        + summary.already_cached
        + summary.upstream
        + summary.failed_total
        + summary.pending
        + summary.skipped
        + summary.collected;
    let count = "SELECT count(*) FROM session_item JOIN session ON session.id = session WHERE name = ?1";
    let paths = ledger
        .prepare_cached(count)
        .and_then(|mut count| count.query_row([id], |row| row.get::<_, i64>(0)))
        .map_err(|e| e.to_string())?
        .cast_unsigned();
    // Between the reading of the summary and this one a path may have been added, when
    // the session is not closed.
    let is_over = summary.outcome == Outcome::Complete;
    if (is_over && sum != paths) || sum > paths {
        return Err(format!("the summary of {id} counts {sum} paths, the session has {paths}"));
    }
    Ok(())
}

/// Each path that a complete answer counts as there, with its closure, was confirmed after
/// the answer was asked for, and after the last upload of one of the paths unless the daemon
/// stops: then it waits for uploads only.
pub(super) fn answer_is_fresh(
    store: &Store,
    caches: &[Cache],
    paths: &BTreeSet<String>,
    cache: u16,
    asked_at: u64,
    stopping: bool,
) -> Check {
    let cache_of = &caches[usize::from(cache)];
    let uploaded = paths.iter().filter_map(|base| cache_of.first_uploaded(hash(base), asked_at)).max();
    let since = uploaded.filter(|_| !stopping).unwrap_or(asked_at);
    for base in paths {
        for part in store.closure(base) {
            let at = cache_of.confirmed.get(hash(&part)).copied();
            if at.is_none_or(|at| at < since) {
                return Err(format!(
                    "the answer asked for at {asked_at} ms counts {base} as there; cache {cache} last confirmed \
                     {part} at {at:?}, and one of the paths was uploaded at {uploaded:?}"
                ));
            }
        }
    }
    Ok(())
}

/// The paths of a session that the ledger has as pushed or already cached.
pub(super) fn there(ledger: &Connection, id: &str) -> BTreeSet<String> {
    let mut find = ledger
        .prepare_cached(
            "SELECT item.path FROM session_item JOIN item ON item.id = item JOIN session ON session.id = session
             WHERE session.name = ?1 AND outcome IN (2, 3)",
        )
        .unwrap();
    let rows = find.query_map([id], |row| row.get(0)).unwrap();
    rows.map(Result::unwrap).collect()
}

/// A session's path with evidence other than closure was made by the session's user, or
/// its maker was not seen and no other user had a session then.
/// And it was made before the caller had the answer that everything of the session is taken in.
pub(super) fn belongs(ledger: &Connection, store: &Store, jobs: &[Job]) -> Check {
    // Their sessions may not have been open any more when a path was read again.
    let lost: BTreeSet<u32> = jobs.iter().filter(|job| job.may_be_lost).map(|job| job.uid).collect();
    let mut find = ledger
        .prepare(
            "SELECT item.path, uid, evidence, session.name FROM session_item
             JOIN item ON item.id = item JOIN session ON session.id = session",
        )
        .unwrap();
    let rows = find
        .query_map([], |row| {
            Ok((
                row.get::<_, String>(0)?,
                row.get::<_, u32>(1)?,
                row.get::<_, i64>(2)?,
                row.get::<_, String>(3)?,
            ))
        })
        .unwrap();
    for row in rows {
        let (base, uid, evidence, session) = row.unwrap();
        let Some(made) = store.made.get(&base).filter(|_| evidence != 2 && evidence != 5) else { continue };
        let job = jobs.iter().find(|job| job.id.as_ref() == Some(&session));
        let early = job.is_some_and(|job| job.sees_rows && made.at.line < job.started.line);
        if early && made.before.is_empty() {
            return Err(format!(
                "{base} was made before session {session} was asked for, and is its by evidence {evidence}"
            ));
        }
        let over = job.and_then(|job| job.taken_in);
        if over.is_some_and(|over| made.at.line > over.line) && made.before.is_empty() {
            return Err(format!(
                "{base} was made after session {session} was taken in, and is its by evidence {evidence}"
            ));
        }
        let may = |seen: Option<u32>, open: &BTreeSet<u32>| match seen {
            Some(seen) => seen == uid,
            None => open.iter().all(|open| *open == uid || lost.contains(open)),
        };
        if !may(made.seen, &made.open) && !made.before.iter().any(|(seen, open)| may(*seen, open)) {
            return Err(format!(
                "{base}, made by user {} (seen: {:?}, sessions open of {:?}), is session {session}'s of user {uid} by evidence {evidence}",
                made.maker, made.seen, made.open
            ));
        }
    }
    Ok(())
}

/// What the daemon has heard to be missing is not confirmed in its ledger.
pub(super) fn missing_is_open(ledger: &Connection, caches: &[Cache]) -> Check {
    let confirmed =
        "SELECT path FROM item JOIN cache ON cache.id = cache WHERE cache.name = ?1 AND state IN (2, 3)";
    for (cache, name) in caches.iter().zip(CACHES).filter(|(cache, _)| !cache.told_missing.is_empty()) {
        let mut find = ledger.prepare_cached(confirmed).unwrap();
        let mut rows = find.query_map([name], |row| row.get::<_, String>(0)).unwrap().map(Result::unwrap);
        if let Some(base) = rows.find(|base| cache.told_missing.contains(hash(base))) {
            return Err(format!(
                "cache {name} has answered that {base} is missing, and the ledger has it as confirmed"
            ));
        }
    }
    Ok(())
}

/// The paths with a push that has failed with a reason.
pub(super) fn failed(ledger: &Connection) -> BTreeSet<String> {
    let failed = "SELECT path FROM item WHERE state = 5 AND reason IS NOT NULL";
    let mut find = ledger.prepare_cached(failed).unwrap();
    find.query_map([], |row| row.get(0)).unwrap().map(Result::unwrap).collect()
}

/// At the end each valid path that belongs somewhere was confirmed by a cache, or has
/// failed with a reason.
pub(super) fn nothing_is_forgotten(ledger: &Connection, store: &Store, caches: &[Cache]) -> Check {
    // What was there before the first start is old, and nothing is to be done about it.
    let wanted = |made: &Made| made.valid && made.job != Some(usize::MAX);
    let failed = failed(ledger);
    for (base, made) in store.made.iter().filter(|(_, made)| wanted(made)) {
        // The cache that it goes to whatever else is known of it.
        let sure = made.seen.filter(|_| made.job.is_none()).map(cache_of);
        let confirmed = |cache: &Cache| cache.confirmed.contains_key(hash(base));
        let there = match sure {
            Some(cache) => confirmed(&caches[usize::from(cache)]),
            None => caches.iter().any(confirmed),
        };
        if !there && !failed.contains(base) {
            return Err(format!(
                "{base} is valid, and neither confirmed by cache {sure:?} nor failed: forgotten"
            ));
        }
    }
    Ok(())
}

/// At the end nothing is unsettled and no session drains.
pub(super) fn all_is_settled(ledger: &Connection) -> Check {
    let count = |what: &str| -> i64 { ledger.query_row(what, [], |row| row.get(0)).unwrap() };
    let pending = count("SELECT count(*) FROM item WHERE state IN (0, 1)");
    let live = count("SELECT count(*) FROM session WHERE state IN (0, 1)");
    let open_push = count("SELECT count(*) FROM session WHERE state = 0 AND kind <> 0");
    if pending + live + open_push > 0 {
        return Err(format!(
            "at the end {pending} pushes are pending, {live} sessions live, {open_push} pushes open"
        ));
    }
    Ok(())
}
