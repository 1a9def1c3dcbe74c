//! Makes settings of the merged files: sets defaults and checks every value. Caches
//! and routes have a file of their own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::caches;
use super::error::{ConfigError, Place};
use super::glob::Glob;
use super::merge::Merged;
use super::names;
use super::raw::{At, RawExisting, RawFilter, RawJobs};
use super::route::{UnknownMaker, numbers};
use super::settings::{Cache, Client, Engine, Existing, Filter, Jobs, Nix, Origin, Push, Settings, Target};
use crate::types::{ByteSize, Period};

/// Looks up an environment variable; an empty one is none.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// sockaddr_un(7): 108 bytes with the closing zero.
const LONGEST_SOCKET: usize = 107;
const MOST_JOBS: i64 = 256;
const POLL: Duration = Duration::from_secs(30);
const POLL_LEAST: Duration = Duration::from_millis(100);
const RECHECK: Duration = Duration::from_secs(600);
const RECHECK_LEAST: Duration = Duration::from_secs(5);
const MIN_FREE: u64 = 1 << 30;

/// Returns the first directory of a list that is separated by colons, as systemd passes it.
pub(super) fn first_directory(list: Option<&str>, otherwise: &str) -> String {
    let first = list.and_then(|list| list.split(':').next()).filter(|dir| !dir.is_empty());
    first.unwrap_or(otherwise).to_owned()
}

/// Makes the settings.
pub(super) fn settings(merged: &Merged, env: Env<'_>) -> Result<Settings, ConfigError> {
    let raw = &merged.raw;
    let mut warnings = Vec::new();

    let socket =
        path(merged, "socket", &raw.socket, || (Place::Absent, "/run/flywheel/control.sock".into()))?;
    if socket.as_os_str().len() > LONGEST_SOCKET {
        let place = raw.socket.as_ref().map_or(Place::Absent, |at| merged.place(&at.spot));
        let found = format!("socket: found a path of {} bytes", socket.as_os_str().len());
        return Err(ConfigError::invalid(
            place,
            found,
            format!("at most {LONGEST_SOCKET}, as a Unix socket needs"),
        ));
    }
    let state_dir = path(merged, "state_dir", &raw.state_dir, || {
        (
            Place::Environment("STATE_DIRECTORY"),
            first_directory(env("STATE_DIRECTORY").as_deref(), "/var/lib/flywheel"),
        )
    })?;
    let runtime_dir = path(merged, "runtime_dir", &None, || {
        let otherwise = state_dir.join("run").to_string_lossy().into_owned();
        let place = Place::Environment("RUNTIME_DIRECTORY");
        (place, first_directory(env("RUNTIME_DIRECTORY").as_deref(), &otherwise))
    })?;
    let from_env = |name: &'static str, otherwise: &str| {
        (Place::Environment(name), env(name).unwrap_or_else(|| otherwise.to_owned()))
    };
    let root = nix_root(merged)?;
    let nix_state = path(merged, "nix.state_dir", &raw.nix.state_dir, || match &root {
        // As Nix does, which ignores the variable then.
        Some(root) => (Place::Absent, format!("{}/nix/var/nix", root.display())),
        None => from_env("NIX_STATE_DIR", "/nix/var/nix"),
    })?;
    let nix = Nix {
        root,
        lower_state_dir: lower_state_dir(merged, &nix_state)?,
        store_dir: path(merged, "nix.store_dir", &raw.nix.store_dir, || {
            from_env("NIX_STORE_DIR", "/nix/store")
        })?,
        gc_roots: path(merged, "nix.gc_roots", &raw.nix.gc_roots, || {
            (Place::Absent, format!("{}/gcroots/flywheel", nix_state.display()))
        })?,
        poll: at_least(merged, "nix.poll", raw.nix.poll.as_ref(), POLL_LEAST, POLL)?,
        netrc: match &raw.nix.netrc {
            None => None,
            at => Some(path(merged, "nix.netrc", at, || (Place::Absent, String::new()))?),
        },
        netrc_group: raw.nix.netrc_group.as_ref().map(|at| at.value.clone()),
        netrc_include: includes(merged)?,
        protect_max: limit(raw.nix.protect_max.as_ref()),
        min_free: raw.nix.min_free.as_ref().map_or(MIN_FREE, |at| at.value.0),
        state_dir: nix_state,
    };

    let push = Push {
        engine: engine(merged, "push.engine", raw.push.engine.as_ref())?.unwrap_or(Engine::Native),
        jobs: jobs(merged, raw.push.jobs.as_ref())?,
        existing: existing(merged, raw.push.existing.as_ref())?,
        recheck_after: at_least(
            merged,
            "push.recheck_after",
            raw.push.recheck_after.as_ref(),
            RECHECK_LEAST,
            RECHECK,
        )?,
        filter: filter(merged, &raw.push.filter)?,
        max_rate: limit(raw.push.max_rate.as_ref()),
    };
    let caches = caches::caches(merged, env, push.engine, &nix, &mut warnings)?;
    let default_cache = caches::default_cache(merged, &caches)?;
    let embedded = caches::embedded(merged, &caches, &state_dir, &mut warnings)?;
    let routes = caches::routes(merged, &caches)?;
    let reads = |cache: &Cache| cache.pull_token.is_some() || cache.target == Target::Embedded;
    match (&nix.netrc, caches.iter().find(|(_, cache)| cache.pull_token.is_some())) {
        (Some(_), None) if !caches.values().any(reads) => {
            warnings.push("nix.netrc: no cache has a pull_token_file, so that file is empty".to_owned());
        }
        (None, Some((name, _))) => {
            warnings.push(format!("caches.{name}.pull_token_file is not used without [nix] netrc"));
        }
        _ => {}
    }
    let client = client(merged)?;
    engine_needs_client(merged, &caches, &client)?;
    engine_reads_root(merged, &caches)?;
    if push.max_rate.is_some() && caches.values().any(|cache| cache.engine == Engine::Attic) {
        warnings.push(
            "push.max_rate: the attic client has no such limit; it does not apply to caches with engine = \"attic\""
                .to_owned(),
        );
    }

    let admins = raw.admins.as_ref().map(|at| group_or_user(merged, "admins", at)).transpose()?;
    let settings = Settings {
        admins,
        default_cache,
        embedded,
        metrics: caches::metrics(merged)?,
        push,
        client,
        drain_timeout: raw.drain.timeout.as_ref().map_or(Period(Duration::from_secs(90)), |at| at.value).0,
        history_keep: keep(merged)?.0,
        routes,
        files: merged.files(),
        socket,
        state_dir,
        runtime_dir,
        nix,
        caches,
        warnings,
    };
    Ok(warn_of_labels(warn_of_unknown_makers(settings)))
}

