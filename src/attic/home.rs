//! The attic client's configuration (attic's `client/src/config.rs`): a separate
//! `XDG_CONFIG_HOME` with `attic/config.toml`, which one user can read. The file
//! names the token's file and does not contain the token. `attic login` would put
//! the token into an argument list, and into a file that it does not write
//! atomically.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::types::replace_file;

/// A server in the client's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// Its name in `SERVER:CACHE`. Attic's rule for names of caches applies.
    pub name: String,
    /// Its address.
    pub endpoint: String,
    /// The file with its token; with `None` the client sends no token.
    pub token_file: Option<PathBuf>,
}

/// The directory that is the client's `XDG_CONFIG_HOME`.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

impl Home {
    /// Makes the value without writing anything.
    pub fn new(dir: PathBuf) -> Self {
        Self(dir)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// Writes these servers, the first as the default, unless the file lists exactly
    /// these already. Returns whether it wrote. A reader sees the old file or the new
    /// one, never a part.
    pub fn write(&self, servers: &[Server]) -> io::Result<bool> {
        let dir = self.0.join("attic");
        for dir in [&self.0, &dir] {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        }
        let file = dir.join("config.toml");
        let text = render(servers);
        if std::fs::read_to_string(&file).is_ok_and(|now| now == text) {
            return Ok(false);
        }
        replace_file(&file, text.as_bytes(), 0o600, None)?;
        Ok(true)
    }
}

fn render(servers: &[Server]) -> String {
    let mut out = String::from("# Written by flywheeld, which replaces this file.\n");
    let text = |text: &str| toml::Value::String(text.to_owned()).to_string();
    if let Some(first) = servers.first() {
        out += &format!("default-server = {}\n", text(&first.name));
    }
    for server in servers {
        // The client joins its paths to the address; without a final slash it would lose the address's last part.
        let endpoint = format!("{}/", server.endpoint.trim_end_matches('/'));
        out += &format!("\n[servers.{}]\nendpoint = {}\n", text(&server.name), text(&endpoint));
        if let Some(file) = &server.token_file {
            out += &format!("token-file = {}\n", text(&file.to_string_lossy()));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str, endpoint: &str, token: Option<&str>) -> Server {
        Server { name: name.into(), endpoint: endpoint.into(), token_file: token.map(PathBuf::from) }
    }

    #[test]
    fn is_for_one_user_and_changes_when_something_does() {
        let top = tempfile::tempdir().unwrap();
        let home = Home::new(top.path().join("home"));
        let servers =
            [server("a+b", "https://x/sub", Some("/run/to\"ken")), server("c", "http://127.0.0.1:1/", None)];
        assert!(home.write(&servers).unwrap() && !home.write(&servers).unwrap());
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let file = home.dir().join("attic/config.toml");
        assert_eq!((mode(home.dir()), mode(&home.dir().join("attic")), mode(&file)), (0o700, 0o700, 0o600));
        let read: toml::Table = std::fs::read_to_string(&file).unwrap().parse().unwrap();
        assert_eq!(read["default-server"].as_str(), Some("a+b"));
        assert_eq!(read["servers"]["a+b"]["endpoint"].as_str(), Some("https://x/sub/"));
        assert_eq!(read["servers"]["a+b"]["token-file"].as_str(), Some("/run/to\"ken"));
        assert_eq!(read["servers"]["c"]["endpoint"].as_str(), Some("http://127.0.0.1:1/"));
        assert!(read["servers"]["c"].get("token-file").is_none());
        assert!(home.write(&servers[1..]).unwrap());
        let left: Vec<_> = std::fs::read_dir(home.dir().join("attic")).unwrap().collect();
        assert_eq!(left.len(), 1, "nothing half written is left: {left:?}");
    }
}
