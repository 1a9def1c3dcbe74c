//! Finds the anchor of a session when the caller names none: the process that all
//! processes of the job descend from and that ends with the job. Reads `/proc`
//! (proc(5)) with the caller's rights; must not know sessions.
//!
//! | where | anchor |
//! |---|---|
//! | GitHub, Gitea, Forgejo, Buildkite, Jenkins, Woodpecker, Azure, TeamCity, Buildbot | the runner's process above the steps; none if it is not found |
//! | GitLab | the job's outermost shell in the process group of the job |
//! | elsewhere | the parent |
//!
//! In `ID=$(flywheelctl session start)` the parent may be a subshell that ends with
//! the line. Then the anchor is the shell that reads this program's output.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The most ancestors that are examined.
const DEEPEST: usize = 128;
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox"];

/// CI systems that run each step of a job in a process of its own.
const SEPARATE_STEPS: [&str; 9] =
    ["github", "gitea", "forgejo", "buildkite", "jenkins", "woodpecker", "azure", "teamcity", "buildbot"];

/// Returns the anchor for a job of this CI system, if one is found.
pub(super) fn find(system: Option<&str>) -> Option<u32> {
    let tree = ProcFs { root: PathBuf::from("/proc") };
    let me = std::process::id();
    let found = tree.find(me, system)?;
    // The daemon refuses the process of another user; a session without an anchor is allowed.
    let (ours, theirs) = (tree.owner(me)?, tree.owner(found)?);
    (ours == theirs || (ours == 0 && tree.has_the_hosts_users())).then_some(found)
}

fn is_file(path: &str, name: &str) -> bool {
    Path::new(path).file_name().is_some_and(|file| file == name)
}

struct ProcFs {
    root: PathBuf,
}

impl ProcFs {
    fn file(&self, pid: u32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }

    fn owner(&self, pid: u32) -> Option<u32> {
        Some(fs::metadata(self.root.join(pid.to_string())).ok()?.uid())
    }

    /// Whether user 0 here is the host's root, and not the root of a user namespace
    /// (user_namespaces(7)), who is an ordinary user for the daemon.
    fn has_the_hosts_users(&self) -> bool {
        let map = fs::read_to_string(self.root.join("self/uid_map")).unwrap_or_default();
        map.split_whitespace().eq(["0", "0", "4294967295"])
    }

    /// Returns name, parent and process group. The name is in parentheses and may
    /// contain anything.
    fn stat(&self, pid: u32) -> Option<(String, u32, i32)> {
        let text = fs::read_to_string(self.file(pid, "stat")).ok()?;
        let (head, rest) = text.rsplit_once(')')?;
        let mut fields = rest.split_whitespace().skip(1);
        let parent = fields.next()?.parse().ok().filter(|p| *p > 0)?;
        Some((head.split_once('(')?.1.to_owned(), parent, fields.next()?.parse().ok()?))
    }

    fn parent(&self, pid: u32) -> Option<u32> {
        Some(self.stat(pid)?.1)
    }

    fn ancestors(&self, pid: u32) -> impl Iterator<Item = u32> {
        std::iter::successors(self.parent(pid), |pid| self.parent(*pid)).take(DEEPEST)
    }

    fn find(&self, me: u32, system: Option<&str>) -> Option<u32> {
        // The shell of a step ends with the step and is no ancestor of the next step, so
        // without the runner's process there is no anchor.
        if let Some(system) = system.filter(|s| SEPARATE_STEPS.contains(s)) {
            return self.ancestors(me).find(|pid| self.is_runner(system, *pid));
        }
        let parent = self.above_substitutions(me)?;
        Some(if system == Some("gitlab") { self.outermost_shell(parent) } else { parent })
    }

    fn is_shell(&self, pid: u32) -> bool {
        self.stat(pid).is_some_and(|(name, ..)| SHELLS.contains(&name.as_str()))
    }

