//! The file `begin`: the row of the Nix database after which paths count as new, kept
//! beside the ledger. When the ledger is damaged and set aside, all rows since the first
//! start count as new, and the cache is asked which of them it has. Without this file
//! either all rows would count as new or none.

use std::path::Path;

use crate::ledger::Cursor;
use crate::observe::event;

const NAME: &str = "begin";

/// Writes the file. Logs an error and goes on when it cannot be written.
pub(in crate::daemon) fn note(state_dir: &Path, cursor: &Cursor) {
    let new = state_dir.join(format!("{NAME}~"));
    let text = format!("{} {}\n", cursor.id, cursor.identity);
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, state_dir.join(NAME)));
    if let Err(error) = written {
        event!(BEGIN_NOT_NOTED, error = %error, "the row after which paths count as new cannot be noted ({error}): if the ledger is lost, `existing` decides again which paths count as new");
    }
}

/// Returns the row that was noted for the database with this identity.
pub(in crate::daemon) fn noted(state_dir: &Path, identity: &str) -> Option<i64> {
    let text = std::fs::read_to_string(state_dir.join(NAME)).ok()?;
    let (id, of) = text.trim_end().split_once(' ')?;
    if of == identity { id.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_back_for_the_same_database_only() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(noted(dir.path(), "a:1"), None);
        note(dir.path(), &Cursor { identity: "a:1".into(), id: 42 });
        assert_eq!(noted(dir.path(), "a:1"), Some(42));
        assert_eq!(noted(dir.path(), "b:1"), None);
        std::fs::write(dir.path().join(NAME), "nonsense").unwrap();
        assert_eq!(noted(dir.path(), "a:1"), None);
    }
}
