//! The answer to `why`: what happened to a path, and what it waits for now. It joins
//! what the ledger and the Nix database have with the present state of the caches.

use std::collections::HashMap;
use std::sync::Arc;

use super::Driver;
use crate::control::messages::{ErrorCode, PathStory, PushStory, Reply, SessionRef};
use crate::control::server::{Peer, Responder};
use crate::daemon::intake::{UNKNOWN, left_out_by};
use crate::daemon::push::UPSTREAM;
use crate::daemon::sessions::{Sight, evidence_word, outcome_word};
use crate::ledger::{LedgerError, PushHistory, PushState};
use crate::store::PathInfo;
use crate::types::{PathHash, StoreDir, StorePath};

/// What a caller names.
enum Asked {
    Path(StorePath),
    Hash(PathHash),
}

impl Asked {
    fn parse(text: &str, store_dir: &StoreDir) -> Result<Self, String> {
        match PathHash::parse(text) {
            Ok(hash) => Ok(Self::Hash(hash)),
            Err(_) => store_dir.parse(text).map(Self::Path).map_err(|error| format!("{text}: {error}")),
        }
    }

    fn hash(&self) -> &str {
        match self {
            Self::Path(path) => path.hash_part(),
            Self::Hash(hash) => hash.as_str(),
        }
    }
}

impl Driver {
    /// Serves `why`.
    pub(super) fn why(&self, peer: Peer, paths: &[String], responder: Responder) {
        let store = self.parts.transfers.store().clone();
        let asked: Result<Vec<Asked>, String> = paths.iter().map(|p| Asked::parse(p, store.dir())).collect();
        let asked = match asked {
            Ok(asked) => asked,
            Err(message) => return responder.refuse(ErrorCode::BadRequest, message),
        };
        // What keeps the pushes to each cache from going on, as of now.
        let caches = self.parts.caches.ids();
        let held: HashMap<String, String> = caches
            .filter_map(|id| {
                let why = self.away(id).or_else(|| self.waits_for_client(id))?;
                Some((self.name(id).to_owned(), why))
            })
            .collect();
        let stuck = self.parts.intake.stuck().map(str::to_owned);
        let (reports, admins) = (self.parts.reports.clone(), self.parts.settings.admins.clone());
        let blocking = self.parts.blocking.clone();
        let settings = Arc::clone(&self.parts.settings);
        tokio::spawn(async move {
            let mut stories = Vec::new();
            for asked in asked {
                let (ledger, hash) = (reports.ledger().clone(), asked.hash().to_owned());
                let read = move || Ok((ledger.history_of(&hash)?, ledger.undecided_user(&hash)?));
                let (history, waits) = match blocking.run(read).await {
                    Ok(Ok(read)) => read,
                    Ok(Err(error)) => {
                        let error: LedgerError = error;
                        return responder.refuse(ErrorCode::Internal, error.to_string());
                    }
                    Err(error) => return responder.refuse(ErrorCode::Internal, error.to_string()),
                };
                let path = match &asked {
                    Asked::Path(path) => Some(path.clone()),
                    Asked::Hash(_) => history.first().and_then(|h| StorePath::parse(&h.push.path).ok()),
                };
                let info = match &path {
                    Some(path) => store.infos(vec![path.clone()]).await.pop(),
                    None => None,
                };
                let full = path.map_or_else(|| asked.hash().to_owned(), |path| store.dir().full(&path));
                let filter = &settings.push.filter;
                let left_out_by = match &info {
                    Some(Ok(Some(info))) => match left_out_by(filter, info) {
                        None if filter.substitutable_only && !store.is_substitutable(info.clone()).await => {
                            Some(LOCAL)
                        }
                        key => key,
                    },
                    _ => None,
                };
                stories.push(Known { full, info, history, waits, left_out_by });
            }
            let sight = blocking.run(move || reports.sight(peer, admins.as_deref())).await;
            let sight = sight.unwrap_or(Sight::Own(peer.uid));
            let stories = stories.into_iter().map(|known| known.story(sight, &held, stuck.as_deref()));
            responder.reply(Reply::Why(stories.collect()));
        });
    }
}

/// What is known of one path.
struct Known {
    full: String,
    /// What the Nix database has; an error when it cannot be read.
    info: Option<Result<Option<PathInfo>, String>>,
    history: Vec<PushHistory>,
    /// The user whose path waits for a route, or [`UNKNOWN`].
    waits: Option<(u32, u32)>,
    /// The key of the filter that leaves it out.
    left_out_by: Option<&'static str>,
}

