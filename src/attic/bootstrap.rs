//! Gets the attic client without ever building it. Nix substitutes the client or
//! finds it in the store, which takes seconds; when neither works, the attempt
//! fails at once and the caller retries later. The bootstrap tests a new client
//! before it replaces the one in use:
//!
//! ```text
//!   nix build … --out-link attic-client.new ─► --version ─► cache info ─► attic-client
//!        │ not available                           │ no          │ no
//!        ▼                                         ▼             ▼
//!      Missing                                   the previous client stays in use
//! ```
//!
//! Both links are GC roots. Nix itself registers them (through its daemon where
//! there is one), so the garbage collector cannot remove the client at any moment.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::child::{Ended, Limits, Runner, Stream};
use super::home::Home;
use super::installable::Installable;
use crate::observe::detail;

/// Time limit of `--version`, and of `cache info`, which asks a server.
const ANSWER: Duration = Duration::from_secs(30);
/// Names, in the state directory, of the links to the client in use and to the one under test.
const LINK: &str = "attic-client";
const CANDIDATE: &str = "attic-client.new";
/// Longest part of a command's output that goes into a message, in characters.
const QUOTE: usize = 240;
/// Bytes of an error after which its further lines are left out.
const ERROR: usize = 4096;

/// The directories, the configuration and the limits that the bootstrap works with.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// How programs are run.
    pub runner: Runner,
    /// Where the links are.
    pub state_dir: PathBuf,
    /// The client's configuration.
    pub home: Home,
    /// Time limit of getting the client.
    pub timeout: Duration,
}

/// A client that passed the test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obtained {
    /// The program.
    pub program: PathBuf,
    /// The version that it reports.
    pub version: String,
    /// Whether it is the program that was in use before.
    pub same: bool,
    /// Time that getting it took.
    pub took: Duration,
}

/// Why there is no attic client, or no new one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No substituter has it, and it is not in the store.
    #[error("{0}")]
    Missing(String),
    /// The program exists and does not work.
    #[error("{0}")]
    Broken(String),
    /// The program works, but the cache did not answer its request.
    #[error("{0}")]
    Unanswered(String),
}

/// Returns the client that an earlier run of the daemon got, if its program still exists.
pub fn present(workspace: &Workspace, installable: &Installable) -> Option<PathBuf> {
    let program = match installable {
        Installable::Program(_) => installable.program_in(Path::new("")),
        Installable::Flake(_) | Installable::Store { .. } => {
            installable.program_in(&std::fs::read_link(workspace.state_dir.join(LINK)).ok()?)
        }
    };
    program.is_file().then_some(program)
}

/// Gets the client and tests it against `cache` (`SERVER:CACHE`). `before` is the program in use.
pub async fn obtain(
    workspace: &Workspace,
    installable: &Installable,
    before: Option<&Path>,
    cache: &str,
) -> Result<Obtained, Unavailable> {
    let begun = Instant::now();
    let candidate = workspace.state_dir.join(CANDIDATE);
    let tried = attempt(workspace, installable, before, cache, &candidate).await;
    // Nothing needs the candidate's link after the attempt, whatever its outcome.
    let _ = std::fs::remove_file(&candidate);
    let (program, version) = tried?;
    let same = before == Some(&program);
    Ok(Obtained { program, version, same, took: begun.elapsed() })
}

async fn attempt(
    workspace: &Workspace,
    installable: &Installable,
    before: Option<&Path>,
    cache: &str,
    candidate: &Path,
) -> Result<(PathBuf, String), Unavailable> {
    let root = match installable {
        Installable::Program(_) => None,
        Installable::Flake(reference) => {
            nix(workspace, &flake(reference, candidate)).await?;
            Some(linked(candidate)?)
        }
        Installable::Store { path, .. } => {
            nix(workspace, &realise(path, candidate)).await?;
            Some(linked(candidate)?)
        }
    };
    let program = installable.program_in(root.as_deref().unwrap_or(Path::new("")));
    let version = check(workspace, &program, Some(cache)).await?;
    if let Some(root) = root.filter(|_| before != Some(&program)) {
        // Nix replaces the link in one step and registers it.
        nix(workspace, &realise(&root, &workspace.state_dir.join(LINK))).await?;
    }
    Ok((program, version))
}

