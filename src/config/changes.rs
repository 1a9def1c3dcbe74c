//! Compares a new configuration with the one in use: which keys change, and which of
//! them can take effect while the daemon runs. Pure.

use super::settings::{Cache, Engine, Nix, Push, Settings, Target};

/// The difference between the configuration in use and a new one.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The settings to use from now on: the new ones, apart from those that need a
    /// restart.
    pub settings: Settings,
    /// The keys that take effect at once.
    pub live: Vec<String>,
    /// The keys that take effect at the next start.
    pub restart: Vec<String>,
}

impl Change {
    /// Compares `old`, which is in use, with `new`.
    #[must_use]
    pub fn new(old: &Settings, new: Settings) -> Self {
        // All fields are named, so that a new key does not compile until it is handled here.
        let Settings {
            socket,
            state_dir,
            runtime_dir,
            default_cache,
            nix:
                Nix {
                    root,
                    store_dir,
                    state_dir: nix_state_dir,
                    lower_state_dir,
                    gc_roots,
                    poll,
                    netrc,
                    netrc_group,
                    netrc_include,
                    protect_max,
                    min_free,
                },
            caches,
            embedded,
            metrics,
            push: Push { engine, jobs, existing, recheck_after, filter, max_rate },
            client,
            drain_timeout,
            history_keep,
            routes,
            admins,
            warnings: _,
            files: _,
        } = &new;
        let mut live = Vec::new();
        let mut restart = Vec::new();
        note(*socket != old.socket, &mut restart, "socket");
        note(*state_dir != old.state_dir, &mut restart, "state_dir");
        note(*runtime_dir != old.runtime_dir, &mut restart, "runtime_dir");
        note(*root != old.nix.root, &mut restart, "nix.root");
        note(*store_dir != old.nix.store_dir, &mut restart, "nix.store_dir");
        note(*nix_state_dir != old.nix.state_dir, &mut restart, "nix.state_dir");
        note(*lower_state_dir != old.nix.lower_state_dir, &mut restart, "nix.lower_state_dir");
        note(*gc_roots != old.nix.gc_roots, &mut restart, "nix.gc_roots");
        note(*poll != old.nix.poll, &mut restart, "nix.poll");
        note(*protect_max != old.nix.protect_max, &mut live, "nix.protect_max");
        note(*min_free != old.nix.min_free, &mut live, "nix.min_free");
        note(*recheck_after != old.push.recheck_after, &mut restart, "push.recheck_after");
        note(*admins != old.admins, &mut live, "admins");
        note(*embedded != old.embedded, &mut restart, "embedded");
        note(*client != old.client, &mut restart, "client");
        note(*metrics != old.metrics, &mut live, "metrics");
        note(*netrc != old.nix.netrc, &mut live, "nix.netrc");
        note(*netrc_group != old.nix.netrc_group, &mut live, "nix.netrc_group");
        note(*netrc_include != old.nix.netrc_include, &mut live, "nix.netrc_include");
        note(*engine != old.push.engine, &mut live, "push.engine");
        note(*jobs != old.push.jobs, &mut live, "push.jobs");
        // A run of the attic client is started with its number of uploads.
        let is_run = old.caches.values().any(|cache| cache.engine == Engine::Attic);
        note(is_run && *jobs != old.push.jobs, &mut restart, "push.jobs for engine = \"attic\"");
        note(*existing != old.push.existing, &mut live, "push.existing");
        note(*filter != old.push.filter, &mut live, "push.filter");
        note(*max_rate != old.push.max_rate, &mut live, "push.max_rate");
        note(*drain_timeout != old.drain_timeout, &mut live, "drain.timeout");
        note(*history_keep != old.history_keep, &mut live, "history.keep");

        // A removed cache stays until the restart, with its pending pushes. A cache that
        // moves into or out of the built-in cache needs a restart, and so does one that
        // the attic client pushes to, because runs of the client are in progress.
        let mut usable = old.caches.clone();
        for (name, cache) in caches {
            let key = format!("caches.{name}");
            match old.caches.get(name) {
                Some(before) if before == cache => {}
                before => {
                    let is_run = before.is_some_and(|before| Engine::Attic == before.engine)
                        || before.is_some() && cache.engine == Engine::Attic;
                    let moves = is_run || is_built_in(cache) || before.is_some_and(is_built_in);
                    note(true, if moves { &mut restart } else { &mut live }, &key);
                    if !moves {
                        usable.insert(name.clone(), cache.clone());
                    }
                }
            }
        }
        for name in old.caches.keys().filter(|name| !caches.contains_key(*name)) {
            note(true, &mut restart, &format!("caches.{name}"));
        }
        let known = |name: &String| usable.contains_key(name);
        let keep_default = !known(default_cache);
        let keep_routes = !routes.iter().flat_map(|r| r.cache.iter().chain(&r.allow)).all(known);
        let list = if keep_default { &mut restart } else { &mut live };
        note(*default_cache != old.default_cache, list, "default_cache");
        let list = if keep_routes { &mut restart } else { &mut live };
        note(*routes != old.routes, list, "route");

        let settings = Settings {
            socket: old.socket.clone(),
            state_dir: old.state_dir.clone(),
            runtime_dir: old.runtime_dir.clone(),
            nix: Nix {
                netrc: netrc.clone(),
                netrc_group: netrc_group.clone(),
                netrc_include: netrc_include.clone(),
                protect_max: *protect_max,
                min_free: *min_free,
                ..old.nix.clone()
            },
            push: Push { recheck_after: old.push.recheck_after, ..new.push.clone() },
            embedded: old.embedded.clone(),
            client: old.client.clone(),
            default_cache: if keep_default { old.default_cache.clone() } else { default_cache.clone() },
            routes: if keep_routes { old.routes.clone() } else { routes.clone() },
            caches: usable,
            ..new
        };
        Self { settings, live, restart }
    }
}