/// Adds a warning for each route by label alone that stands before a route by user or group: a job chooses its
/// label, and the first route that matches counts.
fn warn_of_labels(mut settings: Settings) -> Settings {
    let confines: Vec<usize> =
        (0..settings.routes.len()).filter(|at| settings.routes[*at].confines()).collect();
    for at in 0..settings.routes.len() {
        let Some(after) = confines.iter().find(|confining| **confining > at) else { break };
        if settings.routes[at].is_by_label_alone() {
            settings.warnings.push(format!(
                "{} matches before {}: a job chooses its own label, so the people of the second can use the cache \
                 of the first; put the route by label after it, or add a user or group to it",
                settings.describe_route(at),
                settings.describe_route(*after)
            ));
        }
    }
    settings
}

/// Adds the warning that paths of an unknown maker wait.
fn warn_of_unknown_makers(mut settings: Settings) -> Settings {
    if settings.unknown_maker() == UnknownMaker::Waits {
        settings.warnings.push(
            "route: paths that nobody was seen to make wait until a session names them, because routes confine \
             users or groups; a [[route]] with maker = \"unknown\" decides where they go"
                .to_owned(),
        );
    }
    settings
}

/// Reads a period that must not be shorter than `least`.
fn at_least(
    merged: &Merged,
    key: &str,
    at: Option<&At<Period>>,
    least: Duration,
    default: Duration,
) -> Result<Duration, ConfigError> {
    let Some(at) = at else { return Ok(default) };
    if at.value.0 < least {
        let found = format!("{key}: found {}", at.value);
        let expected = format!("at least {}", Period(least));
        return Err(ConfigError::invalid(merged.place(&at.spot), found, expected));
    }
    Ok(at.value.0)
}

