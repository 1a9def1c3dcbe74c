//! Reading configuration and tokens again, on SIGHUP or when asked.
//!
//! All or nothing: everything that can fail is done before anything is changed.
//! What needs a restart is named and left as it is. [`Driver::settings`] is the
//! only place that knows what is in use; who works with a part of it is handed
//! that part here.

use std::sync::{Arc, PoisonError};

use anyhow::Result;

use crate::config::{Change, ConfigError, Settings};
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::caches::servers::{self, BuiltIn, Line};
use crate::daemon::driver::Driver;
use crate::daemon::inbox::Input;
use crate::daemon::intake::routes::Strangers;
use crate::daemon::intake::{PushPolicy, Work};
use crate::daemon::push::rate::Rate;
use crate::flow::Event;
use crate::observe::event;
use crate::types::CacheId;

/// Reads the configuration as it is now.
pub type Load = Arc<dyn Fn() -> Result<Settings, ConfigError> + Send + Sync>;

/// How a reading ended.
#[derive(Debug)]
pub(in crate::daemon) struct Reloaded(Result<Ready, String>);

/// A configuration that can be put to use.
#[derive(Debug)]
struct Ready {
    change: Change,
    /// Ways to caches that are new or changed.
    lines: Vec<Line>,
}

/// Who waits for the reading that is under way, and for the one after it.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Reloads {
    under_way: bool,
    now: Vec<Responder>,
    again: bool,
    next: Vec<Responder>,
}

impl Driver {
    /// `flywheelctl reload`.
    pub(in crate::daemon) fn reload(&mut self, peer: &Peer, responder: Responder) {
        if !self.may(peer, self.own_uid) {
            let message = "only root and the daemon's own user may have it reload";
            return responder.refuse(ErrorCode::Denied, message);
        }
        self.read_again(Some(responder));
    }

    /// Reads everything again. What has changed while a reading is under way
    /// may have been missed by it, so another one follows.
    pub(in crate::daemon) fn read_again(&mut self, caller: Option<Responder>) {
        let reloads = &mut self.reloads;
        if reloads.under_way {
            reloads.again = true;
            reloads.next.extend(caller);
            return;
        }
        reloads.under_way = true;
        reloads.now.extend(caller);
        self.notify.reloading();
        let (load, old, built_in) =
            (Arc::clone(&self.load), Arc::clone(&self.settings), self.built_in.clone());
        let out = self.transfers.out.clone();
        tokio::task::spawn_blocking(move || {
            let ready = prepare(&load, &old, built_in.as_ref());
            let _ = out.blocking_send(Input::Reloaded(Box::new(Reloaded(ready))));
        });
    }

    pub(in crate::daemon) fn reloaded(&mut self, Reloaded(ready): Reloaded) {
        let reply = match ready {
            Ok(ready) => Reply::Done { message: self.put_to_use(ready) },
            Err(error) => {
                event!(
                    RELOAD_REFUSED,
                    error = error,
                    "the new configuration cannot be used; nothing is changed"
                );
                let message = format!("{error}\nnothing is changed: the configuration in use stays");
                Reply::Error { code: ErrorCode::BadRequest, message }
            }
        };
        for caller in self.reloads.now.drain(..) {
            caller.reply(reply.clone());
        }
        self.notify.ready();
        self.reloads.under_way = false;
        if std::mem::take(&mut self.reloads.again) {
            self.reloads.now = std::mem::take(&mut self.reloads.next);
            self.read_again(None);
        }
    }

