//! `flywheelctl`: asks the daemon, tells people and scripts what it said, and
//! never makes a job fail or wait for more than it asked for. Knows the control
//! socket's messages and codec; must not know the daemon's inside.
//!
//! Blocking on purpose, for a fast start. Only `run`, which minds a command
//! and signals at once, uses tokio.

mod anchor;
mod args;
mod attic_client;
pub mod ci;
mod ci_log;
mod doctor;
mod duration;
mod end;
mod hook;
mod html;
mod link;
mod manual;
mod metrics;
mod nix_conf;
mod paths;
mod query;
mod render;
mod report;
mod run;
mod session;
mod text;
mod verdict;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser};

use args::{Cli, ClientCommand, Command, SessionCommand};
use link::Link;
use render::Render;
use verdict::{Exit, Failure};

/// Where the daemon listens when nothing says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/flywheel/control.sock";

/// What every command has.
struct Context {
    socket: PathBuf,
    strict: bool,
    render: Render,
}

impl Context {
    fn link(&self) -> Result<Link, Failure> {
        Ok(Link::open(&self.socket, link::PATIENCE)?)
    }
}

/// A variable of the environment; an empty one counts as absent.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Whether a CI job's environment gives the session a name.
fn in_ci() -> bool {
    ci::detect(variable).is_some()
}

/// The whole program.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if hook::is_called(&args) {
        return hook::command(variable("FLYWHEEL_SOCKET").map(PathBuf::from));
    }
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return render::usage(&e).code(),
    };
    let socket = cli.socket.or_else(|| variable("FLYWHEEL_SOCKET").map(PathBuf::from));
    let context = Context {
        socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
        strict: cli.strict,
        render: Render::new(cli.json, cli.quiet),
    };
    let done = match cli.command {
        Command::Session { command } => match command {
            SessionCommand::Start(args) => session::start(&context, args),
            SessionCommand::End(args) => end::command(&context, args),
            SessionCommand::List { all } => session::list(&context, all),
            SessionCommand::Show { session } => session::show(&context, session),
            SessionCommand::Report { session, output } => {
                report::command(&context, session, output.as_deref())
            }
        },
        Command::Run(args) => run::command(&context, args),
        Command::Push(args) => query::push(&context, args),
        Command::Flush { timeout } => query::flush(&context, timeout),
        Command::Status { watch } => query::status(&context, watch),
        Command::Client { command } => match command.unwrap_or(ClientCommand::Status) {
            ClientCommand::Status => attic_client::status(&context),
            ClientCommand::Exec { args } => attic_client::exec(&context, &args),
        },
        Command::NixConf { netrc, cache } => nix_conf::command(&context, netrc, cache.as_deref()),
        Command::Hook => return hook::command(Some(context.socket)),
        Command::Reload => query::reload(&context),
        Command::Doctor => doctor::command(&context),
        Command::Metrics => query::metrics(&context),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "flywheelctl", &mut script);
            context.render.raw(&script);
            Ok(Exit::Done)
        }
        Command::Man { dir } => manual::write(&dir),
    };
    done.unwrap_or_else(|failure| {
        let exit = failure.exit(context.strict);
        context.render.failure(&failure, exit);
        exit
    })
    .code()
}