/// Reads the name or number of a user or group, which is not empty. A route may also
/// have a range of numbers.
pub(super) fn group_or_user(merged: &Merged, key: &str, at: &At<String>) -> Result<String, ConfigError> {
    let invalid = |found: &str, expected| {
        Err(ConfigError::invalid(merged.place(&at.spot), format!("{key}: found {found:?}"), expected))
    };
    let is_range = at.value.contains('-') && numbers(&at.value).is_some();
    match &at.value {
        empty if empty.is_empty() => invalid(empty, "a name, or a number in quotes"),
        range if is_range && !key.starts_with("route.") => invalid(range, "a name, or one number in quotes"),
        range if numbers(range).is_some_and(|numbers| numbers.is_empty()) => {
            invalid(range, "a range of numbers whose first is not above its last, such as \"100000-165535\"")
        }
        named => Ok(named.clone()),
    }
}

fn existing(merged: &Merged, at: Option<&At<RawExisting>>) -> Result<Existing, ConfigError> {
    let Some(at) = at else { return Ok(Existing::No) };
    match &at.value {
        RawExisting::Bool(false) => Ok(Existing::No),
        RawExisting::Bool(true) => Ok(Existing::Yes),
        RawExisting::Word(word) if word == "since-boot" => Ok(Existing::SinceBoot),
        RawExisting::Word(word) => {
            let found = format!("push.existing: found {word:?}");
            Err(ConfigError::invalid(merged.place(&at.spot), found, "true, false or \"since-boot\""))
        }
    }
}

/// Checks an absolute path and removes slashes at its end.
pub(super) fn path(
    merged: &Merged,
    key: &str,
    at: &Option<At<String>>,
    otherwise: impl FnOnce() -> (Place, String),
) -> Result<PathBuf, ConfigError> {
    let (place, text) = match at {
        Some(at) => (merged.place(&at.spot), at.value.clone()),
        None => otherwise(),
    };
    // `..` is refused, because paths are compared as text.
    let dotted = Path::new(&text).components().any(|c| matches!(c, std::path::Component::ParentDir));
    if !text.starts_with('/') || dotted || text.contains('\0') {
        return Err(ConfigError::invalid(
            place,
            format!("{key}: found {text:?}"),
            "an absolute path without `..`",
        ));
    }
    let trimmed = text.trim_end_matches('/');
    Ok(PathBuf::from(if trimmed.is_empty() { "/" } else { trimmed }))
}

/// Reads `nix.root`, which is not the host's own root: that one's store needs no key.
fn nix_root(merged: &Merged) -> Result<Option<PathBuf>, ConfigError> {
    let at = &merged.raw.nix.root;
    let Some(given) = at else { return Ok(None) };
    let root = path(merged, "nix.root", at, || (Place::Absent, String::new()))?;
    if root == Path::new("/") {
        let expected = "a directory below `/`; the store of `/` is watched without this key";
        return Err(ConfigError::invalid(merged.place(&given.spot), "nix.root: found \"/\"", expected));
    }
    Ok(Some(root))
}

/// Reads `nix.lower_state_dir`, which is not the state directory of the store itself.
fn lower_state_dir(merged: &Merged, own: &Path) -> Result<Option<PathBuf>, ConfigError> {
    let at = &merged.raw.nix.lower_state_dir;
    let Some(given) = at else { return Ok(None) };
    let lower = path(merged, "nix.lower_state_dir", at, || (Place::Absent, String::new()))?;
    if lower == own {
        let found = format!("nix.lower_state_dir: found {:?}, which is nix.state_dir", given.value);
        return Err(ConfigError::invalid(merged.place(&given.spot), found, "that of the lower store"));
    }
    Ok(Some(lower))
}

