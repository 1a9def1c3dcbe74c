//! The command `setup`: makes this host push to a cache and read from it. It asks for
//! what the options leave open, says what it will do, does it, and ends with `doctor`.
//! Doing it twice changes nothing. Must not know how things are printed.

mod ask;
mod nix;
mod plan;
mod steps;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::args::SetupArgs;
use super::exit::{Exit, Failure};
use super::{Context, doctor};
use crate::types::CacheName;
pub(super) use plan::{Plan, Step};

/// The group whose members may use the daemon.
const GROUP: &str = "flywheel";
/// The first version of systemd that looks for a credential without a path in /etc/credstore.
const SYSTEMD_WITH_CREDSTORE: u32 = 252;
/// Longest token in bytes, as for the daemon.
const LONGEST_TOKEN: u64 = 16 * 1024;

/// Where paths go.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Server {
    /// An Attic server at these addresses; the first that answers is used.
    Remote(Vec<String>),
    /// The built-in cache.
    BuiltIn,
}

/// What the host is to have.
#[derive(Debug, Default)]
struct Wanted {
    /// The server and the cache on it; none leaves the configuration as it is.
    cache: Option<(Server, CacheName)>,
    token: Option<Zeroizing<String>>,
    /// The program that gives the token, with its arguments; empty without one.
    token_command: Vec<String>,
    users: Vec<String>,
    /// Whether nix.conf is to name the caches.
    nix_conf: bool,
}

/// The files and directories of the host.
#[derive(Debug, Clone)]
struct Host {
    /// Everything is below this directory; `/` for the running host.
    root: PathBuf,
    /// The configuration's main file.
    config: PathBuf,
    /// Where the token goes when the configuration names it; none for the credential
    /// that the unit loads.
    token_file: Option<PathBuf>,
}

impl Host {
    /// Whether this is the running host, on which services can be restarted.
    fn is_running(&self) -> bool {
        self.root == Path::new("/")
    }

    /// A file of the host, as this process reaches it.
    fn at(&self, file: &Path) -> PathBuf {
        self.root.join(file.strip_prefix("/").unwrap_or(file))
    }
}

pub(super) fn command(context: &Context, args: &SetupArgs) -> Result<Exit, Failure> {
    let host = Host {
        root: args.root.clone().unwrap_or_else(|| "/".into()),
        config: args.config.clone(),
        token_file: args.token_file.clone().or_else(|| token_file_of_old_systemd(args.root.is_none())),
    };
    let asking = context.render.can_ask() && !args.yes;
    let wanted = wanted(context, &host, args, asking)?;
    let plan = Plan::new(&host, &wanted)?;
    context.render.plan(&plan, args.dry_run);
    if args.dry_run {
        context.render.plan_object(&plan, &[], "dry_run", None);
        return Ok(Exit::Done);
    }
    if asking && !plan.is_empty() && !context.render.confirm("Do this?") {
        return Err(Failure::Usage("nothing was changed".to_owned()));
    }
    plan.carry_out(&host)?;
    let mut done = plan.done();
    if host.is_running() && wanted.nix_conf {
        done.extend(nix::write(context, &host)?);
    }
    if !host.is_running() {
        context.render.note("nothing was restarted and no cache was asked, because of --root");
        context.render.plan_object(&plan, &[], "done", None);
        return Ok(Exit::Done);
    }
    context.render.note("`flywheelctl doctor` now checks whether it works:");
    let changed = !done.is_empty();
    let (findings, failure) = doctor::examine(context, changed && rustix::process::geteuid().is_root());
    let bad = findings.iter().any(|finding| finding.level == doctor::Level::Bad);
    context.render.setup_findings(&findings);
    let outcome = failure.as_ref().map_or(if bad { "bad" } else { "good" }, Failure::outcome);
    context.render.plan_object(&plan, &findings, outcome, failure.as_ref());
    Ok(match failure {
        Some(failure) => failure.exit(true),
        None if bad => Exit::Failed,
        None => Exit::Done,
    })
}

