//! Sessions in SQL: opening, ending, counting. Runs inside the writer's
//! transaction and must not begin or end one.

use rusqlite::{Connection, OptionalExtension, Row, named_params};

use super::error::LedgerError;
use super::model::{
    Counts, Evidence, Failure, ListedSession, NewSession, Outcome, PushId, SessionInfo, SessionKind,
    SessionPush, SessionRow, SessionState, Steps, Warnings,
};
use super::{MAX_FAILURES, MAX_LISTED_PUSHES, MAX_LISTED_TEXT, MAX_SESSIONS, number, stored};

type Result<T> = std::result::Result<T, LedgerError>;

/// Returns the error for a number that the format does not have.
fn strange(what: &str, n: i64) -> LedgerError {
    LedgerError::Sqlite(format!("no {what} {n} in this format"))
}

/// Inserts a session.
pub(super) fn open(conn: &Connection, new: &NewSession) -> Result<SessionRow> {
    let mut insert = conn.prepare_cached(
        "INSERT INTO session (name, label, cache, uid, gid, anchor_pid, anchor_start, strict, ci, started_at, after_number,
           kind, state, ended_at, log_paths, route)
         VALUES (:name, :label, :cache, :uid, :gid, :pid, :start, :strict, :ci, :at, :after, :kind, :state,
           CASE WHEN :state > 0 THEN :at END, :log_paths, :route)
         ON CONFLICT (name) DO NOTHING",
    )?;
    let inserted = insert.execute(named_params! {
        ":name": new.id,
        ":label": new.label,
        ":cache": new.cache,
        ":uid": new.uid,
        ":gid": new.gid,
        ":pid": new.anchor_pid.map(|(pid, _)| pid),
        ":start": new.anchor_pid.map(|(_, start)| stored(start)),
        ":strict": new.strict,
        ":ci": new.ci,
        ":at": new.started_at,
        ":after": new.after,
        ":kind": new.kind as i64,
        ":state": new.kind.first_state() as i64,
        ":log_paths": new.log_paths,
        ":route": new.route,
    })?;
    if inserted == 0 { Err(LedgerError::SessionExists(new.id.clone())) } else { Ok(conn.last_insert_rowid()) }
}

/// Updates a live session's state. The first end and the first close count.
pub(super) fn set_state(
    conn: &Connection,
    row: SessionRow,
    state: SessionState,
    at: i64,
    flush_ms: Option<u64>,
) -> Result<()> {
    let mut update = conn.prepare_cached(
        "UPDATE session SET
           state = ?2,
           ended_at = CASE WHEN ?2 > 0 THEN coalesce(ended_at, ?3) END,
           closed_at = CASE WHEN ?2 > 1 THEN ?3 END,
           flush_ms = coalesce(?4, flush_ms)
         WHERE id = ?1 AND state IN (0, 1)",
    )?;
    update.execute((row, state as i64, at, flush_ms.map(stored)))?;
    Ok(())
}

/// Records that a live session drains. The first end counts.
pub(super) fn set_draining(conn: &Connection, row: SessionRow, abandoned: bool, at: i64) -> Result<()> {
    let mut update = conn.prepare_cached(
        "UPDATE session SET state = 1, abandoned = ?2, ended_at = coalesce(ended_at, ?3)
         WHERE id = ?1 AND state IN (0, 1)",
    )?;
    update.execute((row, abandoned, at))?;
    Ok(())
}

/// Makes a session open that was recorded before its caller was answered.
pub(super) fn set_answered(conn: &Connection, row: SessionRow) -> Result<()> {
    let mut update = conn.prepare_cached(
        "UPDATE session SET state = 0, abandoned = 0, ended_at = NULL WHERE id = ?1 AND state = 1 AND abandoned = 1",
    )?;
    update.execute([row])?;
    Ok(())
}

/// Makes a session that is over draining again.
pub(super) fn rejoin(conn: &Connection, row: SessionRow) -> Result<()> {
    let mut update = conn.prepare_cached(
        "UPDATE session SET state = 1, abandoned = 0, closed_at = NULL WHERE id = ?1 AND state IN (2, 3)",
    )?;
    update.execute([row])?;
    Ok(())
}

/// Removes paths that one session made from live sessions that were only open at the
/// same time.
pub(super) fn claim(conn: &Connection, owner: SessionRow, paths: &[String]) -> Result<()> {
    let mut disown = conn.prepare_cached(
        "DELETE FROM session_item
         WHERE item IN (SELECT id FROM item WHERE path = ?2) AND session <> ?1 AND evidence IN (3, 4)
           AND EXISTS (SELECT 1 FROM session WHERE id = session_item.session AND state IN (0, 1))",
    )?;
    for path in paths {
        disown.execute((owner, path))?;
    }
    Ok(())
}

