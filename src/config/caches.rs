//! Validates the caches, the built-in cache and the routes: every name is valid and
//! every reference to a cache is known. Without a configured cache, attic's
//! environment variables name one, else it is the built-in cache.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use super::endpoint;
use super::error::{ConfigError, Place};
use super::merge::Merged;
use super::names;
use super::network::{Keys, warn_of_engine};
use super::raw::{At, OneOrMany, RawCache, RawRoute, Spot};
use super::route::{Route, Subject};
use super::settings::{Cache, Embedded, Engine, Network, Nix, Target};
use super::token::Token;
use super::validate::{self, Env};
use crate::types::CacheName;

type Caches = BTreeMap<String, Cache>;

fn is_cache_name(name: &str) -> bool {
    CacheName::parse(name).is_ok()
}

const MOST_ENDPOINTS: usize = 16;
const MOST_UPSTREAMS: usize = 8;
/// The default `stall_timeout`: longer than a busy server takes to answer, and shorter
/// than proxies wait for a server.
const STALL: Duration = Duration::from_secs(60);

/// Validates all caches.
pub(super) fn caches(
    merged: &Merged,
    env: Env<'_>,
    engine: Engine,
    nix: &Nix,
    warnings: &mut Vec<String>,
) -> Result<Caches, ConfigError> {
    let named = &merged.raw.caches.0;
    if named.is_empty() {
        let (name, cache) = from_environment(env, engine, warnings)?;
        warn_of_token(&name, &cache, env, nix, warnings);
        return Ok(BTreeMap::from([(name, cache)]));
    }
    let mut caches = Caches::new();
    for (name, (spot, raw)) in named {
        let cache = cache(merged, env, engine, name, spot, raw, warnings)?;
        // A cache under two names would get every path twice.
        if let Some((twin, _)) = caches.iter().find(|(_, other)| is_same_cache(other, &cache)) {
            let found =
                format!("caches.{name}: found the same endpoints and name on the server as caches.{twin}");
            let expected = "each cache once";
            return Err(ConfigError::invalid(merged.place(spot), found, expected)
                .hint("set `cache` to its name on the server"));
        }
        warn_of_token(name, &cache, env, nix, warnings);
        warn_of_engine(name, &cache, warnings);
        caches.insert(name.clone(), cache);
    }
    Ok(caches)
}

fn is_same_cache(a: &Cache, b: &Cache) -> bool {
    let set = |target: &Target| match target {
        Target::Embedded => None,
        Target::Remote(urls) => {
            let mut urls = urls.clone();
            urls.sort();
            Some(urls)
        }
    };
    a.cache == b.cache && set(&a.target) == set(&b.target)
}

/// Returns the cache of attic's environment variables, else the built-in cache.
fn from_environment(
    env: Env<'_>,
    engine: Engine,
    warnings: &mut Vec<String>,
) -> Result<(String, Cache), ConfigError> {
    let Some(server) = env("ATTIC_SERVER") else {
        for name in ["ATTIC_CACHE", "ATTIC_TOKEN"].into_iter().filter(|name| env(name).is_some()) {
            warnings.push(format!("${name} is set without $ATTIC_SERVER and is not used"));
        }
        let cache = Cache {
            cache: "main".to_owned(),
            target: Target::Embedded,
            token: Token::None,
            pull_token: None,
            engine,
            stall_timeout: STALL,
            trust_api_endpoint: false,
            upstream_check: Vec::new(),
            network: Network::default(),
        };
        return Ok(("main".to_owned(), cache));
    };
    let url = endpoint::parse(&server).map_err(|found| {
        ConfigError::invalid(Place::Environment("ATTIC_SERVER"), found, endpoint::EXPECTED)
    })?;
    let name = env("ATTIC_CACHE").unwrap_or_else(|| "main".to_owned());
    if !is_cache_name(&name) {
        return Err(ConfigError::invalid(
            Place::Environment("ATTIC_CACHE"),
            format!("found {name:?}"),
            CacheName::EXPECTED,
        ));
    }
    let token = Token::from_environment_or_credentials(&name, env);
    let target = Target::Remote(vec![url]);
    Ok((
        name.clone(),
        Cache {
            cache: name,
            target,
            token,
            pull_token: None,
            engine,
            stall_timeout: STALL,
            trust_api_endpoint: false,
            upstream_check: Vec::new(),
            network: Network::default(),
        },
    ))
}

