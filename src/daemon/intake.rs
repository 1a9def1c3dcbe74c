//! The intake: one thread that reads what became valid, decides what of it is
//! wanted, adds the closure, writes both to the ledger and tells the driver.
//! The cursor moves last: what was read and not yet written is read again
//! after a crash, and taking it in twice changes nothing.
//!
//! Must not know how anything is uploaded.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Sender;
use tracing::{debug, error, info, warn};

use super::input::Input;
use super::keeper::Keeper;
use super::rules::{Facts, enters_as};
use super::seen::Seen;
use super::wall_ms;
use crate::attribution::{Evidence as Why, Owners, Windows, Witness};
use crate::config::Filter;
use crate::flow::{CacheId, NewTask};
use crate::ledger::{Admit, Cursor, Evidence, ItemState, Ledger, NewItem, SessionRow};
use crate::store::{Journal, JournalError, PathInfo, StoreDir, StorePath};

/// Rows that are taken from the journal at a time.
const ROWS: usize = 256;
/// Between tries while nothing can be taken in: from this, doubled each time,
const STUCK_LEAST: Duration = Duration::from_millis(50);
/// to this.
const STUCK_MOST: Duration = Duration::from_secs(5);
/// The log is told of another reason this long after the last.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Items that are written to the ledger at a time, and told to the driver.
const ITEMS: usize = 1024;
/// Things to do that may wait.
const QUEUE: usize = 512;
/// A confirmation by the cache that is older is asked for again when somebody
/// names the path: caches delete, too.
const TRUST_MS: i64 = 15 * 60 * 1000;

/// What the intake is asked to do.
#[derive(Debug)]
pub(super) enum Work {
    /// Look at the store.
    Look,
    /// Take named paths with their closure; see [`Input::Named`].
    Name(Naming),
    /// See who a hook says made these.
    Hook(Vec<StorePath>),
    /// End.
    Stop,
}

/// Paths that somebody named.
#[derive(Debug)]
pub(super) struct Naming {
    /// Returned with the answer.
    pub(super) token: u64,
    /// Whose they are.
    pub(super) session: SessionRow,
    /// The session takes nothing that becomes valid from here on.
    pub(super) close_window: bool,
    pub(super) cache: CacheId,
    pub(super) paths: Vec<StorePath>,
    /// Take up again what failed.
    pub(super) retry: bool,
}

/// The way to the intake.
#[derive(Debug, Clone)]
pub(super) struct Bell {
    rung: Arc<AtomicBool>,
    queue: SyncSender<Work>,
}

impl Bell {
    /// The bell, and what the intake listens to.
    pub(super) fn new() -> (Self, Ear) {
        let (queue, work) = sync_channel(QUEUE);
        let rung = Arc::new(AtomicBool::new(false));
        (Self { rung: Arc::clone(&rung), queue }, Ear { rung, work })
    }

    /// Something may have become valid. Costs nothing when it is known already.
    pub(super) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // A full queue is as good: the intake looks after each piece of work.
            let _ = self.queue.try_send(Work::Look);
        }
    }

    /// Nothing more is to be read.
    pub(super) fn stop(&self) {
        // A full queue ends as well: the driver's end closes the way back.
        let _ = self.queue.try_send(Work::Stop);
    }

    /// Something to do; false when the queue is full or the intake has ended.
    pub(super) fn ask(&self, work: Work) -> bool {
        self.queue.try_send(work).is_ok()
    }
}

/// The intake's end of a [`Bell`].
#[derive(Debug)]
pub(super) struct Ear {
    rung: Arc<AtomicBool>,
    work: Receiver<Work>,
}

/// What the intake works with.
pub(super) struct Intake {
    pub(super) journal: Journal,
    pub(super) state_dir: std::path::PathBuf,
    /// The daemon's own state directory.
    pub(super) own_dir: std::path::PathBuf,
    pub(super) store_dir: StoreDir,
    pub(super) ledger: Ledger,
    pub(super) windows: Arc<Mutex<Windows>>,
    pub(super) witness: Witness,
    pub(super) facts: Facts,
    pub(super) keeper: Keeper,
    pub(super) filter: Filter,
    /// The caches' names, by their numbers.
    pub(super) caches: Vec<String>,
    pub(super) default_cache: CacheId,
    /// On the first start: begin with what is valid already.
    pub(super) existing: bool,
    pub(super) out: Sender<Input>,
}

