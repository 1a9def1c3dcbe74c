//! A journald for tests: a socket at the place where a daemon in a mount namespace of its own finds
//! it, and a reader of the native protocol (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>).

use std::collections::BTreeMap;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::sync::{Arc, Mutex};

use super::daemon::Daemon;

/// The fields of an entry, by name.
pub type Entry = BTreeMap<String, String>;

/// A socket that receives entries as journald's does.
pub struct FakeJournald {
    dir: tempfile::TempDir,
    socket: UnixDatagram,
    seen: Arc<Mutex<Vec<Entry>>>,
    reader: Option<std::thread::JoinHandle<()>>,
}

/// Gives the daemon a `/run` of its own that contains the socket. Needs a mount namespace, as root
/// or through a user namespace.
const SCRIPT: &str = r#"mount -t tmpfs none /run && mkdir -p /run/systemd/journal && mount --bind "$0" /run/systemd/journal &&
export JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) && exec "$@""#;

impl FakeJournald {
    /// `None`, with a line that says so, where no mount namespace can be made.
    pub fn start() -> Option<Self> {
        let able = Command::new("unshare").args(["-m", "mount", "-t", "tmpfs", "none", "/run"]).output();
        if !able.is_ok_and(|out| out.status.success()) {
            eprintln!("skipped: a mount namespace cannot be made here, so no journald can be put in the way");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("fwj").tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("socket")).unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (from, to) = (socket.try_clone().unwrap(), Arc::clone(&seen));
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 20];
            while let Ok(n) = from.recv(&mut buffer) {
                // The sender's first message, which only tests the socket, is empty.
                match &buffer[..n] {
                    b"" => {}
                    b"END" => return,
                    bytes => to.lock().unwrap().push(parse(bytes)),
                }
            }
        });
        Some(Self { dir, socket, seen, reader: Some(reader) })
    }

    /// Makes the daemon start with this journald.
    pub fn under(&self, daemon: &mut Daemon) {
        let dir = self.dir.path().to_str().unwrap();
        daemon.wrapper = ["unshare", "-m", "sh", "-c", SCRIPT, dir].map(str::to_owned).to_vec();
    }

    /// All received entries. To be called after the daemon has ended.
    pub fn entries(mut self) -> Vec<Entry> {
        let end = UnixDatagram::unbound().unwrap();
        end.send_to(b"END", self.dir.path().join("socket")).unwrap();
        self.reader.take().unwrap().join().unwrap();
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

fn parse(mut bytes: &[u8]) -> Entry {
    let mut entry = Entry::new();
    while let Some(end) = bytes.iter().position(|b| *b == b'\n') {
        let line = std::str::from_utf8(&bytes[..end]).unwrap();
        bytes = &bytes[end + 1..];
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, value.to_owned()),
            None => {
                let (size, rest) = bytes.split_first_chunk::<8>().unwrap();
                let size = usize::try_from(u64::from_le_bytes(*size)).unwrap();
                let value = String::from_utf8(rest[..size].to_vec()).unwrap();
                bytes = &rest[size + 1..];
                (line, value)
            }
        };
        assert!(entry.insert(name.to_owned(), value).is_none(), "{name} twice");
    }
    entry
}
