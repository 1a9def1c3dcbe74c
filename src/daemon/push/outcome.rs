//! What came of questions and uploads: what it means for the decisions, what the
//! log says of it, and how a settled or failed push is recorded.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::log_groups::{Occurrence, Trouble};
use super::pushes::{PushError, Pushes, Recorded};
use super::records;
use crate::cache::{CacheError, ErrorClass};
use crate::control::messages::PathCounts;
use crate::daemon::inbox::UploadEnd;
use crate::flow::{Cause, Event, Failure, Outcome};
use crate::observe::event;
use crate::types::{Mono, PushId, SessionId, Wall, millis};

/// What has become of the pushes to one cache since the daemon started.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Tally {
    pub(in crate::daemon) counts: PathCounts,
    /// The last error, until the cache is online again.
    pub(in crate::daemon) trouble: Option<String>,
    /// Since when the cache takes no uploads. `None`: it takes them.
    pub(in crate::daemon) away_since: Option<Instant>,
}

/// A session that waits for a push, for the log.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Listener {
    /// Its id. `None`: no session waits.
    pub(in crate::daemon) session: Option<String>,
    pub(in crate::daemon) label: Option<String>,
    /// It wants each pushed path in the journal.
    pub(in crate::daemon) log_paths: bool,
}

/// The sessions that wait for a push, for the log.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Audience(Vec<Listener>);

impl Audience {
    /// These sessions. Without any, a message is logged once, without a session.
    pub(in crate::daemon) fn new(sessions: impl Iterator<Item = Listener>) -> Self {
        let mut all: Vec<_> = sessions.collect();
        if all.is_empty() {
            all.push(Listener::default());
        }
        Self(all)
    }

    #[cfg(test)]
    pub(super) fn of(session: &str) -> Self {
        Self(vec![Listener { session: Some(session.to_owned()), ..Listener::default() }])
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Listener> {
        self.0.iter()
    }
}

/// When an upload ran, and since when what came of it is known.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon) struct Times {
    pub(in crate::daemon) took: Duration,
    /// The time as of which the path is in an upstream cache, if it is.
    pub(in crate::daemon) true_at: Mono,
}

/// How long ago that was, in ms; 0 when it is not known.
fn millis_since(at: i64) -> u64 {
    if at > 0 { u64::try_from(Wall::now().0 - at).unwrap_or(0) } else { 0 }
}

/// What an error of a cache means for the decisions.
pub(in crate::daemon) fn failure_of(error: &CacheError) -> Failure {
    match error.class {
        ErrorClass::Unreachable => Failure::Unreachable,
        ErrorClass::Transient => Failure::Transient { retry_after: error.retry_after },
        ErrorClass::NoVerdict => Failure::NoVerdict,
        ErrorClass::Unauthorized | ErrorClass::Forbidden => Failure::Refused,
        ErrorClass::NoSuchCache => Failure::NoSuchCache,
        ErrorClass::Mismatch => Failure::Mismatch,
        ErrorClass::TooLarge => Failure::TooLarge,
        ErrorClass::Rejected => Failure::Rejected,
        ErrorClass::Local => Failure::Local,
    }
}

impl Pushes {
    /// Notes that a question about these pushes failed.
    pub(in crate::daemon) fn ask_failed(&mut self, pushes: &[PushId], error: &CacheError, tally: &mut Tally) {
        tally.trouble = Some(error.to_string());
        let reason = Arc::new(PushError::new(error.class.as_str(), error.to_string()));
        for push in pushes {
            if let Some(push) = self.by_id.get_mut(push) {
                push.set_error(Arc::clone(&reason));
            }
        }
    }