    /// Returns whether this process is the system's runner above the steps of one job,
    /// or of several jobs one after another.
    fn is_runner(&self, system: &str, pid: u32) -> bool {
        let Some((name, ..)) = self.stat(pid) else { return false };
        let arguments = fs::read(self.file(pid, "cmdline")).unwrap_or_default();
        let mut arguments = arguments.split(|b| *b == 0).map(String::from_utf8_lossy);
        match system {
            "github" => name == "Runner.Worker",
            "gitea" => matches!(name.as_str(), "act_runner" | "gitea-runner"),
            "forgejo" => matches!(name.as_str(), "forgejo-runner" | "act_runner"),
            "buildkite" => {
                let program = arguments.next().unwrap_or_default();
                Path::new(program.as_ref()).file_name().is_some_and(|n| n == "buildkite-agent")
                    && arguments.next().is_some_and(|a| a == "bootstrap" || a == "job")
            }
            "jenkins" => {
                let jars = ["agent.jar", "remoting.jar", "slave.jar", "jenkins.war"];
                name == "java" && arguments.any(|a| jars.iter().any(|jar| a.ends_with(jar)))
            }
            // The names of these programs are longer than what proc(5) has of a name.
            "woodpecker" => arguments.next().is_some_and(|program| is_file(&program, "woodpecker-agent")),
            "azure" => name == "Agent.Worker",
            "teamcity" => name == "java" && arguments.any(|a| a == "jetbrains.buildServer.agent.AgentMain"),
            // The script is behind the name of its interpreter.
            "buildbot" => arguments.take(2).any(|a| is_file(&a, "buildbot-worker")),
            _ => false,
        }
    }

    /// Returns the parent, or the shell that reads the output of the parent's command
    /// substitution.
    fn above_substitutions(&self, me: u32) -> Option<u32> {
        let mut parent = self.parent(me)?;
        let output = fs::read_link(self.file(me, "fd/1")).ok();
        let pipe = output.filter(|to| to.to_string_lossy().starts_with("pipe:"));
        let Some(pipe) = pipe else { return Some(parent) };
        let is_pipe = |file: PathBuf| fs::read_link(file).is_ok_and(|to| to == pipe);
        // A runner reads the output of its job, too; only a shell reads a substitution.
        let reads = |pid: u32| {
            if !self.is_shell(pid) {
                return false;
            }
            let Ok(files) = fs::read_dir(self.file(pid, "fd")) else { return false };
            let mut others = files.filter_map(Result::ok).filter(|f| f.file_name() != "1");
            !is_pipe(self.file(pid, "fd/1")) && others.any(|f| is_pipe(f.path()))
        };
        while is_pipe(self.file(parent, "fd/1"))
            && let Some(above) = self.parent(parent)
        {
            if reads(above) {
                return Some(above);
            }
            parent = above;
        }
        self.parent(me)
    }

