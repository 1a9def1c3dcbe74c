//! Removing history: sessions that are over, then pushes that belong to no session.
//! Each step is a transaction of its own, so that a month of history does not keep
//! other calls waiting.

use rusqlite::{Connection, OptionalExtension};

use super::error::LedgerError;
use super::model::{Pruned, PushId};

type Result<T> = std::result::Result<T, LedgerError>;

/// Most rows that one step reads.
const STEP: i64 = 2000;

/// Where the next step continues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Sessions,
    Pushes { after: PushId },
    Reasons,
    Done,
}

/// Makes one step, counts what it removed, and returns the next step.
pub(super) fn step(conn: &Connection, step: Step, before: i64, pruned: &mut Pruned) -> Result<Step> {
    match step {
        Step::Sessions => sessions(conn, before, pruned),
        Step::Pushes { after } => pushes(conn, after, before, pruned),
        Step::Reasons => reasons(conn),
        Step::Done => Ok(Step::Done),
    }
}

/// Removes a part of one session, its rows of `session_item` first, so that the next
/// call can continue.
fn sessions(conn: &Connection, before: i64, pruned: &mut Pruned) -> Result<Step> {
    let mut find = conn.prepare_cached(
        "SELECT id FROM session WHERE state IN (2, 3) AND closed_at < ?1 ORDER BY id LIMIT 1",
    )?;
    let found: Option<i64> = find.query_row([before], |row| row.get(0)).optional()?;
    let Some(session) = found else { return Ok(Step::Pushes { after: 0 }) };
    let removed = conn
        .prepare_cached(
            "DELETE FROM session_item WHERE session = ?1 AND item IN
               (SELECT item FROM session_item WHERE session = ?1 LIMIT ?2)",
        )?
        .execute((session, STEP))?;
    if removed == 0 {
        conn.prepare_cached("DELETE FROM session WHERE id = ?1")?.execute([session])?;
        pruned.sessions += 1;
    }
    Ok(Step::Sessions)
}

/// Removes settled pushes, failed ones too: after this time a new attempt is due
/// when the path comes up again.
fn pushes(conn: &Connection, after: PushId, before: i64, pruned: &mut Pruned) -> Result<Step> {
    let mut ahead =
        conn.prepare_cached("SELECT max(id) FROM (SELECT id FROM item WHERE id > ?1 ORDER BY id LIMIT ?2)")?;
    let last: Option<i64> = ahead.query_row((after, STEP), |row| row.get(0))?;
    let Some(last) = last else { return Ok(Step::Reasons) };
    let removed = conn
        .prepare_cached(
            "DELETE FROM item WHERE id > ?1 AND id <= ?2 AND state NOT IN (0, 1) AND settled_at < ?3
               AND NOT EXISTS (SELECT 1 FROM session_item WHERE item = item.id)",
        )?
        .execute((after, last, before))?;
    pruned.pushes += u64::try_from(removed).unwrap_or(0);
    Ok(Step::Pushes { after: last })
}

/// Removes reasons that no push and no session uses.
fn reasons(conn: &Connection) -> Result<Step> {
    conn.prepare_cached(
        "DELETE FROM reason
         WHERE NOT EXISTS (SELECT 1 FROM item WHERE item.reason = reason.id)
           AND NOT EXISTS (SELECT 1 FROM session_item WHERE session_item.reason = reason.id)",
    )?
    .execute([])?;
    Ok(Step::Done)
}
