//! The command line of `flywheelctl`. Must not know what the commands do.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::types::Period;

/// The longest wait that the command line accepts. A longer one is a typing error.
const LONGEST_WAIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Reads a duration such as `90s`, `5m` or `1h30m`; a plain number counts seconds.
fn wait(text: &str) -> Result<Duration, String> {
    let period = Period::parse_or_seconds(text).map_err(|error| error.to_string())?;
    if period.0 > LONGEST_WAIT { Err(format!("{period} is longer than a week")) } else { Ok(period.0) }
}

/// Controls the flywheel daemon, which streams what Nix builds to a binary cache
#[derive(Debug, Parser)]
#[command(name = "flywheelctl", version, max_term_width = 100, after_help = EXITS)]
pub(super) struct Cli {
    /// Use this socket of the daemon [default: $FLYWHEEL_SOCKET, else /run/flywheel/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// Print warnings and errors only, no progress and no summary
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    /// Make session start, session end and run fail for failed or pending paths or without a daemon
    #[arg(long, global = true)]
    pub(super) strict: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

pub(super) const EXITS: &str = "\
Exit status:
  0  done; for `session start`, `session end` and `run` without --strict, and for
     `hook`, also when paths failed or there is no daemon
  1  internal error
  2  usage or bad input
  3  at least one path failed; `doctor`, `verify`: something is bad
  4  the deadline was reached with paths pending (the daemon continues)
  5  no daemon, or it refused";

const SETUP_EXAMPLES: &str = "\
Examples:
  flywheelctl setup
      asks for everything
  flywheelctl setup --server https://attic.example.com --cache ci --user gitlab-runner --token-stdin <token
      asks nothing
  flywheelctl setup --token-stdin <token
      replaces the token only
  flywheelctl setup --built-in --dry-run
      prints what it would do for the built-in cache";

const LOGS_EXAMPLES: &str = "\
Examples:
  flywheelctl logs
      the daemon's journal; within a job that of its session
  flywheelctl logs r6mm67amzq4vnc1r --explain
      a session's, with an explanation beside each entry that has one
  flywheelctl logs --warnings --explain --since -1h
      what somebody should look at
  flywheelctl logs -f
      continues with new entries";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  flywheelctl doctor
      checks everything without uploading
  flywheelctl doctor --push
      also uploads a small path and reads it back
  flywheelctl --json doctor
      for bug reports; it contains no secrets";

impl Command {
    /// Returns whether jobs call this command beside their work: then failed paths or a
    /// missing daemon do not fail it, unless `--strict` is given.
    pub(super) fn is_lenient(&self) -> bool {
        match self {
            Self::Session { command } => {
                matches!(command, SessionCommand::Start(_) | SessionCommand::End(_))
            }
            Self::Run(_) | Self::Hook { .. } => true,
            Self::Push(_)
            | Self::Flush { .. }
            | Self::Why { .. }
            | Self::Verify(_)
            | Self::Status { .. }
            | Self::Client { .. }
            | Self::NixConf { .. }
            | Self::Reload
            | Self::Setup(_)
            | Self::Logs(_)
            | Self::Doctor { .. }
            | Self::Metrics
            | Self::Completions { .. }
            | Self::Man { .. } => false,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Open, end and show sessions, which follow what a job builds
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Run a command in a session of its own and exit with its status
    Run(RunArgs),
    /// Push store paths
    Push(PushArgs),
    /// Wait until everything built so far is in the cache
    Flush {
        /// How long to wait, such as 90s or 1h30m
        #[arg(long, value_parser = wait, default_value = "240s")]
        timeout: Duration,
    },
    /// Show what happened to paths, and what they wait for
    Why {
        /// Store paths, their hashes, or links to them, such as 'result*'
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<String>,
    },
    /// Fetch paths from the cache as Nix would, and report what is wrong with them
    Verify(VerifyArgs),
    /// Show the state of the daemon, its caches and sessions
    Status {
        /// Show a screen that follows the daemon, ended by q; without a terminal, print every two seconds
        #[arg(long)]
        watch: bool,
    },
    /// Show or run the attic client that the daemon keeps
    Client {
        #[command(subcommand)]
        command: Option<ClientCommand>,
    },
    /// Print the lines that nix.conf needs so that Nix reads the caches
    NixConf {
        /// Print the netrc file that the daemon writes instead
        #[arg(long)]
        netrc: bool,
        /// Print the lines for this cache only
        #[arg(long, value_name = "NAME", conflicts_with = "netrc")]
        cache: Option<String>,
    },
    /// Report what was built, as Nix's post-build-hook; never blocks or fails a build
    Hook {
        /// Run this command afterwards, with its arguments, and exit with its status
        #[arg(long, value_name = "COMMAND", num_args = 1.., allow_hyphen_values = true)]
        then: Vec<OsString>,
    },
    /// Make the daemon read its configuration and tokens again, and retry failed paths
    Reload,
    /// Show the journal of a session or of the daemon
    #[command(after_help = LOGS_EXAMPLES)]
    Logs(LogsArgs),
    /// Make this host push to a cache and read from it
    #[command(after_help = SETUP_EXAMPLES)]
    Setup(Box<SetupArgs>),
    /// Check what can keep paths out of the cache, or Nix from reading them back
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor {
        /// Also upload a small path to each cache and read it back; for root and admins
        #[arg(long)]
        push: bool,
    },
    /// Print the daemon's metrics in Prometheus' text format
    Metrics,
    /// Print a shell's completion script
    Completions { shell: Shell },
    /// Write the manual pages, for packages
    #[command(hide = true)]
    Man { dir: PathBuf },
}

#[derive(Debug, Subcommand)]
pub(super) enum SessionCommand {
    /// Open a session and print its id
    Start(StartArgs),
    /// End a session, wait for its uploads and print their outcomes
    End(EndArgs),
    /// List sessions that are open or ended within the last hour
    List {
        /// Include all closed sessions; without it JSON has the open ones only
        #[arg(long)]
        all: bool,
    },
    /// Show one session
    Show {
        /// The session's id [default: $FLYWHEEL_SESSION, else this CI job's, else the only open one]
        session: Option<String>,
        /// Show when each of its paths became valid, was asked about, uploaded and confirmed
        #[arg(long)]
        paths: bool,
    },
    /// Write a report about one session, as HTML or as Markdown
    Report {
        /// The session's id [default: $FLYWHEEL_SESSION, else this CI job's, else the only open one]
        session: Option<String>,
        /// Write the report to this file, as Markdown if it ends in .md [default: HTML on standard output]
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ClientCommand {
    /// Show the state of the client, and whether this host can read the caches
    Status,
    /// Run the client without a token and exit with its status
    Exec {
        /// The client's arguments
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
pub(super) struct LogsArgs {
    /// The session's id [default: $FLYWHEEL_SESSION, else this CI job's, else the daemon's journal]
    pub(super) session: Option<String>,
    /// Show the daemon's journal, also within a job
    #[arg(long, conflicts_with = "session")]
    pub(super) daemon: bool,
    /// Print the catalog's explanation beside the entries
    #[arg(long, short = 'x')]
    pub(super) explain: bool,
    /// Continue with new entries
    #[arg(long, short)]
    pub(super) follow: bool,
    /// Show warnings and errors only
    #[arg(long)]
    pub(super) warnings: bool,
    /// Begin at this time, as journalctl reads it, such as -1h or 2026-05-01
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub(super) since: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct SetupArgs {
    /// The address of the Attic server; of several, the first that answers is used
    #[arg(long, value_name = "URL")]
    pub(super) server: Vec<String>,
    /// Use the built-in cache of this host
    #[arg(long, conflicts_with = "server")]
    pub(super) built_in: bool,
    /// The name of the cache on the server [default: main]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// Read the push token from standard input
    #[arg(long)]
    pub(super) token_stdin: bool,
    /// Let flywheeld run this program, with its arguments, whenever it needs a push token; the last option
    #[arg(long, value_name = "PROGRAM", num_args = 1.., allow_hyphen_values = true,
          conflicts_with_all = ["token_stdin", "token_file", "built_in"])]
    pub(super) token_command: Vec<String>,
    /// Write the token to this file, which only flywheeld can read [default: the credential attic-token]
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Let the jobs of this user push; may be given several times
    #[arg(long, value_name = "USER")]
    pub(super) user: Vec<String>,
    /// Do not change nix.conf
    #[arg(long)]
    pub(super) no_nix_conf: bool,
    /// Print what would be done, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub(super) yes: bool,
    /// Change the files below this directory, and restart nothing
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// The configuration's main file; settings go into flywheel.toml.d beside it
    #[arg(long, value_name = "FILE", default_value = "/etc/flywheel/flywheel.toml")]
    pub(super) config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// The session's name for people [default: from the CI system's environment]
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
    /// The cache to push to [default: as the daemon's routes decide]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// The process whose descendants belong to the session [default: the runner's, else the job's shell]
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub(super) anchor_pid: Option<u32>,
    /// Log each pushed path of the session at level info
    #[arg(long)]
    pub(super) log_paths: bool,
}

#[derive(Debug, Args)]
pub(super) struct EndArgs {
    /// The session's id [default: $FLYWHEEL_SESSION, else this CI job's, else the only open one]
    pub(super) session: Option<String>,
    /// Also push these store paths, or links to them, such as 'result*'
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub(super) push: Vec<String>,
    /// How long to wait, such as 90s or 1h30m [default: 240s; 10s while the cache cannot be reached]
    #[arg(long, value_parser = wait)]
    pub(super) timeout: Option<Duration>,
    /// Do not wait for uploads; the daemon continues
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Write a report about the session to this file: HTML, or Markdown if it ends in .md
    #[arg(long, value_name = "FILE")]
    pub(super) report: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The session's name for people [default: from the CI system's environment, else the command]
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
    /// The cache to push to [default: as the daemon's routes decide]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// Log each pushed path of the session at level info
    #[arg(long)]
    pub(super) log_paths: bool,
    /// Afterwards also push these store paths, or links to them, such as 'result*'
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub(super) push: Vec<String>,
    /// How long to wait for uploads afterwards [default: 240s; 10s while the cache cannot be reached]
    #[arg(long, value_parser = wait)]
    pub(super) timeout: Option<Duration>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// Store paths, or links to them, such as 'result*'
    #[arg(required_unless_present = "stdin", conflicts_with = "stdin", value_name = "PATH")]
    pub(super) paths: Vec<String>,
    /// Read the paths from standard input, one in a line, and print a line for each as soon as its outcome is final
    #[arg(long)]
    pub(super) stdin: bool,
    /// The cache to push to [default: as the daemon's routes decide]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// Wait until they are in the cache
    #[arg(long)]
    pub(super) wait: bool,
    /// How long to wait
    #[arg(long, value_parser = wait, default_value = "240s")]
    pub(super) timeout: Duration,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    #[command(flatten)]
    pub(super) scope: VerifyScopeArgs,
    /// The cache to read from [default: those that have confirmed the path]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// Push paths again that are absent
    #[arg(long)]
    pub(super) repair: bool,
    /// How long it may take
    #[arg(long, value_parser = wait, default_value = "10m")]
    pub(super) timeout: Duration,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct VerifyScopeArgs {
    /// Store paths, or links to them, such as 'result*'
    #[arg(value_name = "PATH")]
    pub(super) paths: Vec<String>,
    /// The paths of this session that are in the cache
    #[arg(long, value_name = "ID")]
    pub(super) session: Option<String>,
    /// This many paths that caches have confirmed, chosen at random
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=2000))]
    pub(super) sample: Option<u32>,
}