fn cache(
    merged: &Merged,
    env: Env<'_>,
    engine: Engine,
    name: &str,
    spot: &Spot,
    raw: &RawCache,
    warnings: &mut Vec<String>,
) -> Result<Cache, ConfigError> {
    if !is_cache_name(name) {
        return Err(ConfigError::invalid(
            merged.place(spot),
            format!("caches: found the name {name:?}"),
            CacheName::EXPECTED,
        ));
    }
    let Some(endpoints) = &raw.endpoints else {
        let found = format!("caches.{name}: found no `endpoints`");
        return Err(ConfigError::invalid(merged.place(spot), found, "a list of URLs, or \"embedded\""));
    };
    let target = target(merged, name, endpoints)?;
    let on_server = raw.cache.as_ref().map_or(name, |at| at.value.as_str());
    if let Some(at) = raw.cache.as_ref().filter(|at| !is_cache_name(&at.value)) {
        let found = format!("caches.{name}.cache: found {:?}", at.value);
        return Err(ConfigError::invalid(merged.place(&at.spot), found, CacheName::EXPECTED));
    }
    let keys = Keys { merged, name, target: &target, raw };
    let token = match (&target, &raw.token_file) {
        (Target::Embedded, None) => keys.token_command()?.unwrap_or(Token::None),
        (Target::Embedded, Some(at)) => {
            let found = format!("caches.{name}.token_file: found a token for the built-in cache");
            return Err(ConfigError::invalid(merged.place(&at.spot), found, "none")
                .hint("it makes its own at the first start"));
        }
        (Target::Remote(_), Some(at)) => {
            let key = format!("caches.{name}.token_file");
            let absent = || (Place::Absent, String::new());
            // Fails for a command beside the file.
            keys.token_command()?;
            Token::File(validate::path(merged, &key, &Some(at.clone()), absent)?)
        }
        (Target::Remote(_), None) => match keys.token_command()? {
            Some(command) => command,
            None => Token::from_environment_or_credentials(name, env),
        },
    };
    let pull_token = match (&target, &raw.pull_token_file) {
        (_, None) => None,
        (Target::Embedded, Some(at)) => {
            let found = format!("caches.{name}.pull_token_file: found a token for the built-in cache");
            return Err(ConfigError::invalid(merged.place(&at.spot), found, "none")
                .hint("it makes its own at the first start"));
        }
        (Target::Remote(_), Some(at)) => {
            let key = format!("caches.{name}.pull_token_file");
            let absent = || (Place::Absent, String::new());
            Some(validate::path(merged, &key, &Some(at.clone()), absent)?)
        }
    };
    if let (Some(at), Token::File(push)) = (&raw.pull_token_file, &token)
        && pull_token.as_ref() == Some(push)
    {
        let found = format!("caches.{name}.pull_token_file: found the file of the push token");
        return Err(ConfigError::invalid(merged.place(&at.spot), found, "a token that may only pull")
            .hint("everyone who may read the netrc file could push with it"));
    }
    let own_engine = validate::engine(merged, &format!("caches.{name}.engine"), raw.engine.as_ref())?;
    let stall_timeout = match &raw.stall_timeout {
        None => STALL,
        Some(at) if at.value.0.is_zero() => {
            let found = format!("caches.{name}.stall_timeout: found {}", at.value);
            return Err(ConfigError::invalid(merged.place(&at.spot), found, "more than 0"));
        }
        Some(at) => at.value.0,
    };
    let engine = own_engine.unwrap_or(engine);
    let trust_api_endpoint = raw.trust_api_endpoint.as_ref().is_some_and(|at| at.value);
    let network = keys.network(warnings)?;
    let upstream_check = upstream_check(merged, name, raw)?;
    Ok(Cache {
        cache: on_server.to_owned(),
        target,
        token,
        pull_token,
        engine,
        stall_timeout,
        trust_api_endpoint,
        upstream_check,
        network,
    })
}