/// Why the intake cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum IntakeError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("the ledger: {0}")]
    Ledger(#[from] crate::ledger::LedgerError),
    #[error("the driver has ended")]
    Closed,
}

impl IntakeError {
    /// It may go away by itself, and trying again does no harm.
    fn is_passing(&self) -> bool {
        match self {
            Self::Journal(_) => true,
            Self::Ledger(error) => error.is_storage(),
            Self::Closed => false,
        }
    }
}

/// A time in which nothing can be taken in, told once and not with every try.
#[derive(Debug, Default)]
struct Stuck {
    since: Option<Instant>,
    tries: u32,
    said: Option<(Instant, String)>,
}

impl Stuck {
    /// Another try failed: how long to rest, and what to say of it.
    fn on(&mut self, error: &IntakeError) -> (Duration, String) {
        let text = error.to_string();
        let since = *self.since.get_or_insert_with(Instant::now);
        let news = self.said.as_ref().is_none_or(|(at, said)| *said != text && at.elapsed() >= SAY_AGAIN);
        if news {
            warn!(
                error = text,
                for_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "newly built paths cannot be taken in for the moment; it is tried again, nothing is lost"
            );
            self.said = Some((Instant::now(), text.clone()));
        }
        let rest = STUCK_LEAST.saturating_mul(1 << self.tries.min(10)).min(STUCK_MOST);
        self.tries += 1;
        (rest, text)
    }

    /// A try succeeded; true when some before it had not.
    fn over(&mut self) -> bool {
        let Some(since) = std::mem::take(self).since else { return false };
        let after_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        info!(after_ms, "newly built paths are taken in again");
        true
    }
}

/// A path on its way into the ledger.
struct Candidate {
    info: PathInfo,
    cache: u16,
    state: ItemState,
    sessions: Vec<(SessionRow, Evidence)>,
    recheck_before: i64,
    retry: bool,
}

/// How far the intake is.
struct Progress {
    /// `None` before the first look at the ledger.
    cursor: Option<Cursor>,
    restored: bool,
    /// By cache, which rows have been handed on.
    seen: Vec<Seen>,
    namings: VecDeque<Naming>,
    /// What hooks spoke of.
    hooked: VecDeque<Vec<StorePath>>,
}

impl Intake {
    /// Works until it is told to stop or the driver is gone. What keeps it from
    /// reading or writing does not end it: the Nix database is the truth and
    /// does not go away, so the work is done again when that has passed.
    pub(super) fn run(mut self, ear: &Ear) -> Result<(), IntakeError> {
        let seen = self.caches.iter().map(|_| Seen::default()).collect();
        let mut progress = Progress {
            cursor: None,
            restored: false,
            seen,
            namings: VecDeque::new(),
            hooked: VecDeque::new(),
        };
        let mut stuck = Stuck::default();
        loop {
            ear.rung.store(false, Ordering::Release);
            let rest = match self.advance(&mut progress) {
                Ok(()) => {
                    if stuck.over() {
                        self.tell(Input::Stuck(None))?;
                    }
                    None
                }
                Err(error) if error.is_passing() => {
                    let (rest, text) = stuck.on(&error);
                    self.tell(Input::Stuck(Some(text)))?;
                    Some(rest)
                }
                Err(error) => return Err(error),
            };
            // What rang meanwhile has put a [`Work::Look`] into the queue.
            let work = match rest {
                None => ear.work.recv().map_err(|_| IntakeError::Closed)?,
                Some(rest) if progress.namings.len() >= QUEUE => {
                    std::thread::sleep(rest);
                    continue;
                }
                Some(rest) => match ear.work.recv_timeout(rest) {
                    Ok(work) => work,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return Err(IntakeError::Closed),
                },
            };
            match work {
                Work::Look => {}
                Work::Name(naming) => progress.namings.push_back(naming),
                Work::Hook(paths) => progress.hooked.push_back(paths),
                Work::Stop => return Ok(()),
            }
        }
    }

