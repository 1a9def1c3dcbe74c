//! One daemon for one state directory: two would write the same ledger and
//! push everything twice. The lock goes with the process, however that ends.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

const NAME: &str = "lock";

/// Holds the directory until dropped.
#[derive(Debug)]
pub(in crate::daemon) struct StateDirLock(#[expect(dead_code, reason = "held")] File);

/// Takes the directory, or says who has it.
pub(in crate::daemon) fn take(state_dir: &Path) -> Result<StateDirLock> {
    let path = state_dir.join(NAME);
    let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = open.with_context(|| format!("the lock {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let mut text = [0; 16];
        let read = file.read_at(&mut text, 0).unwrap_or(0);
        let number = String::from_utf8_lossy(&text[..read]);
        let who = number.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (process {pid})"));
        bail!(
            "another daemon{who} works with {}: stop it first (`systemctl stop flywheeld`), or choose another \
             `state_dir`",
            state_dir.display()
        );
    }
    // Only for the words above, so not worth failing for on a full disk; always
    // as wide, so that it needs no room but its own.
    let _ = file.write_all_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0);
    Ok(StateDirLock(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_had_once_and_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let first = take(dir.path()).unwrap();
        let refused = take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(first);
        take(dir.path()).unwrap();
    }

    #[test]
    fn is_had_without_room_for_a_number() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(NAME)).unwrap();
        let _held = take(dir.path()).unwrap();
        assert!(take(dir.path()).is_err());
    }
}
