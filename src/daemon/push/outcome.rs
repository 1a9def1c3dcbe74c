//! What came of questions, uploads and probes, told to the decisions and to
//! the log; and what the decisions say of a path or a cache in the end.

use std::sync::Arc;
use std::time::Duration;

use crate::cache::{CacheError, Discovered};
use crate::daemon::driver::Driver;
use crate::daemon::inbox::Sent;
use crate::daemon::push::settle;
use crate::daemon::sessions::session::Sessions;
use crate::flow::{BreakerState, Cause, Event, Failure, Flow};
use crate::observe::{detail, event};
use crate::types::{CacheId, PushId};

impl Driver {
    pub(in crate::daemon) fn asked(
        &mut self,
        cache: CacheId,
        pushes: Vec<PushId>,
        result: Result<Vec<PushId>, CacheError>,
        took: Duration,
    ) {
        match result {
            Ok(missing) => {
                self.step(Event::RoundTrip(cache, took));
                let absent: std::collections::HashSet<_> = missing.iter().copied().collect();
                let present = pushes.into_iter().filter(|t| !absent.contains(t)).collect();
                self.step(Event::Asked { cache, present, missing });
            }
            Err(error) => {
                self.trouble(cache, &error.to_string());
                let reason = Arc::new((error.class.as_str().to_owned(), error.to_string()));
                for push in &pushes {
                    if let Some(ware) = self.wares.get_mut(push) {
                        ware.error = Some(Arc::clone(&reason));
                    }
                }
                self.step(Event::AskFailed { cache, failure: settle::failure(&error) });
            }
        }
    }

    pub(in crate::daemon) fn uploaded(&mut self, push: PushId, result: Sent, took: Duration) {
        let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        let Some(ware) = self.wares.get_mut(&push) else { return };
        let cache = ware.cache;
        let name = &self.caches[usize::from(cache.0)];
        let full = || self.transfers.store_dir.full(&ware.path);
        let event = match result {
            Sent::Done(uploaded, size) => {
                self.counts[usize::from(cache.0)].bytes += size;
                if tracing::enabled!(tracing::Level::DEBUG) {
                    for (session, label) in story(&self.flow, &self.sessions, push) {
                        event!(
                            PATH_PUSHED,
                            session = session,
                            label = label,
                            cache = name,
                            store_path = full(),
                            nar_size = size,
                            duration_ms = took_ms,
                            attempt = ware.attempts,
                            deduplicated = uploaded.deduplicated,
                            "pushed"
                        );
                    }
                }
                Event::Uploaded(push, took)
            }
            Sent::Upstream => Event::InUpstream(push),
            Sent::Collected => Event::Collected(push),
            Sent::Unreadable(reason) => {
                // About the database, not about this path: it waits its turn again.
                event!(
                    PATH_UNREADABLE,
                    cache = name,
                    store_path = full(),
                    attempt = ware.attempts,
                    error = reason,
                    "the Nix database cannot be read; trying again"
                );
                Event::UploadFailed(push, Failure::Store)
            }
            Sent::Engine(reason) => {
                event!(
                    UPLOAD_UNDONE,
                    cache = name,
                    store_path = full(),
                    attempt = ware.attempts,
                    error = reason,
                    "the attic client has not done its work; trying again"
                );
                ware.error = Some(Arc::new(("engine".to_owned(), reason)));
                Event::UploadFailed(push, Failure::Engine)
            }
            Sent::Failed(error, size) => {
                self.counts[usize::from(cache.0)].failures += 1;
                let text = error.to_string();
                for (session, label) in story(&self.flow, &self.sessions, push) {
                    event!(
                        UPLOAD_FAILED,
                        session = session,
                        label = label,
                        cache = name,
                        store_path = full(),
                        nar_size = size,
                        attempt = ware.attempts,
                        duration_ms = took_ms,
                        error_class = error.class.as_str(),
                        error = text,
                        "an upload failed"
                    );
                }
                ware.error = Some(Arc::new((error.class.as_str().to_owned(), text.clone())));
                let failure = settle::failure(&error);
                self.trouble(cache, &text);
                Event::UploadFailed(push, failure)
            }
        };
        self.step(event);
    }

    pub(in crate::daemon) fn trouble(&mut self, cache: CacheId, text: &str) {
        self.troubles[usize::from(cache.0)] = Some(text.to_owned());
    }