    /// Does what is to be done. After an error it is begun again, and nothing
    /// that was done then is lost or counted twice.
    fn advance(&mut self, progress: &mut Progress) -> Result<(), IntakeError> {
        let Progress { cursor, restored, seen, namings, hooked } = progress;
        let cursor = match cursor {
            Some(cursor) => cursor,
            None => {
                let first = self.first_cursor()?;
                cursor.insert(first)
            }
        };
        if !*restored {
            self.restore()?;
            self.keeper.restored();
        }
        self.look(cursor, seen)?;
        if !std::mem::replace(restored, true) {
            self.tell(Input::Restored)?;
        }
        while let Some(paths) = hooked.front() {
            self.hooked(paths, seen)?;
            hooked.pop_front();
        }
        while let Some(naming) = namings.front() {
            self.name(naming, cursor, seen)?;
            namings.pop_front();
        }
        Ok(())
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, input: Input) -> Result<(), IntakeError> {
        self.out.blocking_send(input).map_err(|_| IntakeError::Closed)
    }

    /// Where to go on: where the ledger says, or at the store's present end.
    fn first_cursor(&mut self) -> Result<Cursor, IntakeError> {
        let identity = self.journal.identity()?.to_string();
        match self.ledger.cursor()? {
            Some(cursor) if cursor.identity == identity && cursor.id <= self.journal.head()? => Ok(cursor),
            Some(cursor) => {
                warn!(
                    was = cursor.identity,
                    now = identity,
                    "the Nix database is another one than before: everything in it counts as new"
                );
                Ok(Cursor { identity, id: 0 })
            }
            None => {
                let head = self.journal.head()?;
                let id = match super::begin::noted(&self.own_dir, &identity).filter(|id| *id <= head) {
                    Some(id) => {
                        warn!("the ledger is new: what became valid since the first start counts as new");
                        id
                    }
                    None if self.existing => 0,
                    None => head,
                };
                let cursor = Cursor { identity, id };
                super::begin::note(&self.own_dir, &cursor);
                self.ledger.admit(Admit {
                    cursor: Some(cursor.clone()),
                    items: Vec::new(),
                    at: wall_ms(),
                })?;
                Ok(cursor)
            }
        }
    }

    /// Tells the driver what an earlier life left unsettled.
    fn restore(&mut self) -> Result<(), IntakeError> {
        let mut after = 0;
        let mut count = 0_usize;
        loop {
            let rows = self.ledger.unsettled(after, ITEMS)?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            let mut found: HashMap<u16, Vec<(PathInfo, i64, ItemState)>> = HashMap::new();
            let mut reasons = Vec::new();
            for row in rows {
                let Some(cache) = self.number_of(&row.cache) else {
                    debug!(
                        cache = row.cache,
                        path = row.path,
                        "left alone: its cache is not configured any more"
                    );
                    continue;
                };
                let info = match StorePath::parse(&row.path) {
                    Ok(path) => self.journal.info(&path)?,
                    Err(_) => None,
                };
                match info {
                    Some(info) => {
                        if row.state == ItemState::Failed {
                            let unknown = || "no reason was recorded".to_owned();
                            let class = row.error_class.unwrap_or_default();
                            reasons.push((row.id, class, row.error.unwrap_or_else(unknown)));
                        }
                        found.entry(cache).or_default().push((info, row.id, row.state));
                    }
                    None => self.ledger.settle(row.id, super::settle::collected(row.attempts)),
                }
            }
            for (cache, items) in found {
                count += items.len();
                let mine = reasons.extract_if(.., |r| items.iter().any(|(_, id, _)| *id == r.0)).collect();
                self.hand_over(cache, &items, &HashMap::new(), mine, false)?;
            }
        }
        if count > 0 {
            info!(paths = count, "taken up again from before the restart");
        }
        Ok(())
    }

