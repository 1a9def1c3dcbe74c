//! The intake: one thread that reads new rows of the Nix database, decides which paths
//! are wanted, adds their closures, writes all of them to the ledger and reports them to
//! the driver. The cursor moves last: rows that were read and not yet written are read
//! again after a crash, and taking a row in twice changes nothing.
//!
//! Must not know how anything is uploaded.

mod baseline;
mod closure;
mod confirmed;
mod hand_over;
mod handle;
mod look;
mod name;
mod name_service;
mod people;
mod realisations;
mod recheck;
mod restore;
mod routes;
mod rules;
mod standing;
mod store_events;
mod stuck;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use tokio::sync::mpsc::Sender;
use tokio::sync::mpsc::error::TrySendError;

use crate::attribution::{LockWatcher, Windows};
use crate::config::{Existing, Filter};
use crate::daemon::gc_roots::GcRoots;
use crate::daemon::inbox::Input;
use crate::daemon::push::{Settlement, Settlements, StoreReader, UpstreamKeys};
use crate::ledger::{Cursor, Ledger};
use crate::observe::{detail, event};
use crate::store::{CurrentNixDb, LowerStore, Mark, NixDbError};
use crate::types::Heartbeat;

pub(in crate::daemon) use baseline::Baseline;
pub(in crate::daemon) use handle::{IntakeHandle, NamedPaths, Naming, Work, WorkQueue};
pub use name_service::unknown_names;
pub(in crate::daemon) use people::People;
pub(in crate::daemon) use realisations::RealisationCopy;
pub(in crate::daemon) use recheck::Recheck;
pub(in crate::daemon) use routes::{Routes, UNKNOWN, UndecidedPaths};
pub(in crate::daemon) use rules::left_out_by;
#[cfg(test)]
pub(in crate::daemon) use simulated::SimulatedIntake;
pub(in crate::daemon) use store_events::on_watch_event;

use crate::types::{CacheId, Mono, StoreDir, StorePath, millis};
use confirmed::Confirmed;
use handle::QUEUE;
use stuck::Stuck;

/// Upper bound of the paths that the driver knows. A path takes half a kilobyte. Further
/// paths wait in the Nix database, where they are not protected from collection.
const MOST: usize = 200_000;
/// Pushes that are written to the ledger and reported to the driver at a time.
const ITEMS: usize = 1024;

/// Upper bound of the hook calls that wait while the intake is stuck. What further hooks
/// say counts only for paths that are not taken in yet.
const HOOKS: usize = 4096;
/// The ledger's key of the last row that may be read a second time.
const READ_BEFORE: &str = "intake.read_before";
/// The ledger's key that says that there was no Nix database at some time.
const ABSENT: &str = "intake.absent";

/// The part of the configuration that the intake uses.
pub(in crate::daemon) struct PushPolicy {
    pub(in crate::daemon) filter: Filter,
    /// The caches, by their numbers. None is ever removed.
    pub(in crate::daemon) caches: Vec<IntakeCache>,
    pub(in crate::daemon) default_cache: CacheId,
    /// Decide where paths of no session go.
    pub(in crate::daemon) routes: Routes,
}

/// What the intake knows about a cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct IntakeCache {
    pub(in crate::daemon) name: String,
    pub(in crate::daemon) upstream_keys: UpstreamKeys,
    /// Whether upstream caches are asked for its paths, so that what they have is
    /// known for a time only.
    pub(in crate::daemon) asks_upstreams: bool,
}

/// A place for a new [`PushPolicy`]. The intake takes it at its next turn, before any work
/// that is queued afterwards.
pub(in crate::daemon) type NewPolicy = Arc<Mutex<Option<PushPolicy>>>;