    /// Notes how an upload ended, and returns what that is for the decisions.
    /// `None`: the push is not known any more. `name`: the cache's name.
    pub(in crate::daemon) fn uploaded(
        &mut self,
        id: PushId,
        result: UploadEnd,
        Times { took, true_at }: Times,
        name: &str,
        tally: &mut Tally,
        audience: &Audience,
    ) -> Option<Event> {
        let push = self.by_id.get_mut(&id)?;
        let full = || self.store_dir.full(&push.path);
        let took_ms = millis(took);
        let now = Instant::now();
        let occurrence = |trouble, error| Occurrence {
            trouble,
            cache: name,
            path: full(),
            class: "",
            error,
            attempt: push.attempts(),
            nar_size: None,
            took: None,
        };
        Some(match result {
            UploadEnd::Confirmed(uploaded, size) => {
                tally.counts.bytes += size;
                let queued_ms = millis_since(push.seen_at).saturating_sub(took_ms);
                for listener in audience.iter() {
                    if listener.log_paths {
                        event!(
                            PATH_LOGGED,
                            session = listener.session.as_deref(),
                            label = listener.label.as_deref(),
                            cache = name,
                            store_path = full(),
                            nar_size = size,
                            queued_ms = queued_ms,
                            duration_ms = took_ms,
                            attempt = push.attempts(),
                            deduplicated = uploaded.deduplicated,
                            "pushed {} to cache {name} for session {} ({size} bytes of NAR, {queued_ms} ms waiting, \
                             {took_ms} ms uploading, attempt {})",
                            full(),
                            listener.session.as_deref().unwrap_or_default(),
                            push.attempts()
                        );
                    } else if tracing::enabled!(tracing::Level::DEBUG) {
                        event!(
                            PATH_PUSHED,
                            session = listener.session.as_deref(),
                            label = listener.label.as_deref(),
                            cache = name,
                            store_path = full(),
                            nar_size = size,
                            duration_ms = took_ms,
                            attempt = push.attempts(),
                            deduplicated = uploaded.deduplicated,
                            "pushed {} to cache {name} ({size} bytes of NAR, {took_ms} ms)",
                            full()
                        );
                    }
                }
                Event::Uploaded(id, took)
            }
            UploadEnd::InUpstream(answer) => {
                push.set_upstream(answer.map(|answer| answer.upstream));
                Event::InUpstream(id, true_at)
            }
            UploadEnd::Arrived => Event::Arrived(id),
            UploadEnd::Collected => Event::Collected(id),
            UploadEnd::Unreadable(reason) => {
                self.log.add(&occurrence(Trouble::Unreadable, &reason), audience, now);
                Event::UploadFailed(id, Failure::Store)
            }
            UploadEnd::Engine(reason) => {
                self.log.add(&occurrence(Trouble::Engine, &reason), audience, now);
                push.set_error(Arc::new(PushError::new("engine", reason)));
                Event::UploadFailed(id, Failure::Engine)
            }
            UploadEnd::Failed(error, size) => {
                tally.counts.failures += 1;
                let text = error.to_string();
                let class = error.class.as_str();
                let occurrence = Occurrence {
                    class,
                    nar_size: Some(size),
                    took: Some(took),
                    ..occurrence(Trouble::Upload, &text)
                };
                self.log.add(&occurrence, audience, now);
                push.set_error(Arc::new(PushError::new(error.class.as_str(), text.clone())));
                tally.trouble = Some(text);
                Event::UploadFailed(id, failure_of(&error))
            }
        })
    }

    /// Records that a push is settled, and forgets it. Returns its age, unless the ledger
    /// had it as settled before.
    pub(in crate::daemon) fn settle(
        &mut self,
        id: PushId,
        outcome: Outcome,
        name: &str,
        tally: &mut Tally,
        audience: &Audience,
    ) -> Option<Duration> {
        let push = self.by_id.get(&id)?;
        let is_recheck = push.is_recheck();
        if !is_recheck {
            // Before the intake learns that it is settled. Of a recheck the ledger says so already.
            self.ledger.settle(id, records::settled(outcome, push.upstream(), push.attempts(), push.steps()));
        }
        let push = self.take(id, Some(outcome))?;
        if push.protected {
            self.gc_roots.release(push.cache.0, push.path.clone());
        }
        if is_recheck {
            return None;
        }
        self.gc_roots.forget_failed(push.cache.0, push.path.clone());
        if outcome == Outcome::Collected {
            let occurrence = Occurrence {
                trouble: Trouble::Collected,
                cache: name,
                path: self.store_dir.full(&push.path),
                class: "",
                error: "",
                attempt: push.attempts(),
                nar_size: None,
                took: None,
            };
            self.log.add(&occurrence, audience, Instant::now());
        }
        if outcome == Outcome::Upstream && push.recorded != Recorded::Never {
            // It was counted then.
            return None;
        }
        let counts = &mut tally.counts;
        *match outcome {
            Outcome::Pushed => &mut counts.pushed,
            Outcome::Cached => &mut counts.already_cached,
            Outcome::Upstream => &mut counts.upstream,
            Outcome::Collected => &mut counts.collected,
        } += 1;
        (push.seen_at > 0).then(|| Duration::from_millis(millis_since(push.seen_at)))
    }

