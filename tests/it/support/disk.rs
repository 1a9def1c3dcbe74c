//! A small disk: a tmpfs in a mount namespace of its own, held by a process that ends with the
//! test.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A tmpfs at a directory, visible to the commands that run in its namespace.
pub struct SmallDisk {
    holder: Child,
    dir: PathBuf,
    user: bool,
}

impl SmallDisk {
    /// Mounts a tmpfs of this size (in tmpfs' notation) at `dir`. `None`, with a line that says so,
    /// where neither root nor user namespaces allow it.
    pub fn mount(dir: &Path, size: &str) -> Option<Self> {
        let user = !rustix::process::geteuid().is_root();
        std::fs::create_dir_all(dir).unwrap();
        let script =
            format!("mount -t tmpfs -o mode=700,size={size} none '{}' && echo && cat", dir.display());
        let mut command = Command::new("unshare");
        command.arg(if user { "-rm" } else { "-m" }).args(["sh", "-c", &script]);
        let mut holder =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut mounted = [0];
        if holder.stdout.as_mut().unwrap().read_exact(&mut mounted).is_err() {
            let _ = holder.wait();
            eprintln!("skipped: no tmpfs can be mounted here (needs root or user namespaces)");
            return None;
        }
        Some(Self { holder, dir: dir.to_owned(), user })
    }

    /// The command that runs its last arguments with this disk mounted.
    pub fn wrap(&self) -> Vec<String> {
        let mut wrap = vec!["nsenter".to_owned(), "-t".to_owned(), self.holder.id().to_string()];
        if self.user {
            wrap.extend(["-U".to_owned(), "--preserve-credentials".to_owned()]);
        }
        // With the root and directory of the holding process: in a chroot, entering a mount
        // namespace leads out of it.
        wrap.extend(["-m", "-r", "-w", "--"].map(str::to_owned));
        wrap
    }

    /// The path of a file on the disk, as seen from this process.
    pub fn file(&self, name: &str) -> PathBuf {
        let dir = self.dir.strip_prefix("/").unwrap();
        PathBuf::from(format!("/proc/{}/root", self.holder.id())).join(dir).join(name)
    }

    /// Writes until not a single byte fits any more.
    pub fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.file("filler")).unwrap();
        let (large, small) = (vec![b'x'; 65_536], [b'x']);
        while file.write(&large).is_ok() {}
        while file.write(&small).is_ok() {}
    }

    /// Deletes what [`Self::fill`] wrote.
    pub fn free(&self) {
        std::fs::remove_file(self.file("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