fn target(merged: &Merged, name: &str, at: &At<OneOrMany>) -> Result<Target, ConfigError> {
    let key = format!("caches.{name}.endpoints");
    let items = &at.value.0;
    let invalid = |found: String, expected: &str| {
        ConfigError::invalid(merged.place(&at.spot), format!("{key}: {found}"), expected)
    };
    if items.is_empty() || items.len() > MOST_ENDPOINTS {
        let expected = format!("1 to {MOST_ENDPOINTS}");
        return Err(invalid(format!("found {} of them", items.len()), &expected));
    }
    if items.iter().any(|(_, text)| text == "embedded") {
        return match items.len() {
            1 => Ok(Target::Embedded),
            _ => Err(invalid("found \"embedded\" beside others".to_owned(), "\"embedded\" alone, or URLs")),
        };
    }
    let mut urls: Vec<String> = Vec::new();
    for (span, text) in items {
        let place =
            span.as_ref().map_or_else(|| merged.place(&at.spot), |span| merged.place_in(&at.spot, span));
        let url = endpoint::parse(text).map_err(|found| {
            ConfigError::invalid(place.clone(), format!("{key}: {found}"), endpoint::EXPECTED)
        })?;
        if urls.contains(&url) {
            return Err(ConfigError::invalid(place, format!("{key}: found {url:?} twice"), "each once"));
        }
        urls.push(url);
    }
    Ok(Target::Remote(urls))
}

/// Validates the URLs of the upstream caches that are asked for paths.
fn upstream_check(merged: &Merged, name: &str, raw: &RawCache) -> Result<Vec<String>, ConfigError> {
    let key = format!("caches.{name}.upstream_check");
    let Some(at) = &raw.upstream_check else { return Ok(Vec::new()) };
    if at.value.len() > MOST_UPSTREAMS {
        let (found, expected) =
            (format!("{key}: found {} of them", at.value.len()), format!("at most {MOST_UPSTREAMS}"));
        return Err(ConfigError::invalid(merged.place(&at.spot), found, expected));
    }
    let mut urls = Vec::new();
    for item in &at.value {
        let place = || merged.place_in(&at.spot, &item.span());
        let url = endpoint::parse(item.get_ref()).map_err(|found| {
            ConfigError::invalid(place(), format!("{key}: {found}"), "a URL like \"https://cache.nixos.org\"")
        })?;
        if urls.contains(&url) {
            return Err(ConfigError::invalid(place(), format!("{key}: found {url:?} twice"), "each once"));
        }
        urls.push(url);
    }
    Ok(urls)
}

/// Warns of settings that may disclose the token.
fn warn_of_token(name: &str, cache: &Cache, env: Env<'_>, nix: &Nix, warnings: &mut Vec<String>) {
    let Target::Remote(urls) = &cache.target else { return };
    if let Some(file) = &cache.pull_token {
        warnings.extend(readable_by_all(name, "pull_token_file", file));
    }
    match &cache.token {
        // Outside of the service the credential is not passed, and the service has it.
        Token::None if env("CREDENTIALS_DIRECTORY").is_none() && is_stored(name) => {}
        Token::None => warnings.push(format!(
            "cache {name}: no token (no token_file, no token_command, no credential \"attic-token\", no $ATTIC_TOKEN); pushing needs one"
        )),
        token => {
            for url in urls.iter().filter(|url| endpoint::is_exposed(url)) {
                warnings.push(format!("cache {name}: the token is sent to {url} without encryption"));
            }
            if let Token::File(file) = token {
                if file.starts_with(&nix.store_dir) || nix.store().is_ok_and(|dir| file.starts_with(dir.as_path())) {
                    warnings
                        .push(format!("cache {name}: token_file is in the store, where everyone can read it"));
                } else {
                    warnings.extend(readable_by_all(name, "token_file", file));
                }
            }
        }
    }
}

/// Whether the service will have a credential with the token, from one of the directories that systemd looks in
/// (systemd.exec(5), `LoadCredential=`).
fn is_stored(name: &str) -> bool {
    let dirs = ["/etc/credstore", "/etc/credstore.encrypted", "/run/credstore", "/run/credstore.encrypted"];
    let files = [format!("attic-token-{name}"), "attic-token".to_owned()];
    dirs.iter().any(|dir| files.iter().any(|file| Path::new(dir).join(file).exists()))
}