/// What the intake works with.
pub(in crate::daemon) struct Intake {
    pub(in crate::daemon) nix_db: CurrentNixDb,
    /// The other connection to the Nix database.
    pub(in crate::daemon) store: StoreReader,
    /// Which paths were valid at the first start.
    pub(in crate::daemon) baseline: Baseline,
    pub(in crate::daemon) store_dir: StoreDir,
    pub(in crate::daemon) ledger: Ledger,
    pub(in crate::daemon) windows: Arc<Mutex<Windows>>,
    pub(in crate::daemon) lock_watcher: LockWatcher,
    pub(in crate::daemon) gc_roots: GcRoots,
    pub(in crate::daemon) policy: PushPolicy,
    pub(in crate::daemon) new_policy: NewPolicy,
    pub(in crate::daemon) undecided: UndecidedPaths,
    /// Receives the names of all new paths: one of them may be the attic client.
    pub(in crate::daemon) client: crate::daemon::attic::Client,
    /// Which existing paths count as new at the first start.
    pub(in crate::daemon) existing: Existing,
    pub(in crate::daemon) out: Sender<Input>,
    /// Moves on with every turn, and with every batch of a long turn.
    pub(in crate::daemon) pulse: Heartbeat,
    /// What is remembered of each row, for each cache of the policy by its number.
    pub(in crate::daemon) confirmed: Vec<Confirmed>,
    /// Rows that prove that the database is the one that was read. Read from the ledger.
    pub(in crate::daemon) marks: Vec<Mark>,
    /// The last row that may be of a path that was taken in before, because the database
    /// went back or was replaced. None before the ledger was asked.
    pub(in crate::daemon) read_before: Option<i64>,
    /// Whether there was no Nix database at some time of this run.
    pub(in crate::daemon) was_absent: bool,
    /// How long a confirmation counts.
    pub(in crate::daemon) recheck_after: Duration,
    /// Pushes that the driver has settled or forgotten.
    pub(in crate::daemon) settlements: Settlements,
    /// Zero of the clock that the driver's decisions use.
    pub(in crate::daemon) began: Instant,
    /// Counts how often the row numbers of this run have changed their meaning.
    pub(in crate::daemon) generation: u32,
    /// How many paths the driver knows.
    pub(in crate::daemon) known: Arc<AtomicUsize>,
    /// The lower store, if the store is a local-overlay store.
    pub(in crate::daemon) lower: Option<LowerStore>,
    /// Copies realisations, if there is a built-in cache.
    pub(in crate::daemon) realisations: Option<RealisationCopy>,
}

/// Why the intake cannot go on.
#[derive(Debug, thiserror::Error)]
pub(in crate::daemon) enum IntakeError {
    /// There is no database yet: Nix makes it when it first writes.
    #[error("waiting for the Nix database at {}: Nix makes it when it first writes to the store", .0.display())]
    Absent(std::path::PathBuf),
    #[error(transparent)]
    NixDb(#[from] NixDbError),
    #[error("the lower store ([nix] lower_state_dir): {0}")]
    Lower(NixDbError),
    #[error("the ledger: {0}")]
    Ledger(#[from] crate::ledger::LedgerError),
    #[error(
        "{0} paths are pending or failed, which is the most that are kept in memory: newer paths are taken in when there are fewer"
    )]
    Full(usize),
    #[error("the driver has ended")]
    Closed,
}

impl IntakeError {
    /// Whether the error may pass by itself, so that the intake retries.
    fn is_passing(&self) -> bool {
        match self {
            Self::Absent(_) | Self::NixDb(_) | Self::Lower(_) | Self::Full(_) => true,
            Self::Ledger(error) => error.is_storage(),
            Self::Closed => false,
        }
    }
}

/// How far the intake is.
struct Progress {
    /// The cursor that was read before the thread started, if it could be read.
    first: Option<Cursor>,
    /// `None` before the first look at the ledger.
    cursor: Option<Cursor>,
    restored: bool,
    namings: VecDeque<Naming>,
    /// Paths that hooks named.
    hooked: VecDeque<Vec<StorePath>>,
    /// Closures that are to be confirmed again.
    rechecks: VecDeque<Recheck>,
    /// Whether all failed pushes are to be retried.
    retry: bool,
    /// The first of the caches that were added since the first turn, and whose pushes of
    /// earlier runs the driver has not learned of.
    added: Option<u16>,
    /// Whether more is to be done without an event.
    more: bool,
    stuck: Stuck,
}

