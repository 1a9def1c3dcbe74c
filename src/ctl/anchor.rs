//! Which process a session is anchored to when the caller names none: what
//! everything the job does descends from, and what ends with the job. Reads
//! `/proc` (proc(5)) as far as the caller's user may; must not know sessions.
//!
//! | where | anchor |
//! |---|---|
//! | GitHub, Gitea, Forgejo, Buildkite, Jenkins | the runner's process above the steps; none, when it cannot be found |
//! | GitLab | the job's outermost shell: below what is no shell, in one process group |
//! | elsewhere | the parent |
//!
//! In `ID=$(flywheelctl session start)` the parent may be a subshell that ends
//! with the line: then it is the one that reads our output.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Generations that are looked at.
const DEEPEST: usize = 128;
const SHELLS: [&str; 8] = ["sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox"];

/// Where each step is a process of its own.
const SEPARATE_STEPS: [&str; 5] = ["github", "gitea", "forgejo", "buildkite", "jenkins"];

/// The anchor for a job of this system, if any.
pub(super) fn find(system: Option<&str>) -> Option<u32> {
    let tree = Tree { root: PathBuf::from("/proc") };
    let me = std::process::id();
    let found = tree.find(me, system)?;
    // Somebody else's process would be refused; without an anchor it goes on.
    let (ours, theirs) = (tree.owner(me)?, tree.owner(found)?);
    (ours == theirs || ours == 0).then_some(found)
}

struct Tree {
    root: PathBuf,
}

impl Tree {
    fn file(&self, pid: u32, name: &str) -> PathBuf {
        self.root.join(pid.to_string()).join(name)
    }

    fn owner(&self, pid: u32) -> Option<u32> {
        Some(fs::metadata(self.root.join(pid.to_string())).ok()?.uid())
    }

    /// Name, parent and process group. The name stands in parentheses and may
    /// hold anything.
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
        // A step's own shell ends with the step, and the next step is not below
        // it: without the runner's process no anchor is better than that one.
        if let Some(system) = system.filter(|s| SEPARATE_STEPS.contains(s)) {
            return self.ancestors(me).find(|pid| self.is_runner(system, *pid));
        }
        let parent = self.past_substitutions(me)?;
        Some(if system == Some("gitlab") { self.outermost_shell(parent) } else { parent })
    }

    fn is_shell(&self, pid: u32) -> bool {
        self.stat(pid).is_some_and(|(name, ..)| SHELLS.contains(&name.as_str()))
    }

    /// Whether this is what a system's runner has for one job (or for all of
    /// them one after another), above the processes of the steps.
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
            _ => false,
        }
    }

    /// Our parent, or who reads what it and we write.
    fn past_substitutions(&self, me: u32) -> Option<u32> {
        let mut parent = self.parent(me)?;
        let output = fs::read_link(self.file(me, "fd/1")).ok();
        let pipe = output.filter(|to| to.to_string_lossy().starts_with("pipe:"));
        let Some(pipe) = pipe else { return Some(parent) };
        let is_pipe = |file: PathBuf| fs::read_link(file).is_ok_and(|to| to == pipe);
        // A runner reads what its job writes; only a shell reads a substitution.
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

    /// Climbs from shell to shell: a script in between ends before the job. The
    /// runner puts each job into a process group of its own, which scripts stay
    /// in, and is no shell; `su`, by which it may have changed the user, is none
    /// either.
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
        tree: Tree,
    }

    /// Number, parent, name, command line, process group, descriptors.
    type Process<'a> = (u32, u32, &'a str, &'a str, i32, &'a [(&'a str, &'a str)]);

    impl Fake {
        fn new(processes: &[Process<'_>]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let tree = Tree { root: dir.path().to_owned() };
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