fn linked(candidate: &Path) -> Result<PathBuf, Unavailable> {
    let missing = |e| Unavailable::Missing(format!("nix made no link {}: {e}", candidate.display()));
    std::fs::read_link(candidate).map_err(missing)
}

/// Options that keep Nix from building, on this host and on remote builders, and that make it ask again
/// a substituter that did not have the client a minute ago. With them Nix checks every second, not every
/// five, whether another process that builds the client has finished.
fn common() -> Vec<OsString> {
    let mut options: Vec<OsString> = ["--max-jobs", "0"].map(OsString::from).into();
    for (name, value) in [("builders", ""), ("narinfo-cache-negative-ttl", "0"), ("build-poll-interval", "1")]
    {
        options.extend(["--option", name, value].map(OsString::from));
    }
    options
}

fn flake(reference: &str, link: &Path) -> Vec<OsString> {
    let mut command: Vec<OsString> =
        ["nix", "build", "--extra-experimental-features", "nix-command flakes"].map(OsString::from).into();
    command.extend(["--no-write-lock-file".into(), "--out-link".into(), link.into()]);
    command.extend(common());
    command.push(reference.into());
    command
}

fn realise(path: &Path, link: &Path) -> Vec<OsString> {
    let mut command: Vec<OsString> = ["nix-store", "--realise"].map(OsString::from).into();
    command.extend([path.into(), "--add-root".into(), link.into(), "--indirect".into()]);
    command.extend(common());
    command
}

/// The last error that Nix writes. It begins with `error:`, and its further lines are indented:
/// Nix 2.26 begins them on the line after, Nix 2.34 gives the reason there.
#[derive(Default)]
struct Errors {
    last: Option<String>,
    is_open: bool,
}

impl Errors {
    /// Takes the next line of Nix's output. Lines beyond a bound are left out.
    fn hear(&mut self, line: &str) {
        if let Some(begin) = line.trim_start().strip_prefix("error:") {
            self.last = Some(begin.to_owned());
            self.is_open = true;
        } else if !line.trim().is_empty() && !line.starts_with(' ') {
            self.is_open = false;
        } else if let Some(last) = self.last.as_mut().filter(|last| self.is_open && last.len() < ERROR) {
            last.push(' ');
            last.push_str(line.trim());
        }
    }
}

async fn nix(workspace: &Workspace, command: &[OsString]) -> Result<(), Unavailable> {
    let limits = Limits { memory: None, time: workspace.timeout, stall: None };
    let mut errors = Errors::default();
    let ended = workspace
        .runner
        .run(command, &[], &[], limits, |_, line| {
            detail!(line = line, "nix says");
            errors.hear(line);
        })
        .await;
    if ended.is_good() {
        return Ok(());
    }
    let name = command[0].to_string_lossy();
    let said = match errors.last.as_deref().map(str::trim) {
        // Nix writes this about every path that it would have to build.
        Some(error) if error.contains("max-jobs") => {
            "no substituter has it, and it would have to be built".to_owned()
        }
        Some(error) if !error.is_empty() => quote(error),
        Some(_) | None => format!("it gave no reason; {ended}"),
    };
    Err(Unavailable::Missing(match ended {
        Ended::Exited(127) => format!("{name} is not installed, or not in the service's PATH"),
        Ended::Exited(_) => format!("{name}: {said}"),
        ended => format!("{name}: {ended}"),
    }))
}