    fn number_of(&self, cache: &str) -> Option<u16> {
        self.caches.iter().position(|c| c == cache).and_then(|n| u16::try_from(n).ok())
    }

    /// Takes in what became valid since the cursor.
    fn look(&mut self, cursor: &mut Cursor, seen: &mut [Seen]) -> Result<(), IntakeError> {
        self.reopen_if_replaced(cursor, seen)?;
        let began = Instant::now();
        loop {
            let rows = self.journal.since(cursor.id, ROWS)?;
            let Some(last) = rows.last() else { break };
            let next = Cursor { identity: cursor.identity.clone(), id: last.id };
            // Their locks' events came before: what they tell is known then.
            self.witness.catch_up();
            self.take_rows(rows, Some(&next), seen)?;
            *cursor = next;
            self.tell(Input::Cursor(cursor.id))?;
        }
        // The same file with another content, as after a restored backup.
        if self.journal.head()? < cursor.id {
            self.begin_again(cursor, seen);
            return self.look(cursor, seen);
        }
        self.witness.sweep(began);
        Ok(())
    }

    /// A hook spoke of paths that were taken in before it did: they belong to
    /// who made them, whoever was thought to have.
    fn hooked(&mut self, paths: &[StorePath], seen: &mut [Seen]) -> Result<(), IntakeError> {
        let mut rows = Vec::new();
        for path in paths.iter().filter(|p| self.witness.is_hooked(p.base())) {
            rows.extend(self.journal.info(path)?);
        }
        if rows.is_empty() { Ok(()) } else { self.take_rows(rows, None, seen) }
    }

    fn reopen_if_replaced(&mut self, cursor: &mut Cursor, seen: &mut [Seen]) -> Result<(), IntakeError> {
        if self.journal.identity().is_ok_and(|identity| identity.to_string() == cursor.identity) {
            return Ok(());
        }
        // In the middle of being replaced this fails, and is tried again.
        self.journal = Journal::open(&self.state_dir, &self.store_dir)?;
        let identity = self.journal.identity()?.to_string();
        // It may have been away only for a moment.
        if identity != cursor.identity {
            cursor.identity = identity;
            self.begin_again(cursor, seen);
        }
        Ok(())
    }

    fn begin_again(&self, cursor: &mut Cursor, seen: &mut [Seen]) {
        cursor.id = 0;
        seen.iter_mut().for_each(Seen::clear);
        self.windows().renumber();
        super::begin::note(&self.own_dir, cursor);
        warn!("the Nix database was replaced: everything in it counts as new");
    }

