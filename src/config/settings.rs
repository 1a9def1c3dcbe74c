//! The checked settings. Must not know files, tables and lines.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ConfigError;
use super::glob::Glob;
use super::merge::Merged;
use super::route::Route;
use super::token::Token;
use super::validate;
use crate::types::{ParseError, StoreDir};
pub use crate::types::{Proxy, ProxyUrl};

/// All settings.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// The control socket, unless systemd passes one.
    pub socket: PathBuf,
    /// The directory of everything that is kept over restarts.
    pub state_dir: PathBuf,
    /// The directory of files that are of use only while the daemon runs.
    pub runtime_dir: PathBuf,
    /// The cache of paths that no route sends elsewhere; a key of `caches`.
    pub default_cache: String,
    /// The store that is watched.
    pub nix: Nix,
    /// The caches by their names in the configuration; never empty.
    pub caches: BTreeMap<String, Cache>,
    /// The built-in cache; set when a cache of `caches` is built in.
    pub embedded: Option<Embedded>,
    /// Where metrics are served over HTTP; none: nowhere.
    pub metrics: Option<SocketAddr>,
    /// How paths are pushed, and which.
    pub push: Push,
    /// The attic client that is kept ready for jobs.
    pub client: Client,
    /// How long a stopping daemon goes on pushing.
    pub drain_timeout: Duration,
    /// How long the ledger keeps closed sessions and pushes that have an outcome.
    pub history_keep: Duration,
    /// The routes; the first that matches decides.
    pub routes: Vec<Route>,
    /// The group, by name or number, whose members may see everybody's sessions
    /// and paths; none: root alone.
    pub admins: Option<String>,
    /// Warnings about settings that are allowed but probably not intended.
    pub warnings: Vec<String>,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
}

impl Settings {
    /// Returns a warning for each file of a cache that does not exist, and for each program that cannot be run. A
    /// file may come later, so this is for people who check a configuration, not for the daemon.
    #[must_use]
    pub fn missing_files(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (name, cache) in &self.caches {
            let push = match &cache.token {
                Token::File(file) => Some(("token_file", file)),
                Token::Env(_) | Token::Command(_) | Token::None => None,
            };
            let pull = cache.pull_token.as_ref().map(|file| ("pull_token_file", file));
            for (key, file) in push.into_iter().chain(pull).filter(|(_, file)| !file.exists()) {
                let file = file.display();
                missing.push(format!(
                    "cache {name}: {key} {file} does not exist, or this user may not see it: write the token into it"
                ));
            }
            if let Token::Command(command) = &cache.token {
                missing.extend(command.problem().map(|why| format!("cache {name}: token_command: {why}")));
            }
            let network = &cache.network;
            let files = [
                ("ca_file", network.tls.ca_file.as_ref()),
                ("client_cert", network.tls.client_cert.as_ref()),
                ("client_key", network.tls.client_key.as_ref()),
                ("headers_file", network.headers_file.as_ref()),
                ("proxy_file", network.proxy.file()),
            ];
            let files =
                files.into_iter().filter_map(|(key, file)| Some((key, file.filter(|f| !f.exists())?)));
            missing.extend(files.map(|(key, file)| {
                format!("cache {name}: {key} {} does not exist, or this user may not see it", file.display())
            }));
        }
        missing
    }
}

/// The store that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nix {
    /// The directory below which a store of its own has its files, as Nix's
    /// `--store ROOT`; none: the store is the host's.
    pub root: Option<PathBuf>,
    /// The store directory, such as `/nix/store`. Below a root its files are in
    /// `<root>/nix/store`.
    pub store_dir: PathBuf,
    /// Nix's state directory, such as `/nix/var/nix`, or `<root>/nix/var/nix`.
    pub state_dir: PathBuf,
    /// The state directory of the lower store, if the store is a local-overlay store: what
    /// the lower store has is not new.
    pub lower_state_dir: Option<PathBuf>,
    /// The directory of GC roots for pending paths, which no other program uses, at or
    /// below `<state_dir>/gcroots`. Each root is a hard link to one file.
    pub gc_roots: PathBuf,
    /// How often the Nix database is read when no event comes.
    pub poll: Duration,
    /// The netrc file that the daemon writes, with which Nix reads private caches.
    pub netrc: Option<PathBuf>,
    /// The group of the netrc file, by name or number; none: the service's.
    pub netrc_group: Option<String>,
    /// Files of other programs whose entries the netrc file has before the daemon's own.
    pub netrc_include: Vec<PathBuf>,
    /// The most bytes of NARs that are kept from collection while their pushes are
    /// pending; beyond it the oldest lose their protection. None: no limit.
    pub protect_max: Option<u64>,
    /// The free bytes of the store's file system below which the oldest pending
    /// paths lose their protection from collection; 0: never.
    pub min_free: u64,
}

impl Nix {
    /// Returns the store directory, with the directory in which its files are.
    pub fn store(&self) -> Result<StoreDir, ParseError> {
        let dir = StoreDir::new(&self.store_dir.to_string_lossy())?;
        Ok(match &self.root {
            Some(root) => dir.below(root),
            None => dir,
        })
    }
}

