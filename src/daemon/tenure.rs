//! One daemon for one state directory: two would write the same ledger and
//! push everything twice. The lock goes with the process, however that ends.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

const NAME: &str = "lock";

/// Holds the directory until dropped.
#[derive(Debug)]
pub(super) struct Tenure(#[expect(dead_code, reason = "held")] File);

/// Takes the directory, or says who has it.
pub(super) fn take(state_dir: &Path) -> Result<Tenure> {
    let path = state_dir.join(NAME);
    let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = open.with_context(|| format!("the lock {}", path.display()))?;
    if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let who = if text.trim().is_empty() { String::new() } else { format!(" (process {})", text.trim()) };
        bail!(
            "another daemon{who} works with {}: stop it first (`systemctl stop flywheeld`), or choose another \
             `state_dir`",
            state_dir.display()
        );
    }
    file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).context("the lock")?;
    Ok(Tenure(file))
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
}