impl Known {
    fn story(self, sight: Sight, held: &HashMap<String, String>, stuck: Option<&str>) -> PathStory {
        let valid = match &self.info {
            Some(Ok(info)) => Some(info.is_some()),
            Some(Err(_)) => None,
            None => Some(false),
        };
        let in_database = self.info.and_then(Result::ok).flatten().map(|info| info.nar_size);
        let mut story = PathStory {
            path: self.full,
            valid,
            nar_size: in_database.or_else(|| self.history.first().map(|h| h.push.nar_size)),
            ..PathStory::default()
        };
        let mut hidden = std::collections::BTreeSet::new();
        let known = |at: i64| (at > 0).then_some(at);
        for PushHistory { push, valid_at, steps, sessions, route } in self.history {
            let visible = sessions.is_empty() || sessions.iter().any(|s| sight.sees(s.uid));
            for share in sessions {
                if !sight.sees(share.uid) {
                    hidden.insert(share.row);
                } else if story.sessions.iter().all(|known| known.session != share.id) {
                    story.sessions.push(SessionRef {
                        session: share.id,
                        label: share.label,
                        uid: share.uid,
                        evidence: evidence_word(share.evidence).to_owned(),
                        outcome: outcome_word(share.outcome).to_owned(),
                        cache: share.cache,
                        route: share.route,
                    });
                }
            }
            let (upstream, error, class) = match push.error_class {
                Some(class) if class == UPSTREAM => (push.error, None, None),
                class => (None, push.error, class),
            };
            // Reasons are for the users whose sessions the path belongs to.
            let (error, class) = if visible { (error, class) } else { (None, None) };
            let next = match (push.state, upstream) {
                (PushState::Upstream, upstream) => Some(in_upstream(&push.cache, upstream)),
                (state, _) => next(state, &push.cache, &story.path, error.is_some(), self.left_out_by, held),
            };
            story.pushes.push(PushStory {
                next,
                cache: push.cache,
                state: push.state.word().to_owned(),
                attempts: push.attempts,
                error,
                class,
                valid_at: known(valid_at),
                seen_at: known(push.seen_at),
                asked_at: known(steps.asked_at),
                begun_at: known(steps.begun_at),
                settled_at: known(push.settled_at),
                route,
            });
        }
        story.hidden_sessions = hidden.len() as u64;
        let waits = self.waits.filter(|(uid, _)| sight.sees(*uid));
        story.summary = summary(&story, waits, stuck, self.left_out_by);
        story
    }
}

/// Why a path that an upstream cache has is not pushed. `upstream`: the URL of the one that
/// has answered so.
fn in_upstream(cache: &str, upstream: Option<String>) -> String {
    match upstream {
        Some(url) => format!(
            "it is not pushed, because the upstream cache {url} has it with the same content ([caches.{cache}] \
             upstream_check)"
        ),
        None => format!("it is not pushed, because an upstream cache of {cache} has it, by its signature"),
    }
}

/// What a push waits for, or what makes it go on.
fn next(
    state: PushState,
    cache: &str,
    path: &str,
    has_error: bool,
    left_out_by: Option<&str>,
    held: &HashMap<String, String>,
) -> Option<String> {
    match state {
        PushState::Pending => Some(match (held.get(cache), has_error) {
            (Some(why), _) => format!("it waits: {why}"),
            (None, true) => "it is retried after the error above".to_owned(),
            (None, false) => "it waits for its turn, and for the paths it refers to".to_owned(),
        }),
        PushState::Uploading => {
            Some(held.get(cache).map_or("its upload runs".to_owned(), |why| format!("it waits: {why}")))
        }
        PushState::Failed => Some(format!(
            "remove the cause, then `flywheelctl push {path}` tries it again (`flywheelctl reload`: all)"
        )),
        PushState::Skipped if cache.is_empty() => Some(
            "a user whom the route is not for can push it, or the administrator can change the route"
                .to_owned(),
        ),
        PushState::Skipped => Some(match left_out_by {
            Some(key) => {
                format!("{}; `flywheelctl push {path}` pushes it anyway", left_out(key))
            }
            None => format!(
                "the filter of that time left it out, and today's does not; `flywheelctl push {path}` pushes it"
            ),
        }),
        PushState::Collected => Some("it is pushed when it is built again".to_owned()),
        PushState::Pushed | PushState::Cached | PushState::Upstream => None,
    }
}

fn summary(
    story: &PathStory,
    waits: Option<(u32, u32)>,
    stuck: Option<&str>,
    left_out_by: Option<&str>,
) -> String {
    if !story.pushes.is_empty() {
        return match story.valid {
            Some(true) => "the path is valid in the store".to_owned(),
            Some(false) => "the path is not in the store any more".to_owned(),
            None => "the Nix database cannot be read now".to_owned(),
        };
    }
    match (story.valid, waits) {
        (Some(true), Some(UNKNOWN)) => {
            return format!(
                "the path is valid, and nobody was seen to make it: it waits until a session names it (`flywheelctl push \
                 {}` does), or a [[route]] with maker = \"unknown\" says where it goes",
                story.path
            );
        }
        (Some(true), Some((uid, _))) => {
            return format!(
                "the path is valid, and it waits until the name service says who user {uid} is, and so which [[route]] \
                 is for it"
            );
        }
        _ => {}
    }
    match (story.valid, stuck, left_out_by) {
        (Some(true), Some(why), _) => {
            format!("the path is valid, and flywheeld has not taken it in yet: {why}")
        }
        (Some(true), None, Some(key)) => format!(
            "the path is valid, and flywheeld has no push for it: {}; `flywheelctl push {}` pushes it anyway",
            left_out(key),
            story.path
        ),
        (Some(true), None, None) => format!(
            "the path is valid, and flywheeld has no push for it: it was valid before the first start (see [push] \
             existing), or its history is pruned; `flywheelctl push {}` pushes it",
            story.path
        ),
        (Some(false), ..) => "no valid path of this name, and none is known from before".to_owned(),
        (None, ..) => "the Nix database cannot be read now, and no push is known".to_owned(),
    }
}

/// The key of the filter that is about derivations with `allowSubstitutes = false`.
const LOCAL: &str = "substitutable_only";

/// Says that the filter leaves a path out by this key.
fn left_out(key: &str) -> String {
    let why = if key == LOCAL { ", since its derivation has allowSubstitutes = false" } else { "" };
    format!("`{key}` in [push.filter] leaves it out{why}")
}