    pub(in crate::daemon) fn parked(&mut self, push: PushId, cause: Cause) {
        let reference = match cause {
            Cause::Reference(reference) => self.wares.get(&reference).map(|w| w.path.to_string()),
            Cause::Failed(_) | Cause::Earlier => None,
        };
        let Some(ware) = self.wares.get_mut(&push) else { return };
        if let Cause::Reference(_) = cause {
            let reference = reference.unwrap_or_default();
            let text = format!("its reference {reference} could not be pushed");
            ware.error = Some(Arc::new(("reference".to_owned(), text)));
        }
        if let (Cause::Failed(Failure::Mismatch), Some((class, text))) = (cause, ware.error.as_deref()) {
            let full = self.transfers.store_dir.full(&ware.path);
            let text = format!(
                "the local store is damaged: {full} is no longer what Nix registered, read twice; \
                 `nix-store --verify-path {full}` shows it, `nix-store --repair-path {full}` may mend it ({text})"
            );
            ware.error = Some(Arc::new((class.clone(), text)));
        }
        self.counts[usize::from(ware.cache.0)].failed += 1;
        let unknown = || ("unknown".to_owned(), "no reason was recorded".to_owned());
        let (class, text) = ware.error.as_deref().cloned().unwrap_or_else(unknown);
        for (session, label) in story(&self.flow, &self.sessions, push) {
            event!(
                PATH_FAILED,
                session = session,
                label = label,
                cache = self.caches[usize::from(ware.cache.0)],
                store_path = self.transfers.store_dir.full(&ware.path),
                attempt = ware.attempts,
                error_class = class,
                error = text,
                "not pushed"
            );
        }
        self.ledger.settle(push, settle::parked(&class, text, ware.attempts));
        self.gc_roots.park(ware.cache.0, ware.path.clone());
    }

    pub(in crate::daemon) fn gate(&mut self, cache: CacheId, state: BreakerState) {
        let reason = self.troubles[usize::from(cache.0)].clone().unwrap_or_default();
        let name = self.caches[usize::from(cache.0)].clone();
        match state {
            BreakerState::Online => {
                self.troubles[usize::from(cache.0)] = None;
                event!(CACHE_ONLINE, cache = name, "the cache is back: uploads go on");
                self.client.cache_back();
            }
            BreakerState::Offline => {
                event!(
                    CACHE_OFFLINE,
                    cache = name,
                    error = reason,
                    "the cache does not answer: paths wait, nothing is lost"
                );
            }
            BreakerState::Refused => {
                event!(
                    CACHE_REFUSES,
                    cache = name,
                    error = reason,
                    "the cache refuses the token: paths wait until it is renewed"
                );
            }
        }
    }

    pub(in crate::daemon) fn probed(&mut self, cache: CacheId, result: Result<Discovered, CacheError>) {
        let ours = self.transfers.store_dir.as_str();
        let result = match result {
            Ok(found) => {
                let keys = found.config.upstream_cache_key_names.unwrap_or_default();
                self.upstream_keys.set_upstream(cache.0, keys);
                detail!(cache = self.name(cache), endpoint = found.endpoint, "the cache answers");
                if let Some(theirs) = found.config.store_dir.filter(|dir| dir != ours) {
                    event!(
                        CACHE_FOREIGN,
                        cache = self.name(cache),
                        theirs = theirs,
                        ours = ours,
                        "the cache is for another store directory: Nix cannot use what is pushed from here"
                    );
                }
                Ok(())
            }
            Err(error) => {
                self.trouble(cache, &error.to_string());
                Err(settle::failure(&error))
            }
        };
        self.step(Event::Probed(cache, result));
    }
}

/// Whose story an entry about a push belongs to: the id and label of each
/// session that waits for it, or once neither.
fn story<'a>(flow: &Flow, sessions: &'a Sessions, push: PushId) -> Vec<(Option<&'a str>, Option<&'a str>)> {
    let live = flow.sessions_of(push).iter().filter_map(|row| sessions.sessions.get(row));
    let mut story: Vec<_> = live.map(|live| (Some(live.id.as_str()), live.label.as_deref())).collect();
    if story.is_empty() {
        story.push((None, None));
    }
    story
}