/// A cache that paths are pushed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// The cache's name on the server.
    pub cache: String,
    /// Where the cache is.
    pub target: Target,
    /// Where the token is. [`Token::None`] for the built-in cache, which makes its own.
    pub token: Token,
    /// The file of the token with which Nix reads a private cache.
    pub pull_token: Option<PathBuf>,
    /// The engine that pushes to the cache.
    pub engine: Engine,
    /// A request in which no byte moves for so long has failed.
    pub stall_timeout: Duration,
    /// Whether tokens may go to hosts that the server names and that no endpoint has.
    pub trust_api_endpoint: bool,
    /// The URLs of the binary caches that are asked whether they have a path that was
    /// copied to this host.
    pub upstream_check: Vec<String>,
    /// How requests get to the cache.
    pub network: Network,
}

/// How requests get to a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// The certificates for connections to the cache.
    pub tls: Tls,
    /// The file with headers for access proxies.
    pub headers_file: Option<PathBuf>,
    /// The HTTP proxy.
    pub proxy: Proxy,
    /// Whether HTTP/2 is used where the server offers it.
    pub http2: bool,
}

/// Files with the certificates for connections to a cache, as PEM.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// The certificates of the authorities that are trusted; none: the system's.
    pub ca_file: Option<PathBuf>,
    /// The certificate that the daemon shows to servers that ask for one.
    pub client_cert: Option<PathBuf>,
    /// Its private key; none: it is in the same file.
    pub client_key: Option<PathBuf>,
}

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// On an Attic server, at the first of these URLs that answers.
    Remote(Vec<String>),
    /// In the built-in cache.
    Embedded,
}

/// The built-in cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// Names of hosts under which clients reach it, beside its addresses, `localhost` and this host's name.
    pub host_names: Vec<String>,
    /// The directory of its files.
    pub dir: PathBuf,
    /// The names of the caches that it serves, sorted.
    pub caches: Vec<String>,
    /// The largest size of all NARs, in bytes; none: no limit.
    pub max_size: Option<u64>,
    /// The largest NAR that it takes, in bytes.
    pub max_nar_size: u64,
    /// Whether reading needs no token.
    pub public: bool,
    /// Its priority among Nix's substituters; Nix asks smaller ones first.
    pub priority: u32,
}

/// How paths are pushed, and which.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    /// The engine of caches that name none.
    pub engine: Engine,
    /// How many uploads run at a time.
    pub jobs: Jobs,
    /// Which of the paths that were valid before the first start are pushed too.
    pub existing: Existing,
    /// How long it is believed that a cache has a path after the cache said so;
    /// at least 5 s.
    pub recheck_after: Duration,
    /// Which paths are pushed.
    pub filter: Filter,
    /// The most bytes per second over all uploads; none: no limit.
    pub max_rate: Option<u64>,
}

/// Which of the paths that were valid before the daemon's first start are pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// None of them.
    No,
    /// All of them.
    Yes,
    /// Those that were registered since the machine booted.
    SinceBoot,
}

/// The program that pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// flywheeld.
    Native,
    /// The attic client.
    Attic,
}

/// How many uploads run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jobs {
    /// As many as the cache and the machine handle well.
    Auto,
    /// This number, from 1 to 256.
    Fixed(u32),
}

/// How a path came to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built here.
    Built,
    /// Copied from a substituter, a remote builder or an import.
    Substituted,
    /// Added as a source.
    Source,
    /// A `.drv` file.
    Derivation,
}

/// Which paths are pushed without being named. The paths that they refer to are
/// always pushed with them, so that the cache has whole closures.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// The origins that are pushed, sorted.
    pub origins: Vec<Origin>,
    /// Patterns of which a name must match one, if there are any.
    pub include: Vec<Glob>,
    /// Patterns of which a name must match none.
    pub exclude: Vec<Glob>,
    /// The largest NAR that is pushed, in bytes; none: no limit.
    pub max_size: Option<u64>,
    /// Whether outputs that Nix takes from no substituter are left out.
    pub substitutable_only: bool,
}

impl Filter {
    /// Returns the key of the filter that leaves out a path with this name (without the
    /// hash), origin and NAR size; none: it is pushed.
    pub fn leaves_out(&self, name: &str, origin: Origin, nar_size: u64) -> Option<&'static str> {
        let any = |globs: &[Glob]| globs.iter().any(|glob| glob.matches(name));
        if !self.origins.contains(&origin) {
            Some("origins")
        } else if !self.include.is_empty() && !any(&self.include) || any(&self.exclude) {
            Some("names")
        } else {
            self.max_size.filter(|max| nar_size > *max).map(|_| "max_size")
        }
    }
}

/// The attic client that is kept ready for jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Whether the daemon keeps the client.
    pub enable: bool,
    /// The client: a flake reference, a store path, or a program.
    pub installable: String,
    /// The longest time for fetching the client, which is never built.
    pub timeout: Duration,
    /// The address space of one run of the client, in bytes; none: no limit.
    pub memory: Option<u64>,
}

impl Settings {
    /// Reads `config` (which must exist), or the file in
    /// `$CONFIGURATION_DIRECTORY`, else in `/etc/flywheel` (which need not),
    /// and the files beside it. `env` looks up environment variables; empty ones count
    /// as not set.
    pub fn load(config: Option<&Path>, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let merged = match config {
            Some(file) => Merged::read(file, true)?,
            None => {
                let dir =
                    validate::first_directory(env("CONFIGURATION_DIRECTORY").as_deref(), "/etc/flywheel");
                Merged::read(&Path::new(&dir).join("flywheel.toml"), false)?
            }
        };
        validate::settings(&merged, &env)
    }
}