/// Checks that a client reports its version and, if `cache` (`SERVER:CACHE`) is given, that the cache
/// answers it. Returns the version.
pub async fn check(
    workspace: &Workspace,
    program: &Path,
    cache: Option<&str>,
) -> Result<String, Unavailable> {
    let (ended, said) = ask(workspace, program, &["--version"]).await;
    let version = match (&ended, said.first()) {
        (Ended::Exited(0), Some(version)) => quote(version),
        _ => {
            let said = said.last().map_or_else(|| "it said nothing".to_owned(), |line| quote(line));
            return Err(Unavailable::Broken(format!("{} --version: {ended} ({said})", program.display())));
        }
    };
    let Some(cache) = cache else { return Ok(version) };
    let (ended, said) = ask(workspace, program, &["cache", "info", cache]).await;
    if ended.is_good() {
        return Ok(version);
    }
    let said = said.last().map_or_else(|| "it said nothing".to_owned(), |line| quote(line));
    Err(Unavailable::Unanswered(format!("{} cache info {cache}: {ended} ({said})", program.display())))
}

/// Runs a client with a small request and returns the last lines of its output.
async fn ask(workspace: &Workspace, program: &Path, args: &[&str]) -> (Ended, Vec<String>) {
    let mut command = vec![program.into()];
    command.extend(args.iter().map(OsString::from));
    let limits = Limits { memory: None, time: ANSWER, stall: None };
    let mut said = Vec::new();
    let home = [("XDG_CONFIG_HOME", workspace.home.dir().as_os_str().to_owned())];
    let hear = |_: Stream, line: &str| {
        if said.len() < 20 {
            said.push(line.trim().to_owned());
        }
    };
    let ended = workspace.runner.run(&command, &home, &[], limits, hear).await;
    (ended, said)
}

/// Makes one line of bounded length without control characters.
fn quote(text: &str) -> String {
    let clean: String = text.trim().chars().filter(|c| !c.is_control()).collect();
    if clean.chars().count() <= QUOTE {
        return clean;
    }
    let mut cut: String = clean.chars().take(QUOTE).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_never_build() {
        let link = Path::new("/s/attic-client.new");
        let text = |command: Vec<OsString>| {
            command.iter().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join("|")
        };
        assert_eq!(
            text(flake("github:a/b#c", link)),
            "nix|build|--extra-experimental-features|nix-command flakes|--no-write-lock-file|--out-link|\
             /s/attic-client.new|--max-jobs|0|--option|builders||--option|narinfo-cache-negative-ttl|0|--option|build-poll-interval|1|github:a/b#c"
        );
        assert_eq!(
            text(realise(Path::new("/nix/store/x"), link)),
            "nix-store|--realise|/nix/store/x|--add-root|/s/attic-client.new|--indirect|--max-jobs|0|--option|\
             builders||--option|narinfo-cache-negative-ttl|0|--option|build-poll-interval|1"
        );
    }

    #[test]
    fn an_error_has_its_further_lines() {
        let last = |text: &str| {
            let mut errors = Errors::default();
            text.lines().for_each(|line| errors.hear(line));
            errors.last
        };
        // What Nix 2.8.0, 2.26.3 and 2.34.8 write when they would have to build something.
        for text in [
            "error: unable to start any build; either increase '--max-jobs' or enable remote builds.\n       https://x",
            "this derivation will be built:\n  /nix/store/x.drv\nerror:\n                           Unable to start any \
             build;\n                           either increase '--max-jobs' or enable remote builds.\n",
            "error: Cannot build '/nix/store/x.drv'.\n       Reason: local builds are disabled (max-jobs = 0)\n       Hint: y",
        ] {
            assert!(last(text).is_some_and(|error| error.contains("max-jobs")), "{text}");
        }
        assert_eq!(last("error: one\n  more\nwarning: x\n  max-jobs").as_deref(), Some(" one more"));
        assert_eq!(last("error: one\nerror: two").as_deref(), Some(" two"));
        assert_eq!(last("warning: x\n  y"), None);
        let long = format!("error: x{}", "\n  yyyyyyyyyyyyyyyyyyyy".repeat(1_000));
        assert!(last(&long).is_some_and(|error| error.len() < ERROR + 100));
    }

    #[test]
    fn quotes_are_bounded() {
        assert_eq!(quote(" a\u{1b}b \n"), "ab");
        assert_eq!(quote(&"x".repeat(1000)).chars().count(), QUOTE + 1);
    }
}
