//! Where the token of a cache is. The token itself is not read here; the cache
//! client reads it when it needs it.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where a cache's token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Token {
    /// In a file: a `token_file` of the configuration, or a systemd credential.
    File(PathBuf),
    /// In an environment variable of the daemon.
    Env(String),
    /// In the output of a program that the daemon runs.
    Command(TokenCommand),
    /// The cache has no token.
    None,
}

/// A program whose output is a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenCommand {
    /// The program, as an absolute path or a name in `$PATH`, and its arguments.
    pub words: Vec<String>,
    /// How long it may run.
    pub limit: Duration,
}

impl TokenCommand {
    /// Returns why the program cannot be run by this user, if it cannot.
    pub(super) fn problem(&self) -> Option<String> {
        use std::os::unix::fs::PermissionsExt as _;
        let program = Path::new(self.words.first()?);
        let runs = |file: &Path| {
            let meta = std::fs::metadata(file).ok()?;
            Some(meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        let found = if program.is_absolute() {
            runs(program)
        } else {
            std::env::split_paths(&path).filter_map(|dir| runs(&dir.join(program))).max()
        };
        let shown = program.display();
        match found {
            Some(true) => None,
            Some(false) => Some(format!("{shown} is not executable: run chmod a+x on it")),
            None if program.is_absolute() => {
                Some(format!("{shown} does not exist, or this user may not see it"))
            }
            None => Some(format!("{shown} is in no directory of $PATH: write its absolute path")),
        }
    }
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
