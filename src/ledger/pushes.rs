//! Pushes in SQL: admission, settlement, retry. Runs inside the writer's
//! transaction and must not begin or end one.
//!
//! ```text
//!           admit (unknown)             uploading            settle
//!   ─────────────────────────► Pending ───────────► Uploading ──────► Pushed, Cached, Upstream,
//!                                 ▲                                   Failed, Skipped, Collected
//!                                 └──────────────────────────────────────┘
//!        reopen, retry_failed: Failed · admit: Collected, Skipped · unconfirm: Pushed, Cached, Upstream, Collected
//! ```

use std::collections::HashMap;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::LedgerError;
use super::model::{
    Admit, Admitted, Cursor, Evidence, NewPushRow, Outcome, PushId, PushRow, PushState, SessionRow,
    SessionState, Settle,
};
use super::{MAX_ERROR, number, stored};
use crate::types::shorten;

type Result<T> = std::result::Result<T, LedgerError>;

/// A row that [`lookup`] found: id, state, time of settlement.
pub(super) type Found = Option<(PushId, PushState, i64)>;

/// Parses a state of the file.
pub(super) fn state(n: i64) -> Result<PushState> {
    PushState::from_file(n).ok_or_else(|| LedgerError::Sqlite(format!("no push state {n} in this format")))
}

/// The key of [`Cursor::marks`] in the table `meta`.
const MARKS: &str = "intake.marks";

pub(super) fn cursor(conn: &Connection) -> Result<Option<Cursor>> {
    let mut find = conn.prepare_cached(
        "SELECT identity, id, coalesce((SELECT value FROM meta WHERE key = ?1), '') FROM cursor",
    )?;
    let cursor = |row: &Row<'_>| Ok(Cursor { identity: row.get(0)?, id: row.get(1)?, marks: row.get(2)? });
    Ok(find.query_row([MARKS], cursor).optional()?)
}

/// Records a batch.
pub(super) fn admit(conn: &Connection, batch: &Admit) -> Result<Admitted> {
    let mut caches = HashMap::new();
    let mut routes = HashMap::new();
    let mut live = HashMap::new();
    let mut pushes = Vec::with_capacity(batch.pushes.len());
    for new in &batch.pushes {
        let cache = match caches.get(new.cache.as_str()) {
            Some(id) => *id,
            None => *caches.entry(new.cache.as_str()).or_insert(intern_cache(conn, &new.cache)?),
        };
        let route = match new.route.as_deref() {
            None => None,
            Some(text) => Some(match routes.get(text) {
                Some(id) => *id,
                None => *routes.entry(text).or_insert(intern_route(conn, text)?),
            }),
        };
        let (id, now, pending) = take_in(conn, (cache, route), new, batch.at)?;
        for (session, evidence) in &new.sessions {
            let is_live = match live.get(session) {
                Some(known) => *known,
                None => *live.entry(*session).or_insert(is_live(conn, *session)?),
            };
            if is_live {
                attach(conn, *session, id, *evidence, now)?;
            }
        }
        if let Some(session) = new.needed_by.filter(|_| now == PushState::Failed) {
            failed_for(conn, id, session)?;
        }
        pushes.push((id, now, pending));
    }
    if let Some(cursor) = &batch.cursor {
        conn.prepare_cached("INSERT OR REPLACE INTO cursor (one, identity, id) VALUES (1, ?1, ?2)")?
            .execute((&cursor.identity, cursor.id))?;
        conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
            .execute((MARKS, &cursor.marks))?;
    }
    Ok(Admitted { pushes })
}

fn intern_cache(conn: &Connection, name: &str) -> Result<i64> {
    let found = find_cache(conn, name)?;
    if let Some(id) = found {
        return Ok(id);
    }
    conn.prepare_cached("INSERT INTO cache (name) VALUES (?1)")?.execute([name])?;
    Ok(conn.last_insert_rowid())
}

fn intern_route(conn: &Connection, text: &str) -> Result<i64> {
    conn.prepare_cached("INSERT INTO route (text) VALUES (?1) ON CONFLICT (text) DO NOTHING")?
        .execute([text])?;
    Ok(conn.prepare_cached("SELECT id FROM route WHERE text = ?1")?.query_row([text], |row| row.get(0))?)
}

fn find_cache(conn: &Connection, name: &str) -> Result<Option<i64>> {
    Ok(conn
        .prepare_cached("SELECT id FROM cache WHERE name = ?1")?
        .query_row([name], |row| row.get(0))
        .optional()?)
}

fn is_live(conn: &Connection, session: SessionRow) -> Result<bool> {
    let mut find = conn.prepare_cached("SELECT state FROM session WHERE id = ?1")?;
    let found: Option<i64> = find.query_row([session], |row| row.get(0)).optional()?;
    Ok(found.and_then(SessionState::from_file).is_some_and(SessionState::is_live))
}

