//! A `/proc` of a test's own making, in the form the kernel writes it.

use std::fs;
use std::path::PathBuf;

use super::proc::Proc;

/// The files that are read, in a temporary directory.
pub(crate) struct FakeProc {
    dir: tempfile::TempDir,
}

impl FakeProc {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// In another place than the usual one.
    pub(crate) fn within(dir: &std::path::Path) -> Self {
        Self { dir: tempfile::tempdir_in(dir).unwrap() }
    }

    pub(crate) fn proc(&self) -> Proc {
        Proc::at(self.dir.path())
    }

    fn file(&self, pid: i32, name: &str) -> PathBuf {
        self.dir.path().join(pid.to_string()).join(name)
    }

    /// The table of locks.
    pub(super) fn table(&self, text: &str) {
        fs::write(self.dir.path().join("locks"), text).unwrap();
    }

    pub(super) fn set(&self, pid: i32, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.file(pid, name), text).unwrap();
    }

    /// A process; all are in process session 1, each in a group of its own.
    pub(crate) fn add(&self, pid: i32, ppid: i32, start: u64, comm: &str, uid: u32, cmdline: &[u8]) {
        fs::create_dir_all(self.dir.path().join(pid.to_string())).unwrap();
        self.set(
            pid,
            "stat",
            format!(
                "{pid} ({comm}) S {ppid} {pid} 1 0 -1 4194368 433 1269 0 0 0 1 0 2 20 0 2 0 {start} 495128576 3189\n"
            ),
        );
        self.set(pid, "status", format!("Name:\t{comm}\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{uid}\t{uid}\t{uid}\t{uid}\nNSpid:\t{pid}\n"));
        self.set(pid, "cmdline", cmdline);
        self.set(pid, "cgroup", format!("0::/of/{pid}\n"));
    }

    /// Ends a process.
    pub(crate) fn end(&self, pid: i32) {
        let _ = fs::remove_dir_all(self.dir.path().join(pid.to_string()));
    }

    /// Moves a process into another process session.
    pub(super) fn session(&self, pid: i32, session: i32) {
        let stat = fs::read_to_string(self.file(pid, "stat")).unwrap();
        let (name, rest) = stat.rsplit_once(") ").unwrap();
        let mut fields: Vec<String> = rest.split(' ').map(str::to_owned).collect();
        fields[3] = session.to_string(); // after state, parent and process group
        self.set(pid, "stat", format!("{name}) {}", fields.join(" ")));
    }

    /// The process namespace of a process, as the kernel names it.
    pub(super) fn namespace(&self, pid: i32, inode: u64) {
        fs::create_dir_all(self.file(pid, "ns")).unwrap();
        std::os::unix::fs::symlink(format!("pid:[{inode}]"), self.file(pid, "ns/pid")).unwrap();
    }

    /// Puts a process into an inner process namespace.
    pub(super) fn nested(&self, pid: i32, inner: i32) {
        let status = fs::read_to_string(self.file(pid, "status")).unwrap();
        self.set(
            pid,
            "status",
            status.replace(&format!("NSpid:\t{pid}"), &format!("NSpid:\t{pid}\t{inner}")),
        );
    }
}

/// A contract of `/proc` and of this one: the same is read of the same process.
#[test]
fn a_process_of_the_kernel_and_one_of_the_tests() {
    let mut sleeper = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = i32::try_from(sleeper.id()).unwrap();
    let kernel = Proc::default();
    let stat = kernel.stat(pid).unwrap();
    let fake = FakeProc::new();
    fake.add(pid, stat.ppid, stat.id.start, &stat.comm, kernel.uid(pid).unwrap(), b"sleep\x001000\0");
    fake.session(pid, stat.session);
    let read = |proc: &Proc| (proc.stat(pid), proc.uid(pid), proc.numbers(pid), proc.is_alive(stat.id));
    assert_eq!(read(&kernel), read(&fake.proc()));
    assert_eq!(read(&kernel).0, Some(stat.clone()));
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    fake.end(pid);
    assert_eq!(read(&kernel), (None, None, Vec::new(), false));
    assert_eq!(read(&kernel), read(&fake.proc()));
}
