//! Decides by the configuration's `[[route]]`s to which cache a user's paths go, and which
//! caches the user may name: for a session when it opens, and for the maker of a path of
//! no session.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Intake;
use super::name_service::look_up;
use super::people::People;
use super::rules::enters_as;
use crate::attribution::{Lineage, Maker};
use crate::config::{Destination, Forbidden, Settings, Undecided, UnknownMaker, Who};
use crate::ledger::PushState;
use crate::observe::event;
use crate::store::PathInfo;
use crate::types::{CacheId, StorePath};

/// How long a session that opens waits for the name service. It is refused then.
const SESSION: Duration = Duration::from_secs(5);
/// How long the intake waits for the name service. The paths wait then, not the intake.
const INTAKE: Duration = Duration::from_secs(1);
/// Paths that are kept until the name service answers.
const UNDECIDED: usize = 10_000;
/// The time between two log entries about paths that are not pushed yet.
const APART: Duration = Duration::from_secs(60);

/// The routes in use, with the people that they name.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Routes {
    settings: Arc<Settings>,
    /// The caches' names, by their numbers.
    caches: Vec<String>,
    people: People,
    own_uid: u32,
}

impl Routes {
    pub(in crate::daemon) fn new(settings: Arc<Settings>, caches: Vec<String>, people: People) -> Self {
        Self { settings, caches, people, own_uid: rustix::process::geteuid().as_raw() }
    }

    /// Asks `question` about the user with these numbers.
    fn ask<T>(
        &self,
        (uid, gid): (u32, u32),
        label: Option<&str>,
        limit: Duration,
        question: impl FnOnce(&Who<'_>) -> T,
    ) -> T {
        let person = self.people.who_is(uid, gid, limit);
        question(&Who {
            user: (uid, person.name.as_deref()),
            groups: &person.groups,
            label: label.unwrap_or_default(),
            complete: person.complete,
            trusted: uid == 0 || uid == self.own_uid,
        })
    }

    /// Returns the cache of a session of this user: `named`, if a cache was named and a
    /// route does not forbid it, else where the routes lead; none: the session's paths
    /// are skipped. Waits for the name service.
    pub(in crate::daemon) fn of_session(
        &self,
        person: (u32, u32),
        label: Option<&str>,
        named: Option<CacheId>,
    ) -> Result<Option<CacheId>, Forbidden> {
        if self.settings.routes.is_empty() {
            return Ok(named.or_else(|| self.number(&self.settings.default_cache)));
        }
        self.ask(person, label, SESSION, |who| match named {
            Some(cache) => {
                self.settings.may_use(who, &self.caches[cache.index()])?;
                Ok(Some(cache))
            }
            None => Ok(self.cache(self.settings.route(who)?)),
        })
    }

    /// Returns where a path of no session goes: where the paths of its maker go, if the
    /// maker was seen, else where the route for unknown makers leads.
    fn of_maker(&self, maker: Option<(u32, u32)>) -> Result<Option<CacheId>, Waits> {
        if self.settings.routes.is_empty() {
            return Ok(self.number(&self.settings.default_cache));
        }
        match maker {
            Some(person) => {
                let route =
                    self.ask(person, None, INTAKE, |who| self.settings.route(who).map(|to| self.cache(to)));
                route.map_err(|undecided| Waits::Undecided(person, undecided))
            }
            None => match self.settings.unknown_maker() {
                UnknownMaker::Goes(to) => Ok(self.cache(to)),
                UnknownMaker::Waits => Err(Waits::UnknownMaker),
            },
        }
    }

    /// Whether the name service has answered about this user.
    fn is_decided(&self, (uid, gid): (u32, u32)) -> bool {
        self.ask((uid, gid), None, Duration::ZERO, |who| self.settings.route(who).is_ok())
    }

    fn cache(&self, to: Destination<'_>) -> Option<CacheId> {
        match to {
            Destination::Cache(name) => self.number(name),
            Destination::Skip => None,
        }
    }

    fn number(&self, name: &str) -> Option<CacheId> {
        self.caches.iter().position(|cache| cache == name).and_then(|n| u16::try_from(n).ok()).map(CacheId)
    }
}

/// Why a path of no session is not pushed yet.
enum Waits {
    /// Its maker was not seen: a session must name it.
    UnknownMaker,
    /// The name service has not answered, so the route of its maker is not known.
    Undecided((u32, u32), Undecided),
}

/// A path, and the process that made it.
type MadePath = (StorePath, Arc<Lineage>);

/// Paths of no session about whose maker the name service has not answered yet.
#[derive(Debug, Default)]
pub(in crate::daemon) struct UndecidedPaths {
    of: HashMap<(u32, u32), Vec<MadePath>>,
    count: usize,
    /// Paths since the last log entry, and the time of that entry.
    unsaid: usize,
    said: Option<Instant>,
}

impl UndecidedPaths {
    fn keep(&mut self, person: (u32, u32), path: &StorePath, lineage: &Arc<Lineage>) {
        if self.count < UNDECIDED {
            self.count += 1;
            self.of.entry(person).or_default().push((path.clone(), Arc::clone(lineage)));
        }
    }