    /// Returns the outermost of the shells above `from` that have its user and process
    /// group. A script within the job ends before the job does. The runner gives each
    /// job a process group, in which scripts stay; neither the runner nor `su` is a
    /// shell.
    fn outermost_shell(&self, from: u32) -> u32 {
        let group = |pid| self.stat(pid).map(|(_, _, group)| group);
        let mut at = from;
        for _ in 0..DEEPEST {
            let same = |above: &u32| {
                self.is_shell(*above) && self.owner(*above) == self.owner(at) && group(*above) == group(at)
            };
            match self.parent(at).filter(same) {
                Some(above) => at = above,
                None => break,
            }
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Fake {
        _dir: tempfile::TempDir,
        tree: ProcFs,
    }

    /// Number, parent, name, command line, process group, descriptors.
    type Process<'a> = (u32, u32, &'a str, &'a str, i32, &'a [(&'a str, &'a str)]);

    impl Fake {
        fn new(processes: &[Process<'_>]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let tree = ProcFs { root: dir.path().to_owned() };
            for (pid, parent, name, cmdline, group, files) in processes {
                fs::create_dir_all(tree.file(*pid, "fd")).unwrap();
                fs::write(tree.file(*pid, "stat"), format!("{pid} ({name}) S {parent} {group} 1 0\n"))
                    .unwrap();
                fs::write(tree.file(*pid, "cmdline"), cmdline.replace(' ', "\0")).unwrap();
                for (fd, to) in *files {
                    symlink(to, tree.file(*pid, "fd").join(fd)).unwrap();
                }
            }
            Self { _dir: dir, tree }
        }

        fn find(&self, system: &str) -> Option<u32> {
            self.tree.find(9, Some(system).filter(|s| !s.is_empty()))
        }
    }

    #[test]
    fn the_runners_process_above_the_steps() {
        for (system, name, cmdline) in [
            ("github", "Runner.Worker", "/opt/bin/Runner.Worker spawnclient 1 2"),
            ("gitea", "act_runner", "act_runner daemon"),
            ("forgejo", "forgejo-runner", "forgejo-runner daemon"),
            ("buildkite", "buildkite-agent", "/usr/bin/buildkite-agent bootstrap"),
            ("jenkins", "java", "java -jar /opt/agent.jar -url x"),
            ("woodpecker", "woodpecker-agen", "/usr/bin/woodpecker-agent"),
            ("azure", "Agent.Worker", "/opt/agent/bin/Agent.Worker spawnclient 1 2"),
            ("teamcity", "java", "java -cp x jetbrains.buildServer.agent.AgentMain -file y"),
            ("buildbot", "buildbot-worker", "/usr/bin/python3 /usr/bin/buildbot-worker start"),
        ] {
            let fake = Fake::new(&[
                (1, 0, "systemd", "init", 1, &[]),
                (4, 1, name, cmdline, 1, &[]),
                (5, 4, "bash", "bash -e step.sh", 1, &[]),
                (9, 5, "flywheelctl", "flywheelctl", 1, &[]),
            ]);
            assert_eq!(fake.find(system), Some(4), "{system}");
            assert_eq!(fake.find(""), Some(5), "{system}: elsewhere it is nothing special");
        }
    }

    #[test]
    fn a_substitution_is_read_by_the_shell_that_lives_on() {
        let pipe = ("1", "pipe:[7]");
        let fake = Fake::new(&[
            (4, 1, "bash", "bash", 1, &[("1", "/dev/null"), ("3", "pipe:[7]")]),
            (5, 4, "bash", "bash", 1, &[pipe]),
            (9, 5, "flywheelctl", "flywheelctl", 1, &[pipe]),
        ]);
        assert_eq!(fake.find(""), Some(4));
        // A job of its own that is piped somewhere: nobody above reads it.
        let fake = Fake::new(&[
            (4, 1, "bash", "bash", 1, &[("1", "/dev/null")]),
            (5, 4, "bash", "bash", 1, &[pipe]),
            (9, 5, "flywheelctl", "flywheelctl", 1, &[pipe]),
        ]);
        assert_eq!(fake.find(""), Some(5));
        // A runner that reads its job's output.
        let fake = Fake::new(&[
            (4, 1, "runner", "runner", 1, &[("1", "/dev/null"), ("3", "pipe:[7]")]),
            (5, 4, "bash", "bash", 1, &[pipe]),
            (9, 5, "flywheelctl", "flywheelctl", 1, &[pipe]),
        ]);
        assert_eq!(fake.find(""), Some(5));
    }

    #[test]
    fn a_script_within_the_job_is_climbed_past() {
        let fake = Fake::new(&[
            (3, 1, "gitlab-runner", "gitlab-runner", 3, &[]),
            (4, 3, "bash", "bash", 4, &[]),
            (5, 4, "sh", "sh start.sh", 4, &[]),
            (9, 5, "flywheelctl", "flywheelctl", 4, &[]),
        ]);
        assert_eq!(fake.find("gitlab"), Some(4));
        assert_eq!(fake.find(""), Some(5), "elsewhere it is the parent");
        // As another user, by `su`, which waits in between.
        let fake = Fake::new(&[
            (2, 1, "gitlab-runner", "gitlab-runner", 2, &[]),
            (3, 2, "su", "su ci", 3, &[]),
            (4, 3, "bash", "bash", 3, &[]),
            (5, 4, "bash", "bash", 3, &[]),
            (9, 5, "flywheelctl", "flywheelctl", 3, &[]),
        ]);
        assert_eq!(fake.find("gitlab"), Some(4));
        // Never to the shell that a runner was started from.
        let fake = Fake::new(&[
            (2, 1, "bash", "bash", 2, &[]),
            (3, 2, "node", "gitlab-ci-local", 3, &[]),
            (4, 3, "bash", "bash", 3, &[]),
            (9, 4, "flywheelctl", "flywheelctl", 3, &[]),
        ]);
        assert_eq!(fake.find("gitlab"), Some(4));
        // Nor to one that gives each job a process group.
        let fake = Fake::new(&[
            (3, 1, "bash", "runner.sh", 3, &[]),
            (4, 3, "bash", "bash", 4, &[]),
            (9, 4, "flywheelctl", "flywheelctl", 4, &[]),
        ]);
        assert_eq!(fake.find("gitlab"), Some(4));
    }
}
