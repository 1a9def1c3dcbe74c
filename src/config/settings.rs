//! The settings, as everyone else uses them: checked, absolute, resolved.
//! Knows nothing of files, tables and lines.

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

/// Everything that can be set.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Where the control socket is made, unless one is passed by systemd.
    pub socket: PathBuf,
    /// What is kept over restarts.
    pub state_dir: PathBuf,
    /// What is not: files that only mean something while the daemon runs.
    pub runtime_dir: PathBuf,
    /// The cache of whatever no route sends elsewhere; a key of `caches`.
    pub default_cache: String,
    /// The store that is watched.
    pub nix: Nix,
    /// The caches by their names here; never empty.
    pub caches: BTreeMap<String, Cache>,
    /// The built-in cache; set when a cache of `caches` is kept in it.
    pub embedded: Option<Embedded>,
    /// How paths are pushed, and which.
    pub push: Push,
    /// The attic client that is kept ready for jobs.
    pub client: Client,
    /// How long a stopping daemon goes on pushing.
    pub drain_timeout: Duration,
    /// How long closed sessions and settled paths are remembered.
    pub history_keep: Duration,
    /// Who goes where; the first that matches decides.
    pub routes: Vec<Route>,
    /// The group, by name or number, whose members may see everybody's sessions
    /// and paths; none: root alone.
    pub admins: Option<String>,
    /// What is allowed but probably not wanted, in words for the log.
    pub warnings: Vec<String>,
    /// The files that were read, in order.
    pub files: Vec<PathBuf>,
}

/// The store that is watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nix {
    /// As in `/nix/store`.
    pub store_dir: PathBuf,
    /// As in `/nix/var/nix`.
    pub state_dir: PathBuf,
    /// Where symlinks protect pending paths from garbage collection: a
    /// directory of its own at or below `<state_dir>/gcroots`.
    pub gc_roots: PathBuf,
    /// How often the Nix database is looked at without any event.
    pub poll: Duration,
    /// The file that is kept for Nix to read private caches with.
    pub netrc: Option<PathBuf>,
    /// Whose group it is, by name or number; none: the service's.
    pub netrc_group: Option<String>,
    /// The bytes of NARs that are kept from collection while their pushes are
    /// pending; none: no limit.
    pub protect_max: Option<u64>,
    /// The free bytes of the store's file system below which the oldest pending
    /// paths are no longer kept from collection; 0: they always are.
    pub min_free: u64,
}

/// A cache that paths are pushed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache {
    /// Its name on the server.
    pub cache: String,
    /// Where it is.
    pub target: Target,
    /// Where the token is; [`Token::None`] for the built-in cache, which makes its own.
    pub token: Token,
    /// Where the token is that Nix reads it with, when it is not public.
    pub pull_token: Option<PathBuf>,
    /// Who pushes to it.
    pub engine: Engine,
    /// How long nothing may move before a request counts as failed.
    pub stall_timeout: Duration,
}

/// Where a cache is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// On an Attic server; the first of these URLs that answers.
    Remote(Vec<String>),
    /// In the built-in cache.
    Embedded,
}

/// The built-in cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Embedded {
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where it keeps what it holds.
    pub dir: PathBuf,
    /// The caches that it serves: names on the server, sorted.
    pub caches: Vec<String>,
    /// How large it may become.
    pub max_size: Option<u64>,
    /// The largest NAR that it takes.
    pub max_nar_size: u64,
    /// Whether reading needs no token.
    pub public: bool,
    /// What Nix is told of its rank among substituters; smaller is asked first.
    pub priority: u32,
}

/// How paths are pushed, and which.
#[derive(Debug, Clone, PartialEq)]
pub struct Push {
    /// Who pushes, unless a cache says otherwise.
    pub engine: Engine,
    /// How many uploads at a time.
    pub jobs: Jobs,
    /// Which of the paths that were valid before the first start are pushed too.
    pub existing: Existing,
    /// How long it is believed that a cache has a path after the cache said so;
    /// at least 5 s.
    pub recheck_after: Duration,
    /// Which paths.
    pub filter: Filter,
    /// Bytes per second; none: no limit.
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

/// Who pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// This program itself.
    Native,
    /// The attic client.
    Attic,
}

/// How many uploads at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jobs {
    /// As the cache and the machine bear it.
    Auto,
    /// So many, from 1 to 256.
    Fixed(u32),
}

/// How a path came to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// Built here.
    Built,
    /// Taken from a substituter, a builder, an import.
    Substituted,
    /// Added as a source.
    Source,
    /// A `.drv` file.
    Derivation,
}

/// Which paths are pushed of their own accord. What they refer to goes with
/// them whatever is said here: a cache never holds half a closure.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// These origins, sorted.
    pub origins: Vec<Origin>,
    /// Of these names, when any are given.
    pub include: Vec<Glob>,
    /// Not of these names.
    pub exclude: Vec<Glob>,
    /// No NAR larger than this.
    pub max_size: Option<u64>,
}

impl Filter {
    /// Whether a path with this name (without the hash), origin and NAR size is pushed.
    pub fn admits(&self, name: &str, origin: Origin, nar_size: u64) -> bool {
        let included = self.include.is_empty() || self.include.iter().any(|glob| glob.matches(name));
        let excluded = self.exclude.iter().any(|glob| glob.matches(name));
        let small = self.max_size.is_none_or(|max| nar_size <= max);
        self.origins.contains(&origin) && included && !excluded && small
    }
}

/// The attic client that is kept ready for jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Whether it is kept at all.
    pub enable: bool,
    /// What it is: a flake reference, a store path, or a program.
    pub installable: String,
    /// The longest that having it may take, without ever building it.
    pub timeout: Duration,
    /// Bytes of address space that one run of it may take; none: no limit.
    pub memory: Option<u64>,
}

impl Settings {
    /// Reads `config` (which must exist), or the file in
    /// `$CONFIGURATION_DIRECTORY`, else in `/etc/flywheel` (which need not),
    /// and what lies beside it. `env` looks up environment variables; empty
    /// ones count as not set.
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
