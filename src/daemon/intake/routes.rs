//! Decides by the configuration's `[[route]]`s to which cache a user's paths go, and which
//! caches the user may name: for a session when it opens, and for the maker of a path of
//! no session.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::name_service::look_up;
use super::people::People;
use super::rules::enters_as;
use super::{Intake, IntakeError};
use crate::attribution::{Lineage, Maker};
use crate::config::{Destination, Forbidden, Settings, Undecided, UnknownMaker, Who};
use crate::daemon::gc_roots::ONCE;
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
/// Paths that wait at a time for each user, and of unknown makers. Further ones are not
/// kept: a session can name them while they are in the store.
pub(super) const WAITING: u64 = 20_000;
/// In place of the user's numbers: nobody was seen to make the path. No user has them
/// (setuid(2) takes -1 for no number).
pub(in crate::daemon) const UNKNOWN: (u32, u32) = (u32::MAX, u32::MAX);
/// In place of a cache's number: the path is protected because it waits. There are never
/// as many caches.
const PROTECTED: u16 = ONCE;
/// What chose the cache of a session whose caller named it.
const NAMED: &str = "--cache";
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
            aliases: &person.aliases,
            groups: &person.groups,
            label: label.unwrap_or_default(),
            complete: person.complete,
            trusted: uid == 0 || uid == self.own_uid,
        })
    }

    /// Returns the cache of a session of this user, and what chose it: `named`, if a cache
    /// was named and a route does not forbid it, else where the routes lead. No cache: the
    /// session's paths are skipped. Waits for the name service.
    pub(in crate::daemon) fn of_session(
        &self,
        person: (u32, u32),
        label: Option<&str>,
        named: Option<CacheId>,
    ) -> Result<(Option<CacheId>, String), Forbidden> {
        if let Some(cache) = named {
            self.may_use(person, label, cache, SESSION)?;
            return Ok((Some(cache), NAMED.to_owned()));
        }
        self.ask(person, label, SESSION, |who| {
            Ok((self.cache(self.settings.route(who)?), self.settings.rule(who)?))
        })
    }

    /// Checks that this user may push to the cache. Waits at most `limit` for the name
    /// service; a user about whom nothing is known may not.
    fn may_use(
        &self,
        person: (u32, u32),
        label: Option<&str>,
        cache: CacheId,
        limit: Duration,
    ) -> Result<(), Forbidden> {
        if self.settings.routes.is_empty() {
            return Ok(());
        }
        self.ask(person, label, limit, |who| self.settings.may_use(who, &self.caches[cache.index()]))
    }

    /// Checks that a session that is open already may go on pushing to its cache. The error
    /// says why it may not. Waits for the name service.
    pub(in crate::daemon) fn may_continue(
        &self,
        person: (u32, u32),
        label: Option<&str>,
        cache: CacheId,
    ) -> Result<(), String> {
        self.may_use(person, label, cache, INTAKE).map_err(|forbidden| {
            format!(
                "{forbidden}. The routes changed while the session was open: what was built or named after that is not \
                 pushed for it"
            )
        })
    }

    /// Returns where a path of no session goes, and what decides it: where the paths of its
    /// maker go, if the maker was seen, else where the route for unknown makers leads.
    fn of_maker(&self, maker: Option<(u32, u32)>) -> Result<(Option<CacheId>, String), Waits> {
        match maker {
            _ if self.settings.routes.is_empty() => {}
            Some(person) => {
                let route = self.ask(person, None, INTAKE, |who| {
                    Ok((self.cache(self.settings.route(who)?), self.settings.rule(who)?))
                });
                return route.map_err(|undecided| Waits::Undecided(person, undecided));
            }
            None => {}
        }
        match self.settings.unknown_maker() {
            UnknownMaker::Goes(to) => Ok((self.cache(to), self.settings.rule_for_unknown_makers())),
            UnknownMaker::Waits => Err(Waits::UnknownMaker),
        }
    }

    /// Whether it is known where the paths of this user, or of [`UNKNOWN`], go.
    fn is_decided(&self, (uid, gid): (u32, u32)) -> bool {
        if (uid, gid) == UNKNOWN {
            return matches!(self.settings.unknown_maker(), UnknownMaker::Goes(_));
        }
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

/// Paths of no session that nobody knows yet where to push: the name service has not
/// answered about their maker, or the maker is unknown. They are in the ledger, since the
/// cursor is past them, and are protected from garbage collection.
#[derive(Debug, Default)]
pub(in crate::daemon) struct UndecidedPaths {
    /// How many paths each user has in the ledger; none before it was read.
    people: Option<BTreeMap<(u32, u32), u64>>,
    /// Paths that are not in the ledger yet, with their makers and the sizes of their NARs.
    new: Vec<(StorePath, (u32, u32), u64)>,
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

/// Where a path of no session goes.
pub(super) enum Unowned {
    /// To this cache, by this rule.
    Goes(u16, String),
    /// Nowhere, by this route.
    Skipped(String),
    /// The filter leaves it out, or it waits until its route is known.
    NotNow,
}

impl Intake {
    /// Returns where a path of no session goes.
    pub(super) fn unowned(&mut self, info: &PathInfo, maker: Option<&Maker>) -> Unowned {
        // The filter leaves it out wherever it would go.
        let state = enters_as(&self.policy.filter, false, info, || self.is_substitutable(info));
        if state == PushState::Skipped {
            return Unowned::NotNow;
        }
        let path = &info.path;
        let person = maker.and_then(|maker| maker.lineage.person);
        match self.policy.routes.of_maker(person) {
            Ok((Some(cache), rule)) => Unowned::Goes(cache.0, rule),
            Ok((None, rule)) => Unowned::Skipped(rule),
            Err(Waits::UnknownMaker) => {
                let why = "nobody was seen to make them, and routes confine users or groups: a session must name \
                           them, or a [[route]] with maker = \"unknown\" say where they go";
                self.undecided.say(path, why);
                self.undecided.new.push((path.clone(), UNKNOWN, info.nar_size));
                Unowned::NotNow
            }
            Err(Waits::Undecided(person, undecided)) => {
                let why = format!(
                    "the name service does not say who user {} is, so it is not known whether {} is for them: \
                     the paths are pushed when it answers",
                    person.0, undecided.route
                );
                self.undecided.say(path, &why);
                self.undecided.new.push((path.clone(), person, info.nar_size));
                Unowned::NotNow
            }
        }
    }

    /// Writes the paths to the ledger that [`Self::unowned`] could not decide about, and
    /// protects them from garbage collection. To be called before the cursor moves past
    /// them. Returns how many paths of known makers there were. Beyond [`WAITING`] paths of
    /// one maker, further ones are not kept.
    pub(super) fn keep_undecided(&mut self) -> Result<usize, IntakeError> {
        let paths = std::mem::take(&mut self.undecided.new);
        if paths.is_empty() {
            return Ok(0);
        }
        let mut counts = self.undecided_people()?.clone();
        let mut refused: BTreeMap<(u32, u32), (usize, StorePath)> = BTreeMap::new();
        let mut kept = Vec::with_capacity(paths.len());
        for (path, person, nar_size) in paths {
            let count = counts.entry(person).or_default();
            if *count < WAITING {
                *count += 1;
                kept.push((path, person, nar_size));
            } else {
                refused.entry(person).or_insert((0, path)).0 += 1;
            }
        }
        self.gc_roots.protect(PROTECTED, kept.iter().map(|(path, _, nar_size)| (path, *nar_size)));
        let rows = kept.iter().map(|(path, person, _)| (path.base().to_owned(), *person)).collect();
        self.ledger.keep_undecided(rows)?;
        self.undecided.people = None;
        for (person, (count, path)) in refused {
            let whose =
                if person == UNKNOWN { "unknown makers".to_owned() } else { format!("user {}", person.0) };
            event!(
                PATHS_WITHOUT_ROUTE,
                paths = count,
                "{count} paths of {whose} are not kept, {path} the first of them: {WAITING} paths of {whose} wait already \
                 for a [[route]] or the name service to say where they go; a session or `flywheelctl push` can name them \
                 while they are in the store"
            );
        }
        Ok(kept.iter().filter(|(_, person, _)| *person != UNKNOWN).count())
    }

    pub(super) fn undecided_people(&mut self) -> Result<&mut BTreeMap<(u32, u32), u64>, IntakeError> {
        if self.undecided.people.is_none() {
            self.undecided.people = Some(self.ledger.undecided_people()?.into_iter().collect());
        }
        Ok(self.undecided.people.get_or_insert_default())
    }

    /// Protects the paths again that waited when the last run ended, and forgets those that
    /// are not valid any more.
    pub(super) fn restore_undecided(&mut self) -> Result<(), IntakeError> {
        let people: Vec<_> = self.undecided_people()?.keys().copied().collect();
        for person in people {
            let mut gone = Vec::new();
            for base in self.ledger.undecided_of(person, usize::try_from(WAITING).unwrap_or(usize::MAX))? {
                let info = match StorePath::parse(&base) {
                    Ok(path) => self.nix_db.db()?.info(&path)?,
                    Err(_) => None,
                };
                match info {
                    Some(info) => self.gc_roots.keep(PROTECTED, vec![(info.path, info.nar_size)]),
                    None => gone.push(base),
                }
            }
            self.forget_undecided(gone)?;
        }
        Ok(())
    }

    /// Forgets that paths wait: they have a push now, or are not valid any more.
    pub(super) fn forget_undecided(&mut self, paths: Vec<String>) -> Result<(), IntakeError> {
        if paths.is_empty() || self.undecided_people()?.is_empty() {
            return Ok(());
        }
        for path in paths.iter().filter_map(|base| StorePath::parse(base).ok()) {
            self.gc_roots.release(PROTECTED, path);
        }
        self.ledger.forget_undecided(paths)?;
        self.undecided.people = None;
        Ok(())
    }

    /// Takes in the paths that waited for the name service or a route and need not any more.
    pub(super) fn take_decided(&mut self) -> Result<(), IntakeError> {
        let people = self.undecided_people()?.clone();
        for person in
            people.into_keys().filter(|person| self.policy.routes.is_decided(*person)).collect::<Vec<_>>()
        {
            // All that is known of the maker is who it is: the path is no session's.
            let known = Some(person).filter(|person| *person != UNKNOWN);
            let lineage = Arc::new(Lineage { line: Vec::new(), session: -1, cgroup: None, person: known });
            loop {
                self.room()?;
                let paths = self.ledger.undecided_of(person, UNDECIDED)?;
                if paths.is_empty() {
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
                self.forget_undecided(paths)?;
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