fn find(conn: &Connection, cache: i64, path: &str) -> Result<Found> {
    let mut find =
        conn.prepare_cached("SELECT id, state, settled_at FROM item WHERE cache = ?1 AND path = ?2")?;
    let found: Option<(i64, i64, i64)> =
        find.query_row((cache, path), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    found.map(|(id, n, at)| Ok((id, state(n)?, at))).transpose()
}

/// Inserts a push, or makes a known one pending again if there is a reason. `to`: the
/// cache, and the route that led there. Returns its id, its state, and whether it became
/// pending.
fn take_in(
    conn: &Connection,
    to: (i64, Option<i64>),
    new: &NewPushRow,
    at: i64,
) -> Result<(PushId, PushState, bool)> {
    let (cache, route) = to;
    let settled_at = if new.state.is_settled() { at } else { 0 };
    let pending = !new.state.is_settled();
    let Some((id, old, _)) = find(conn, cache, &new.path)? else {
        conn.prepare_cached(
            "INSERT INTO item (cache, path, nar_size, state, settled_at, valid_at, seen_at, route)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            cache,
            new.path,
            stored(new.nar_size),
            new.state as i64,
            settled_at,
            new.valid_at,
            at,
            route
        ])?;
        return Ok((conn.last_insert_rowid(), new.state, pending));
    };
    let again = match old {
        PushState::Pending | PushState::Uploading => false,
        PushState::Failed => new.retry_failed,
        // Whether the cache still has it is asked; see [`unconfirm`].
        PushState::Pushed | PushState::Cached | PushState::Upstream => false,
        // Says nothing about the cache, so the new state is better.
        PushState::Skipped | PushState::Collected => old != new.state,
    };
    if route.is_some() {
        conn.prepare_cached("UPDATE item SET route = ?2 WHERE id = ?1")?.execute((id, route))?;
    }
    if !again {
        return Ok((id, old, false));
    }
    conn.prepare_cached(
        "UPDATE item SET state = ?2, nar_size = ?3, settled_at = ?4, attempts = 0, reason = NULL,
           valid_at = ?5, seen_at = ?6, asked_at = 0, begun_at = 0
         WHERE id = ?1",
    )?
    .execute(params![id, new.state as i64, stored(new.nar_size), settled_at, new.valid_at, at])?;
    wait_again(conn, id)?;
    if !pending {
        settle_sessions(conn, id, new.state, None)?;
    }
    Ok((id, new.state, pending))
}

/// Adds a push to a session. The strongest evidence counts. A push that is pending
/// again is pending for the session as well.
fn attach(
    conn: &Connection,
    session: SessionRow,
    push: PushId,
    evidence: Evidence,
    now: PushState,
) -> Result<()> {
    let outcome = Outcome::on_attach(now);
    conn.prepare_cached(
        "INSERT INTO session_item (session, item, evidence, outcome, reason)
         VALUES (?1, ?2, ?3, ?4, CASE WHEN ?4 = 5 THEN (SELECT reason FROM item WHERE id = ?2) END)
         ON CONFLICT (session, item) DO UPDATE SET
           evidence = min(evidence, excluded.evidence),
           outcome = CASE WHEN excluded.outcome = 0 THEN 0 ELSE outcome END,
           reason = CASE WHEN excluded.outcome = 0 THEN NULL ELSE reason END
         WHERE excluded.evidence < evidence OR (excluded.outcome = 0 AND outcome <> 0)",
    )?
    .execute(params![session, push, evidence as i64, outcome as i64])?;
    Ok(())
}

/// Adds a failed push to a live session with a path that needs it.
pub(super) fn failed_for(conn: &Connection, push: PushId, session: SessionRow) -> Result<()> {
    conn.prepare_cached(
        "INSERT INTO session_item (session, item, evidence, outcome, reason)
         SELECT session.id, item.id, ?3, 5, item.reason FROM session, item
         WHERE session.id = ?1 AND session.state IN (0, 1) AND item.id = ?2 AND item.state = 5
         ON CONFLICT DO NOTHING",
    )?
    .execute((session, push, Evidence::Closure as i64))?;
    Ok(())
}

/// Makes a push that has failed, was skipped or collected pending for live sessions. The
/// summary of a session that is over does not change.
fn wait_again(conn: &Connection, push: PushId) -> Result<()> {
    conn.prepare_cached(
        "UPDATE session_item SET outcome = 0, reason = NULL
         WHERE item = ?1 AND outcome IN (5, 6, 7)
           AND EXISTS (SELECT 1 FROM session WHERE id = session_item.session AND state IN (0, 1))",
    )?
    .execute([push])?;
    Ok(())
}

