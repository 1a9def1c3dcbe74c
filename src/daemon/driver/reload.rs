//! Reads the configuration and the tokens again, on SIGHUP or on request.
//!
//! A reload is all or nothing: everything that can fail is done elsewhere before
//! anything is changed. Keys that need a restart are named and left as they are. The
//! driver's settings are the ones in use; each room gets the part it needs from here.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;

use super::{Done, Driver};
use crate::cache::{CacheClient, SuppliedToken};
use crate::config::{Change, ConfigError, Settings};
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::caches::{BuiltIn, Cache, Caches, Connection, EngineParts, Netrc, limits};
use crate::daemon::gc_roots::Bounds;
use crate::daemon::intake::{IntakeCache, People, PushPolicy, Routes, Work};
use crate::flow::Event;
use crate::observe::event;
use crate::types::CacheId;

/// Reads the configuration.
pub type Load = Arc<dyn Fn() -> Result<Settings, ConfigError> + Send + Sync>;

/// A configuration that can be put to use.
#[derive(Debug)]
pub(super) struct Ready {
    change: Change,
    /// The connections of new and changed caches.
    connections: Vec<Connection>,
    /// What became of the tokens of the other caches, in words.
    tokens: Vec<String>,
}

/// The callers that wait for the reload that is under way, and for the next one.
#[derive(Debug, Default)]
pub(super) struct Reloads {
    under_way: bool,
    now: Vec<Responder>,
    again: bool,
    next: Vec<Responder>,
}

impl Driver {
    /// Serves `flywheelctl reload`.
    pub(super) fn reload(&mut self, peer: Peer, responder: Responder) {
        if !self.parts.reports.may_see_all(peer.uid) {
            let message = "only root and the daemon's own user may have it reload";
            return responder.refuse(ErrorCode::Denied, message);
        }
        self.read_again(Some(responder));
    }

    /// Has everything read again. A reading that is under way may have missed the
    /// latest change, so another one follows it.
    pub(super) fn read_again(&mut self, caller: Option<Responder>) {
        let reloads = &mut self.reloads;
        if reloads.under_way {
            reloads.again = true;
            reloads.next.extend(caller);
            return;
        }
        reloads.under_way = true;
        reloads.now.extend(caller);
        self.parts.notify.reloading();
        let (load, old) = (Arc::clone(&self.parts.load), Arc::clone(&self.parts.settings));
        let built_in = self.parts.built_in.clone();
        let clients: Vec<_> =
            self.parts.caches.iter().map(|c| (c.name().to_owned(), c.client().clone())).collect();
        let read = move || Done::Reloaded(Box::new(prepare(&load, &old, built_in.as_ref(), clients)));
        let lost = "the configuration could not be read: the journal of flywheeld has the reason".to_owned();
        self.elsewhere(read, Done::Reloaded(Box::new(Err(lost))));
    }

    /// The configuration was read.
    pub(super) fn reloaded(&mut self, ready: Result<Ready, String>) {
        let reply = match ready {
            Ok(ready) => Reply::Done { message: self.put_to_use(ready) },
            Err(error) => {
                event!(
                    RELOAD_REFUSED,
                    error = error,
                    "the new configuration cannot be used, and the old one stays in use: {error}"
                );
                let message = format!("{error}\nnothing is changed: the configuration in use stays");
                Reply::Error { code: ErrorCode::BadRequest, message }
            }
        };
        for caller in self.reloads.now.drain(..) {
            caller.reply(reply.clone());
        }
        self.parts.notify.ready();
        self.reloads.under_way = false;
        if std::mem::take(&mut self.reloads.again) {
            self.reloads.now = std::mem::take(&mut self.reloads.next);
            self.read_again(None);
        }
    }

    /// Puts a configuration to use, and returns what was done, in words. Cannot fail.
    fn put_to_use(&mut self, Ready { change, connections, mut tokens }: Ready) -> String {
        let Change { settings, live, restart } = change;
        let settings = Arc::new(settings);
        let old = std::mem::replace(&mut self.parts.settings, Arc::clone(&settings));
        for warning in settings.warnings.iter().filter(|w| !old.warnings.contains(w)) {
            event!(CONFIG_WARNING, "{warning}");
        }
        if settings.push.jobs != old.push.jobs {
            // The attic client's engine has limits of its own.
            let native: Vec<_> =
                self.parts.caches.iter().filter(|cache| !cache.needs_attic()).map(Cache::id).collect();
            for cache in native {
                self.step(Event::Limits(cache, limits(settings.push.jobs)));
            }
        }
        if settings.push.max_rate != old.push.max_rate {
            self.parts.transfers.limit(settings.push.max_rate);
        }
        self.parts.gc_roots.set_bounds(Bounds::of(&settings.nix));
        self.connect(connections);
        if settings.routes != old.routes {
            self.parts.sessions.rules_changed();
            self.confine();
        }
        self.update_holds();
        self.parts.client.look_now();
        self.parts.netrc = Netrc::of(&settings, self.parts.built_in.as_ref(), &self.parts.caches);
        self.parts.background.netrc(self.parts.netrc.as_ref());
        self.parts.background.tokens(&self.parts.caches, self.parts.out.clone());
        if settings.metrics != old.metrics {
            self.parts.background.metrics(settings.metrics, &self.parts.metrics, self.parts.out.clone());
        }
        if settings.history_keep != old.history_keep {
            self.parts.background.history(self.parts.ledger.clone(), settings.history_keep);
        }
        for cache in self.parts.caches.ids() {
            self.step(Event::ProbeNow(cache));
        }
        self.step(Event::Retry(None));
        // Failed pushes that only the ledger knows are tried again too.
        self.parts.intake.ask(Work::Retry);

        let mut done = vec![match live.is_empty() {
            true => "settings unchanged".to_owned(),
            false => format!("new settings: {}", live.join(", ")),
        }];
        done.append(&mut tokens);
        done.push("failed pushes are tried again".to_owned());
        event!(RELOADED, applied = live.join(", "), "reload: {}", done.join("; "));
        if !restart.is_empty() {
            let keys = restart.join(", ");
            event!(RESTART_NEEDED, keys = keys, "restart flywheeld to apply: {keys}");
            done.push(format!("restart flywheeld to apply: {keys}"));
        }
        done.join("; ")
    }

