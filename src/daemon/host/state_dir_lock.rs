//! The lock of the state directory: one daemon works with one state directory,
//! because two would write the same ledger and push every path twice. The kernel
//! releases the lock when the process ends, for whatever reason.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// The name of the lock file in the state directory.
const NAME: &str = "lock";

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(in crate::daemon) struct StateDirLock(#[expect(dead_code, reason = "held")] File);

impl StateDirLock {
    /// Takes the lock. Fails when another process holds it, with that process's
    /// number in the message if it is known.
    pub(in crate::daemon) fn take(state_dir: &Path) -> Result<Self> {
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
        // The number serves the message above only, so a full disk is no reason to
        // fail. Its width never changes, so that overwriting it needs no new space.
        let _ = file.write_all_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0);
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_process_holds_it_until_it_lets_go() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDirLock::take(dir.path()).unwrap();
        let refused = StateDirLock::take(dir.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("(process {})", std::process::id())), "{refused}");
        drop(first);
        StateDirLock::take(dir.path()).unwrap();
    }

    #[test]
    fn it_can_be_taken_on_a_full_disk() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/full", dir.path().join(NAME)).unwrap();
        let _held = StateDirLock::take(dir.path()).unwrap();
        assert!(StateDirLock::take(dir.path()).is_err());
    }
}
