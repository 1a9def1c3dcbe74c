//! The single steps of `setup`. Must not know why they are taken.

use std::fmt;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use zeroize::Zeroizing;

use super::{GROUP, Host, Server};
use crate::types::{CacheName, replace_file};

/// The credential that the unit loads.
pub(super) const CREDENTIAL: &str = "/etc/credstore/attic-token";
/// The token's file with a systemd that does not look into /etc/credstore.
pub(super) const TOKEN_FILE: &str = "/etc/flywheel/token";

/// The file beside the configuration that `setup` owns.
pub(super) fn fragment(config: &Path) -> PathBuf {
    config.with_file_name("flywheel.toml.d").join("60-setup.toml")
}

/// Where the configuration says that the token is.
#[derive(Debug, Clone, Copy)]
pub(super) enum TokenSetting<'a> {
    /// In the credential that the unit loads: the configuration says nothing.
    Credential,
    File(&'a Path),
    /// A program gives it; these are the program and its arguments.
    Command(&'a [String]),
}

/// The text of that file.
pub(super) fn configuration(server: &Server, cache: &CacheName, token: TokenSetting<'_>) -> String {
    let mut table = toml::Table::new();
    match server {
        Server::Remote(urls) => table.insert("endpoints".to_owned(), urls.clone().into()),
        Server::BuiltIn => table.insert("endpoints".to_owned(), "embedded".into()),
    };
    match (server, token) {
        (Server::BuiltIn, _) | (Server::Remote(_), TokenSetting::Credential) => None,
        (Server::Remote(_), TokenSetting::File(file)) => {
            table.insert("token_file".to_owned(), file.display().to_string().into())
        }
        (Server::Remote(_), TokenSetting::Command(words)) => {
            table.insert("token_command".to_owned(), words.to_vec().into())
        }
    };
    // The quotes allow every name of a cache as a key.
    format!(
        "# Written by `flywheelctl setup`, which replaces this file: settings of yours belong\n\
         # into another one beside it.\n\
         default_cache = \"{cache}\"\n\n[caches.\"{cache}\"]\n{table}"
    )
}

/// A file that is to be there.
pub(in crate::ctl) struct File {
    pub(super) path: PathBuf,
    pub(super) text: Zeroizing<String>,
    pub(super) mode: u32,
    /// The user that it belongs to; none for the user that runs `setup`.
    pub(super) owner: Option<String>,
    /// Whether the text must not be shown.
    pub(super) secret: bool,
}

impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("File").field("path", &self.path).finish_non_exhaustive()
    }
}

impl File {
    pub(super) fn new(path: PathBuf, text: String, mode: u32) -> Self {
        Self { path, text: Zeroizing::new(text), mode, owner: None, secret: false }
    }

    /// What writing it does, for people.
    pub(super) fn text(&self) -> String {
        let path = self.path.display();
        if self.secret {
            let owner = self.owner.as_deref().unwrap_or("root");
            return format!("write the token to {path} (mode 0{:o}, for {owner} alone)", self.mode);
        }
        let lines = self.text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let lines: String = lines.map(|line| format!("\n      {line}")).collect();
        format!("write {path}:{lines}")
    }

    /// Whether the file has this text and this mode already.
    pub(super) fn is_there(&self, host: &Host) -> Result<bool, String> {
        let path = host.at(&self.path);
        match std::fs::read(&path).map(Zeroizing::new) {
            Ok(text) => {
                let mode = std::fs::metadata(&path).map_or(0, |meta| meta.permissions().mode() & 0o777);
                Ok(text.as_slice() == self.text.as_bytes() && mode == self.mode)
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(format!("{} cannot be read: {e}{}", path.display(), root_hint(&e))),
        }
    }

    /// Writes the file with its directory, and returns what was there before.
    pub(super) fn write(&self, host: &Host) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
        let path = host.at(&self.path);
        let failed =
            |e: std::io::Error| format!("{} cannot be written: {e}{}", path.display(), root_hint(&e));
        let before = std::fs::read(&path).ok().map(Zeroizing::new);
        if let Some(dir) = path.parent() {
            // A directory of credentials is closed to others, as systemd wants it.
            let mode = if self.secret { 0o700 } else { 0o755 };
            std::fs::DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(failed)?;
        }
        let group = std::fs::metadata(&path).ok().map(|meta| meta.gid()).filter(|_| !self.secret);
        replace_file(&path, self.text.as_bytes(), self.mode, group).map_err(failed)?;
        if let Some(owner) = &self.owner {
            let user = nix::unistd::User::from_name(owner).ok().flatten();
            let user = user.ok_or_else(|| format!("there is no user {owner}: is flywheel installed?"))?;
            chown(&path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).map_err(failed)?;
        }
        Ok(before)
    }

