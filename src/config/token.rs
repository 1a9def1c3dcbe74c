//! Where the token of a cache is. The token itself is not read here; the cache
//! client reads it when it needs it.

use std::path::{Path, PathBuf};

/// Where a cache's token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// In a file: a `token_file` of the configuration, or a systemd credential.
    File(PathBuf),
    /// In an environment variable of the daemon.
    Env(String),
    /// The cache has no token.
    None,
}

impl Token {
    /// Finds the token of the cache `name` when no `token_file` is set: the cache's
    /// credential, the common credential, then `$ATTIC_TOKEN`.
    pub(super) fn from_environment_or_credentials(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Self {
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