/// Records the outcome for every session for which the push is pending, also for
/// sessions that are over. A session that pushed the path earlier has pushed it also
/// when the cache has it without a second upload.
fn settle_sessions(conn: &Connection, push: PushId, now: PushState, reason: Option<i64>) -> Result<()> {
    if now != PushState::Pushed {
        conn.prepare_cached(
            "UPDATE session_item SET outcome = CASE WHEN ?2 = 3 AND bytes > 0 THEN 2 ELSE ?2 END, reason = ?3
             WHERE item = ?1 AND outcome = 0",
        )?
        .execute(params![push, Outcome::on_attach(now) as i64, reason])?;
        return Ok(());
    }
    // If a waiting session made the path (hook, process), sessions that only need
    // it count it as cached. Otherwise it was pushed for them.
    let made: bool = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM session_item WHERE item = ?1 AND outcome = 0 AND evidence <= 1)",
        )?
        .query_row([push], |row| row.get(0))?;
    // UPDATE … FROM would make a temporary table each time.
    conn.prepare_cached(
        "UPDATE session_item
         SET outcome = CASE WHEN ?2 AND evidence IN (2, 5) THEN 3 ELSE 2 END,
             bytes = CASE WHEN ?2 AND evidence IN (2, 5) THEN 0
                          ELSE (SELECT nar_size FROM item WHERE id = ?1) END
         WHERE item = ?1 AND outcome = 0",
    )?
    .execute((push, made))?;
    Ok(())
}

/// Records the end of an attempt.
pub(super) fn settle(conn: &Connection, push: PushId, to: &Settle) -> Result<()> {
    let mut find = conn.prepare_cached("SELECT state FROM item WHERE id = ?1")?;
    let found: Option<i64> = find.query_row([push], |row| row.get(0)).optional()?;
    let Some(old) = found else {
        crate::observe::event!(
            LEDGER_FAULT,
            item = push,
            state = to.state.word(),
            "ledger: the unknown push {push} ended as {}; that is not recorded",
            to.state.word()
        );
        return Ok(());
    };
    let sent_before = state(old)? == PushState::Uploading && to.state == PushState::Cached;
    let now = if sent_before { PushState::Pushed } else { to.state };
    let reason = intern_reason(conn, to)?;
    conn.prepare_cached(
        "UPDATE item SET state = ?2, attempts = ?3, reason = ?4, settled_at = ?5,
           asked_at = CASE WHEN ?6 > 0 THEN ?6 ELSE asked_at END,
           begun_at = CASE WHEN ?7 > 0 THEN ?7 ELSE begun_at END
         WHERE id = ?1",
    )?
    .execute(params![
        push,
        now as i64,
        to.attempts,
        reason,
        if now.is_settled() { to.at } else { 0 },
        to.steps.asked_at,
        to.steps.begun_at
    ])?;
    if now.is_settled() {
        settle_sessions(conn, push, now, if now == PushState::Failed { reason } else { None })?;
    }
    Ok(())
}

/// Returns the row of a reason. Thousands of paths fail for one reason, so its text
/// is kept once.
fn intern_reason(conn: &Connection, to: &Settle) -> Result<Option<i64>> {
    if to.error.is_none() && to.error_class.is_none() {
        return Ok(None);
    }
    let class = to.error_class.as_deref().unwrap_or_default();
    let text = to.error.as_deref().unwrap_or_default();
    let text = &shorten(text, MAX_ERROR);
    let mut find = conn.prepare_cached("SELECT id FROM reason WHERE class = ?1 AND text = ?2")?;
    if let Some(id) = find.query_row((class, text), |row| row.get(0)).optional()? {
        return Ok(Some(id));
    }
    conn.prepare_cached("INSERT INTO reason (class, text) VALUES (?1, ?2)")?.execute((class, text))?;
    Ok(Some(conn.last_insert_rowid()))
}

/// Records the beginning of an upload. Does not change a settled push.
pub(super) fn uploading(conn: &Connection, push: PushId, attempt: u32) -> Result<()> {
    conn.prepare_cached("UPDATE item SET state = 1, attempts = ?2 WHERE id = ?1 AND state IN (0, 1)")?
        .execute((push, attempt))?;
    Ok(())
}

/// Makes failed pushes pending.
pub(super) fn reopen(conn: &Connection, pushes: &[PushId]) -> Result<()> {
    let mut again = conn.prepare_cached(
        "UPDATE item SET state = 0, attempts = 0, reason = NULL, settled_at = 0
         WHERE id = ?1 AND state = 5",
    )?;
    for push in pushes {
        if again.execute([push])? > 0 {
            wait_again(conn, *push)?;
        }
    }
    Ok(())
}