    /// Puts back what was there before.
    pub(super) fn restore(&self, host: &Host, before: Option<&Vec<u8>>) -> Result<(), String> {
        let path = host.at(&self.path);
        let restored = match before {
            Some(text) => replace_file(&path, text, self.mode, None),
            None => std::fs::remove_file(&path),
        };
        restored.map_err(|e| format!("{} cannot be put back: {e}", path.display()))
    }
}

fn root_hint(error: &std::io::Error) -> &'static str {
    if error.kind() == std::io::ErrorKind::PermissionDenied {
        "; run `flywheelctl setup` as root"
    } else {
        ""
    }
}

/// Lets `flywheeld` check the configuration. An error is its message.
pub(super) fn check_configuration(host: &Host) -> Result<(), String> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("flywheeld")));
    let program = beside.filter(|file| file.is_file()).unwrap_or_else(|| PathBuf::from("flywheeld"));
    let mut command = Command::new(&program);
    command.arg("--check-config");
    let main = host.at(&host.config);
    // Without a main file the daemon takes its default path, also for what is beside it.
    if main.exists() || !host.is_running() {
        command.arg("--config").arg(&main);
        if !main.exists() {
            return Ok(());
        }
    }
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message").trim().to_owned())
        }
        Err(e) => Err(format!("{} cannot be run: {e}", program.display())),
    }
}

/// Whether a user is in the group. Fails when there is no such user.
pub(super) fn is_member(host: &Host, user: &str) -> Result<bool, String> {
    if !host.is_running() {
        let groups = std::fs::read_to_string(host.at(Path::new("/etc/group"))).unwrap_or_default();
        let line = groups.lines().find_map(|line| line.strip_prefix(&format!("{GROUP}:")));
        return Ok(line
            .and_then(|line| line.rsplit(':').next())
            .is_some_and(|all| all.split(',').any(|u| u == user)));
    }
    let group = nix::unistd::Group::from_name(GROUP).ok().flatten();
    let group = group.ok_or_else(|| format!("there is no group {GROUP}: is flywheel installed?"))?;
    let known = nix::unistd::User::from_name(user).ok().flatten();
    let known = known.ok_or_else(|| format!("there is no user {user}"))?;
    Ok(known.gid == group.gid || group.mem.iter().any(|member| member == user))
}

/// Adds a user to the group.
pub(super) fn join(host: &Host, user: &str) -> Result<(), String> {
    let mut command = Command::new("usermod");
    if !host.is_running() {
        command.arg("--prefix").arg(&host.root);
    }
    run(command.args(["-a", "-G", GROUP, "--", user]))
}

/// Restarts the service with its socket, and waits until it is ready.
pub(super) fn restart() -> Result<(), String> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(
            "systemd does not run here: restart flywheeld yourself, then run `flywheelctl doctor`".to_owned()
        );
    }
    // A service that has failed and waits for an administrator starts again.
    let _ =
        Command::new("systemctl").args(["reset-failed", "flywheeld.service", "flywheeld.socket"]).output();
    run(Command::new("systemctl").args(["restart", "flywheeld.service"]))
}

/// Runs a command to its end. An error has its last words.
pub(super) fn run(command: &mut Command) -> Result<(), String> {
    let shown = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{shown} cannot be run: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
    Err(format!("{shown} failed ({}): {last}", output.status))
}
