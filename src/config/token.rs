//! Where a cache's token is. The token itself is never read here: the cache's
//! client does that, when it needs it.

use std::path::{Path, PathBuf};

/// Where a cache's token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// In a file: named in the configuration, or a systemd credential.
    File(PathBuf),
    /// In an environment variable of the daemon.
    Env(String),
    /// Nowhere: the cache is used without one.
    None,
}

impl Token {
    /// What applies to the cache `name` when no `token_file` is set: its own
    /// credential, the common one, then `$ATTIC_TOKEN`.
    pub(super) fn from_surroundings(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Self {
        // systemd.exec(5): set when the unit has LoadCredential= and the like.
        if let Some(dir) = env("CREDENTIALS_DIRECTORY").filter(|dir| Path::new(dir).is_absolute()) {
            let own = Path::new(&dir).join(format!("attic-token-{name}"));
            let common = Path::new(&dir).join("attic-token");
            if let Some(file) = [own, common].into_iter().find(|file| file.is_file()) {
                return Self::File(file);
            }
        }
        match env("ATTIC_TOKEN").filter(|token| !token.trim().is_empty()) {
            Some(_) => Self::Env("ATTIC_TOKEN".to_owned()),
            None => Self::None,
        }
    }
}