    /// Cannot fail. What was done, in words.
    fn put_to_use(&mut self, Ready { change, lines }: Ready) -> String {
        let Change { settings, live, restart } = change;
        let old = std::mem::replace(&mut self.settings, Arc::new(settings));
        let settings = Arc::clone(&self.settings);
        for warning in settings.warnings.iter().filter(|w| !old.warnings.contains(w)) {
            event!(CONFIG_WARNING, "{warning}");
        }
        let mut tokens = self.read_tokens(&lines);
        let limits = servers::limits(settings.push.jobs);
        if settings.push.jobs != old.push.jobs {
            // The attic client's runs have limits of their own.
            for number in
                self.numbers().filter(|n| self.engines[usize::from(n.0)].is_none()).collect::<Vec<_>>()
            {
                self.step(Event::Limits(number, limits));
            }
        }
        let mut fresh = Vec::new();
        for line in lines {
            match self.number_of(line.name()) {
                Some(number) => {
                    self.upstream_keys.set_upstream(number.0, Vec::new());
                    self.lines[usize::from(number.0)] = line;
                    fresh.push(number);
                }
                None => {
                    let Ok(number) = u16::try_from(self.caches.len()) else { continue };
                    self.caches.push(line.name().to_owned());
                    self.troubles.push(None);
                    self.counts.push(crate::control::messages::PathCounts::default());
                    self.lines.push(line);
                    fresh.push(CacheId(number));
                }
            }
        }
        if settings.push.max_rate != old.push.max_rate {
            self.transfers.rate = settings.push.max_rate.map(|rate| Arc::new(Rate::new(rate)));
        }
        self.transfers.clients = self.lines.iter().map(|line| line.client().clone()).collect();
        self.login.serve(self.lines.iter().map(|line| line.served.clone()).collect());
        for (number, line) in (0..).zip(&self.lines).skip(self.engines.len()) {
            let (engine, limits) = servers::engine(
                CacheId(number),
                &settings,
                &self.transfers,
                &self.client,
                &self.login,
                &line.served,
            );
            self.flow.add_cache(limits);
            self.engines.push(engine);
        }
        self.client_usable(self.client.is_usable());
        self.client.wanted();
        self.netrc = servers::netrc(&settings, self.built_in.as_ref(), &self.lines);
        self.background.netrc(self.netrc.as_ref());
        let policy = PushPolicy {
            filter: settings.push.filter.clone(),
            caches: self.caches.clone(),
            default_cache: self.default_cache(),
            strangers: Strangers::new(Arc::clone(&settings), self.caches.clone()),
        };
        *self.new_policy.lock().unwrap_or_else(PoisonError::into_inner) = Some(policy);
        self.bell.ring();
        self.background.tokens(&self.lines, self.transfers.out.clone());
        if settings.history_keep != old.history_keep {
            self.background.history(self.ledger.clone(), settings.history_keep);
        }
        for number in fresh {
            self.transfers.probe(number);
        }
        for number in self.numbers() {
            self.step(Event::ProbeNow(number));
        }
        self.step(Event::Retry(None));
        // Those that are known no longer.
        self.bell.ask(Work::Retry);

        let mut said = vec![match live.is_empty() {
            true => "settings unchanged".to_owned(),
            false => format!("new settings: {}", live.join(", ")),
        }];
        said.append(&mut tokens);
        said.push("what was given up is tried again".to_owned());
        event!(RELOADED, applied = live.join(", "), "reload: {}", said.join("; "));
        if !restart.is_empty() {
            let keys = restart.join(", ");
            event!(RESTART_NEEDED, keys = keys, "restart flywheeld to apply: {keys}");
            said.push(format!("restart flywheeld to apply: {keys}"));
        }
        said.join("; ")
    }

    /// Reads the tokens of caches that stay as they are.
    fn read_tokens(&self, changed: &[Line]) -> Vec<String> {
        let mut notes = Vec::new();
        let same = self.lines.iter().filter(|line| changed.iter().all(|c| c.name() != line.name()));
        for line in same {
            match line.client().reload_token() {
                Ok(true) => notes.push(format!("{}: a new token", line.name())),
                Ok(false) => {}
                Err(error) => notes.push(format!("{}: {error}", line.name())),
            }
        }
        if notes.is_empty() {
            notes.push("tokens unchanged".to_owned());
        }
        notes
    }

    fn numbers(&self) -> impl Iterator<Item = CacheId> + use<> {
        (0..u16::try_from(self.caches.len()).unwrap_or(u16::MAX)).map(CacheId)
    }
}

/// Everything that can fail. Reads files.
fn prepare(load: &Load, old: &Settings, built_in: Option<&BuiltIn>) -> Result<Ready, String> {
    let change = Change::new(old, load().map_err(|e| e.to_string())?);
    let changed = change.settings.caches.iter().filter(|(name, cache)| old.caches.get(*name) != Some(*cache));
    let lines: Result<Vec<Line>> = changed.map(|(name, cache)| Line::new(name, cache, built_in)).collect();
    Ok(Ready { lines: lines.map_err(|e| format!("{e:#}"))?, change })
}
