//! What callers can read about sessions: summaries, lists and details, read from the
//! ledger on threads that may block. Must not know what is left to push.

mod engines;
mod wording;

use std::collections::HashSet;
use std::time::Duration;

use crate::control::messages as m;
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::blocking::Blocking;
use crate::daemon::intake::People;
use crate::daemon::push::StoreReader;
use crate::ledger::{Ledger, LedgerError, Outcome, SessionInfo, Warnings};
use crate::observe::event;
use crate::types::{SessionId, StorePath, Wall, millis};

pub(in crate::daemon) use engines::Engines;
use wording::{detail, entry, internal, summary};
pub(in crate::daemon) use wording::{evidence_word, outcome_word};

/// Most paths that one `session show` or `status` lists.
pub(in crate::daemon) const PATHS_MOST: usize = m::MAX_ENTRIES as usize;

/// Reports from the ledger. Clones are the same.
#[derive(Clone)]
pub(in crate::daemon) struct Reports {
    ledger: Ledger,
    store: StoreReader,
    /// The daemon's own user, who may see every session, as root may.
    own_uid: u32,
    people: People,
    blocking: Blocking,
}

/// Paths of a session that are looked up in the Nix database at a time.
const PATHS_AT_A_TIME: usize = 1024;
/// How long a caller waits for the name service. Without an answer it is no admin.
const LOOK_UP: Duration = Duration::from_secs(2);

/// What a caller may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Sight {
    /// Everything.
    All,
    /// What belongs to this user.
    Own(u32),
}

impl Sight {
    /// The only user whose sessions the caller may see; `None` when it may see all.
    fn only(self) -> Option<u32> {
        match self {
            Self::All => None,
            Self::Own(uid) => Some(uid),
        }
    }

    /// Whether the caller may see what belongs to the user `owner`.
    pub(in crate::daemon) fn sees(self, owner: u32) -> bool {
        match self {
            Self::All => true,
            Self::Own(uid) => uid == owner,
        }
    }
}

/// An answer to a caller that waited for a session, or did not want to.
#[derive(Debug)]
pub(in crate::daemon) struct Answer {
    pub(in crate::daemon) row: SessionId,
    /// The caller asked for a `push`, not for a `session end`.
    pub(in crate::daemon) is_push: bool,
    /// The intake has not taken in yet what was named.
    pub(in crate::daemon) incomplete: bool,
    /// Something that it waited for is not settled: if its own paths are, the cache has not
    /// answered yet whether it has their closures.
    pub(in crate::daemon) unsettled: bool,
    /// How long the caller has waited.
    pub(in crate::daemon) waited: Duration,
    pub(in crate::daemon) warnings: Warnings,
}

impl Reports {
    pub(in crate::daemon) fn new(
        ledger: Ledger,
        store: StoreReader,
        own_uid: u32,
        people: People,
        blocking: Blocking,
    ) -> Self {
        Self { ledger, store, own_uid, people, blocking }
    }

    pub(in crate::daemon) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether the user `uid` may see and end the sessions of the user `owner`.
    pub(in crate::daemon) fn may_see(&self, uid: u32, owner: u32) -> bool {
        uid == owner || self.may_see_all(uid)
    }

    /// Whether the user is root or the daemon's own.
    pub(in crate::daemon) fn may_see_all(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }

    /// What a caller may see: everything for root, the daemon's own user and members of
    /// the group `admins`, else what is its own. Blocks while it looks up groups.
    pub(in crate::daemon) fn sight(&self, peer: Peer, admins: Option<&str>) -> Sight {
        let is_admin = || {
            admins.is_some_and(|group| {
                let person = self.people.who_is(peer.uid, peer.gid, LOOK_UP);
                person
                    .groups
                    .iter()
                    .any(|(number, name)| name.as_deref() == Some(group) || number.to_string() == group)
            })
        };
        if self.may_see_all(peer.uid) || is_admin() { Sight::All } else { Sight::Own(peer.uid) }
    }

    /// The summary of a session. Blocks.
    pub(super) fn ended(&self, engines: &Engines, info: &SessionInfo, warnings: Warnings) -> Reply {
        match self.ledger.summary(info.row) {
            Ok(counts) => {
                let without = self.without_realisation(engines, info);
                Reply::Ended(summary(self.store.dir(), engines, info, counts, without, warnings))
            }
            Err(error) => internal(&error),
        }
    }

    /// How many of a session's paths Nix does not find in the cache, for lack of
    /// realisations. Blocks. 0 when that cannot be read: it is a hint, and no reason to
    /// have no summary.
    fn without_realisation(&self, engines: &Engines, info: &SessionInfo) -> u64 {
        let (mut count, mut after) = (0, 0);
        if engines.keep_realisations(info) || !self.store.has_realisations() {
            return 0;
        }
        while let Ok(pushes) = self.ledger.session_pushes(info.row, after, PATHS_AT_A_TIME)
            && let Some(last) = pushes.last()
        {
            after = last.push;
            let there =
                pushes.iter().filter(|push| matches!(push.outcome, Outcome::Pushed | Outcome::AlreadyCached));
            let paths: Vec<StorePath> = there.filter_map(|push| StorePath::parse(&push.path).ok()).collect();
            count += self.store.count_realised(&paths);
        }
        count
    }