const COLUMNS: &str =
    "SELECT id, name, label, cache, uid, gid, anchor_pid, anchor_start, strict, ci, started_at,
  state, ended_at, closed_at, flush_ms, after_number, until_number, warnings, kind, abandoned, log_paths, route,
  invalid FROM session";

fn info(row: &Row<'_>) -> Result<SessionInfo> {
    let pid: Option<i32> = row.get(6)?;
    let start: Option<i64> = row.get(7)?;
    let state: i64 = row.get(11)?;
    let kind: i64 = row.get(18)?;
    Ok(SessionInfo {
        row: row.get(0)?,
        new: NewSession {
            id: row.get(1)?,
            kind: SessionKind::from_file(kind).ok_or_else(|| strange("session kind", kind))?,
            label: row.get(2)?,
            cache: row.get(3)?,
            uid: row.get(4)?,
            gid: row.get(5)?,
            anchor_pid: pid.zip(start.map(number)),
            strict: row.get(8)?,
            log_paths: row.get(20)?,
            ci: row.get(9)?,
            route: row.get(21)?,
            started_at: row.get(10)?,
            after: row.get(15)?,
        },
        state: SessionState::from_file(state).ok_or_else(|| strange("session state", state))?,
        abandoned: row.get(19)?,
        ended_at: row.get(12)?,
        closed_at: row.get(13)?,
        flush_ms: row.get::<_, Option<i64>>(14)?.map(number),
        until: row.get(16)?,
        warnings: Warnings {
            texts: row.get::<_, Option<String>>(17)?.map(|list| texts(&list)).unwrap_or_default(),
            invalid: number(row.get(22)?),
        },
    })
}

/// Returns all open and draining sessions, the oldest first.
pub(super) fn live(conn: &Connection) -> Result<Vec<SessionInfo>> {
    let mut find = conn.prepare_cached(&format!("{COLUMNS} WHERE state IN (0, 1) ORDER BY id"))?;
    find.query_and_then([], info)?.collect()
}

/// Returns the numbers of open and of draining sessions.
pub(super) fn live_counts(conn: &Connection) -> Result<(u64, u64)> {
    let count = "SELECT count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1)
       FROM session INDEXED BY session_live WHERE state IN (0, 1)";
    let mut find = conn.prepare_cached(count)?;
    Ok(find.query_row([], |row| Ok((number(row.get(0)?), number(row.get(1)?))))?)
}

/// Returns the latest sessions, the oldest first, as far as the bounds allow. `all`: also those that are over.
/// `uid`: only those of this user.
pub(super) fn list(conn: &Connection, all: bool, uid: Option<u32>) -> Result<Vec<ListedSession>> {
    let live = if all { "" } else { "state IN (0, 1) AND" };
    let sql =
        format!("{COLUMNS} WHERE {live} (?1 IS NULL OR uid = ?1) ORDER BY id DESC LIMIT {MAX_SESSIONS}");
    let mut find = conn.prepare_cached(&sql)?;
    let mut count = conn.prepare_cached(
        "SELECT count(*) FILTER (WHERE outcome = 0), count(*) FILTER (WHERE outcome IN (2, 3, 4)),
           count(*) FILTER (WHERE outcome = 5), count(*) FROM session_item WHERE session = ?1",
    )?;
    let (mut found, mut text, mut pushes) = (Vec::new(), 0, 0);
    for session in find.query_and_then([uid], info)? {
        let info = session?;
        let counts =
            |row: &Row<'_>| Ok([row.get::<_, i64>(0)?, row.get(1)?, row.get(2)?, row.get(3)?].map(number));
        let [pending, settled, failed, total] = count.query_row([info.row], counts)?;
        text += [&info.new.label, &info.new.ci].into_iter().flatten().map(String::len).sum::<usize>();
        pushes += total;
        found.push(ListedSession { info, pending, settled, failed });
        if text >= MAX_LISTED_TEXT || pushes >= MAX_LISTED_PUSHES {
            break;
        }
    }
    found.reverse();
    Ok(found)
}

pub(super) fn by_name(conn: &Connection, name: &str) -> Result<Option<SessionInfo>> {
    let mut find = conn.prepare_cached(&format!("{COLUMNS} WHERE name = ?1"))?;
    let mut rows = find.query_and_then([name], info)?;
    rows.next().transpose()
}

pub(super) fn by_row(conn: &Connection, row: SessionRow) -> Result<Option<SessionInfo>> {
    let mut find = conn.prepare_cached(&format!("{COLUMNS} WHERE id = ?1"))?;
    let mut rows = find.query_and_then([row], info)?;
    rows.next().transpose()
}

/// Records the end of a session's window. The first call counts.
pub(super) fn set_until(conn: &Connection, row: SessionRow, until: i64) -> Result<()> {
    let mut update =
        conn.prepare_cached("UPDATE session SET until_number = coalesce(until_number, ?2) WHERE id = ?1")?;
    update.execute((row, until))?;
    Ok(())
}

