//! The intake: one thread that reads what became valid, decides what of it is
//! wanted, adds the closure, writes both to the ledger together with the
//! cursor, and only then tells the driver. A path that was read and not yet
//! written is read again after a crash.
//!
//! Must not know how anything is uploaded.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::mpsc::Sender;
use tracing::{debug, error, info, warn};

use super::input::Input;
use super::rules::{Facts, enters_as};
use super::seen::Seen;
use super::wall_ms;
use crate::attribution::{Evidence as Why, Owners, Windows};
use crate::config::Filter;
use crate::flow::{CacheId, NewTask};
use crate::ledger::{Admit, Cursor, Evidence, ItemState, Ledger, NewItem, SessionRow};
use crate::store::{Journal, JournalError, PathInfo, StoreDir, StorePath};

/// Rows that are taken from the journal at a time.
const ROWS: usize = 256;
/// Items that are written to the ledger at a time, and told to the driver.
const ITEMS: usize = 1024;
/// Things to do that may wait.
const QUEUE: usize = 64;
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
    pub(super) store_dir: StoreDir,
    pub(super) ledger: Ledger,
    pub(super) windows: Arc<Mutex<Windows>>,
    pub(super) facts: Facts,
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

/// A path on its way into the ledger.
struct Candidate {
    info: PathInfo,
    cache: u16,
    state: ItemState,
    sessions: Vec<(SessionRow, Evidence)>,
    recheck_before: i64,
    retry: bool,
}

impl Intake {
    /// Works until it is told to stop or the driver is gone.
    pub(super) fn run(mut self, ear: &Ear) -> Result<(), IntakeError> {
        let mut cursor = self.first_cursor()?;
        let mut seen: Vec<Seen> = self.caches.iter().map(|_| Seen::default()).collect();
        self.restore()?;
        self.look(&mut cursor, &mut seen)?;
        self.tell(Input::Restored)?;
        while let Ok(work) = ear.work.recv() {
            match work {
                Work::Look => {}
                Work::Name(naming) => {
                    // What was rung for before belongs before what is named.
                    ear.rung.store(false, Ordering::Release);
                    self.look(&mut cursor, &mut seen)?;
                    self.name(&naming, &mut cursor, &mut seen)?;
                }
                Work::Stop => return Ok(()),
            }
            if ear.rung.swap(false, Ordering::AcqRel) {
                self.look(&mut cursor, &mut seen)?;
            }
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
                let id = if self.existing { 0 } else { self.journal.head()? };
                let cursor = Cursor { identity, id };
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
                    Some(info) => found.entry(cache).or_default().push((info, row.id, row.state)),
                    None => self.ledger.settle(row.id, super::settle::collected(row.attempts)),
                }
            }
            for (cache, items) in found {
                count += items.len();
                self.hand_over(cache, &items, &HashMap::new())?;
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
        loop {
            let rows = match self.journal.since(cursor.id, ROWS) {
                Ok(rows) => rows,
                Err(JournalError::Busy) => {
                    warn!("the Nix database is busy; looking again at the next ring");
                    return Ok(());
                }
                Err(e) => return Err(e.into()),
            };
            let Some(last) = rows.last() else { break };
            let next = Cursor { identity: cursor.identity.clone(), id: last.id };
            self.take_rows(rows, &next, seen)?;
            *cursor = next;
            self.tell(Input::Cursor(cursor.id))?;
        }
        Ok(())
    }

    fn reopen_if_replaced(&mut self, cursor: &mut Cursor, seen: &mut [Seen]) -> Result<(), IntakeError> {
        let identity = match self.journal.identity() {
            Ok(identity) => identity.to_string(),
            Err(JournalError::Busy) => return Ok(()),
            Err(e) => {
                debug!(error = %e, "the Nix database cannot be identified");
                String::new()
            }
        };
        if identity == cursor.identity {
            return Ok(());
        }
        self.journal = match Journal::open(&self.state_dir, &self.store_dir) {
            Ok(journal) => journal,
            Err(e) => {
                // In the middle of being replaced; the next ring looks again.
                warn!(error = %e, "the Nix database was replaced and cannot be read yet");
                return Ok(());
            }
        };
        cursor.identity = self.journal.identity()?.to_string();
        cursor.id = 0;
        seen.iter_mut().for_each(Seen::clear);
        self.windows().renumber();
        warn!("the Nix database was replaced: everything in it counts as new");
        Ok(())
    }

