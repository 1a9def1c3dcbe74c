//! The file format and how an older one becomes the present one. Must not know
//! what the tables are used for.
//!
//! A migration that was released is never edited; a change is a new one at the
//! end. Each runs in a transaction together with its version number.

use rusqlite::Connection;

use super::error::LedgerError;

/// Marks the file as ours: "flyw".
pub(super) const APPLICATION_ID: i64 = 0x666c_7977;

/// The n-th entry makes format n+1.
pub(super) const MIGRATIONS: &[&str] =
    &[ITEMS_AND_SESSIONS, SESSIONS_KEEP_THEIR_REASONS, SESSIONS_HAVE_A_WINDOW, SESSIONS_KEEP_THEIR_WARNINGS];

/// Ids are AUTOINCREMENT because others hold on to them: a pruned one must not
/// come back as something else. No foreign keys: the thread that writes is the
/// only one, and 2,000 rows attached at once would pay for 4,000 lookups.
const ITEMS_AND_SESSIONS: &str = "
CREATE TABLE migration (version INTEGER PRIMARY KEY, program TEXT NOT NULL, at INTEGER NOT NULL);
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE cursor (one INTEGER PRIMARY KEY CHECK (one = 1), identity TEXT NOT NULL, id INTEGER NOT NULL);
CREATE TABLE cache (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE reason (id INTEGER PRIMARY KEY, class TEXT NOT NULL, text TEXT NOT NULL, UNIQUE (class, text));
CREATE TABLE item (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  cache INTEGER NOT NULL,
  path TEXT NOT NULL,
  nar_size INTEGER NOT NULL,
  state INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  reason INTEGER,
  bytes INTEGER NOT NULL DEFAULT 0,
  settled_at INTEGER NOT NULL DEFAULT 0,
  UNIQUE (cache, path)
);
CREATE INDEX item_unsettled ON item (id) WHERE state IN (0, 1, 5);
CREATE INDEX item_reason ON item (reason) WHERE reason IS NOT NULL;
CREATE TABLE session (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  name TEXT NOT NULL UNIQUE,
  label TEXT,
  cache TEXT NOT NULL,
  uid INTEGER NOT NULL,
  gid INTEGER NOT NULL,
  anchor_pid INTEGER,
  anchor_start INTEGER,
  strict INTEGER NOT NULL,
  ci TEXT,
  started_at INTEGER NOT NULL,
  state INTEGER NOT NULL DEFAULT 0,
  ended_at INTEGER,
  closed_at INTEGER,
  flush_ms INTEGER
);
CREATE INDEX session_live ON session (id) WHERE state IN (0, 1);
CREATE TABLE session_item (
  session INTEGER NOT NULL,
  item INTEGER NOT NULL,
  evidence INTEGER NOT NULL,
  outcome INTEGER NOT NULL,
  PRIMARY KEY (session, item)
) WITHOUT ROWID;
CREATE INDEX session_item_item ON session_item (item);
";

/// An item may be taken up again after a session is over. What that session
/// was told about it (why it failed, how much was pushed) stays as it was.
const SESSIONS_KEEP_THEIR_REASONS: &str = "
ALTER TABLE session_item ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session_item ADD COLUMN reason INTEGER;
UPDATE session_item SET bytes = (SELECT nar_size FROM item WHERE item.id = session_item.item) WHERE outcome = 2;
UPDATE session_item SET reason = (SELECT reason FROM item WHERE item.id = session_item.item) WHERE outcome = 5;
CREATE INDEX session_item_reason ON session_item (reason) WHERE reason IS NOT NULL;
";

/// Which numbers of the store's journal a session owns, so that it goes on
/// owning them after a restart.
const SESSIONS_HAVE_A_WINDOW: &str = "
ALTER TABLE session ADD COLUMN after_number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN until_number INTEGER;
";

/// What a session's end warned of, as a JSON list: asked again, it says the same.
const SESSIONS_KEEP_THEIR_WARNINGS: &str = "
ALTER TABLE session ADD COLUMN warnings TEXT;
";

/// Format of the file; 0 for an empty one.
pub(super) fn version(conn: &Connection) -> Result<i64, LedgerError> {
    Ok(conn.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Brings the file to the last of `migrations`, from wherever it is.
pub(super) fn migrate(conn: &mut Connection, migrations: &[&str], now: i64) -> Result<(), LedgerError> {
    let from = version(conn)?;
    for (next, sql) in (1_i64..).zip(migrations).filter(|(next, _)| *next > from) {
        let tx = conn.transaction()?;
        tx.execute_batch(sql)?;
        tx.execute(
            "INSERT INTO migration (version, program, at) VALUES (?1, ?2, ?3)",
            (next, env!("CARGO_PKG_VERSION"), now),
        )?;
        tx.pragma_update(None, "user_version", next)?;
        tx.pragma_update(None, "application_id", APPLICATION_ID)?;
        tx.commit()?;
    }
    Ok(())
}

/// The program that made the present format, as far as a later format still tells.
pub(super) fn written_by(conn: &Connection) -> String {
    conn.query_row("SELECT program FROM migration ORDER BY version DESC LIMIT 1", [], |row| row.get(0))
        .unwrap_or_else(|_| "of an unknown version".to_owned())
}