    fn take_rows(
        &mut self,
        rows: Vec<PathInfo>,
        next: Option<&Cursor>,
        seen: &mut [Seen],
    ) -> Result<(), IntakeError> {
        let windows = self.windows().clone();
        let mut roots: Vec<Vec<StorePath>> = self.caches.iter().map(|_| Vec::new()).collect();
        let mut owned: HashMap<i64, Vec<(SessionRow, Evidence)>> = HashMap::new();
        let mut aside: Vec<Vec<Candidate>> = self.caches.iter().map(|_| Vec::new()).collect();
        for info in rows {
            let maker = self.witness.maker(info.path.base());
            let owners = windows.owners(info.id, maker.as_ref());
            if next.is_none() {
                let owner = owners.sessions.first().map_or(0, |(session, _)| *session);
                self.ledger.claim(owner, &[info.path.base().to_owned()])?;
            }
            let Some(cache) = owners.cache.unwrap_or(Some(self.default_cache.0)) else { continue };
            let sessions: Vec<_> = owners.sessions.into_iter().map(|(s, why)| (s, evidence(why))).collect();
            let state = enters_as(&self.filter, self.facts.in_upstream(cache, &info), &info);
            if state == ItemState::Pending {
                owned.insert(info.id, sessions);
                roots[usize::from(cache)].push(info.path);
            } else if !sessions.is_empty() {
                let candidate = Candidate { info, cache, state, sessions, recheck_before: 0, retry: false };
                aside[usize::from(cache)].push(candidate);
            }
        }
        for (cache, (roots, aside)) in (0_u16..).zip(roots.into_iter().zip(aside)) {
            let mut enter = |id: i64| owned.contains_key(&id) || !seen[usize::from(cache)].contains(id);
            let ids = self.journal.closure_ids(&roots, &mut enter)?.ids;
            for ids in ids.chunks(ITEMS) {
                let candidate = |info: PathInfo| {
                    let root = owned.remove(&info.id);
                    let upstream = root.is_none() && self.facts.in_upstream(cache, &info);
                    let state = if upstream { ItemState::Upstream } else { ItemState::Pending };
                    // One that was left out at first and is wanted now: those whose it is follow it.
                    let sessions = root.unwrap_or_else(|| {
                        let maker = self.witness.maker(info.path.base());
                        self.whose(&windows.owners(info.id, maker.as_ref()), cache)
                    });
                    Candidate { info, cache, state, sessions, recheck_before: 0, retry: false }
                };
                let candidates = self.journal.infos(ids)?.into_iter().map(candidate).collect();
                self.admit(cache, candidates, false)?;
                ids.iter().for_each(|id| seen[usize::from(cache)].insert(*id));
            }
            if !aside.is_empty() {
                self.admit(cache, aside, false)?;
            }
        }
        // Last, so that what a crash or a full disk cut off is read again.
        if let Some(next) = next {
            self.ledger.admit(Admit { cursor: Some(next.clone()), items: Vec::new(), at: wall_ms() })?;
        }
        Ok(())
    }

    /// The sessions of a path that goes to this cache on behalf of another path.
    fn whose(&self, owners: &Owners, cache: u16) -> Vec<(SessionRow, Evidence)> {
        // Who made it was asked and forgotten when it became valid: what only
        // could be several sessions' is given to none of them anew.
        let elsewhere = owners.cache.unwrap_or(Some(self.default_cache.0)) != Some(cache);
        if elsewhere || owners.sessions.len() > 1 {
            return Vec::new();
        }
        owners.sessions.iter().map(|(s, why)| (*s, evidence(*why))).collect()
    }

    /// Takes named paths with their whole closure.
    fn name(&mut self, naming: &Naming, cursor: &mut Cursor, seen: &mut [Seen]) -> Result<(), IntakeError> {
        if naming.close_window {
            let head = self.journal.head()?;
            self.windows().close(naming.session, head);
            self.ledger.session_until(naming.session, head);
            self.look(cursor, seen)?;
        }
        let cache = naming.cache.0;
        let recheck_before = trusted_since(wall_ms());
        let closure = self.journal.closure_ids(&naming.paths, &mut |_| true)?;
        for ids in closure.ids.chunks(ITEMS) {
            let candidate = |info: PathInfo| {
                let upstream = self.facts.in_upstream(cache, &info);
                let state = if upstream { ItemState::Upstream } else { ItemState::Pending };
                let sessions = vec![(naming.session, Evidence::Closure)];
                Candidate { info, cache, state, sessions, recheck_before, retry: naming.retry }
            };
            let candidates = self.journal.infos(ids)?.into_iter().map(candidate).collect();
            self.admit(cache, candidates, naming.retry)?;
            ids.iter().for_each(|id| seen[usize::from(cache)].insert(*id));
        }
        self.tell(Input::Named { token: naming.token, invalid: closure.invalid })
    }

    /// Writes candidates of one cache, references first, and tells the driver
    /// what of them is to be done.
    fn admit(&self, cache: u16, candidates: Vec<Candidate>, retry: bool) -> Result<(), IntakeError> {
        let items = candidates.iter().map(|c| self.new_item(c)).collect();
        let admitted = self.ledger.admit(Admit { cursor: None, items, at: wall_ms() })?;
        let mut sessions = HashMap::new();
        let mut found = Vec::new();
        for (candidate, (id, state, _)) in candidates.into_iter().zip(admitted.items) {
            if !candidate.sessions.is_empty() {
                sessions.insert(id, candidate.sessions.iter().map(|(s, _)| *s).collect());
            }
            found.push((candidate.info, id, state));
        }
        self.hand_over(cache, &found, &sessions, Vec::new(), retry)
    }

