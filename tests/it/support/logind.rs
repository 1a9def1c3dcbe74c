//! A private system bus with a logind on it. The logind answers as the real one does
//! (org.freedesktop.login1(5)) and records the requests.

use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use super::daemon::{Daemon, until};

/// One call of `Inhibit`, and the end of its pipe that shows when the lock is released.
pub struct Lock {
    pub asked: [String; 4],
    end: std::io::PipeReader,
}

impl Lock {
    /// Waits until the lock is released.
    pub fn until_released(mut self) {
        let mut nothing = [0];
        assert_eq!(self.end.read(&mut nothing).unwrap(), 0);
    }
}

#[derive(Clone, Default)]
struct Manager {
    locks: Arc<Mutex<Vec<Lock>>>,
    delay: Arc<Mutex<u64>>,
}

#[zbus::interface(name = "org.freedesktop.login1.Manager")]
impl Manager {
    fn inhibit(
        &self,
        what: String,
        who: String,
        why: String,
        mode: String,
    ) -> zbus::fdo::Result<zbus::OwnedFd> {
        let (end, held) = std::io::pipe().map_err(|e| zbus::fdo::Error::Failed(e.to_string()))?;
        self.locks.lock().unwrap().push(Lock { asked: [what, who, why, mode], end });
        Ok(zbus::OwnedFd::from(OwnedFd::from(held)))
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        *self.delay.lock().unwrap()
    }

    #[zbus(signal)]
    async fn prepare_for_shutdown(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        start: bool,
    ) -> zbus::Result<()>;

    #[zbus(signal)]
    async fn prepare_for_sleep(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        start: bool,
    ) -> zbus::Result<()>;
}

/// The bus, and the logind on it while it runs.
pub struct Bus {
    dir: tempfile::TempDir,
    child: Option<Child>,
    manager: Manager,
    runtime: tokio::runtime::Runtime,
    served: Option<zbus::Connection>,
}

impl Bus {
    /// Prepares both and starts neither. `delay`: the `InhibitDelayMaxUSec` of this logind, in
    /// microseconds.
    pub fn new(delay: u64) -> Self {
        let dir = tempfile::Builder::new().prefix("fwb").tempdir().unwrap();
        let manager = Manager::default();
        *manager.delay.lock().unwrap() = delay;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Self { dir, child: None, manager, runtime, served: None }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("bus")
    }

    fn address(&self) -> String {
        format!("unix:path={}", self.socket().display())
    }

    /// Makes the daemon use this bus as the system bus.
    pub fn under(&self, daemon: &mut Daemon) {
        daemon.env.push(("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), self.address()));
    }

    /// Starts the bus and the logind.
    pub fn up(&mut self) {
        let config = self.dir.path().join("bus.conf");
        let text = format!(
            "<busconfig><type>system</type><listen>{}</listen><policy context=\"default\"><allow send_destination=\"*\"/>\
             <allow own=\"*\"/><allow user=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
            self.address()
        );
        std::fs::write(&config, text).unwrap();
        let _ = std::fs::remove_file(self.socket());
        let mut command = Command::new("dbus-daemon");
        command.args(["--nofork", "--nopidfile"]).arg(format!("--config-file={}", config.display()));
        self.child =
            Some(command.stdin(Stdio::null()).spawn().expect("dbus-daemon runs (is dbus installed?)"));
        let socket = self.socket();
        until("there is a bus", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
        let (address, manager) = (self.address(), self.manager.clone());
        let builder = zbus::connection::Builder::address(address.as_str())
            .name("org.freedesktop.login1")
            .serve_at("/org/freedesktop/login1", manager);
        self.served = Some(self.runtime.block_on(builder.build()).unwrap());
    }

    /// Stops the bus and the logind.
    pub fn down(&mut self) {
        self.served = None;
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub fn shutdown(&self, start: bool) {
        self.emit("PrepareForShutdown", start);
    }

    pub fn sleep(&self, start: bool) {
        self.emit("PrepareForSleep", start);
    }

    fn emit(&self, signal: &str, start: bool) {
        let bus = self.served.as_ref().unwrap();
        let start = (start,);
        let sent = bus.emit_signal(
            None::<&str>,
            "/org/freedesktop/login1",
            "org.freedesktop.login1.Manager",
            signal,
            &start,
        );
        self.runtime.block_on(sent).unwrap();
    }

    /// The number of locks that were taken and not yet returned by [`Self::lock`].
    pub fn locks(&self) -> usize {
        self.manager.locks.lock().unwrap().len()
    }

    /// Waits for the next lock.
    pub fn lock(&self) -> Lock {
        until("an inhibitor is asked for", || self.locks() > 0);
        self.manager.locks.lock().unwrap().remove(0)
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.down();
    }
}
