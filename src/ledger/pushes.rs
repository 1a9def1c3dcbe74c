//! Items in SQL: taking in, settling, taking up again. Runs inside the
//! writer's transaction and must not begin or end one.
//!
//! ```text
//!             admit (unknown)            uploading            settle
//!   ─────────────────────────► Pending ───────────► Uploading ──────► Pushed, Cached, Upstream,
//!                                 ▲                                   Failed, Skipped, Collected
//!                                 └──────────────────────────────────────┘
//!        reopen or retry_failed: Failed · admit: Collected, Skipped, or confirmed too long ago
//! ```

use std::collections::{BTreeSet, HashMap};

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::error::LedgerError;
use super::model::{
    Admit, Admitted, Cursor, Evidence, NewPushRow, Outcome, PushId, PushRow, PushState, SessionRow,
    SessionState, Settle,
};
use super::{MAX_ERROR, number, stored};

type Result<T> = std::result::Result<T, LedgerError>;

/// A settling and the next look may be written down in another order.
const CLOCK_SLACK: i64 = 60_000;

/// What [`lookup`] finds: id, state, when settled.
pub(super) type Found = Option<(PushId, PushState, i64)>;

pub(super) fn state(n: i64) -> Result<PushState> {
    PushState::from_file(n).ok_or_else(|| LedgerError::Sqlite(format!("no item state {n} in this format")))
}

pub(super) fn cursor(conn: &Connection) -> Result<Option<Cursor>> {
    let mut find = conn.prepare_cached("SELECT identity, id FROM cursor")?;
    Ok(find.query_row([], |row| Ok(Cursor { identity: row.get(0)?, id: row.get(1)? })).optional()?)
}

pub(super) fn admit(conn: &Connection, batch: &Admit) -> Result<Admitted> {
    let mut caches = HashMap::new();
    let mut live = HashMap::new();
    let mut refused = BTreeSet::new();
    let mut items = Vec::with_capacity(batch.items.len());
    for new in &batch.items {
        let cache = match caches.get(new.cache.as_str()) {
            Some(id) => *id,
            None => *caches.entry(new.cache.as_str()).or_insert(intern_cache(conn, &new.cache)?),
        };
        let (id, now, pending) = take_in(conn, cache, new, batch.at)?;
        for (session, evidence) in &new.sessions {
            let is_live = match live.get(session) {
                Some(known) => *known,
                None => *live.entry(*session).or_insert(is_live(conn, *session)?),
            };
            if is_live {
                attach(conn, *session, id, *evidence, now)?;
            } else {
                refused.insert(*session);
            }
        }
        items.push((id, now, pending));
    }
    if let Some(cursor) = &batch.cursor {
        conn.prepare_cached("INSERT OR REPLACE INTO cursor (one, identity, id) VALUES (1, ?1, ?2)")?
            .execute((&cursor.identity, cursor.id))?;
    }
    Ok(Admitted { items, refused: refused.into_iter().collect() })
}