impl Progress {
    /// Takes a piece of work. Returns false when it is the end.
    fn take(&mut self, work: Work) -> bool {
        match work {
            Work::Look => {}
            Work::Name(naming) => self.namings.push_back(naming),
            Work::Hook(paths) if self.hooked.len() < HOOKS => self.hooked.push_back(paths),
            Work::Hook(paths) => {
                detail!(
                    paths = paths.len(),
                    "too many hook calls wait: this one is not applied to paths that were taken in"
                );
            }
            Work::Recheck(recheck) => self.rechecks.push_back(recheck),
            Work::Retry => self.retry = true,
            Work::Stop => return false,
        }
        true
    }
}

impl Intake {
    /// Works until [`Work::Stop`] comes or the driver has ended. An error that may pass
    /// does not end it: the Nix database keeps its rows, so the intake retries until the
    /// error has passed.
    pub(in crate::daemon) fn run(
        mut self,
        queue: &WorkQueue,
        first: Option<Cursor>,
    ) -> Result<(), IntakeError> {
        let mut progress = self.begin(first);
        loop {
            // A wake-up since the beginning of a turn has queued a [`Work::Look`].
            queue.woken.store(false, Ordering::Release);
            let work = match self.turn(&mut progress)? {
                None => queue.work.recv().map_err(|_| IntakeError::Closed)?,
                Some(rest) if progress.namings.len() >= QUEUE => {
                    std::thread::sleep(rest);
                    continue;
                }
                Some(rest) => match queue.work.recv_timeout(rest) {
                    Ok(work) => work,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return Err(IntakeError::Closed),
                },
            };
            if !progress.take(work) {
                return Ok(());
            }
        }
    }

    /// Prepares the first turn.
    fn begin(&mut self, first: Option<Cursor>) -> Progress {
        let recheck_after = self.recheck_after;
        self.confirmed.resize_with(self.policy.caches.len(), || Confirmed::new(recheck_after));
        Progress {
            first,
            cursor: None,
            restored: false,
            namings: VecDeque::new(),
            hooked: VecDeque::new(),
            rechecks: VecDeque::new(),
            retry: false,
            added: None,
            more: false,
            stuck: Stuck::default(),
        }
    }

    /// Does all work that is due. Returns the delay before the next try when an error
    /// that may pass has kept it from some of it.
    fn turn(&mut self, progress: &mut Progress) -> Result<Option<Duration>, IntakeError> {
        self.pulse.beat();
        if let Some(added) = self.take_up_policy().filter(|_| progress.restored) {
            progress.added.get_or_insert(added);
        }
        self.take_up_settlements();
        match self.advance(progress) {
            Ok(()) => {
                if progress.stuck.over() {
                    self.tell(Input::Stuck(None))?;
                }
                Ok(progress.more.then_some(Duration::ZERO))
            }
            Err(error) if error.is_passing() => {
                if matches!(error, IntakeError::Absent(_)) {
                    self.answer_without_database(progress)?;
                }
                let (rest, text) = progress.stuck.on(&error);
                self.tell(Input::Stuck(Some(text)))?;
                Ok(Some(rest))
            }
            Err(error) => Err(error),
        }
    }

    /// Notes which pushes the driver has settled or forgotten.
    fn take_up_settlements(&mut self) {
        for settlement in self.settlements.take() {
            match settlement {
                // The number stands for another path by now.
                Settlement::Settled { row, .. } if row.generation != self.generation => {}
                Settlement::Settled { cache, row, confirmed, .. } => {
                    self.confirmed[usize::from(cache.0)].settled(row.id, confirmed);
                }
                Settlement::Distrust(cache, before) => {
                    self.confirmed[usize::from(cache.0)].distrust(before);
                }
            }
        }
    }

    /// Puts a new policy to use. Returns the number of the first cache that it adds.
    fn take_up_policy(&mut self) -> Option<u16> {
        let policy = self.new_policy.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let before = self.policy.caches.len();
        self.policy = policy;
        let recheck_after = self.recheck_after;
        self.confirmed.resize_with(self.policy.caches.len(), || Confirmed::new(recheck_after));
        u16::try_from(before).ok().filter(|_| before < self.policy.caches.len())
    }

