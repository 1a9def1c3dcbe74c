//! What came of questions, uploads and probes, handed to the decisions; and what the
//! decisions say of a push or a cache.

use std::collections::HashSet;
use std::time::Duration;

use tokio::time::Instant;

use super::{Driver, Parts, mono};
use crate::cache::{CacheError, Discovered};
use crate::daemon::inbox::UploadEnd;
use crate::daemon::push::{Audience, Listener, Times, failure_of};
use crate::flow::{BreakerState, Cause, Event, Outcome};
use crate::observe::{detail, event};
use crate::types::{CacheId, PushId, SessionId};

impl Driver {
    pub(super) fn asked(
        &mut self,
        cache: CacheId,
        pushes: Vec<PushId>,
        result: Result<Vec<PushId>, CacheError>,
        took: Duration,
    ) {
        match result {
            Ok(missing) => {
                self.parts.pushes.asked(&pushes);
                self.step(Event::RoundTrip(cache, took));
                let absent: HashSet<_> = missing.iter().copied().collect();
                let present = pushes.into_iter().filter(|push| !absent.contains(push)).collect();
                self.step(Event::Asked { cache, present, missing });
            }
            Err(error) => {
                self.parts.metrics.failed(self.parts.caches[cache].name(), error.class.as_str());
                self.parts.pushes.ask_failed(&pushes, &error, &mut self.parts.caches[cache].tally);
                self.step(Event::AskFailed { cache, failure: failure_of(&error) });
            }
        }
    }

    pub(super) fn uploaded(&mut self, push: PushId, result: UploadEnd, took: Duration) {
        let Some(cache) = self.parts.pushes.cache_of(push) else { return };
        let audience = self.audience(push);
        let Parts { pushes, caches, metrics, .. } = &mut self.parts;
        let name = caches[cache].name().to_owned();
        match &result {
            UploadEnd::Confirmed(..) => metrics.uploaded(&name, took),
            UploadEnd::Failed(error, _) => metrics.failed(&name, error.class.as_str()),
            UploadEnd::Engine(_) => metrics.failed(&name, "engine"),
            UploadEnd::Unreadable(_) => metrics.failed(&name, "nix-database"),
            UploadEnd::InUpstream(_) | UploadEnd::Arrived | UploadEnd::Collected => {}
        }
        let true_at = match &result {
            UploadEnd::InUpstream(Some(answer)) => mono(self.began, answer.asked_at),
            _ => mono(self.began, Instant::now()),
        };
        let times = Times { took, true_at };
        let event = pushes.uploaded(push, result, times, &name, &mut caches[cache].tally, &audience);
        if let Some(event) = event {
            self.step(event);
        }
    }

    pub(super) fn settled(&mut self, push: PushId, outcome: Outcome) {
        let Some(cache) = self.parts.pushes.cache_of(push) else { return };
        // Nothing else is logged of a settled push.
        let audience = if outcome == Outcome::Collected { self.audience(push) } else { Audience::default() };
        let name = self.name(cache).to_owned();
        let Parts { pushes, caches, metrics, .. } = &mut self.parts;
        if let Some(age) = pushes.settle(push, outcome, &name, &mut caches[cache].tally, &audience) {
            metrics.settled(&name, age);
        }
    }

    pub(super) fn failed(&mut self, push: PushId, cause: Cause) {
        let Some(cache) = self.parts.pushes.cache_of(push) else { return };
        let audience = self.audience(push);
        // A group that is no session is one of a `flush`.
        let is_session = |row: &SessionId| self.parts.sessions.get(*row).is_some();
        let sessions = self.flow.sessions_of(push).filter(is_session).collect();
        let name = self.name(cache).to_owned();
        let tally = &mut self.parts.caches[cache].tally;
        self.parts.pushes.fail(push, cause, &name, tally, (&audience, sessions));
    }

    /// The circuit breaker of a cache has changed its state.
    pub(super) fn breaker(&mut self, cache: CacheId, state: BreakerState) {
        let cache = &mut self.parts.caches[cache];
        let reason = cache.tally.trouble.clone().unwrap_or_default();
        match state {
            BreakerState::Online => {
                cache.tally.trouble = None;
                cache.tally.away_since = None;
                event!(
                    CACHE_ONLINE,
                    cache = cache.name(),
                    "cache {} answers again: uploads continue",
                    cache.name()
                );
                self.parts.client.cache_back();
            }
            BreakerState::Offline => {
                cache.tally.away_since.get_or_insert_with(Instant::now);
                event!(
                    CACHE_OFFLINE,
                    cache = cache.name(),
                    error = reason,
                    "cache {} does not answer, its pushes wait, nothing is lost: {reason}",
                    cache.name()
                );
            }
            BreakerState::Refused => {
                cache.tally.away_since.get_or_insert_with(Instant::now);
                event!(
                    CACHE_REFUSES,
                    cache = cache.name(),
                    error = reason,
                    "cache {} refuses the token, its pushes wait until the token is renewed: {reason}",
                    cache.name()
                );
            }
        }
    }

    pub(super) fn probed(&mut self, id: CacheId, result: Result<Discovered, CacheError>) {
        let ours = self.parts.transfers.store().dir().as_str();
        let cache = &mut self.parts.caches[id];
        let result = match result {
            Ok(found) => {
                cache.upstream_keys().set(found.config.upstream_cache_key_names.unwrap_or_default());
                detail!(cache = cache.name(), endpoint = found.endpoint, "the cache answers");
                if let Some(theirs) = found.config.store_dir.filter(|dir| dir != ours) {
                    event!(
                        CACHE_FOREIGN,
                        cache = cache.name(),
                        theirs = theirs,
                        ours = ours,
                        "cache {} is for the store directory {theirs}, this host has {ours}: Nix cannot use what is pushed from here",
                        cache.name()
                    );
                }
                Ok(())
            }
            Err(error) => {
                cache.tally.trouble = Some(error.to_string());
                Err(failure_of(&error))
            }
        };
        self.step(Event::Probed(id, result));
    }

    /// The sessions that wait for a push.
    fn audience(&self, push: PushId) -> Audience {
        let sessions = self.flow.sessions_of(push).filter_map(|row| self.parts.sessions.get(row));
        Audience::new(sessions.map(|session| Listener {
            session: Some(session.id.clone()),
            label: session.label.clone(),
            log_paths: session.log_paths,
        }))
    }
}
