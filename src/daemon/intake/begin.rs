//! From where on paths are taken, kept beside the ledger: when that is damaged
//! and set aside, everything since the first start counts as new, and the cache
//! says what of it it has. Without this note it would be all or nothing.

use std::path::Path;

use crate::ledger::Cursor;
use crate::observe::event;

const NAME: &str = "begin";

/// Writes it down; a note that cannot be written is no reason to stop.
pub(in crate::daemon) fn note(state_dir: &Path, cursor: &Cursor) {
    let new = state_dir.join(format!("{NAME}~"));
    let text = format!("{} {}\n", cursor.id, cursor.identity);
    let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, state_dir.join(NAME)));
    if let Err(error) = written {
        event!(BEGIN_NOT_NOTED, error = %error, "where the daemon began cannot be noted: should the ledger be lost, it begins at the present");
    }
}

/// What was noted for this database.
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