    /// Logs that paths wait, at most once a minute.
    fn say(&mut self, path: &StorePath, why: &str) {
        self.unsaid += 1;
        if self.said.is_none_or(|at| at.elapsed() >= APART) {
            let paths = std::mem::take(&mut self.unsaid);
            self.said = Some(Instant::now());
            event!(
                PATHS_WITHOUT_ROUTE,
                paths = paths,
                reason = why,
                "{paths} paths of no session wait, {path} the last of them: {why}"
            );
        }
    }

    /// Returns the paths of those whose route is decided now, and their makers.
    fn decided(&mut self, routes: &Routes) -> Vec<MadePath> {
        let decided = self.of.extract_if(|person, _| routes.is_decided(*person));
        let paths: Vec<_> = decided.flat_map(|(_, paths)| paths).collect();
        self.count -= paths.len();
        paths
    }
}

impl Intake {
    /// Returns where a path of no session goes; none: nowhere, or nowhere yet.
    pub(super) fn unowned(&mut self, info: &PathInfo, maker: Option<&Maker>) -> Option<u16> {
        // The filter leaves it out wherever it would go.
        if enters_as(&self.policy.filter, false, info) == PushState::Skipped {
            return None;
        }
        let path = &info.path;
        let person = maker.and_then(|maker| maker.lineage.person);
        match self.policy.routes.of_maker(person) {
            Ok(cache) => cache.map(|cache| cache.0),
            Err(Waits::UnknownMaker) => {
                let why = "nobody was seen to make them, and routes confine users or groups: a session must name \
                           them, or a [[route]] with maker = \"unknown\" say where they go";
                self.undecided.say(path, why);
                None
            }
            Err(Waits::Undecided(person, undecided)) => {
                let why = format!(
                    "the name service does not tell who user {} is, and so not whether {} is for them: the paths \
                     are pushed when it does",
                    person.0, undecided.route
                );
                self.undecided.say(path, &why);
                if let Some(maker) = maker {
                    self.undecided.keep(person, path, &maker.lineage);
                }
                None
            }
        }
    }

    /// Returns paths that waited for the name service and need not any more. Who made
    /// them is noted with the lock watcher again.
    pub(super) fn decided(&mut self) -> Vec<StorePath> {
        let decided = self.undecided.decided(&self.policy.routes);
        for (path, lineage) in &decided {
            self.lock_watcher.hooked(&[path.base().to_owned()], lineage);
        }
        decided.into_iter().map(|(path, _)| path).collect()
    }
}

impl People {
    /// The people that the routes of these settings name. `on_answer` is called after
    /// each answer of the name service.
    pub(in crate::daemon) fn of(settings: &Settings, on_answer: impl Fn() + Send + Sync + 'static) -> Self {
        Self::new(look_up(settings), on_answer)
    }

    /// Takes up new settings.
    pub(in crate::daemon) fn follow(&self, settings: &Settings) {
        self.set_look_up(look_up(settings));
    }
}