fn note(changed: bool, list: &mut Vec<String>, key: &str) {
    if changed {
        list.push(key.to_owned());
    }
}

fn is_built_in(cache: &Cache) -> bool {
    cache.target == Target::Embedded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(text: &str) -> Settings {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flywheel.toml");
        std::fs::write(&file, text).unwrap();
        Settings::load(Some(&file), &|_| None).unwrap()
    }

    fn change(old: &str, new: &str) -> Change {
        Change::new(&settings(old), settings(new))
    }

    const ONE: &str = "[caches.main]\nendpoints = \"http://a\"\n";
    const TWO: &str = "[caches.two]\nendpoints = \"http://b\"\n";

    #[test]
    fn nothing_changes_nothing() {
        let same = change(ONE, ONE);
        assert!(same.live.is_empty() && same.restart.is_empty(), "{same:?}");
    }

    #[test]
    fn what_can_be_is_done_at_once() {
        let new = format!(
            "default_cache = \"two\"\n{ONE}stall_timeout = \"9s\"\n{TWO}[push]\njobs = 3\nmax_rate = \"1MiB\"\n\
             [push.filter]\nmax_size = \"1KiB\"\n[drain]\ntimeout = \"5s\"\n[history]\nkeep = \"2d\"\n\
             [[route]]\nuser = \"x\"\ncache = \"two\"\n"
        );
        let change = change(ONE, &new);
        let expected = [
            "push.jobs",
            "push.filter",
            "push.max_rate",
            "drain.timeout",
            "history.keep",
            "caches.main",
            "caches.two",
            "default_cache",
            "route",
        ];
        assert_eq!(change.live, expected);
        assert!(change.restart.is_empty());
        assert_eq!(Settings { warnings: vec![], files: vec![], ..change.settings }, {
            Settings { warnings: vec![], files: vec![], ..settings(&new) }
        });
    }

    #[test]
    fn what_needs_a_restart_changes_nothing() {
        let old = format!("{ONE}{TWO}");
        let new = format!(
            "socket = \"/x/s\"\nstate_dir = \"/x/y\"\n{ONE}[caches.three]\nendpoints = \"embedded\"\n[nix]\n\
             root = \"/x/r\"\nstore_dir = \"/x/store\"\npoll = \"1s\"\nlower_state_dir = \"/x/low\"\nstate_dir = \"/x/var\"\n[client]\nenable = false\n\
             [[route]]\nuser = \"x\"\ncache = \"three\"\n"
        );
        let change = change(&old, &new);
        let expected = [
            "socket",
            "state_dir",
            "runtime_dir",
            "nix.root",
            "nix.store_dir",
            "nix.state_dir",
            "nix.lower_state_dir",
            "nix.gc_roots",
            "nix.poll",
            "embedded",
            "client",
            "caches.three",
            "caches.two",
            "route",
        ];
        assert_eq!(change.restart, expected);
        assert!(change.live.is_empty(), "{:?}", change.live);
        let kept = Settings { warnings: vec![], files: vec![], ..settings(&old) };
        assert_eq!(Settings { warnings: vec![], files: vec![], ..change.settings }, kept);
    }
}