    fn take_rows(
        &mut self,
        rows: Vec<PathInfo>,
        next: &Cursor,
        seen: &mut [Seen],
    ) -> Result<(), IntakeError> {
        let windows = self.windows().clone();
        let mut roots: Vec<Vec<PathInfo>> = self.caches.iter().map(|_| Vec::new()).collect();
        let mut owned: HashMap<i64, Vec<(SessionRow, Evidence)>> = HashMap::new();
        let mut aside = Vec::new();
        for info in rows {
            let owners = windows.owners(info.id);
            let Some(cache) = owners.cache.unwrap_or(Some(self.default_cache.0)) else { continue };
            let sessions: Vec<_> = owners.sessions.into_iter().map(|(s, why)| (s, evidence(why))).collect();
            let state = enters_as(&self.filter, self.facts.in_upstream(cache, &info), &info);
            if state == ItemState::Pending {
                owned.insert(info.id, sessions);
                roots[usize::from(cache)].push(info);
            } else if !sessions.is_empty() {
                aside.push(Candidate { info, cache, state, sessions, recheck_before: 0, retry: false });
            }
        }
        let mut candidates = Vec::new();
        for (cache, roots) in (0_u16..).zip(roots) {
            let seen = &mut seen[usize::from(cache)];
            let paths: Vec<_> = roots.iter().map(|r| r.path.clone()).collect();
            let mut enter = |id: i64| owned.contains_key(&id) || !seen.contains(id);
            let closure = self.journal.closure(&paths, &mut enter)?;
            for info in closure.paths {
                seen.insert(info.id);
                let sessions = owned.remove(&info.id);
                let root = sessions.is_some();
                let upstream = !root && self.facts.in_upstream(cache, &info);
                let state = if upstream { ItemState::Upstream } else { ItemState::Pending };
                // One that was left out at first and is wanted now: those whose it is follow it.
                let sessions = sessions.unwrap_or_else(|| self.whose(&windows.owners(info.id), cache));
                candidates.push(Candidate { info, cache, state, sessions, recheck_before: 0, retry: false });
            }
        }
        candidates.extend(aside);
        self.admit(candidates, Some(next))
    }

    /// The sessions of a path that goes to this cache on behalf of another path.
    fn whose(&self, owners: &Owners, cache: u16) -> Vec<(SessionRow, Evidence)> {
        if owners.cache.unwrap_or(Some(self.default_cache.0)) != Some(cache) {
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
        let recheck_before = wall_ms() - TRUST_MS;
        let closure = self.journal.closure(&naming.paths, &mut |_| true)?;
        let mut candidates = Vec::new();
        for info in closure.paths {
            seen[usize::from(naming.cache.0)].insert(info.id);
            let upstream = self.facts.in_upstream(naming.cache.0, &info);
            candidates.push(Candidate {
                info,
                cache: naming.cache.0,
                state: if upstream { ItemState::Upstream } else { ItemState::Pending },
                sessions: vec![(naming.session, Evidence::Closure)],
                recheck_before,
                retry: naming.retry,
            });
        }
        self.admit(candidates, None)?;
        self.tell(Input::Named { token: naming.token, invalid: closure.invalid })
    }

    /// Writes candidates, references first, and tells the driver what of them
    /// is to be done. The cursor moves with the last of them.
    fn admit(&mut self, candidates: Vec<Candidate>, cursor: Option<&Cursor>) -> Result<(), IntakeError> {
        let mut candidates = candidates.into_iter().peekable();
        loop {
            let mut chunk: Vec<Candidate> = Vec::new();
            while let Some(candidate) = candidates
                .next_if(|c| chunk.len() < ITEMS && chunk.first().is_none_or(|first| first.cache == c.cache))
            {
                chunk.push(candidate);
            }
            let last = candidates.peek().is_none();
            let items = chunk.iter().map(|c| self.new_item(c)).collect();
            let moved = if last { cursor.cloned() } else { None };
            let admitted = self.ledger.admit(Admit { cursor: moved, items, at: wall_ms() })?;
            let mut sessions = HashMap::new();
            let mut cache = 0;
            let mut found = Vec::new();
            for (candidate, (id, state, _)) in chunk.into_iter().zip(admitted.items) {
                cache = candidate.cache;
                if !candidate.sessions.is_empty() {
                    sessions.insert(id, candidate.sessions.iter().map(|(s, _)| *s).collect());
                }
                found.push((candidate.info, id, state));
            }
            self.hand_over(cache, &found, &sessions)?;
            if last {
                return Ok(());
            }
        }
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
    ) -> Result<(), IntakeError> {
        let open =
            |state: ItemState| matches!(state, ItemState::Pending | ItemState::Uploading | ItemState::Failed);
        let mut known: HashMap<&StorePath, Option<i64>> =
            items.iter().map(|(info, id, state)| (&info.path, open(*state).then_some(*id))).collect();
        let wanted: Vec<_> = items.iter().filter(|(_, _, state)| open(*state)).collect();
        if wanted.is_empty() {
            return Ok(());
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
        self.tell(Input::Found { cache: CacheId(cache), tasks, paths })
    }
}

fn evidence(why: Why) -> Evidence {
    match why {
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
