//! A private, single-user Nix in a temporary directory: its own store, state and configuration.
//! Needs no root, and any number can run in parallel.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A Nix installation that only this test uses. Deleted when dropped.
pub struct PrivateNix {
    dir: tempfile::TempDir,
}

impl PrivateNix {
    /// An empty store, without substituters and without the sandbox.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("fw").tempdir().expect("a temporary directory");
        let nix = Self { dir };
        for sub in ["store", "var/nix", "conf", "work"] {
            std::fs::create_dir_all(nix.path().join(sub)).expect("a directory for the private store");
        }
        nix.configure("");
        // The first command makes the database.
        let made = nix
            .command("nix-store")
            .args(["--init"])
            .output()
            .expect("nix-store runs (is nix-bin installed?)");
        assert!(made.status.success(), "nix-store --init: {}", String::from_utf8_lossy(&made.stderr));
        nix
    }

    /// Writes nix.conf: what a private store always needs, then `extra`. A build that waits for
    /// the lock of another one looks each second, and not each five seconds.
    pub fn configure(&self, extra: &str) {
        let text = format!(
            "build-users-group =\nsandbox = false\nsubstitute = false\nexperimental-features = nix-command flakes ca-derivations\n\
             build-poll-interval = 1\n{extra}\n"
        );
        std::fs::write(self.path().join("conf/nix.conf"), text).expect("nix.conf is written");
    }

    /// Empties the store: the same directory, with a new database.
    pub fn wipe(&self) {
        let mode =
            Command::new("chmod").args(["-R", "u+w"]).arg(self.store_dir()).status().expect("chmod runs");
        assert!(mode.success());
        for dir in [self.store_dir(), self.path().join("var"), self.path().join("xdg")] {
            let _ = std::fs::remove_dir_all(&dir);
        }
        for dir in [self.store_dir(), self.state_dir()] {
            std::fs::create_dir_all(dir).expect("a directory for the private store");
        }
        assert!(self.run("nix-store", &["--init"]).status.success());
    }

    /// The directory that contains everything.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The store directory, as `/nix/store`.
    pub fn store_dir(&self) -> PathBuf {
        self.path().join("store")
    }

    /// The state directory, as `/nix/var/nix`.
    pub fn state_dir(&self) -> PathBuf {
        self.path().join("var/nix")
    }

    /// A scratch directory, the working directory of [`Self::command`].
    pub fn work_dir(&self) -> PathBuf {
        self.path().join("work")
    }

    /// The environment that makes any Nix command use this store.
    pub fn env(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("NIX_STORE_DIR", self.store_dir()),
            ("NIX_STATE_DIR", self.state_dir()),
            ("NIX_LOG_DIR", self.path().join("var/log")),
            ("NIX_CONF_DIR", self.path().join("conf")),
            ("NIX_REMOTE", PathBuf::from("local")),
            ("NIX_USER_CONF_FILES", PathBuf::from("/dev/null")),
            ("HOME", self.path().to_path_buf()),
            ("XDG_CACHE_HOME", self.path().join("xdg")),
        ]
    }

    /// A Nix command on this store, not run yet.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.work_dir()).envs(self.env()).env_remove("NIX_PATH");
        command
    }

    /// Runs a command to its end; returns its output whatever its status.
    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        self.command(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"))
    }

    /// Builds an expression without an out-link; returns the output paths.
    pub fn build(&self, expression: &str) -> Vec<String> {
        let out = self.run("nix-build", &["--no-out-link", "-E", expression]);
        assert!(out.status.success(), "nix-build: {}", String::from_utf8_lossy(&out.stderr));
        lines(&out.stdout)
    }

    /// Builds one small path of this name; returns it.
    pub fn make(&self, name: &str) -> String {
        self.build(&Self::shell(name, &format!("echo {name} > $out"))).remove(0)
    }

    /// Makes the database behave as with `use-sqlite-wal = false` in nix.conf: a writer keeps
    /// readers out while it writes. Returns a writer's connection.
    pub fn without_wal(&self) -> rusqlite::Connection {
        self.configure("use-sqlite-wal = false");
        let db = rusqlite::Connection::open(self.state_dir().join("db/db.sqlite")).unwrap();
        let mode: String = db.query_row("PRAGMA journal_mode = TRUNCATE", [], |row| row.get(0)).unwrap();
        assert_eq!(mode, "truncate");
        db
    }

    /// An expression for one derivation whose builder is a shell script.
    pub fn shell(name: &str, script: &str) -> String {
        format!(
            "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" ''{script}'' ]; PATH = \"/usr/bin:/bin\"; }}"
        )
    }
}

/// Whether this process runs in a chroot. Nix runs no post-build hook there: it
/// enters the mount namespace that it started in, which leads out of the chroot,
/// and does not find the hook. This does the same and looks for this program.
pub fn in_chroot() -> bool {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new("nsenter");
    command.args(["--mount=/proc/self/ns/mnt", "sh", "-c", "test -e \"$0\" || exit 42"]).arg(program);
    command.output().is_ok_and(|out| out.status.code() == Some(42))
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}
