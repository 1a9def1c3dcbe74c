//! `flywheelctl`: sends requests to the daemon and prints the replies for people
//! and scripts. It never makes a job fail or wait unless the job asked for that.
//! Knows the control socket's messages and codec; must not know the daemon's inside.
//!
//! The program blocks, so that it starts fast. Only commands that start another
//! program and forward signals to it use tokio.

mod anchor;
mod args;
mod attic_client;
pub mod ci;
mod ci_log;
mod connection;
mod doctor;
mod end;
mod exit;
mod hook;
mod logs;
mod manual;
mod nix_conf;
mod pace;
mod paths;
mod push_stdin;
mod query;
mod render;
mod report;
mod run;
mod screen;
mod session;
mod setup;
mod text;
mod verify;
mod why;

#[cfg(test)]
mod tests;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use clap::{CommandFactory, Parser};

use args::{Cli, ClientCommand, Command, SessionCommand};
use connection::Connection;
use exit::{Exit, Failure};
use render::Render;

/// The daemon's socket when neither `--socket` nor `$FLYWHEEL_SOCKET` names one.
pub const DEFAULT_SOCKET: &str = "/run/flywheel/control.sock";

/// The options that all commands share.
struct Context {
    socket: PathBuf,
    /// Failed paths, or a missing daemon, fail the command.
    strict: bool,
    render: Render,
}

impl Context {
    fn connect(&self) -> Result<Connection, Failure> {
        Ok(Connection::open(&self.socket, connection::CONNECT_TIMEOUT)?)
    }
}

/// Reads a variable of the environment. An empty one counts as absent.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Returns whether the environment is that of a CI job.
fn in_ci() -> bool {
    ci::detect(variable).is_some()
}

/// Runs the program with these arguments, the first of which is its name.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(then) = hook::is_called(&args) {
        return hook::command(variable("FLYWHEEL_SOCKET").map(PathBuf::from), then);
    }
    let json = args.iter().take_while(|word| *word != "--").any(|word| word == "--json");
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(e) => return render::usage(&e, json).code(),
    };
    let socket = cli.socket.or_else(|| variable("FLYWHEEL_SOCKET").map(PathBuf::from));
    let context = Context {
        socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.into()),
        strict: cli.strict || !cli.command.is_lenient(),
        render: Render::new(cli.json, cli.quiet),
    };
    let done = match cli.command {
        Command::Session { command } => match command {
            SessionCommand::Start(args) => session::start(&context, args),
            SessionCommand::End(args) => end::command(&context, args),
            SessionCommand::List { all } => session::list(&context, all),
            SessionCommand::Show { session, paths } => session::show(&context, session, paths),
            SessionCommand::Report { session, output } => {
                report::for_session(&context, session, output.as_deref())
            }
        },
        Command::Run(args) => run::command(&context, args),
        Command::Push(args) => query::push(&context, args),
        Command::Flush { timeout } => query::flush(&context, timeout),
        Command::Why { paths } => why::command(&context, &paths),
        Command::Verify(args) => verify::command(&context, args),
        Command::Status { watch } => query::status(&context, watch),
        Command::Client { command } => match command.unwrap_or(ClientCommand::Status) {
            ClientCommand::Status => attic_client::status(&context),
            ClientCommand::Exec { args } => attic_client::exec(&context, &args),
        },
        Command::NixConf { netrc, cache } => nix_conf::command(&context, netrc, cache.as_deref()),
        Command::Hook { then } => return hook::command(Some(context.socket), &then),
        Command::Reload => query::reload(&context),
        Command::Logs(args) => logs::command(&context, args),
        Command::Setup(args) => setup::command(&context, &args),
        Command::Doctor { push } => doctor::command(&context, push),
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
