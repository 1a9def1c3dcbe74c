//! Reads the rows of the Nix database since the cursor, decides which of them are wanted,
//! and notices when the database was replaced.

use std::collections::HashMap;
use std::time::Instant;

use super::closure::{Enter, Roots};
use super::confirmed::Confirmed;
use super::hand_over::PlannedPush;
use super::routes::Unowned;
use super::standing::{self, Standing, standing};
use super::{ABSENT, Intake, IntakeError, READ_BEFORE};
use crate::attribution::{Evidence as Why, Owners};
use crate::config::Existing;
use crate::daemon::inbox::Input;
use crate::daemon::intake::rules::enters_as;
use crate::ledger::{Admit, Cursor, Evidence, NewPushRow, PushState, SessionRow};
use crate::observe::event;
use crate::store::{Look, Mark, NixDbError, PathInfo};
use crate::types::{StorePath, Wall};

/// In place of a cache's name, in the ledger: a route skips the path.
const NO_CACHE: &str = "";
/// Rows that are read from the Nix database at a time.
const ROWS: usize = 256;

/// Why a row goes to a cache.
struct Reason {
    /// Its sessions.
    sessions: Vec<(SessionRow, Evidence)>,
    /// What sent it there if it has none.
    route: Option<String>,
}

/// Rows that go to one cache.
#[derive(Default)]
struct Routed {
    /// Rows that are wanted there, by their numbers.
    roots: HashMap<i64, PathInfo>,
    /// Why each root goes to this cache.
    reasons: HashMap<i64, Reason>,
    /// Rows that are not pushed; their sessions report them.
    aside: Vec<PlannedPush>,
}

impl Routed {
    fn is_empty(&self) -> bool {
        self.roots.is_empty() && self.aside.is_empty()
    }
}

impl Intake {
    /// Takes in the rows since the cursor.
    pub(super) fn look(&mut self, cursor: &mut Cursor) -> Result<(), IntakeError> {
        self.stand(cursor)?;
        let began = Instant::now();
        loop {
            let rows = self.nix_db.db()?.rows(cursor.id, ROWS)?;
            let Some(last) = rows.last() else { break };
            self.room()?;
            let mut marks = self.marks.clone();
            standing::add(&mut marks, last.mark());
            let identity = cursor.identity.clone();
            let next = Cursor { identity, id: last.id, marks: standing::written(&marks) };
            rows.iter().for_each(|row| self.client.sighted(row.path.base()));
            // The events of these paths' locks came before the rows, so the makers are
            // known after this.
            self.lock_watcher.catch_up();
            self.take_rows(rows, Some(&next))?;
            (*cursor, self.marks) = (next, marks);
            self.tell(Input::Cursor(cursor.id))?;
        }
        self.lock_watcher.sweep(began);
        if let Some(realisations) = &mut self.realisations {
            realisations.look(self.nix_db.db()?, &cursor.identity, || self.pulse.beat())?;
        }
        Ok(())
    }

    /// Takes in again the paths that a hook named after the intake had read them: the
    /// hook's maker replaces the one that was assumed.
    pub(super) fn hooked(&mut self, paths: &[StorePath]) -> Result<(), IntakeError> {
        let mut rows = Vec::new();
        for path in paths.iter().filter(|p| self.lock_watcher.is_hooked(p.base())) {
            rows.extend(self.nix_db.db()?.info(path)?);
        }
        if !rows.is_empty() {
            self.take_rows(rows, None)?;
        }
        Ok(())
    }

    /// Whether the row is one that Nix has copied from the lower store.
    fn is_of_lower_store(&mut self, info: &PathInfo) -> Result<bool, IntakeError> {
        match &mut self.lower {
            Some(lower) => lower.has(info).map_err(IntakeError::Lower),
            None => Ok(false),
        }
    }

    /// Whether Nix takes a path from a substituter, as far as that can be known.
    pub(super) fn is_substitutable(&self, info: &PathInfo) -> bool {
        self.nix_db.db().and_then(|db| db.is_substitutable(info)).unwrap_or(true)
    }

    /// Compares the database with the marks. Moves the cursor back to the last row that
    /// is the same, or to the beginning of another database.
    pub(super) fn stand(&mut self, cursor: &mut Cursor) -> Result<(), IntakeError> {
        let (identity, head, there) = self.look_at_database()?;
        let (from, marks) = match standing(identity == cursor.identity, cursor.id, head, &self.marks, &there)
        {
            Standing::Same => return Ok(()),
            Standing::WentBack(from) => {
                event!(
                    DATABASE_REPLACED,
                    was = cursor.id,
                    now = from,
                    "the Nix database went back to an earlier state (row {} was read, row {from} is the last that is the same): the rows after it count as new{}",
                    cursor.id,
                    self.except_old()
                );
                if from == 0 {
                    self.baseline.renumbered(&identity);
                }
                self.windows().cut(from);
                (from, self.marks.iter().filter(|mark| mark.id <= from).cloned().collect())
            }
            Standing::Another => {
                event!(
                    DATABASE_REPLACED,
                    was = cursor.identity,
                    now = identity,
                    "the Nix database is another one than before ({identity} after {}): everything in it counts as new{}",
                    cursor.identity,
                    self.except_old()
                );
                self.windows().renumber();
                (0, Vec::new())
            }
        };
        self.ledger.set_meta(READ_BEFORE, &head.to_string())?;
        self.read_before = Some(head);
        *cursor = Cursor { identity, id: from, marks: standing::written(&marks) };
        self.marks = marks;
        self.confirmed.iter_mut().for_each(Confirmed::clear);
        self.generation = self.generation.wrapping_add(1);
        self.ledger.admit(Admit { cursor: Some(cursor.clone()), pushes: Vec::new(), at: Wall::now().0 })?;
        self.tell(Input::Cursor(cursor.id))
    }

