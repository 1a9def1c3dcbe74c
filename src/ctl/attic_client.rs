//! The commands `client status` and `client exec`, for the attic client that the
//! daemon keeps. Must not know how things are printed.

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::{
    Context,
    connection::REPLY_TIMEOUT,
    end::unexpected,
    exit::{Exit, Failure},
    nix_conf,
    run::{Signals, code, wait_forwarding_signals},
    variable,
};
use crate::control::messages::{ClientInfo, ClientServer, Reply, Request};

/// The exit status of a shell for a command that does not exist.
const NOT_FOUND: Exit = Exit::Command(127);

/// Asks the daemon about the client and the caches; with `check` it tries to read them.
pub(super) fn ask(context: &Context, check: bool) -> Result<ClientInfo, Failure> {
    match context.connect()?.ask(&Request::Client { check }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Client(info) => Ok(info),
        other => Err(unexpected(other)),
    }
}

pub(super) fn status(context: &Context) -> Result<Exit, Failure> {
    let info = ask(context, true)?;
    let conf = nix_conf::host(false);
    if let Err(why) = &conf {
        context.render.warn(&format!("this host's Nix cannot be asked for its settings: {why}"));
    }
    let knows = |server| conf.as_ref().ok().map(|conf| conf.knows(server, info.netrc.as_deref()));
    let known: Vec<_> = info.servers.iter().map(knows).collect();
    context.render.client(&info, &known);
    Ok(Exit::Done)
}

/// Runs the client and exits with its status. Fails when there is no client, also
/// without `--strict`.
pub(super) fn exec(context: &Context, args: &[OsString]) -> Result<Exit, Failure> {
    let refused = |failure: &Failure| {
        context.render.on_stderr().failure(failure, NOT_FOUND);
        Ok(NOT_FOUND)
    };
    let info = match ask(context, false) {
        Ok(info) => info,
        Err(failure) => return refused(&failure),
    };
    let Some(program) = &info.client.path else {
        let why = info.client.error.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        let state = &info.client.state;
        return refused(&Failure::Usage(format!("the daemon has no attic client ({state}{why})")));
    };
    let internal = |e: io::Error| Failure::Internal(format!("a configuration for the attic client: {e}"));
    let home = ConfigDir::make().map_err(internal)?;
    home.fill(&info.servers).map_err(internal)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Internal(format!("no runtime: {e}")))?;
    runtime.block_on(async {
        let mut signals =
            Signals::listen().map_err(|e| Failure::Internal(format!("cannot handle signals: {e}")))?;
        let mut child = match Command::new(program).args(args).env("XDG_CONFIG_HOME", &home.0).spawn() {
            Ok(child) => child,
            Err(e) => {
                let status = if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
                let failure = Failure::Usage(format!("cannot run `{program}`: {e}"));
                context.render.on_stderr().failure(&failure, Exit::Command(status));
                return Ok(Exit::Command(status));
            }
        };
        let (status, _) = wait_forwarding_signals(&mut child, &mut signals)
            .await
            .map_err(|e| Failure::Internal(e.to_string()))?;
        Ok(code(status))
    })
}

/// A directory for one run with the client's configuration: addresses, and no token.
/// It is removed when dropped.
struct ConfigDir(PathBuf);

impl ConfigDir {
    fn make() -> io::Result<Self> {
        let parent = variable("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|dir| dir.is_dir());
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let dir = parent.join(format!("flywheel-attic-{:016x}", u64::from_ne_bytes(random)));
        // Fails when the name exists already.
        DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Self(dir))
    }

    fn fill(&self, servers: &[ClientServer]) -> io::Result<()> {
        let dir = self.0.join("attic");
        DirBuilder::new().mode(0o700).create(&dir)?;
        std::fs::write(dir.join("config.toml"), configuration(servers)?)?;
        // The client contains Nix, which shall use the caller's own settings.
        let own = variable("XDG_CONFIG_HOME").map(PathBuf::from);
        let own = own.or_else(|| Some(Path::new(&variable("HOME")?).join(".config")));
        if let Some(nix) = own.map(|own| own.join("nix")).filter(|nix| nix.is_dir()) {
            std::os::unix::fs::symlink(nix, self.0.join("nix"))?;
        }
        Ok(())
    }
}

impl Drop for ConfigDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes the configuration in attic's format.
fn configuration(servers: &[ClientServer]) -> io::Result<String> {
    let known = |server: &ClientServer| {
        let endpoint = format!("{}/", server.endpoint.as_deref()?.trim_end_matches('/'));
        Some((server.name.clone(), toml::Table::from_iter([("endpoint".to_owned(), endpoint.into())])))
    };
    let table: toml::Table = servers.iter().filter_map(known).map(|(n, t)| (n, t.into())).collect();
    let mut all = toml::Table::from_iter([("servers".to_owned(), table.into())]);
    if let Some(default) = servers.iter().find(|server| server.default) {
        all.insert("default-server".to_owned(), default.name.clone().into());
    }
    toml::to_string(&all).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_servers_and_no_token() {
        let server = |name: &str, endpoint: Option<&str>, default| ClientServer {
            name: name.into(),
            endpoint: endpoint.map(Into::into),
            default,
            ..ClientServer::default()
        };
        let servers = [
            server("a+b", Some("https://a"), false),
            server("main", Some("http://127.0.0.1:1/"), true),
            server("lost", None, false),
        ];
        let read: toml::Table = configuration(&servers).unwrap().parse().unwrap();
        assert_eq!(read["default-server"].as_str(), Some("main"));
        let servers = read["servers"].as_table().unwrap();
        assert_eq!(servers.keys().collect::<Vec<_>>(), ["a+b", "main"]);
        assert_eq!(servers["a+b"]["endpoint"].as_str(), Some("https://a/"));
        assert_eq!(servers["a+b"].as_table().unwrap().len(), 1);
    }
}