    /// Does all work that is due. After an error the next call begins again; nothing that
    /// this one did is lost or counted twice.
    fn advance(&mut self, progress: &mut Progress) -> Result<(), IntakeError> {
        let Progress { first, cursor, restored, namings, hooked, rechecks, retry, added, more, .. } =
            progress;
        let cursor = match cursor {
            Some(cursor) => cursor,
            None => {
                let first = match first.take() {
                    Some(first) => first,
                    None => self.first_cursor()?,
                };
                // Without this the status would show all rows as unread until a new path
                // becomes valid.
                self.tell(Input::Cursor(first.id))?;
                cursor.insert(first)
            }
        };
        if !*restored {
            self.restore(0, false)?;
        }
        if !rechecks.is_empty() {
            // Before new rows: while the driver knows as much as it may, these wait for
            // pushes to settle, and pushes may wait for a recheck.
            self.stand(cursor)?;
            while let Some(recheck) = rechecks.front() {
                self.recheck(recheck)?;
                rechecks.pop_front();
            }
        }
        self.look(cursor)?;
        self.take_decided()?;
        if !std::mem::replace(restored, true) {
            // After the first look, because paths that the ledger does not have may be
            // protected too.
            self.restore_undecided()?;
            self.gc_roots.restored();
            self.tell(Input::Restored)?;
        }
        if let Some(first) = *added {
            self.restore(first, false)?;
            *added = None;
        }
        if *retry {
            self.restore(0, true)?;
            *retry = false;
        }
        while let Some(paths) = hooked.front() {
            self.hooked(paths)?;
            hooked.pop_front();
        }
        while let Some(naming) = namings.front() {
            self.name(naming, cursor)?;
            namings.pop_front();
        }
        // Last, and a slice at a time, because nobody waits for it.
        *more = self.baseline.is_growing(&cursor.identity);
        if *more {
            self.baseline.extend(self.nix_db.db()?, &cursor.identity)?;
        }
        Ok(())
    }

    fn now(&self) -> Mono {
        Mono(millis(self.began.elapsed()))
    }

    /// Answers namings on a host that has had no database yet: nothing is valid
    /// there. A database that was read and is away now says nothing about what is
    /// valid, so the namings wait for it.
    fn answer_without_database(&mut self, progress: &mut Progress) -> Result<(), IntakeError> {
        if progress.cursor.is_some() || self.baseline.has_begun() || self.ledger.cursor()?.is_some() {
            return Ok(());
        }
        for Naming { token, paths, .. } in std::mem::take(&mut progress.namings) {
            self.tell(Input::Named { token, invalid: paths.to_vec() })?;
        }
        Ok(())
    }

    /// Returns an error when the driver knows [`MOST`] paths or more.
    fn room(&self) -> Result<(), IntakeError> {
        let known = self.known.load(Ordering::Relaxed);
        if known < MOST { Ok(()) } else { Err(IntakeError::Full(known)) }
    }

    fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, input: Input) -> Result<(), IntakeError> {
        match self.out.try_send(input) {
            Ok(()) => {}
            Err(TrySendError::Full(input)) => {
                self.out.blocking_send(input).map_err(|_| IntakeError::Closed)?;
            }
            Err(TrySendError::Closed(_)) => return Err(IntakeError::Closed),
        }
        self.pulse.beat();
        Ok(())
    }
}

/// Runs the intake on a thread of its own, which reports to the driver how it ended.
pub(in crate::daemon) fn start(
    mut intake: Intake,
    queue: WorkQueue,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    // Read before the daemon reports that it is ready, so that paths that become valid
    // after that are new. When it cannot be read now, the thread retries.
    let cursor = intake.first_cursor().ok();
    std::thread::Builder::new().name("intake".to_owned()).spawn(move || {
        let out = intake.out.clone();
        let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| intake.run(&queue, cursor)));
        let reason = match ended {
            Ok(Ok(())) => None,
            Ok(Err(e)) => Some(e.to_string()),
            Err(_) => Some("it panicked".to_owned()),
        };
        if let Some(reason) = &reason {
            event!(
                INTAKE_ENDED,
                error = reason,
                "the intake has ended, and flywheeld ends with it: {reason}"
            );
        }
        let _ = out.blocking_send(Input::IntakeEnded(reason));
    })
}

#[cfg(test)]
mod simulated;
#[cfg(test)]
mod tests;
