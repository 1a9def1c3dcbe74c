//! Decides by the configuration's `[[route]]`s to which cache a user's paths go, and which
//! caches the user may name: for a session when it opens, and for the maker of a path of
//! no session.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::name_service::look_up;
use super::people::People;
use super::rules::enters_as;
use super::{Intake, IntakeError};
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
/// Paths of a user that are taken in at a time when the name service has answered.
const UNDECIDED: usize = 500;
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

/// Paths of no session about whose maker the name service has not answered yet. They
/// are in the ledger, since the cursor is past them.
#[derive(Debug, Default)]
pub(in crate::daemon) struct UndecidedPaths {
    /// The users that have paths in the ledger; none before it was read.
    people: Option<BTreeSet<(u32, u32)>>,
    /// Paths that are not in the ledger yet, and their makers.
    new: Vec<(String, (u32, u32))>,
    /// Paths since the last log entry, and the time of that entry.
    unsaid: usize,
    said: Option<Instant>,
}

impl UndecidedPaths {
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
                    "the name service does not say who user {} is, so it is not known whether {} is for them: \
                     the paths are pushed when it answers",
                    person.0, undecided.route
                );
                self.undecided.say(path, &why);
                self.undecided.new.push((path.base().to_owned(), person));
                None
            }
        }
    }

    /// Writes the paths to the ledger that [`Self::unowned`] could not decide about.
    /// To be called before the cursor moves past them. Returns how many there were.
    pub(super) fn keep_undecided(&mut self) -> Result<usize, IntakeError> {
        let paths = std::mem::take(&mut self.undecided.new);
        let count = paths.len();
        if count > 0 {
            let people: Vec<_> = paths.iter().map(|(_, person)| *person).collect();
            self.ledger.keep_undecided(paths)?;
            self.undecided_people()?.extend(people);
        }
        Ok(count)
    }

    fn undecided_people(&mut self) -> Result<&mut BTreeSet<(u32, u32)>, IntakeError> {
        if self.undecided.people.is_none() {
            self.undecided.people = Some(self.ledger.undecided_people()?.into_iter().collect());
        }
        Ok(self.undecided.people.get_or_insert_default())
    }

    /// Takes in the paths that waited for the name service and need not any more.
    pub(super) fn take_decided(&mut self) -> Result<(), IntakeError> {
        let mut people = self.undecided_people()?.clone();
        people.retain(|person| self.policy.routes.is_decided(*person));
        for person in people {
            // All that is known of the maker is who it is: the path is no session's.
            let lineage =
                Arc::new(Lineage { line: Vec::new(), session: -1, cgroup: None, person: Some(person) });
            loop {
                self.room()?;
                let paths = self.ledger.undecided_of(person, UNDECIDED)?;
                if paths.is_empty() {
                    self.undecided_people()?.remove(&person);
                    break;
                }
                let mut rows = Vec::new();
                for path in paths.iter().filter_map(|base| StorePath::parse(base).ok()) {
                    rows.extend(self.nix_db.db()?.info(&path)?);
                }
                let valid: Vec<_> = rows.iter().map(|row| row.path.base().to_owned()).collect();
                self.lock_watcher.hooked(&valid, &lineage);
                if self.take_rows(rows, None)? > 0 {
                    // The name service does not answer any more: these were kept again.
                    break;
                }
                self.ledger.forget_undecided(paths)?;
            }
        }
        Ok(())
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
