//! The daemon's configuration file, which reloads read again.

use std::path::{Path, PathBuf};

use super::jobs::UIDS;
use crate::config::{ConfigError, Settings};

/// The names of the caches, by their numbers. The last one comes and goes with reloads.
pub(super) const CACHES: [&str; 3] = ["a", "b", "c"];

/// What the file says.
#[derive(Debug, Clone)]
pub(super) struct Configuration {
    dir: PathBuf,
    /// Seconds for which a confirmation counts.
    pub(super) fresh: u64,
    pub(super) jobs: &'static str,
    /// Whether the last cache is in it.
    pub(super) third: bool,
}

impl Configuration {
    pub(super) fn new(dir: &Path, fresh: u64, jobs: &'static str) -> Self {
        Self { dir: dir.to_owned(), fresh, jobs, third: false }
    }

    /// Writes the file.
    pub(super) fn write(&self) {
        let Self { dir, fresh, jobs, third } = self;
        let dir = dir.display();
        let caches: String = CACHES[..2 + usize::from(*third)]
            .iter()
            .map(|name| format!("[caches.{name}]\nendpoints = [\"http://127.0.0.1:9\"]\n"))
            .collect();
        let text = format!(
            "default_cache = \"a\"\nstate_dir = \"{dir}/state\"\n{caches}[nix]\nstore_dir = \"{dir}/store\"\n\
             state_dir = \"{dir}/nix\"\nmin_free = \"0\"\n[client]\nenable = false\n[push]\nrecheck_after = \"{fresh}s\"\n\
             jobs = {jobs}\n[[route]]\nuser = \"{0}\"\ncache = \"b\"\nallow = [\"a\"]\n[[route]]\nmaker = \"unknown\"\n\
             cache = \"a\"\n",
            UIDS[1],
        );
        std::fs::write(file(&self.dir), text).unwrap();
    }

    /// Writes a file that cannot be read.
    pub(super) fn spoil(&self) {
        std::fs::write(file(&self.dir), "default_cache = \n").unwrap();
    }
}

fn file(dir: &Path) -> PathBuf {
    dir.join("flywheel.toml")
}

/// Reads the file.
pub(super) fn load(dir: &Path) -> Result<Settings, ConfigError> {
    let runtime = dir.join("runtime").display().to_string();
    let env = |name: &str| (name == "RUNTIME_DIRECTORY").then(|| runtime.clone());
    Settings::load(Some(&file(dir)), &env)
}
