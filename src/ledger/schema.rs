//! The file format, and the migrations from older formats.
//!
//! Must not know: what the tables are used for.
//!
//! A released migration is never edited; a change is a new one at the end. Each
//! runs in one transaction with its version number.

use rusqlite::Connection;

use super::error::LedgerError;

/// Marks the file as a ledger of flywheel: "flyw".
pub(super) const APPLICATION_ID: i64 = 0x666c_7977;

/// The migrations. The entry at index n makes format n + 1.
pub(super) const MIGRATIONS: &[&str] = &[
    ITEMS_AND_SESSIONS,
    SESSIONS_KEEP_THEIR_REASONS,
    SESSIONS_HAVE_A_WINDOW,
    SESSIONS_KEEP_THEIR_WARNINGS,
    SESSIONS_HAVE_A_KIND,
    PUSHES_HAVE_TIMES,
    PATHS_WAIT_FOR_A_ROUTE,
    ROUTES_ARE_KNOWN,
    NO_LIST_FOR_UNSETTLED,
];

/// Ids are AUTOINCREMENT because the daemon keeps them in memory: a removed id must
/// not be used again. There are no foreign keys: one thread writes, and a batch of
/// 2,000 rows would need 4,000 lookups.
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

/// A push may be pending again after a session is over. The session's own copy of
/// its reason and bytes does not change.
const SESSIONS_KEEP_THEIR_REASONS: &str = "
ALTER TABLE session_item ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session_item ADD COLUMN reason INTEGER;
UPDATE session_item SET bytes = (SELECT nar_size FROM item WHERE item.id = session_item.item) WHERE outcome = 2;
UPDATE session_item SET reason = (SELECT reason FROM item WHERE item.id = session_item.item) WHERE outcome = 5;
CREATE INDEX session_item_reason ON session_item (reason) WHERE reason IS NOT NULL;
";

/// The rows of the Nix database that are a session's, so that its window survives a
/// restart.
const SESSIONS_HAVE_A_WINDOW: &str = "
ALTER TABLE session ADD COLUMN after_number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN until_number INTEGER;
";

/// The warnings of a session's summary as a JSON list, so that a repeated answer is
/// the same.
const SESSIONS_KEEP_THEIR_WARNINGS: &str = "
ALTER TABLE session ADD COLUMN warnings TEXT;
";

/// A push is never open. Earlier versions recorded it as open, and it stayed so.
/// Whether a draining session counts as abandoned must survive a restart.
const SESSIONS_HAVE_A_KIND: &str = "
ALTER TABLE session ADD COLUMN kind INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN abandoned INTEGER NOT NULL DEFAULT 0;
UPDATE session SET kind = 1 WHERE name GLOB 'push-*';
UPDATE session SET state = 1, ended_at = coalesce(ended_at, started_at) WHERE kind = 1 AND state = 0;
UPDATE session SET abandoned = 1 WHERE state = 3;
";

/// When each step of a push was, in milliseconds since 1970; 0: not known. A session may
/// ask for each of its paths in the journal.
const PUSHES_HAVE_TIMES: &str = "
ALTER TABLE item ADD COLUMN valid_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE item ADD COLUMN seen_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE item ADD COLUMN asked_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE item ADD COLUMN begun_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE session ADD COLUMN log_paths INTEGER NOT NULL DEFAULT 0;
";

/// Paths of no session whose makers the name service has not named: the cursor is past
/// them, so they must survive a restart.
const PATHS_WAIT_FOR_A_ROUTE: &str = "
CREATE TABLE undecided (path TEXT PRIMARY KEY, uid INTEGER NOT NULL, gid INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX undecided_person ON undecided (uid, gid);
";

/// What sent a path or a session to its cache, in words, and how many named paths of a
/// session are not valid. The words of paths repeat, so each has one row.
const ROUTES_ARE_KNOWN: &str = "
CREATE TABLE route (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE);
ALTER TABLE item ADD COLUMN route INTEGER;
ALTER TABLE session ADD COLUMN route TEXT;
ALTER TABLE session ADD COLUMN invalid INTEGER NOT NULL DEFAULT 0;
";

/// The same index with other words: for a list of three, SQLite makes a temporary table
/// in each statement that writes a push, and that was a sixth of what a small path cost.
const NO_LIST_FOR_UNSETTLED: &str = "
DROP INDEX item_unsettled;
CREATE INDEX item_unsettled ON item (id) WHERE state <= 1 OR state = 5;
";

/// Returns the format of the file, 0 for an empty one.
pub(super) fn version(conn: &Connection) -> Result<i64, LedgerError> {
    Ok(conn.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Runs the `migrations` that the file has not had.
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

/// Returns the version of the program that wrote the file's format, if the table
/// can be read.
pub(super) fn written_by(conn: &Connection) -> String {
    conn.query_row("SELECT program FROM migration ORDER BY version DESC LIMIT 1", [], |row| row.get(0))
        .unwrap_or_else(|_| "of an unknown version".to_owned())
}