fn intern_cache(conn: &Connection, name: &str) -> Result<i64> {
    let found = find_cache(conn, name)?;
    if let Some(id) = found {
        return Ok(id);
    }
    conn.prepare_cached("INSERT INTO cache (name) VALUES (?1)")?.execute([name])?;
    Ok(conn.last_insert_rowid())
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

/// Makes the item known, or takes it up again if there is cause to.
fn take_in(conn: &Connection, cache: i64, new: &NewPushRow, at: i64) -> Result<(PushId, PushState, bool)> {
    let settled_at = if new.state.is_settled() { at } else { 0 };
    let pending = !new.state.is_settled();
    let Some((id, old, confirmed_at)) = find(conn, cache, &new.path)? else {
        conn.prepare_cached(
            "INSERT INTO item (cache, path, nar_size, state, settled_at) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![cache, new.path, stored(new.nar_size), new.state as i64, settled_at])?;
        return Ok((conn.last_insert_rowid(), new.state, pending));
    };
    let again = match old {
        PushState::Pending | PushState::Uploading => false,
        PushState::Failed => new.retry_failed,
        // One from the future was written before the clock was put back, who
        // knows how long ago.
        PushState::Pushed | PushState::Cached | PushState::Upstream => {
            new.recheck_before > 0 && (confirmed_at < new.recheck_before || confirmed_at > at + CLOCK_SLACK)
        }
        // Says nothing about the cache: whatever is known now is better.
        PushState::Skipped | PushState::Collected => old != new.state,
    };
    if !again {
        return Ok((id, old, false));
    }
    conn.prepare_cached(
        "UPDATE item SET state = ?2, nar_size = ?3, settled_at = ?4, attempts = 0, reason = NULL, bytes = 0
         WHERE id = ?1",
    )?
    .execute(params![id, new.state as i64, stored(new.nar_size), settled_at])?;
    if old == PushState::Failed {
        unfail(conn, id)?;
        if !pending {
            settle_sessions(conn, id, new.state, None)?;
        }
    }
    Ok((id, new.state, pending))
}

/// The strongest evidence wins. A live session that names an item again while
/// it is (again) pending waits for it again; that it pushed it once stays.
fn attach(
    conn: &Connection,
    session: SessionRow,
    item: PushId,
    evidence: Evidence,
    now: PushState,
) -> Result<()> {
    let outcome = Outcome::on_attach(now);
    conn.prepare_cached(
        "INSERT INTO session_item (session, item, evidence, outcome, reason)
         VALUES (?1, ?2, ?3, ?4, CASE WHEN ?4 = 5 THEN (SELECT reason FROM item WHERE id = ?2) END)
         ON CONFLICT (session, item) DO UPDATE SET
           evidence = min(evidence, excluded.evidence),
           outcome = CASE WHEN excluded.outcome = 0 AND outcome <> 2 THEN 0 ELSE outcome END,
           reason = CASE WHEN excluded.outcome = 0 AND outcome <> 2 THEN NULL ELSE reason END
         WHERE excluded.evidence < evidence OR (excluded.outcome = 0 AND outcome NOT IN (0, 2))",
    )?
    .execute(params![session, item, evidence as i64, outcome as i64])?;
    Ok(())
}

/// A failed item is taken up again: live sessions wait for it again, what was
/// said to sessions that are over stays said.
fn unfail(conn: &Connection, item: PushId) -> Result<()> {
    conn.prepare_cached(
        "UPDATE session_item SET outcome = 0, reason = NULL
         WHERE item = ?1 AND outcome = 5
           AND EXISTS (SELECT 1 FROM session WHERE id = session_item.session AND state IN (0, 1))",
    )?
    .execute([item])?;
    Ok(())
}

/// Tells every session that waits for the item, also one that is over by now.
fn settle_sessions(conn: &Connection, item: PushId, now: PushState, reason: Option<i64>) -> Result<()> {
    if now != PushState::Pushed {
        conn.prepare_cached(
            "UPDATE session_item SET outcome = ?2, reason = ?3 WHERE item = ?1 AND outcome = 0",
        )?
        .execute(params![item, Outcome::on_attach(now) as i64, reason])?;
        return Ok(());
    }
    // Who only needed or named the path yields the credit to a waiting session
    // that made it (Hook, Process); if there is none, it was pushed for them.
    let made: bool = conn
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM session_item WHERE item = ?1 AND outcome = 0 AND evidence <= 1)",
        )?
        .query_row([item], |row| row.get(0))?;
    // Not UPDATE … FROM, which makes a temporary table each time.
    conn.prepare_cached(
        "UPDATE session_item
         SET outcome = CASE WHEN ?2 AND evidence IN (2, 5) THEN 3 ELSE 2 END,
             bytes = CASE WHEN ?2 AND evidence IN (2, 5) THEN 0
                          ELSE (SELECT nar_size FROM item WHERE id = ?1) END
         WHERE item = ?1 AND outcome = 0",
    )?
    .execute((item, made))?;
    Ok(())
}