    fn new_item(&self, c: &Candidate) -> NewItem {
        NewItem {
            cache: self.caches[usize::from(c.cache)].clone(),
            path: c.info.path.base().to_owned(),
            nar_size: c.info.nar_size,
            state: c.state,
            recheck_before: c.recheck_before,
            retry_failed: c.retry,
            sessions: c.sessions.clone(),
        }
    }

    /// Tells the driver what of `items` is unsettled, with the references that
    /// must come first.
    fn hand_over(
        &self,
        cache: u16,
        items: &[(PathInfo, i64, ItemState)],
        sessions: &HashMap<i64, Vec<SessionRow>>,
        reasons: Vec<(i64, String, String)>,
        retry: bool,
    ) -> Result<(), IntakeError> {
        let open =
            |state: ItemState| matches!(state, ItemState::Pending | ItemState::Uploading | ItemState::Failed);
        let mut known: HashMap<&StorePath, Option<i64>> =
            items.iter().map(|(info, id, state)| (&info.path, open(*state).then_some(*id))).collect();
        let wanted: Vec<_> = items.iter().filter(|(_, _, state)| open(*state)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        // Before anybody may rely on it.
        self.keeper.protect(cache, wanted.iter().map(|(info, _, _)| &info.path));
        for (info, _, _) in wanted.iter().filter(|(_, _, state)| *state == ItemState::Failed) {
            self.keeper.park(cache, info.path.clone());
        }
        let mut elsewhere: Vec<&StorePath> = wanted
            .iter()
            .flat_map(|(info, _, _)| &info.references)
            .filter(|r| !known.contains_key(r))
            .collect();
        elsewhere.sort_unstable();
        elsewhere.dedup();
        let names: Vec<String> = elsewhere.iter().map(|p| p.base().to_owned()).collect();
        let places = self.ledger.lookup(&self.caches[usize::from(cache)], &names)?;
        for (path, place) in elsewhere.into_iter().zip(places) {
            known.insert(path, place.filter(|(_, state, _)| open(*state)).map(|(id, _, _)| id));
        }
        let tasks = wanted
            .iter()
            .map(|(info, id, state)| NewTask {
                id: *id,
                references: info
                    .references
                    .iter()
                    .filter(|r| **r != info.path)
                    .filter_map(|r| known.get(r).copied().flatten())
                    .collect(),
                sessions: sessions.get(id).cloned().unwrap_or_default(),
                parked: *state == ItemState::Failed,
            })
            .collect();
        let paths = wanted.iter().map(|(info, id, _)| (*id, info.path.clone())).collect();
        self.tell(Input::Found { cache: CacheId(cache), tasks, paths, reasons, retry })
    }
}

/// Confirmations from before this moment are asked for again. The ledger holds
/// wall-clock times, so one from the future (the clock was put back) would be
/// believed for ever; `ledger` is told the time and distrusts those.
fn trusted_since(now: i64) -> i64 {
    now - TRUST_MS
}

fn evidence(why: Why) -> Evidence {
    match why {
        Why::Hook => Evidence::Hook,
        Why::Process => Evidence::Process,
        Why::Window => Evidence::Window,
        Why::Shared => Evidence::Shared,
    }
}

/// Runs the intake on a thread of its own; how it ended is told to the driver.
pub(super) fn start(intake: Intake, ear: Ear) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("intake".to_owned()).spawn(move || {
        let out = intake.out.clone();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| intake.run(&ear)));
        let reason = match ended {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some("it panicked".to_owned()),
        };
        if let Some(reason) = &reason {
            error!(reason, "the intake has ended");
        }
        let _ = out.blocking_send(Input::IntakeEnded(reason));
    })
}