/// The warning of a token's file that every user of the host may read: the file's mode allows it, and the
/// modes of the directories above do. A file that does not exist yet has none.
pub(super) fn readable_by_all(cache: &str, key: &str, file: &Path) -> Option<String> {
    let allows =
        |path: &Path, bit: u32| path.metadata().is_ok_and(|meta| meta.permissions().mode() & bit != 0);
    let open = allows(file, 0o004) && file.ancestors().skip(1).all(|dir| allows(dir, 0o001));
    open.then(|| {
        format!(
            "cache {cache}: every user of this host may read {key} {}; run chmod o-r on it",
            file.display()
        )
    })
}

/// Finds the default cache.
pub(super) fn default_cache(merged: &Merged, caches: &Caches) -> Result<String, ConfigError> {
    match &merged.raw.default_cache {
        Some(at) => known(merged, "default_cache", at, caches),
        None if caches.contains_key("main") => Ok("main".to_owned()),
        None => match (caches.len(), caches.keys().next()) {
            (1, Some(only)) => Ok(only.clone()),
            _ => {
                let found = "default_cache: found none, and no cache is named \"main\"";
                Err(ConfigError::invalid(Place::Absent, found, one_of(caches)))
            }
        },
    }
}

fn known(merged: &Merged, key: &str, at: &At<String>, caches: &Caches) -> Result<String, ConfigError> {
    if caches.contains_key(&at.value) {
        return Ok(at.value.clone());
    }
    let error =
        ConfigError::invalid(merged.place(&at.spot), format!("{key}: found {:?}", at.value), one_of(caches));
    Err(match names::nearest(&at.value, caches.keys().map(String::as_str)) {
        Some(meant) => error.hint(format!("did you mean {meant:?}?")),
        None => error,
    })
}

fn one_of(caches: &Caches) -> String {
    let names: Vec<String> = caches.keys().map(|name| format!("{name:?}")).collect();
    format!("the name of a cache: {}", names.join(" or "))
}

/// Validates where metrics are served; none: nowhere. What they say of paths and users is
/// little, and still nobody but this host reads it unless the configuration says so.
pub(super) fn metrics(merged: &Merged) -> Result<Option<SocketAddr>, ConfigError> {
    let raw = &merged.raw.metrics;
    let Some(at) = &raw.listen else { return Ok(None) };
    let found = || format!("metrics.listen: found {:?}", at.value);
    let listen: SocketAddr = at.value.parse().map_err(|_| {
        let expected = "an address and port like \"127.0.0.1:9799\"";
        ConfigError::invalid(merged.place(&at.spot), found(), expected)
    })?;
    let is_allowed = raw.allow_remote.as_ref().is_some_and(|at| at.value);
    if !listen.ip().is_loopback() && !is_allowed {
        return Err(ConfigError::invalid(
            merged.place(&at.spot),
            found(),
            "a loopback address, because everyone who reaches another one can read the metrics",
        )
        .hint("if that is intended, set allow_remote = true in [metrics]"));
    }
    Ok(Some(listen))
}