/// The token's file on a running host whose systemd does not look into /etc/credstore by
/// itself: the unit's line for the credential has no effect there.
fn token_file_of_old_systemd(is_running_host: bool) -> Option<PathBuf> {
    let output = std::process::Command::new("systemctl").arg("--version").output();
    let version = output.ok().and_then(|output| systemd_version(&String::from_utf8_lossy(&output.stdout)));
    let is_old = is_running_host && version.is_some_and(|version| version < SYSTEMD_WITH_CREDSTORE);
    is_old.then(|| PathBuf::from(steps::TOKEN_FILE))
}

/// Reads the version from the output of `systemctl --version`: `systemd 249 (249.11-1)`.
fn systemd_version(text: &str) -> Option<u32> {
    let number = text.split_whitespace().nth(1)?;
    number.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Reads the options and asks for the rest.
fn wanted(context: &Context, host: &Host, args: &SetupArgs, asking: bool) -> Result<Wanted, Failure> {
    let usage = |text: String| Failure::Usage(text);
    let mut servers = args.server.clone();
    let known = host.at(&steps::fragment(&host.config)).exists();
    if servers.is_empty() && !args.built_in && asking && !known {
        let text =
            "Address of the Attic server, such as https://attic.example.com (empty: the built-in cache)";
        servers.extend(context.render.ask(text).filter(|answer| !answer.is_empty()));
    }
    for server in &servers {
        ask::check_server(server).map_err(usage)?;
    }
    let new_server = !servers.is_empty() || args.built_in || (asking && !known);
    let server = if servers.is_empty() { Server::BuiltIn } else { Server::Remote(servers) };
    let cache = if new_server {
        let name = match &args.cache {
            Some(name) => name.clone(),
            None if asking => {
                let answer = context.render.ask("Name of the cache on it (empty: main)");
                answer.filter(|name| !name.is_empty()).unwrap_or_else(|| "main".to_owned())
            }
            None => "main".to_owned(),
        };
        let name = CacheName::parse(&name).map_err(|e| usage(e.to_string()))?;
        Some((server.clone(), name))
    } else if !args.token_command.is_empty() {
        return Err(usage(
            "--token-command is a setting of a server: name the server by --server too".to_owned(),
        ));
    } else if args.cache.is_some() {
        return Err(usage(
            "--cache says which cache of a server: name the server by --server too".to_owned(),
        ));
    } else {
        None
    };
    let remote = matches!(server, Server::Remote(_));
    let token = if args.token_stdin {
        Some(ask::token_from_stdin().map_err(usage)?)
    } else if asking && remote && new_server && args.token_command.is_empty() {
        let answer = context.render.ask_secret("Token that may push (it is not shown; empty: none)");
        let token = answer.ok_or_else(|| usage("no token was entered: nothing was changed".to_owned()))?;
        Some(token).filter(|t| !t.is_empty()).map(|t| ask::check_token(&t)).transpose().map_err(usage)?
    } else {
        None
    };
    if !args.token_command.is_empty() && !remote {
        return Err(usage("the built-in cache makes its own token: leave --token-command out".to_owned()));
    }
    if token.is_some() && args.built_in {
        return Err(usage("the built-in cache makes its own token: leave --token-stdin out".to_owned()));
    }
    let mut users = args.user.clone();
    if users.is_empty() && asking {
        let answer = context.render.ask("Users whose jobs push, separated by spaces (empty: none)");
        users.extend(answer.unwrap_or_default().split_whitespace().map(str::to_owned));
    }
    for user in &users {
        ask::check_user(user).map_err(usage)?;
    }
    if cache.is_none() && token.is_none() && users.is_empty() && !known {
        let text = "nothing to set up: name the server by --server URL, or --built-in, or a --user";
        return Err(usage(text.to_owned()));
    }
    let token_command = args.token_command.clone();
    Ok(Wanted { cache, token, token_command, users, nix_conf: !args.no_nix_conf })
}
