//! CI systems without their services: the environment that they give a job, the way in which they
//! run its scripts, and the files of packaging/ci.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::daemon::{CommandResult, Daemon};

/// The text of a file of packaging/ci.
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ci").join(name)
}

pub fn text(name: &str) -> String {
    std::fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The commands under a key of a YAML file that lists one command a line.
pub fn commands(yaml: &str, key: &str) -> Vec<String> {
    let mut lines = yaml.lines().skip_while(|l| l.trim() != format!("{key}:"));
    lines.next().unwrap_or_else(|| panic!("no {key}: in {yaml}"));
    let own = |l: &&str| l.trim_start().starts_with("- ") || l.trim_start().starts_with('#');
    let list = lines.take_while(own).filter_map(|l| l.trim_start().strip_prefix("- "));
    list.map(str::to_owned).collect()
}

/// The environment and directory of a CI system's job.
pub struct Job {
    pub env: Vec<(String, String)>,
    pub dir: PathBuf,
}

impl Job {
    /// A job on the daemon's host, with its Nix and with `flywheelctl` in PATH.
    pub fn on(daemon: &Daemon, env: &[(&str, &str)]) -> Self {
        let mut job = Self::at(&daemon.socket(), &daemon.nix.work_dir(), env);
        let nix = daemon.nix.env().into_iter();
        job.env.extend(nix.map(|(k, v)| (k.to_owned(), v.to_str().unwrap().to_owned())));
        job
    }

    /// A job with this socket, whatever listens on it.
    pub fn at(socket: &Path, dir: &Path, env: &[(&str, &str)]) -> Self {
        let bin = Path::new(env!("CARGO_BIN_EXE_flywheelctl")).parent().unwrap().display();
        let path = format!("{bin}:{}", std::env::var("PATH").unwrap());
        let mut all = vec![
            ("PATH".to_owned(), path),
            ("FLYWHEEL_SOCKET".to_owned(), socket.to_str().unwrap().to_owned()),
        ];
        all.extend(env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
        Self { env: all, dir: dir.to_owned() }
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.env.retain(|(k, _)| k != name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(self.env.iter().map(|(k, v)| (k, v))).current_dir(&self.dir);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs a script as gitlab-runner's shell executor does: on the standard input of a bash that
    /// ends at the first failure.
    pub fn bash(&self, script: &str) -> CommandResult {
        let mut child = self.command("bash").stdin(Stdio::piped()).spawn().unwrap();
        let quoted = script.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
        let script = format!("set -eo pipefail\nset +o noclobber\n: | eval $'{quoted}'\nexit 0\n");
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        CommandResult::of(&child.wait_with_output().unwrap())
    }
}

/// Writes scripts whose processes have the name of the program that they stand for, because
/// flywheelctl looks at the names of the processes above it.
pub fn named_script(dir: &Path, name: &str, script: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let file = dir.join(name);
    std::fs::write(&file, format!("#!/bin/bash\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
    file
}

/// Writes an expression that builds this number of outputs, as a file for `nix-build`. Each build
/// takes long enough for its maker to be seen.
pub fn expression(dir: &Path, name: &str, count: usize) -> PathBuf {
    let file = dir.join(format!("{name}.nix"));
    let text = format!(
        r#"map (n: derivation {{
  name = "{name}-${{toString n}}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
  args = [ "-c" "sleep 0.3; echo {name} ${{toString n}} > $out" ];
}}) (builtins.genList (n: n) {count})"#
    );
    std::fs::write(&file, text).unwrap();
    file
}