/// Validates the settings of the built-in cache; none when no cache is built in.
pub(super) fn embedded(
    merged: &Merged,
    caches: &Caches,
    state_dir: &Path,
    warnings: &mut Vec<String>,
) -> Result<Option<Embedded>, ConfigError> {
    let raw = &merged.raw.embedded;
    let listen = match &raw.listen {
        None => SocketAddr::from(([127, 0, 0, 1], 8742)),
        Some(at) => at.value.parse().map_err(|_| {
            let found = format!("embedded.listen: found {:?}", at.value);
            ConfigError::invalid(merged.place(&at.spot), found, "an address and port like \"127.0.0.1:8742\"")
        })?,
    };
    let otherwise = || (Place::Absent, state_dir.join("cache").to_string_lossy().into_owned());
    let dir = validate::path(merged, "embedded.dir", &raw.dir, otherwise)?;
    // Attic's default. cache.nixos.org has 40 and is asked before.
    let priority = match &raw.priority {
        None => 41,
        Some(at) => u32::try_from(at.value).map_err(|_| {
            let found = format!("embedded.priority: found {}", at.value);
            ConfigError::invalid(merged.place(&at.spot), found, format!("a number from 0 to {}", u32::MAX))
        })?,
    };
    let public = raw.public.as_ref().is_none_or(|at| at.value);
    let max_nar_size = raw.max_nar_size.as_ref().map_or(16 << 30, |at| at.value.0);
    let is_built_in = |cache: &&Cache| cache.target == Target::Embedded;
    let mut served: Vec<String> =
        caches.values().filter(is_built_in).map(|cache| cache.cache.clone()).collect();
    served.sort();
    if served.is_empty() {
        return Ok(None);
    }
    if !listen.ip().is_loopback() {
        let who =
            if public { "everyone who reaches it can read" } else { "tokens are sent without encryption" };
        warnings.push(format!("embedded.listen: {listen} is not a loopback address; {who}"));
    }
    let max_size = validate::limit(raw.max_size.as_ref());
    let max_nar_size = if max_nar_size == 0 { u64::MAX } else { max_nar_size };
    let host_names =
        raw.host_names.iter().flat_map(|at| at.value.iter().map(|name| name.get_ref().clone())).collect();
    Ok(Some(Embedded { listen, host_names, dir, caches: served, max_size, max_nar_size, public, priority }))
}

/// Validates the routes, in their order.
pub(super) fn routes(merged: &Merged, caches: &Caches) -> Result<Vec<Route>, ConfigError> {
    merged.raw.route.iter().map(|at| route(merged, at, caches)).collect()
}

fn route(merged: &Merged, at: &At<RawRoute>, caches: &Caches) -> Result<Route, ConfigError> {
    let raw = &at.value;
    let invalid = |found: &str, expected: &str| {
        Err(ConfigError::invalid(merged.place(&at.spot), format!("route: found {found}"), expected))
    };
    let is_person = raw.user.is_some() || raw.group.is_some() || raw.label.is_some();
    match (&raw.maker, is_person) {
        (None, true) | (Some(_), false) => {}
        (None, false) => return invalid("nothing to match", "`user`, `group`, `label` or `maker`"),
        (Some(_), true) => return invalid("`maker` beside `user`, `group` or `label`", "`maker` alone"),
    }
    if let Some(at) = raw.maker.as_ref().filter(|at| at.value != "unknown") {
        let found = format!("route.maker: found {:?}", at.value);
        return Err(ConfigError::invalid(merged.place(&at.spot), found, "\"unknown\""));
    }
    let cache = match (&raw.cache, &raw.action) {
        (Some(name), None) => Some(known(merged, "route.cache", name, caches)?),
        (None, Some(action)) if action.value == "skip" => None,
        (None, Some(action)) => {
            let found = format!("route.action: found {:?}", action.value);
            return Err(ConfigError::invalid(merged.place(&action.spot), found, "\"skip\""));
        }
        (Some(_), Some(_)) => return invalid("`cache` and `action`", "one of them"),
        (None, None) => return invalid("neither `cache` nor `action`", "one of them"),
    };
    if let (Some(at), true) = (&raw.allow, raw.maker.is_some()) {
        let found = "route.allow: found caches to name for an unknown maker";
        return Err(ConfigError::invalid(
            merged.place(&at.spot),
            found,
            "`allow` beside `user`, `group` or `label`",
        ));
    }
    let mut allow = Vec::new();
    for (at, item) in raw.allow.iter().flat_map(|at| at.value.iter().map(move |item| (at, item))) {
        let spot = Spot { file: at.spot.file, span: item.span() };
        let name = At { value: item.get_ref().clone(), spot };
        allow.push(known(merged, "route.allow", &name, caches)?);
    }
    let name = |key: &str, at: &Option<At<String>>| {
        at.as_ref().map(|at| validate::group_or_user(merged, key, at)).transpose()
    };
    let label = match &raw.label {
        Some(at) => Some(validate::glob(merged.place(&at.spot), "route.label", &at.value)?),
        None => None,
    };
    let subject = match raw.maker {
        Some(_) => Subject::UnknownMaker,
        None => Subject::Person {
            user: name("route.user", &raw.user)?,
            group: name("route.group", &raw.group)?,
            label,
        },
    };
    Ok(Route { subject, cache, allow })
}
