//! The listening socket: made here, or made by the service manager and passed
//! (sd_listen_fds(3)). Must not know who is served.

use std::{
    io,
    net::TcpListener,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixListener as StdListener,
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::net::sockopt;

use super::dial::dial;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon listens on the path.
    #[error("another daemon{} is listening on {}: stop it first (`systemctl stop flywheeld`), or choose another `socket`", numbered(*.pid), .path.display())]
    Live {
        /// The path of the socket.
        path: PathBuf,
        /// The process id of the other daemon, if the kernel tells it.
        pid: Option<i32>,
    },
    /// The path exists and is not a socket.
    #[error("{0} exists and is not a socket: remove it, or choose another `socket`")]
    NotASocket(PathBuf),
    /// The socket that the service manager passed cannot be used.
    #[error("the socket that was passed (LISTEN_FDS) cannot be used: {0}")]
    Passed(String),
    /// A system call failed.
    #[error("cannot listen on {path}: {source}; its directory must exist and be writable by the daemon")]
    Io {
        /// The path of the socket.
        path: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
}

fn numbered(pid: Option<i32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

/// The `FileDescriptorName=` of the control socket.
const CONTROL: &str = "control";
/// The `FileDescriptorName=` of the built-in cache's socket.
const CACHE: &str = "cache";

/// The sockets that the service manager passes.
#[derive(Debug, Default)]
pub struct Passed {
    /// The control socket.
    pub control: Option<StdListener>,
    /// The socket on which the built-in cache serves.
    pub cache: Option<TcpListener>,
}

/// Returns the sockets that the service manager passes.
///
/// A socket named `cache` is the built-in cache's. Of the others, one named `control`
/// is the control socket; a single one is it under any name.
///
/// Removes the variables from the environment, so it must be called once, before
/// any other thread exists.
pub fn passed() -> Result<Passed, BindError> {
    match sd_notify::listen_fds() {
        // No socket is passed, or it is passed to another process.
        Ok(fds) if fds.len() == 0 => return Ok(Passed::default()),
        Ok(_) => {}
        Err(e) => return Err(BindError::Passed(e.to_string())),
    }
    let names: Vec<String> = match sd_notify::listen_fds_with_names() {
        Ok(named) => named.map(|(_, name)| name).collect(),
        Err(e) => return Err(BindError::Passed(e.to_string())),
    };
    let (control, cache) = assign(&names).map_err(BindError::Passed)?;
    let mut fds = listenfd::ListenFd::from_env();
    let unusable =
        |name: &str, what: &str| BindError::Passed(format!("{name:?} {what}: set ListenStream= in its unit"));
    let control = control.map(|at| match fds.take_unix_listener(at) {
        Ok(Some(listener)) if sockopt::socket_acceptconn(&listener).unwrap_or(false) => Ok(listener),
        Ok(_) => Err(unusable(&names[at], "does not listen")),
        Err(e) => Err(unusable(&names[at], &format!("is not a socket with a path ({e})"))),
    });
    let cache = cache.map(|at| match fds.take_tcp_listener(at) {
        Ok(Some(listener)) if sockopt::socket_acceptconn(&listener).unwrap_or(false) => Ok(listener),
        Ok(_) => Err(unusable(&names[at], "does not listen")),
        Err(e) => Err(unusable(&names[at], &format!("is not a TCP socket ({e})"))),
    });
    Ok(Passed { control: control.transpose()?, cache: cache.transpose()? })
}

/// Finds the position of the control socket and that of the built-in cache's socket.
fn assign(names: &[String]) -> Result<(Option<usize>, Option<usize>), String> {
    let position = |wanted: &str| names.iter().position(|name| name == wanted);
    let cache = position(CACHE);
    let others: Vec<usize> = (0..names.len()).filter(|at| Some(*at) != cache).collect();
    let control = match (&others[..], position(CONTROL)) {
        (_, Some(at)) => Some(at),
        ([], None) => None,
        ([only], None) => Some(*only),
        (several, None) => {
            return Err(format!(
                "there are {} beside {CACHE:?} and none is called {CONTROL:?}: set \
                 FileDescriptorName={CONTROL} in its unit",
                several.len()
            ));
        }
    };
    Ok((control, cache))
}

/// Listens on a path, with mode 0660. Replaces the socket of a daemon that has
/// ended; fails when a daemon still listens there.
///
/// The socket gets its name only when it listens and has its mode, so a caller
/// finds either no socket or a complete one.
pub fn bind(path: &Path) -> Result<StdListener, BindError> {
    let io = |source| BindError::Io { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io(e)),
        Ok(meta) if !meta.file_type().is_socket() => return Err(BindError::NotASocket(path.to_owned())),
        Ok(_) => match dial(path, Duration::from_secs(1)) {
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            // The connection was accepted, so a daemon listens there.
            Ok(stream) => {
                let pid = sockopt::socket_peercred(&stream).ok().map(|c| c.pid.as_raw_nonzero().get());
                return Err(BindError::Live { path: path.to_owned(), pid });
            }
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                return Err(BindError::Live { path: path.to_owned(), pid: None });
            }
            Err(e) => return Err(io(e)),
        },
    }
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    match std::fs::remove_file(&new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
        _ => {}
    }
    let listener = StdListener::bind(&new).map_err(io)?;
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o660)).map_err(io)?;
    std::fs::rename(&new, path).map_err(io)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::assign;

    #[test]
    fn sockets_are_known_by_their_names() {
        for (names, expected) in [
            (&[][..], Ok((None, None))),
            (&["flywheeld.socket"], Ok((Some(0), None))),
            (&["cache"], Ok((None, Some(0)))),
            (&["flywheeld.socket", "cache"], Ok((Some(0), Some(1)))),
            (&["cache", "control"], Ok((Some(1), Some(0)))),
            (&["other", "control", "cache"], Ok((Some(1), Some(2)))),
            (&["one", "two", "cache"], Err(())),
        ] {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(assign(&names).map_err(|_| ()), expected, "{names:?}");
        }
    }
}