    /// The end of the log entry about a database that was replaced.
    fn except_old(&self) -> &'static str {
        let has_old = self.existing != Existing::Yes && self.baseline.is_known();
        if has_old { ", except paths that were valid at the first start" } else { "" }
    }

    /// Returns the database's identity, the highest row number that it has given, and for
    /// each mark the row that has its number now.
    pub(super) fn look_at_database(&mut self) -> Result<(String, i64, Vec<Option<Mark>>), IntakeError> {
        if self.nix_db.has_lost_its_log() {
            self.nix_db.close();
            self.store.close();
        }
        match self.nix_db.look(&self.marks)? {
            Look::Open { identity, head, there } => Ok((identity.to_string(), head, there)),
            Look::Busy => Err(NixDbError::Busy.into()),
            Look::Absent => {
                if !std::mem::replace(&mut self.was_absent, true) {
                    self.ledger.set_meta(ABSENT, "seen")?;
                }
                match self.nix_db.db() {
                    Err(NixDbError::Missing(path)) => Err(IntakeError::Absent(path)),
                    Err(error) => Err(error.into()),
                    Ok(_) => Err(NixDbError::Busy.into()),
                }
            }
        }
    }

    /// Takes in rows: the maker of each decides to which cache it goes, and for which
    /// session. The cursor moves with the last chunk; the makers are forgotten after it.
    /// Returns how many rows wait for the name service.
    pub(super) fn take_rows(
        &mut self,
        rows: Vec<PathInfo>,
        next: Option<&Cursor>,
    ) -> Result<usize, IntakeError> {
        let windows = self.windows().clone();
        let first_new = next.and(rows.first()).map_or(i64::MAX, |row| row.id);
        let bases: Vec<String> = rows.iter().map(|row| row.path.base().to_owned()).collect();
        let makers = self.lock_watcher.makers(&bases);
        let mut caches: Vec<Routed> = self.policy.caches.iter().map(|_| Routed::default()).collect();
        let mut skipped = Vec::new();
        let known = if next.is_some() { self.taken_in_before(&rows)? } else { HashMap::new() };
        for (info, maker) in rows.into_iter().zip(&makers) {
            // Who met it did not make it, even if a lock says so.
            if next.is_some() && self.existing != Existing::Yes && self.is_of_lower_store(&info)? {
                continue;
            }
            if let (Some(next), None) = (next, maker)
                && self.existing != Existing::Yes
                && self.baseline.has(&next.identity, &info)
            {
                continue;
            }
            if let (Some(known), None) = (known.get(&info.id), maker) {
                for cache in known {
                    let upstream = self.policy.caches[usize::from(*cache)].upstream_keys.have_signed(&info);
                    let substitutable = || self.is_substitutable(&info);
                    let state = enters_as(&self.policy.filter, upstream, &info, substitutable);
                    if state == PushState::Pending {
                        let routed = &mut caches[usize::from(*cache)];
                        routed.reasons.insert(info.id, Reason { sessions: Vec::new(), route: None });
                        routed.roots.insert(info.id, info.clone());
                    }
                }
                continue;
            }
            let owners = windows.owners(info.id, maker.as_ref());
            if next.is_none() {
                let owner = owners.sessions.first().map_or(0, |(session, _)| *session);
                self.ledger.claim(owner, &[info.path.base().to_owned()])?;
            }
            let sessions: Vec<_> = owners.sessions.into_iter().map(|(s, why)| (s, evidence(why))).collect();
            let (cache, route) = match owners.cache {
                // The session has the route.
                Some(None) => {
                    skipped.push(skipped_row(&info, sessions, None));
                    continue;
                }
                Some(Some(cache)) => (cache, None),
                None => match self.unowned(&info, maker.as_ref()) {
                    Unowned::Goes(cache, route) => (cache, Some(route)),
                    Unowned::Skipped(route) => {
                        skipped.push(skipped_row(&info, sessions, Some(route)));
                        continue;
                    }
                    Unowned::NotNow => continue,
                },
            };
            let upstream = self.policy.caches[usize::from(cache)].upstream_keys.have_signed(&info);
            let state = enters_as(&self.policy.filter, upstream, &info, || self.is_substitutable(&info));
            let routed = &mut caches[usize::from(cache)];
            if state == PushState::Pending {
                routed.reasons.insert(info.id, Reason { sessions, route });
                routed.roots.insert(info.id, info);
            } else if !sessions.is_empty() {
                routed.aside.push(PlannedPush { info, state, sessions, waits: None, route: None });
            }
        }
        let undecided = self.keep_undecided()?;
        if !skipped.is_empty() {
            self.ledger.admit(Admit { cursor: None, pushes: skipped, at: Wall::now().0 })?;
        }
        // The cache is asked about each new row, even if an earlier row with the same path
        // was confirmed.
        let ask_after = self.now();
        let last = caches.iter().rposition(|routed| !routed.is_empty());
        for (cache, routed) in (0_u16..).zip(caches) {
            let Routed { roots, mut reasons, aside } = routed;
            let mut rows: Vec<i64> = roots.keys().copied().collect();
            rows.sort_unstable();
            let mut plan = |this: &Self, info: PathInfo| match reasons.remove(&info.id) {
                Some(Reason { sessions, route }) => {
                    PlannedPush { info, state: PushState::Pending, sessions, waits: None, route }
                }
                // A row that was taken in earlier has its sessions. Its maker is forgotten,
                // and the windows of that time may be too, so nothing is said of it again.
                None if info.id < first_new || known.contains_key(&info.id) => PlannedPush {
                    state: this.wanted(cache, &info),
                    info,
                    sessions: Vec::new(),
                    waits: None,
                    route: None,
                },
                // A row that was not wanted by itself and is now, as a reference: it belongs
                // to the sessions of its own maker.
                None => {
                    let maker = this.lock_watcher.maker(info.path.base());
                    let sessions = this.whose(&windows.owners(info.id, maker.as_ref()), cache);
                    PlannedPush { state: this.wanted(cache, &info), info, sessions, waits: None, route: None }
                }
            };
            let roots =
                Roots { cache, rows, in_hand: roots, enter: Enter::Unconfirmed, ask_after, retry: false };
            let cursor = next.filter(|_| last == Some(usize::from(cache)));
            self.take_in(roots, &mut plan, aside, cursor)?;
        }
        if let (Some(next), None) = (next, last) {
            self.ledger.admit(Admit { cursor: Some(next.clone()), pushes: Vec::new(), at: Wall::now().0 })?;
        }
        self.lock_watcher.forget(&bases, &makers);
        Ok(undecided)
    }

    /// Rows that are read again because the database went back or was replaced, and whose
    /// paths were taken in before: with the caches that each went to. Their makers are
    /// forgotten, so a session that was open meanwhile must not get them now.
    fn taken_in_before(&mut self, rows: &[PathInfo]) -> Result<HashMap<i64, Vec<u16>>, IntakeError> {
        let last = match self.read_before {
            Some(last) => last,
            None => {
                let noted = self.ledger.meta(READ_BEFORE)?.and_then(|id| id.parse().ok());
                *self.read_before.insert(noted.unwrap_or(0))
            }
        };
        let again: Vec<&PathInfo> = rows.iter().filter(|row| row.id <= last).collect();
        let mut known: HashMap<i64, Vec<u16>> = HashMap::new();
        if again.is_empty() {
            return Ok(known);
        }
        let names: Vec<String> = again.iter().map(|row| row.path.base().to_owned()).collect();
        // What a route skipped then went to no cache, and goes to none now.
        for (row, push) in again.iter().zip(self.ledger.lookup(NO_CACHE, &names)?) {
            if push.is_some() {
                known.entry(row.id).or_default();
            }
        }
        for (number, cache) in (0_u16..).zip(&self.policy.caches) {
            for (row, push) in again.iter().zip(self.ledger.lookup(&cache.name, &names)?) {
                if push.is_some() {
                    known.entry(row.id).or_default().push(number);
                }
            }
        }
        Ok(known)
    }

    /// The sessions of a path that goes to this cache on behalf of another path.
    fn whose(&self, owners: &Owners, cache: u16) -> Vec<(SessionRow, Evidence)> {
        // The maker was forgotten after the row was taken in. A path that may belong to
        // several sessions is not given to any of them a second time.
        let elsewhere = owners.cache.unwrap_or(Some(self.policy.default_cache.0)) != Some(cache);
        if elsewhere || owners.sessions.len() > 1 {
            return Vec::new();
        }
        owners.sessions.iter().map(|(s, why)| (*s, evidence(*why))).collect()
    }
}

/// A path that a route skips, for the ledger: `why` and the summary of its session tell of
/// it. `route`: the route, if it is not the session's.
fn skipped_row(info: &PathInfo, sessions: Vec<(SessionRow, Evidence)>, route: Option<String>) -> NewPushRow {
    NewPushRow {
        cache: NO_CACHE.to_owned(),
        path: info.path.base().to_owned(),
        nar_size: info.nar_size,
        valid_at: info.registered_at.saturating_mul(1000),
        state: PushState::Skipped,
        retry_failed: false,
        sessions,
        needed_by: None,
        route,
    }
}

fn evidence(why: Why) -> Evidence {
    match why {
        Why::Hook => Evidence::Hook,
        Why::Process => Evidence::Process,
        Why::Window => Evidence::Window,
        Why::Shared => Evidence::Shared,
    }
}