    /// Logs what is due.
    pub(in crate::daemon) fn log_due(&mut self, now: Instant) {
        self.log.log_due(now);
    }

    /// When the next log entry is due.
    pub(in crate::daemon) fn next_log(&self) -> Option<Instant> {
        self.log.next_due()
    }

    /// Logs what is held back about the paths of a session.
    pub(in crate::daemon) fn log_session(&mut self, session: &str) {
        self.log.log_session(session, Instant::now());
    }

    /// Logs everything that is held back.
    pub(in crate::daemon) fn log_all(&mut self) {
        self.log.log_all(Instant::now());
    }

    /// Records that a push has failed, and for which sessions, which may need it without
    /// having it. It stays known, so that it can be retried.
    pub(in crate::daemon) fn fail(
        &mut self,
        id: PushId,
        cause: Cause,
        name: &str,
        tally: &mut Tally,
        (audience, sessions): (&Audience, Vec<SessionId>),
    ) {
        let reference = match cause {
            Cause::Reference(reference) => self.by_id.get(&reference).map(|p| p.path.to_string()),
            Cause::Failed(_) | Cause::Earlier | Cause::Outdated => None,
        };
        let Some(push) = self.by_id.get_mut(&id) else { return };
        let full = self.store_dir.full(&push.path);
        let error = match (cause, push.error()) {
            (Cause::Reference(_), _) => {
                let reference = reference.unwrap_or_default();
                PushError::new("reference", format!("its reference {reference} has failed"))
            }
            (Cause::Failed(Failure::Mismatch), Some(PushError { class, text })) => {
                let text = format!(
                    "the local store is damaged, because the path is no longer what Nix registered, read twice \
                     ({text}); `nix-store --verify-path {full}` shows it, `nix-store --repair-path {full}` may mend it"
                );
                PushError::new(class, text)
            }
            (Cause::Failed(Failure::NoVerdict), Some(PushError { class, text })) => {
                // The text of the last try says which limits to look at.
                PushError::new(class, format!("not in the cache after several tries; {text}"))
            }
            (Cause::Outdated, _) => {
                let text = "each time before its upload could begin the confirmations of its references had become \
                            too old, or the cache had deleted one: it deletes faster than it can be filled, or \
                            [push] recheck_after is too short";
                PushError::new("outdated", text)
            }
            (Cause::Failed(_) | Cause::Earlier, Some(error)) => error.clone(),
            (Cause::Failed(_) | Cause::Earlier, None) => PushError::new("unknown", "no reason was recorded"),
        };
        let error = Arc::new(error);
        if push.error().is_some() || matches!(cause, Cause::Reference(_) | Cause::Outdated) {
            push.set_error(Arc::clone(&error));
        }
        tally.counts.failed += 1;
        let occurrence = Occurrence {
            trouble: Trouble::Failed,
            cache: name,
            path: full,
            class: &error.class,
            error: &error.text,
            attempt: push.attempts(),
            nar_size: None,
            took: None,
        };
        self.log.add(&occurrence, audience, Instant::now());
        self.record_failed(id, &error);
        if !sessions.is_empty() {
            self.ledger.failed_for(id, sessions);
        }
    }
}