/// Returns the files of `nix.netrc_include`.
fn includes(merged: &Merged) -> Result<Vec<PathBuf>, ConfigError> {
    let Some(at) = &merged.raw.nix.netrc_include else { return Ok(Vec::new()) };
    let file = |name: &toml::Spanned<String>| {
        let one = Some(At { spot: at.spot.clone(), value: name.get_ref().clone() });
        path(merged, "nix.netrc_include", &one, || (Place::Absent, String::new()))
    };
    at.value.iter().map(file).collect()
}

/// Returns a size of which 0 means that there is no limit.
pub(super) fn limit(at: Option<&At<ByteSize>>) -> Option<u64> {
    at.map(|at| at.value.0).filter(|bytes| *bytes != 0)
}

/// Reads one of several words. The error lists them.
fn word<T: Copy>(merged_place: Place, key: &str, text: &str, words: &[(&str, T)]) -> Result<T, ConfigError> {
    if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    let error = ConfigError::invalid(merged_place, format!("{key}: found {text:?}"), list.join(" or "));
    Err(match names::nearest(text, words.iter().map(|(word, _)| *word)) {
        Some(meant) => error.hint(format!("did you mean {meant:?}?")),
        None => error,
    })
}

/// Reads an engine, if one is named.
pub(super) fn engine(
    merged: &Merged,
    key: &str,
    at: Option<&At<String>>,
) -> Result<Option<Engine>, ConfigError> {
    let Some(at) = at else { return Ok(None) };
    let place = merged.place(&at.spot);
    word(place, key, &at.value, &[("native", Engine::Native), ("attic", Engine::Attic)]).map(Some)
}

/// Checks that the attic client is enabled if a cache needs it.
fn engine_needs_client(
    merged: &Merged,
    caches: &BTreeMap<String, Cache>,
    client: &Client,
) -> Result<(), ConfigError> {
    match caches.iter().find(|(_, cache)| cache.engine == Engine::Attic && !client.enable) {
        None => Ok(()),
        Some((name, _)) => {
            let at = merged.raw.client.enable.as_ref();
            let place = at.map_or(Place::Absent, |at| merged.place(&at.spot));
            let found = format!("client.enable: found false, and caches.{name} has engine = \"attic\"");
            Err(ConfigError::invalid(place, found, "true, or engine = \"native\""))
        }
    }
}

/// Refuses the attic client for a store below a root: it reads the host's store only.
fn engine_reads_root(merged: &Merged, caches: &BTreeMap<String, Cache>) -> Result<(), ConfigError> {
    let of_client = caches.iter().find(|(_, cache)| cache.engine == Engine::Attic);
    let (Some(at), Some((name, _))) = (&merged.raw.nix.root, of_client) else { return Ok(()) };
    let found = format!(
        "nix.root: found {:?}, and caches.{name} has engine = \"attic\", which reads the host's store only",
        at.value
    );
    Err(ConfigError::invalid(merged.place(&at.spot), found, "engine = \"native\""))
}

fn jobs(merged: &Merged, at: Option<&At<RawJobs>>) -> Result<Jobs, ConfigError> {
    let Some(at) = at else { return Ok(Jobs::Auto) };
    let found = match &at.value {
        RawJobs::Word(word) if word == "auto" => return Ok(Jobs::Auto),
        RawJobs::Number(number @ 1..=MOST_JOBS) => {
            return Ok(u32::try_from(*number).map_or(Jobs::Auto, Jobs::Fixed));
        }
        RawJobs::Word(word) => format!("{word:?}"),
        RawJobs::Number(number) => number.to_string(),
    };
    let expected = format!("\"auto\" or a number from 1 to {MOST_JOBS}");
    Err(ConfigError::invalid(merged.place(&at.spot), format!("push.jobs: found {found}"), expected))
}

const ORIGINS: [(&str, Origin); 4] = [
    ("built", Origin::Built),
    ("substituted", Origin::Substituted),
    ("source", Origin::Source),
    ("derivation", Origin::Derivation),
];

