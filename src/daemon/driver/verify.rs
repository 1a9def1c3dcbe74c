//! Serves `verify`: which paths a caller may have verified, and in which caches they are
//! looked for. The ledger is read and the paths are fetched outside of the driver.

use std::time::Duration;

use super::Driver;
use super::requests::STOPPING;
use crate::control::messages::{ErrorCode, Progress, Reply, VerifyScope};
use crate::control::server::{Peer, Responder};
use crate::daemon::caches::pull_token;
use crate::daemon::sessions::{Reports, Sight};
use crate::daemon::verify::{self, Source, Target};
use crate::ledger::{LedgerError, Outcome, PushState};
use crate::types::{CacheId, StoreDir, StorePath};

/// The longest verification.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The longest verification of an ordinary user.
const LONGEST_OF_USERS: Duration = Duration::from_secs(15 * 60);
/// Most paths of a session that are verified.
const OF_SESSION: usize = 10_000;

/// What the driver knows when a verification begins.
struct Question {
    scope: VerifyScope,
    sources: Vec<Source>,
    /// The cache that the caller named.
    named: Option<usize>,
    default: usize,
    store_dir: StoreDir,
}

impl Driver {
    pub(super) fn verify(
        &self,
        peer: Peer,
        scope: VerifyScope,
        cache: Option<&str>,
        timeout_ms: u64,
        responder: Responder,
    ) {
        if self.stopping.has_begun() {
            return responder.refuse(ErrorCode::Draining, STOPPING);
        }
        let named = match self.named_cache(cache) {
            Ok(named) => named.map(CacheId::index),
            Err(message) => return responder.refuse(ErrorCode::NotFound, message),
        };
        let trusted = self.parts.reports.may_see_all(peer.uid);
        let Some(place) = self.verifier.begin(trusted) else {
            let message = "another verification runs: ask again when it has ended";
            return responder.refuse(ErrorCode::Busy, message);
        };
        let (settings, built_in) = (&self.parts.settings, self.parts.built_in.as_ref());
        let source = |cache: &crate::daemon::caches::Cache| Source {
            name: cache.name().to_owned(),
            client: cache.client().clone(),
            pull: settings
                .caches
                .get(cache.name())
                .map(|known| pull_token(known, settings, built_in))
                .unwrap_or_default(),
            upstream_keys: cache.upstream_keys().clone(),
            upstream_check: cache.connection().upstream_check().clone(),
        };
        let store = self.parts.transfers.store().clone();
        let question = Question {
            scope,
            sources: self.parts.caches.iter().map(source).collect(),
            named,
            default: self.default_cache().index(),
            store_dir: store.dir().clone(),
        };
        let (reports, admins) = (self.parts.reports.clone(), settings.admins.clone());
        let verifier = self.verifier.clone();
        let longest = if trusted { LONGEST } else { LONGEST_OF_USERS };
        let limit = Duration::from_millis(timeout_ms).min(longest);
        let blocking = self.parts.blocking.clone();
        tokio::spawn(async move {
            let work = async {
                let targets = blocking.run(move || {
                    let sight = reports.sight(peer, admins.as_deref());
                    question.targets(&reports, sight).map(|targets| (targets, question.sources))
                });
                let (targets, sources) = match targets.await {
                    Ok(targets) => targets?,
                    Err(error) => return Err((ErrorCode::Internal, error.to_string())),
                };
                let progress = |settled, total| {
                    responder.progress(Progress { settled, total, ..Progress::default() });
                };
                Ok(verify::run(&verifier, &store, &sources, targets, limit, progress).await)
            };
            let done = tokio::select! {
                done = work => done,
                // Nobody would hear the answer.
                () = responder.gone() => return,
            };
            drop(place);
            match done {
                Ok(report) => responder.reply(Reply::Verified(report)),
                Err((code, message)) => responder.refuse(code, message),
            }
        });
    }
}

type Refused = (ErrorCode, String);

impl Question {
    /// The paths, each with the caches to look in. Blocks on the ledger.
    fn targets(&self, reports: &Reports, sight: Sight) -> Result<Vec<Target>, Refused> {
        let mut targets = match &self.scope {
            VerifyScope::Paths(paths) => self.of_paths(reports, paths)?,
            VerifyScope::Session(id) => self.of_session(reports, sight, id)?,
            VerifyScope::Sample(count) => {
                if !matches!(sight, Sight::All) {
                    let message = "only root, the daemon's own user and the group `admins` may verify a sample \
                                   of all users' paths; name paths or a session of yours";
                    return Err((ErrorCode::Denied, message.to_owned()));
                }
                let sample = reports.ledger().sample(*count as usize).map_err(|e| internal(&e))?;
                sample.iter().filter_map(|(cache, path)| self.target(cache, path)).collect()
            }
        };
        if let Some(named) = self.named {
            targets.retain(|target| target.source == named);
        }
        Ok(targets)
    }

    fn target(&self, cache: &str, base: &str) -> Option<Target> {
        let source = self.sources.iter().position(|source| source.name == cache)?;
        Some(Target { source, path: StorePath::parse(base).ok()? })
    }

    /// Each path in the caches that have confirmed it; in the default cache when none has.
    fn of_paths(&self, reports: &Reports, paths: &[String]) -> Result<Vec<Target>, Refused> {
        let mut targets = Vec::new();
        for text in paths {
            let path = self.store_dir.parse(text);
            let path = path.map_err(|error| (ErrorCode::BadRequest, format!("{text}: {error}")))?;
            if let Some(source) = self.named {
                targets.push(Target { source, path });
                continue;
            }
            let history = reports.ledger().history_of(path.hash_part()).map_err(|e| internal(&e))?;
            let confirmed = |state| matches!(state, PushState::Pushed | PushState::Cached);
            let before = targets.len();
            for push in history.iter().map(|h| &h.push).filter(|push| confirmed(push.state)) {
                targets.extend(self.target(&push.cache, path.base()));
            }
            if targets.len() == before {
                targets.push(Target { source: self.default, path });
            }
        }
        Ok(targets)
    }

    fn of_session(&self, reports: &Reports, sight: Sight, id: &str) -> Result<Vec<Target>, Refused> {
        let info = reports.ledger().session(id).map_err(|e| internal(&e))?.ok_or_else(|| {
            let message = format!("there is no session {id:?} (`flywheelctl session list --all` shows them)");
            (ErrorCode::NotFound, message)
        })?;
        if !sight.sees(info.new.uid) {
            return Err((ErrorCode::Denied, "the session belongs to another user".to_owned()));
        }
        let pushes = reports.ledger().session_pushes(info.row, 0, OF_SESSION).map_err(|e| internal(&e))?;
        let in_cache =
            pushes.iter().filter(|p| matches!(p.outcome, Outcome::Pushed | Outcome::AlreadyCached));
        Ok(in_cache.filter_map(|push| self.target(&info.new.cache, &push.path)).collect())
    }
}

fn internal(error: &LedgerError) -> Refused {
    (ErrorCode::Internal, error.to_string())
}
