//! Forgetting: sessions that are long over, then items that no session names
//! any more. Done in steps, each a transaction of its own, so that a month of
//! history does not keep the queue waiting.

use rusqlite::{Connection, OptionalExtension};

use super::error::LedgerError;
use super::model::{Pruned, PushId};

type Result<T> = std::result::Result<T, LedgerError>;

/// Rows that one step looks at.
const STEP: i64 = 2000;

/// Where the next step goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Sessions,
    Items { after: PushId },
    Reasons,
    Done,
}

pub(super) fn step(conn: &Connection, step: Step, before: i64, pruned: &mut Pruned) -> Result<Step> {
    match step {
        Step::Sessions => sessions(conn, before, pruned),
        Step::Items { after } => items(conn, after, before, pruned),
        Step::Reasons => reasons(conn),
        Step::Done => Ok(Step::Done),
    }
}

/// One session at a time, its items first: if that is cut off, it goes on next time.
fn sessions(conn: &Connection, before: i64, pruned: &mut Pruned) -> Result<Step> {
    let mut find = conn.prepare_cached(
        "SELECT id FROM session WHERE state IN (2, 3) AND closed_at < ?1 ORDER BY id LIMIT 1",
    )?;
    let found: Option<i64> = find.query_row([before], |row| row.get(0)).optional()?;
    let Some(session) = found else { return Ok(Step::Items { after: 0 }) };
    let gone = conn
        .prepare_cached(
            "DELETE FROM session_item WHERE session = ?1 AND item IN
               (SELECT item FROM session_item WHERE session = ?1 LIMIT ?2)",
        )?
        .execute((session, STEP))?;
    if gone == 0 {
        conn.prepare_cached("DELETE FROM session WHERE id = ?1")?.execute([session])?;
        pruned.sessions += 1;
    }
    Ok(Step::Sessions)
}

/// Failed ones too: after so long a new attempt is due when the path is met again.
fn items(conn: &Connection, after: PushId, before: i64, pruned: &mut Pruned) -> Result<Step> {
    let mut ahead =
        conn.prepare_cached("SELECT max(id) FROM (SELECT id FROM item WHERE id > ?1 ORDER BY id LIMIT ?2)")?;
    let last: Option<i64> = ahead.query_row((after, STEP), |row| row.get(0))?;
    let Some(last) = last else { return Ok(Step::Reasons) };
    let gone = conn
        .prepare_cached(
            "DELETE FROM item WHERE id > ?1 AND id <= ?2 AND state NOT IN (0, 1) AND settled_at < ?3
               AND NOT EXISTS (SELECT 1 FROM session_item WHERE item = item.id)",
        )?
        .execute((after, last, before))?;
    pruned.items += u64::try_from(gone).unwrap_or(0);
    Ok(Step::Items { after: last })
}

fn reasons(conn: &Connection) -> Result<Step> {
    conn.prepare_cached(
        "DELETE FROM reason
         WHERE NOT EXISTS (SELECT 1 FROM item WHERE item.reason = reason.id)
           AND NOT EXISTS (SELECT 1 FROM session_item WHERE session_item.reason = reason.id)",
    )?
    .execute([])?;
    Ok(Step::Done)
}