/// Makes confirmed and collected pushes pending, for live sessions as well, those that pushed
/// the paths included: a second push may fail.
pub(super) fn unconfirm(conn: &Connection, pushes: &[PushId]) -> Result<()> {
    let mut push = conn.prepare_cached(
        "UPDATE item SET state = 0, attempts = 0, reason = NULL, settled_at = 0
         WHERE id = ?1 AND state IN (2, 3, 4, 7)",
    )?;
    let mut sessions = conn.prepare_cached(
        "UPDATE session_item SET outcome = 0, reason = NULL
         WHERE item = ?1 AND outcome IN (2, 3, 4, 7)
           AND EXISTS (SELECT 1 FROM session WHERE id = session_item.session AND state IN (0, 1))",
    )?;
    for id in pushes {
        if push.execute([id])? > 0 {
            sessions.execute([id])?;
        }
    }
    Ok(())
}

/// Returns the pushes that are recorded as pushed or already cached and have an id of
/// at least `from`: each with its cache and path, in the order of their ids.
pub(super) fn confirmed(
    conn: &Connection,
    from: PushId,
    limit: usize,
) -> Result<Vec<(PushId, String, String)>> {
    let mut find = conn.prepare_cached(
        "SELECT item.id, cache.name, path FROM item JOIN cache ON cache.id = item.cache
         WHERE state IN (2, 3) AND item.id >= ?1 ORDER BY item.id LIMIT ?2",
    )?;
    let rows = find.query_map((from, i64::try_from(limit).unwrap_or(i64::MAX)), |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?))
    })?;
    Ok(rows.collect::<std::result::Result<_, _>>()?)
}

/// Returns the id of the first of the latest `count` pushes that are recorded as pushed
/// or already cached, 0 when there are fewer.
pub(super) fn latest_confirmed(conn: &Connection, count: usize) -> Result<PushId> {
    let mut find =
        conn.prepare_cached("SELECT id FROM item WHERE state IN (2, 3) ORDER BY id DESC LIMIT 1 OFFSET ?1")?;
    let before = i64::try_from(count.saturating_sub(1)).unwrap_or(i64::MAX);
    Ok(find.query_row([before], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// Returns the rows of these paths of one cache, in their order.
pub(super) fn lookup(conn: &Connection, cache: &str, paths: &[String]) -> Result<Vec<Found>> {
    match find_cache(conn, cache)? {
        None => Ok(vec![None; paths.len()]),
        Some(cache) => paths.iter().map(|path| find(conn, cache, path)).collect(),
    }
}

/// Finds the unsettled pushes. INDEXED BY, because a queue of ten must not cost a scan
/// of a month of history.
pub(super) const UNSETTLED: &str = "
SELECT item.id, cache.name, path, nar_size, state, attempts, class, text, settled_at, seen_at
FROM item INDEXED BY item_unsettled
JOIN cache ON cache.id = item.cache LEFT JOIN reason ON reason.id = item.reason
WHERE (item.state <= 1 OR item.state = 5) AND item.id > ?1 ORDER BY item.id LIMIT ?2";

pub(super) fn unsettled(conn: &Connection, after: PushId, limit: usize) -> Result<Vec<PushRow>> {
    let mut find = conn.prepare_cached(UNSETTLED)?;
    let rows = find.query_and_then((after, i64::try_from(limit).unwrap_or(i64::MAX)), push_row)?;
    rows.collect()
}

pub(super) fn push_row(row: &Row<'_>) -> Result<PushRow> {
    Ok(PushRow {
        id: row.get(0)?,
        cache: row.get(1)?,
        path: row.get(2)?,
        nar_size: number(row.get(3)?),
        state: state(row.get(4)?)?,
        attempts: row.get(5)?,
        error_class: row.get(6)?,
        error: row.get(7)?,
        settled_at: row.get(8)?,
        seen_at: row.get(9)?,
    })
}

/// See [`super::Ledger::sample`].
pub(super) fn sample(conn: &Connection, count: usize) -> Result<Vec<(String, String)>> {
    // By id, so that a large ledger is not read as a whole.
    let mut next = conn.prepare_cached(
        "WITH pick(start) AS MATERIALIZED (SELECT abs(random() % (max(id) + 1)) FROM item)
         SELECT item.id, cache.name, path FROM pick
         JOIN item ON item.id >= start AND item.id < start + 1000 JOIN cache ON cache.id = item.cache
         WHERE state IN (2, 3) ORDER BY item.id LIMIT 1",
    )?;
    let mut found = std::collections::BTreeMap::new();
    for _ in 0..count.saturating_mul(4) {
        let row =
            next.query_row([], |row| Ok((row.get::<_, i64>(0)?, (row.get(1)?, row.get(2)?)))).optional()?;
        found.extend(row);
        if found.len() >= count {
            break;
        }
    }
    Ok(found.into_values().collect())
}