    /// Answers a caller with the summary of a session.
    pub(in crate::daemon) fn answer(&self, answer: Answer, engines: Engines, responder: Responder) {
        let this = self.clone();
        self.blocking.start(move || {
            let Answer { row, is_push, incomplete, unsettled, waited, warnings } = answer;
            let waited_ms = millis(waited);
            let reply = match this.ledger.session_by_row(row) {
                Ok(Some(mut info)) => {
                    // A session that is not closed has no duration of its flush yet.
                    info.flush_ms.get_or_insert(waited_ms);
                    this.ended(&engines, &info, warnings)
                }
                Ok(None) => Reply::Error {
                    code: ErrorCode::Internal,
                    message: "the session is not in the ledger any more".to_owned(),
                },
                Err(error) => internal(&error),
            };
            responder.reply(match reply {
                Reply::Ended(mut summary) => {
                    if incomplete || (unsettled && summary.outcome == m::Outcome::Complete) {
                        summary.outcome = m::Outcome::Pending;
                    }
                    if is_push {
                        summary.session = None;
                        summary.flush_ms = waited_ms;
                        Reply::Pushed(summary)
                    } else {
                        Reply::Ended(summary)
                    }
                }
                other => other,
            });
        });
    }

    /// Logs the summary of a session that was closed.
    pub(in crate::daemon) fn log_summary(&self, row: SessionId, session: String, label: Option<String>) {
        let ledger = self.ledger.clone();
        let read = move || Ok((ledger.session_by_row(row)?, ledger.summary(row)?));
        self.blocking.start(move || match read() {
            Ok((info, c)) => event!(
                SESSION_SUMMARY,
                session = session,
                label = label,
                cache = info.as_ref().map(|info| info.new.cache.as_str()),
                pushed = c.pushed,
                already_cached = c.already_cached,
                upstream = c.upstream,
                failed = c.failed_total,
                skipped = c.skipped,
                collected = c.collected,
                bytes = c.bytes,
                duration_ms = info
                    .as_ref()
                    .map(|info| info.ended_at.unwrap_or_else(|| Wall::now().0) - info.new.started_at),
                "watch-store pushed {} store paths incrementally for session {session}{} to cache {}: \
                 {} already cached, {} in upstream, {} failed, {} skipped, {} collected",
                c.pushed,
                label.as_deref().map(|label| format!(" ({label})")).unwrap_or_default(),
                info.as_ref().map_or("?", |info| info.new.cache.as_str()),
                c.already_cached,
                c.upstream,
                c.failed_total,
                c.skipped,
                c.collected
            ),
            Err::<_, LedgerError>(error) => event!(
                SESSION_UNREADABLE,
                session = session,
                label = label,
                error = %error,
                "session {session} has closed, and its summary cannot be read: {error}"
            ),
        });
    }

    /// Answers `session list`: with the caller's own sessions, or with everybody's if
    /// the caller may see them. `all`: closed ones too.
    pub(in crate::daemon) fn list(
        &self,
        peer: Peer,
        admins: Option<String>,
        all: bool,
        responder: Responder,
    ) {
        let this = self.clone();
        self.blocking.start(move || {
            let sight = this.sight(peer, admins.as_deref());
            let reply = this.entries(all, sight);
            responder.reply(reply.map_or_else(|e| internal(&e), Reply::Sessions));
        });
    }

    /// One entry for each session that the caller may see, as far as the ledger's bounds
    /// allow. Blocks.
    pub(in crate::daemon) fn entries(
        &self,
        all: bool,
        sight: Sight,
    ) -> Result<Vec<m::SessionEntry>, LedgerError> {
        Ok(self.ledger.list_sessions(all, sight.only())?.iter().map(entry).collect())
    }

    /// How many sessions of all users are open, and how many are draining. Blocks.
    pub(in crate::daemon) fn session_counts(&self) -> Result<m::SessionCounts, LedgerError> {
        let (open, draining) = self.ledger.live_session_counts()?;
        Ok(m::SessionCounts { open, draining })
    }

    /// The failed paths of a user's open and draining sessions, at most [`PATHS_MOST`].
    /// Blocks.
    pub(in crate::daemon) fn failed_of(&self, uid: u32) -> Result<Vec<m::Failed>, LedgerError> {
        let mut all: Vec<m::Failed> = Vec::new();
        let mut known = HashSet::new();
        for session in self.ledger.list_sessions(false, Some(uid))?.iter().filter(|s| s.failed > 0) {
            for failure in self.ledger.session_failures(session.info.row)? {
                let path = format!("{}/{}", self.store.dir().as_str(), failure.path);
                if all.len() < PATHS_MOST && known.insert(path.clone()) {
                    all.push(m::Failed { path, error: failure.error, class: Some(failure.class) });
                }
            }
        }
        Ok(all)
    }

    /// Answers `session show`.
    pub(in crate::daemon) fn show(
        &self,
        peer: Peer,
        admins: Option<String>,
        id: String,
        engines: Engines,
        responder: Responder,
    ) {
        let this = self.clone();
        self.blocking.start(move || {
            let sight = this.sight(peer, admins.as_deref());
            let reply = match this.ledger.session(&id) {
                Ok(Some(info)) if sight.sees(info.new.uid) => {
                    let without = this.without_realisation(&engines, &info);
                    let user = this.people.who_is(info.new.uid, info.new.gid, LOOK_UP).name.clone();
                    detail(&this.ledger, this.store.dir(), &engines, &info, without, user)
                        .unwrap_or_else(|e| internal(&e))
                }
                Ok(Some(_)) => Reply::Error {
                    code: ErrorCode::Denied,
                    message: "the session belongs to another user".to_owned(),
                },
                Ok(None) => Reply::Error {
                    code: ErrorCode::NotFound,
                    message: format!(
                        "there is no session {id:?} (`flywheelctl session list --all` shows them)"
                    ),
                },
                Err(error) => internal(&error),
            };
            responder.reply(reply);
        });
    }
}