fn filter(merged: &Merged, raw: &RawFilter) -> Result<Filter, ConfigError> {
    // Sources and `.drv` files are pushed when a pushed path refers to them.
    let mut origins = vec![Origin::Built, Origin::Substituted];
    if let Some(at) = &raw.origins {
        let read = |item: &toml::Spanned<String>| {
            let place = merged.place_in(&at.spot, &item.span());
            word(place, "push.filter.origins", item.get_ref(), &ORIGINS)
        };
        origins = at.value.iter().map(read).collect::<Result<_, _>>()?;
        if origins.is_empty() {
            let found = "push.filter.origins: found an empty list";
            return Err(ConfigError::invalid(merged.place(&at.spot), found, "at least one origin")
                .hint("to push only what is asked for, use a [[route]] with action = \"skip\""));
        }
        origins.sort();
        origins.dedup();
    }
    let (mut include, mut exclude) = (Vec::new(), Vec::new());
    for (at, item) in raw.names.iter().flat_map(|at| at.value.iter().map(move |item| (at, item))) {
        let text = item.get_ref();
        let (list, pattern) = match text.strip_prefix('!') {
            Some(pattern) => (&mut exclude, pattern),
            None => (&mut include, text.as_str()),
        };
        list.push(glob(merged.place_in(&at.spot, &item.span()), "push.filter.names", pattern)?);
    }
    let substitutable_only = raw.substitutable_only.as_ref().is_some_and(|at| at.value);
    Ok(Filter { origins, include, exclude, max_size: limit(raw.max_size.as_ref()), substitutable_only })
}

/// Reads a pattern.
pub(super) fn glob(place: Place, key: &str, text: &str) -> Result<Glob, ConfigError> {
    let wrong = |why| {
        ConfigError::invalid(place, format!("{key}: found {text:?}"), "a glob like \"*-doc\"").hint(why)
    };
    Glob::new(text).map_err(wrong)
}

/// The attic client when the configuration names none: one revision, whose sources must have this hash. As the
/// address of an archive with a hash, Nix takes the sources from the store or a substituter if one has them, and
/// asks no forge which revision is the latest.
const CLIENT: &str = "https://github.com/zhaofengli/attic/archive/b7c905657cb81b8ec9c26b0d9f53aa2e4f231810.tar.gz\
    ?narHash=sha256-%2F%2FgQFVLVFhwHyI9yrpPqX0MQJGYqS6nE%2FiLV872K%2BPU%3D#attic-client";

fn client(merged: &Merged) -> Result<Client, ConfigError> {
    let raw = &merged.raw.client;
    let mut installable = CLIENT.to_owned();
    if let Some(at) = &raw.installable {
        // The text becomes an argument of `nix build`, so it must not be an option.
        let text = &at.value;
        if text.is_empty()
            || text.starts_with('-')
            || text.contains(|c: char| c.is_whitespace() || c.is_control())
        {
            let found = format!("client.installable: found {text:?}");
            let expected = "an installable like \"github:zhaofengli/attic#attic-client\"";
            return Err(ConfigError::invalid(merged.place(&at.spot), found, expected));
        }
        installable.clone_from(text);
    }
    let timeout = match &raw.timeout {
        None => Duration::from_secs(600),
        Some(at) if at.value.0.is_zero() => {
            let found = format!("client.timeout: found {}", at.value);
            return Err(ConfigError::invalid(merged.place(&at.spot), found, "more than 0"));
        }
        Some(at) => at.value.0,
    };
    // The client keeps in memory what it has not sent; 1 GiB was measured for a path of 1 GiB.
    let memory = if raw.memory.is_none() { Some(4 << 30) } else { limit(raw.memory.as_ref()) };
    Ok(Client { enable: raw.enable.as_ref().is_none_or(|at| at.value), installable, timeout, memory })
}

fn keep(merged: &Merged) -> Result<Period, ConfigError> {
    let hour = Duration::from_secs(3600);
    match &merged.raw.history.keep {
        None => Ok(Period(hour * 24 * 30)),
        Some(at) if at.value.0 >= hour => Ok(at.value),
        Some(at) => {
            let found = format!("history.keep: found \"{}\"", at.value);
            Err(ConfigError::invalid(merged.place(&at.spot), found, "at least \"1h\"")
                .hint("jobs ask for sessions that have just ended"))
        }
    }
}