pub(super) fn set_warnings(conn: &Connection, row: SessionRow, warnings: &Warnings) -> Result<()> {
    let mut update = conn.prepare_cached("UPDATE session SET warnings = ?2, invalid = ?3 WHERE id = ?1")?;
    let texts = serde_json::Value::from(warnings.texts.as_slice()).to_string();
    update.execute((row, texts, stored(warnings.invalid)))?;
    Ok(())
}

/// Parses a list of warnings. A damaged list counts as empty.
fn texts(list: &str) -> Vec<String> {
    serde_json::from_str(list).unwrap_or_default()
}

/// Returns a session's pushes that are not settled.
pub(super) fn pending(conn: &Connection, row: SessionRow) -> Result<Vec<PushId>> {
    let mut find = conn.prepare_cached("SELECT item FROM session_item WHERE session = ?1 AND outcome = 0")?;
    let pushes = find.query_map([row], |row| row.get(0))?;
    Ok(pushes.collect::<rusqlite::Result<_>>()?)
}

pub(super) fn summary(conn: &Connection, session: SessionRow) -> Result<Counts> {
    let mut exists = conn.prepare_cached("SELECT 1 FROM session WHERE id = ?1")?;
    if exists.query_row([session], |_| Ok(())).optional()?.is_none() {
        // Empty counts would read like a complete success.
        return Err(LedgerError::NoSession(session));
    }
    let mut counts = Counts::default();
    let mut groups = conn.prepare_cached(
        "SELECT outcome, evidence, count(*), sum(bytes) FROM session_item
         WHERE session = ?1 GROUP BY outcome, evidence",
    )?;
    let mut rows = groups.query([session])?;
    while let Some(row) = rows.next()? {
        let (outcome, evidence, count): (i64, i64, u64) = (row.get(0)?, row.get(1)?, number(row.get(2)?));
        let kind = Evidence::from_file(evidence).ok_or_else(|| strange("evidence", evidence))?;
        counts.by_evidence[kind as usize] += count;
        match Outcome::from_file(outcome).ok_or_else(|| strange("outcome", outcome))? {
            Outcome::Pending => counts.pending += count,
            Outcome::Pushed => {
                counts.pushed += count;
                counts.bytes += number(row.get(3)?);
            }
            Outcome::AlreadyCached => counts.already_cached += count,
            Outcome::Upstream => counts.upstream += count,
            Outcome::Failed => counts.failed_total += count,
            Outcome::Skipped => counts.skipped += count,
            Outcome::Collected => counts.collected += count,
        }
    }
    if counts.failed_total > 0 {
        counts.failed = failures(conn, session)?;
    }
    Ok(counts)
}

/// Returns a session's failed pushes, at most [`MAX_FAILURES`].
pub(super) fn failures(conn: &Connection, session: SessionRow) -> Result<Vec<Failure>> {
    let mut find = conn.prepare_cached(&format!(
        "SELECT path, coalesce(class, ''), coalesce(text, '')
         FROM session_item JOIN item ON item.id = session_item.item
         LEFT JOIN reason ON reason.id = session_item.reason
         WHERE session = ?1 AND outcome = 5 ORDER BY session_item.item LIMIT {MAX_FAILURES}"
    ))?;
    let rows = find.query_map([session], |row| {
        Ok(Failure { path: row.get(0)?, class: row.get(1)?, error: row.get(2)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Returns a session's pushes after an id.
pub(super) fn pushes(
    conn: &Connection,
    session: SessionRow,
    after: PushId,
    limit: usize,
) -> Result<Vec<SessionPush>> {
    let mut find = conn.prepare_cached(
        "SELECT session_item.item, path, nar_size, evidence, outcome, class, text,
           attempts, valid_at, seen_at, asked_at, begun_at, settled_at
         FROM session_item JOIN item ON item.id = session_item.item
         LEFT JOIN reason ON reason.id = session_item.reason
         WHERE session = ?1 AND session_item.item > ?2 ORDER BY session_item.item LIMIT ?3",
    )?;
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let rows = find.query_and_then((session, after, limit), |row| {
        let (evidence, outcome): (i64, i64) = (row.get(3)?, row.get(4)?);
        Ok(SessionPush {
            push: row.get(0)?,
            path: row.get(1)?,
            nar_size: number(row.get(2)?),
            evidence: Evidence::from_file(evidence).ok_or_else(|| strange("evidence", evidence))?,
            outcome: Outcome::from_file(outcome).ok_or_else(|| strange("outcome", outcome))?,
            error_class: row.get(5)?,
            error: row.get(6)?,
            attempts: row.get(7)?,
            valid_at: row.get(8)?,
            seen_at: row.get(9)?,
            steps: Steps { asked_at: row.get(10)?, begun_at: row.get(11)? },
            settled_at: row.get(12)?,
        })
    })?;
    rows.collect()
}
