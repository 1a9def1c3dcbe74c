//! What the ledger has about one store path: its pushes and the sessions it belongs
//! to. Only reads.

use rusqlite::Connection;

use super::error::LedgerError;
use super::model::{Evidence, Outcome, PushRow, SessionRow, Steps};
use super::{number, pushes};

/// The most sessions of one push.
const SESSIONS: usize = 100;

/// A push with the sessions that its path belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushHistory {
    /// The push.
    pub push: PushRow,
    /// When the path became valid, unix ms; 0 if it is not known.
    pub valid_at: i64,
    /// When its last steps were.
    pub steps: Steps,
    /// What sent the path to the cache, if it was no session and that is known.
    pub route: Option<String>,
    /// Its sessions, the latest first, at most a hundred.
    pub sessions: Vec<SessionShare>,
}

/// The part that a session has in a push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionShare {
    /// The session.
    pub row: SessionRow,
    /// The session's public id.
    pub id: String,
    /// The session's name for people.
    pub label: Option<String>,
    /// The user who opened it.
    pub uid: u32,
    /// Why the path belongs to it.
    pub evidence: Evidence,
    /// How the session counts the path.
    pub outcome: Outcome,
    /// The cache that the session pushes to.
    pub cache: String,
    /// What chose the cache; see [`super::NewSession::route`].
    pub route: Option<String>,
}

/// Finds the pushes of all paths whose base name begins with `hash`, the 32
/// characters of a store path's hash, in all caches.
pub(super) fn of_hash(conn: &Connection, hash: &str) -> Result<Vec<PushHistory>, LedgerError> {
    // `.` follows `-`, so the range has the names `hash-…`.
    let mut find = conn.prepare_cached(
        "SELECT item.id, cache.name, path, nar_size, state, attempts, class, reason.text, settled_at, seen_at, valid_at,
                asked_at, begun_at, route.text
         FROM cache JOIN item ON item.cache = cache.id AND path >= ?1 AND path < ?2
         LEFT JOIN reason ON reason.id = item.reason
         LEFT JOIN route ON route.id = item.route ORDER BY item.id",
    )?;
    let range = (format!("{hash}-"), format!("{hash}."));
    let rows = find.query_and_then(range, |row| {
        let steps = Steps { asked_at: row.get(11)?, begun_at: row.get(12)? };
        Ok::<_, LedgerError>((
            pushes::push_row(row)?,
            row.get::<_, i64>(10)?,
            steps,
            row.get::<_, Option<String>>(13)?,
        ))
    })?;
    rows.map(|found| {
        let (push, valid_at, steps, route) = found?;
        Ok(PushHistory { sessions: sessions(conn, push.id)?, push, valid_at, steps, route })
    })
    .collect()
}

fn sessions(conn: &Connection, item: i64) -> Result<Vec<SessionShare>, LedgerError> {
    let mut find = conn.prepare_cached(&format!(
        "SELECT session.id, name, label, uid, evidence, outcome, cache, route
         FROM session_item JOIN session ON session.id = session_item.session
         WHERE item = ?1 ORDER BY session.id DESC LIMIT {SESSIONS}"
    ))?;
    let rows = find.query_and_then([item], |row| {
        let (evidence, outcome): (i64, i64) = (row.get(4)?, row.get(5)?);
        let strange = |what: &str, n: i64| LedgerError::Sqlite(format!("no {what} {n} in this format"));
        Ok(SessionShare {
            row: row.get(0)?,
            id: row.get(1)?,
            label: row.get(2)?,
            uid: u32::try_from(number(row.get(3)?)).unwrap_or(u32::MAX),
            evidence: Evidence::from_file(evidence).ok_or_else(|| strange("evidence", evidence))?,
            outcome: Outcome::from_file(outcome).ok_or_else(|| strange("outcome", outcome))?,
            cache: row.get(6)?,
            route: row.get(7)?,
        })
    })?;
    rows.collect()
}
