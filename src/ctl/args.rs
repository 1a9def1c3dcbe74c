//! The command line. Must not know what the commands do.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use super::duration;

/// Talks to the flywheel daemon, which streams what Nix builds to a binary cache.
#[derive(Debug, Parser)]
#[command(name = "flywheelctl", version, max_term_width = 100, after_help = EXITS)]
pub(super) struct Cli {
    /// Socket of the daemon [default: $FLYWHEEL_SOCKET, else /run/flywheel/control.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// No progress and no summary; warnings and errors only
    #[arg(long, short, global = true)]
    pub(super) quiet: bool,
    /// Tell failed and pending paths, or a missing daemon, by the exit status
    #[arg(long, global = true)]
    pub(super) strict: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

const EXITS: &str = "\
Exit status:
  0  done; without --strict also when something failed or there is no daemon
  1  internal error
  2  usage, bad input
  3  strict: at least one path failed
  4  strict: deadline reached with paths pending (the daemon goes on)
  5  strict: no daemon, or it refused";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Follow what a job builds
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
        #[arg(long, value_parser = duration::parse, default_value = "240s")]
        timeout: Duration,
    },
    /// Show how the daemon is
    Status {
        /// Again every two seconds
        #[arg(long)]
        watch: bool,
    },
    /// The attic client that the daemon keeps
    Client {
        #[command(subcommand)]
        command: Option<ClientCommand>,
    },
    /// Print what nix.conf needs so that Nix reads the caches
    NixConf {
        /// Print the netrc file that the daemon keeps instead
        #[arg(long)]
        netrc: bool,
        /// Only for this cache
        #[arg(long, value_name = "NAME", conflicts_with = "netrc")]
        cache: Option<String>,
    },
    /// For Nix's post-build-hook: tells the daemon what was built, at once and without fail
    Hook,
    /// Let the daemon read its configuration and tokens again
    Reload,
    /// Look for whatever keeps paths out of the cache, or Nix from reading them back
    Doctor,
    /// Print the daemon's figures as OpenMetrics text
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
    /// End a session: wait for its uploads and say what became of them
    End(EndArgs),
    /// List sessions
    List {
        /// Closed ones too
        #[arg(long)]
        all: bool,
    },
    /// Show one session
    Show { session: String },
    /// A page about one session, for people
    Report {
        /// Its id
        session: String,
        /// Where the page goes [default: standard output]
        #[arg(long, value_name = "FILE.html")]
        output: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(super) enum ClientCommand {
    /// Show how it stands, and whether this host can read the caches
    Status,
    /// Run it, without any token, and exit with its status
    Exec {
        /// Its arguments
        #[arg(last = true, value_name = "ARGS")]
        args: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
pub(super) struct StartArgs {
    /// Name for people [default: from the CI system's environment]
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
    /// Cache to push to [default: the daemon's choice]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// Process whose descendants belong to the session [default: the runner's, else the job's shell]
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..=i64::from(i32::MAX)))]
    pub(super) anchor_pid: Option<u32>,
}

#[derive(Debug, Args)]
pub(super) struct EndArgs {
    /// Its id [default: $FLYWHEEL_SESSION, else the one of this CI job, else the only open one]
    pub(super) session: Option<String>,
    /// Push these too: store paths, or links to them such as 'result*'
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub(super) push: Vec<String>,
    /// How long to wait, such as 90s or 1h30m
    #[arg(long, value_parser = duration::parse, default_value = "240s")]
    pub(super) timeout: Duration,
    /// Do not wait; the daemon goes on
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Write a page about the session, for people
    #[arg(long, value_name = "FILE.html")]
    pub(super) report: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Name for people [default: from the CI system's environment, else the command]
    #[arg(long, value_name = "TEXT")]
    pub(super) label: Option<String>,
    /// Cache to push to [default: the daemon's choice]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// Push these too afterwards: store paths, or links to them such as 'result*'
    #[arg(long, value_name = "GLOB", num_args = 1..)]
    pub(super) push: Vec<String>,
    /// How long to wait for uploads afterwards
    #[arg(long, value_parser = duration::parse, default_value = "240s")]
    pub(super) timeout: Duration,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(super) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// Store paths, or links to them
    #[arg(required = true, value_name = "PATH")]
    pub(super) paths: Vec<String>,
    /// Cache to push to [default: the daemon's choice]
    #[arg(long, value_name = "NAME")]
    pub(super) cache: Option<String>,
    /// Wait until they are in the cache
    #[arg(long)]
    pub(super) wait: bool,
    /// How long to wait
    #[arg(long, value_parser = duration::parse, default_value = "240s")]
    pub(super) timeout: Duration,
}