pub(super) fn settle(conn: &Connection, item: PushId, to: &Settle) -> Result<()> {
    let mut find = conn.prepare_cached("SELECT state, nar_size FROM item WHERE id = ?1")?;
    let found: Option<(i64, i64)> =
        find.query_row([item], |row| Ok((row.get(0)?, row.get(1)?))).optional()?;
    let Some((old, nar_size)) = found else {
        crate::observe::event!(LEDGER_FAULT, item = item, state = ?to.state, "ledger: an item that is not known was settled");
        return Ok(());
    };
    let sent_before = state(old)? == PushState::Uploading && to.state == PushState::Cached;
    let now = if sent_before { PushState::Pushed } else { to.state };
    let bytes = if now == PushState::Pushed && to.bytes == 0 { nar_size } else { stored(to.bytes) };
    let reason = intern_reason(conn, to)?;
    conn.prepare_cached(
        "UPDATE item SET state = ?2, attempts = ?3, reason = ?4, bytes = ?5, settled_at = ?6 WHERE id = ?1",
    )?
    .execute(params![
        item,
        now as i64,
        to.attempts,
        reason,
        bytes,
        if now.is_settled() { to.at } else { 0 }
    ])?;
    if now.is_settled() {
        settle_sessions(conn, item, now, if now == PushState::Failed { reason } else { None })?;
    }
    Ok(())
}

/// Thousands of paths fail for one reason: its text is kept once.
fn intern_reason(conn: &Connection, to: &Settle) -> Result<Option<i64>> {
    if to.error.is_none() && to.error_class.is_none() {
        return Ok(None);
    }
    let class = to.error_class.as_deref().unwrap_or_default();
    let text = to.error.as_deref().unwrap_or_default();
    let text = cut(text);
    let mut find = conn.prepare_cached("SELECT id FROM reason WHERE class = ?1 AND text = ?2")?;
    if let Some(id) = find.query_row((class, text), |row| row.get(0)).optional()? {
        return Ok(Some(id));
    }
    conn.prepare_cached("INSERT INTO reason (class, text) VALUES (?1, ?2)")?.execute((class, text))?;
    Ok(Some(conn.last_insert_rowid()))
}

/// At most [`MAX_ERROR`] bytes of it, whole characters.
fn cut(text: &str) -> &str {
    let end = (0..=MAX_ERROR.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// A settled item is left alone: the word that it is being uploaded came late.
pub(super) fn uploading(conn: &Connection, item: PushId, attempt: u32) -> Result<()> {
    conn.prepare_cached("UPDATE item SET state = 1, attempts = ?2 WHERE id = ?1 AND state IN (0, 1)")?
        .execute((item, attempt))?;
    Ok(())
}

pub(super) fn reopen(conn: &Connection, items: &[PushId]) -> Result<()> {
    let mut again = conn.prepare_cached(
        "UPDATE item SET state = 0, attempts = 0, reason = NULL, bytes = 0, settled_at = 0
         WHERE id = ?1 AND state = 5",
    )?;
    for item in items {
        if again.execute([item])? > 0 {
            unfail(conn, *item)?;
        }
    }
    Ok(())
}

pub(super) fn lookup(conn: &Connection, cache: &str, paths: &[String]) -> Result<Vec<Found>> {
    match find_cache(conn, cache)? {
        None => Ok(vec![None; paths.len()]),
        Some(cache) => paths.iter().map(|path| find(conn, cache, path)).collect(),
    }
}

/// INDEXED BY: a queue of ten must not cost a walk over a month of history.
pub(super) const UNSETTLED: &str = "
SELECT item.id, cache.name, path, nar_size, state, attempts, class, text, settled_at
FROM item INDEXED BY item_unsettled
JOIN cache ON cache.id = item.cache LEFT JOIN reason ON reason.id = item.reason
WHERE item.state IN (0, 1, 5) AND item.id > ?1 ORDER BY item.id LIMIT ?2";

pub(super) fn unsettled(conn: &Connection, after: PushId, limit: usize) -> Result<Vec<PushRow>> {
    let mut find = conn.prepare_cached(UNSETTLED)?;
    let rows = find.query_and_then((after, i64::try_from(limit).unwrap_or(i64::MAX)), item_row)?;
    rows.collect()
}

fn item_row(row: &Row<'_>) -> Result<PushRow> {
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
    })
}