    /// Adds new caches, and gives changed ones their new connections.
    fn connect(&mut self, connections: Vec<Connection>) {
        let before = self.parts.caches.len();
        let changed: Vec<_> =
            connections.into_iter().filter_map(|connection| self.parts.caches.set(connection)).collect();
        self.parts.login.set(self.parts.caches.logins());
        let engine_parts = EngineParts {
            settings: &self.parts.settings,
            transfers: &self.parts.transfers,
            client: &self.parts.client,
            login: &self.parts.login,
        };
        self.parts.caches.iter().for_each(|cache| self.parts.metrics.know(cache.name()));
        for limits in self.parts.caches.start_engines(before, &engine_parts) {
            self.flow.add_cache(limits);
        }
        let people = self.parts.intake.people();
        people.follow(&self.parts.settings);
        let policy = policy(&self.parts.settings, &self.parts.caches, people);
        self.parts.intake.set_policy(policy);
        for cache in changed {
            self.parts.transfers.probe(self.parts.caches[cache].target());
        }
    }
}

/// The policy on new paths that the configuration and the caches make.
pub(in crate::daemon) fn policy(settings: &Arc<Settings>, caches: &Caches, people: &People) -> PushPolicy {
    let known = |cache: &Cache| IntakeCache {
        name: cache.name().to_owned(),
        upstream_keys: cache.upstream_keys().clone(),
        asks_upstreams: cache.connection().upstream_check().is_on(),
    };
    PushPolicy {
        filter: settings.push.filter.clone(),
        caches: caches.iter().map(known).collect(),
        default_cache: caches.id(&settings.default_cache).unwrap_or(CacheId(0)),
        routes: Routes::new(Arc::clone(settings), caches.names(), people.clone()),
    }
}

/// Does everything that can fail. Reads files, so it blocks.
fn prepare(
    load: &Load,
    old: &Settings,
    built_in: Option<&BuiltIn>,
    clients: Vec<(String, CacheClient)>,
) -> Result<Ready, String> {
    let change = Change::new(old, load().map_err(|e| e.to_string())?);
    let changed = change.settings.caches.iter().filter(|(name, cache)| old.caches.get(*name) != Some(*cache));
    let connections: Result<Vec<_>> = changed
        .map(|(name, cache)| Connection::new(name, cache, change.settings.push.recheck_after, built_in))
        .collect();
    let connections = connections.map_err(|e| format!("{e:#}"))?;
    let same = clients.into_iter().filter(|(name, _)| connections.iter().all(|c| c.name() != name));
    let tokens = read_tokens(same);
    Ok(Ready { connections, change, tokens })
}

/// Whether systemd has put this file into the service's directory of credentials.
fn is_credential(file: &Path) -> bool {
    std::env::var_os("CREDENTIALS_DIRECTORY").is_some_and(|dir| file.starts_with(dir))
}

/// Reads the tokens of unchanged caches again. Returns what became of them.
fn read_tokens(clients: impl Iterator<Item = (String, CacheClient)>) -> Vec<String> {
    let mut notes = Vec::new();
    for (name, client) in clients {
        client.supplied().into_iter().for_each(SuppliedToken::want);
        match client.reload_token() {
            Ok(renewed) if renewed.any() => notes.push(format!("{name}: {renewed}")),
            Ok(_) if client.supplied().is_some() => notes.push(format!("{name}: token_command is run again")),
            Ok(_) if client.token_file().is_some_and(is_credential) => notes.push(format!(
                "{name}: the token is a systemd credential, and the one that was read last; if you have renewed it since, systemd renews \
                 it here by `systemctl restart flywheeld`, or by a reload from systemd 260 on with \
                 RefreshOnReload=credentials in the unit"
            )),
            Ok(_) => {}
            Err(error) => notes.push(format!("{name}: {error}")),
        }
    }
    if notes.is_empty() {
        notes.push("tokens unchanged since they were last read".to_owned());
    }
    notes
}
