//! The only thread that changes the database: it takes the waiting jobs, writes
//! them in one transaction, and answers when the transaction is on the disk.
//! Must not know HTTP.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior};
use tokio::sync::{mpsc, oneshot};

use super::super::error::ApiError;
use super::super::realisations;
use super::super::wire::PathRecord;
use super::{Pins, evict, nar_file};
use crate::types::{NarHash, Realisation, StorePath, Wall};

/// Largest numbers of waiting jobs, and of jobs in one transaction.
const WAITING: usize = 256;
const BATCH: usize = 128;

/// Approximate size of a path's rows without its NAR and references, in bytes.
pub(super) const ROW: u64 = 512;

/// Resolves when the thread has ended: `Ok` after a stop, `Err` after a panic.
pub(in super::super) type Done = oneshot::Receiver<()>;

/// A verified upload.
#[derive(Debug)]
pub(in super::super) struct NewPath {
    pub(in super::super) cache: String,
    pub(in super::super) record: PathRecord,
    pub(in super::super) content: Content,
}

/// The place of an upload's verified content.
#[derive(Debug)]
pub(in super::super) enum Content {
    Small(Vec<u8>),
    File {
        size: u64,
    },
    /// The cache had the NAR when the upload began.
    Known,
}

/// The outcome of an upload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Stored {
    Uploaded {
        file_size: u64,
    },
    Deduplicated,
    /// The cache had the path before; it is unchanged.
    Present {
        same_nar: bool,
        file_size: u64,
    },
    /// The cache had the NAR when the upload began, and evicted it before the end.
    NarEvicted,
    /// The path does not fit, even if the cache evicts every other path.
    NoRoom,
}

#[derive(Debug)]
enum Job {
    Store(Box<NewPath>, oneshot::Sender<Result<Stored, ApiError>>),
    Touch(Vec<i64>),
    /// The sender gets a message, or is dropped, when the job has ended.
    Lost(NarHash, oneshot::Sender<()>),
    /// The sender is told when they are on the disk, and dropped otherwise.
    Publish(Vec<Realisation>, oneshot::Sender<()>),
}

/// Takes realisations, and does not keep the writing thread alive.
#[derive(Debug, Clone)]
pub(in super::super) struct Publisher(mpsc::WeakSender<Job>);

impl Publisher {
    /// Returns whether they are on the disk. Blocks.
    pub(in super::super) fn publish(&self, realisations: Vec<Realisation>) -> bool {
        let (answer, answered) = oneshot::channel();
        let Some(jobs) = self.0.upgrade() else { return false };
        let sent = jobs.blocking_send(Job::Publish(realisations, answer)).is_ok();
        // The thread ends with its last sender, and answers before that.
        drop(jobs);
        sent && answered.blocking_recv().is_ok()
    }
}

/// Handle of the writing thread, which ends when the last handle is dropped.
pub(in super::super) struct Writer(mpsc::Sender<Job>);

impl Writer {
    pub(super) fn start(
        connection: Connection,
        lock: File,
        nar_dir: PathBuf,
        max_size: Option<u64>,
        pins: Arc<Pins>,
    ) -> rusqlite::Result<(Self, Done)> {
        let size = evict::size(&connection)?;
        let (jobs, inbox) = mpsc::channel(WAITING);
        let (done, ended) = oneshot::channel();
        let mut thread = Thread { connection, nar_dir, max_size, size, pins, _lock: lock };
        std::thread::Builder::new()
            .name("embedded-write".to_owned())
            .spawn(move || {
                thread.run(inbox);
                drop(thread);
                let _ = done.send(()); // the receiver may have been dropped
            })
            .map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))?;
        Ok((Self(jobs), ended))
    }

    pub(in super::super) fn publisher(&self) -> Publisher {
        Publisher(self.0.downgrade())
    }

    /// Returns when the path is on the disk.
    pub(in super::super) async fn store(&self, new: NewPath) -> Result<Stored, ApiError> {
        let (answer, answered) = oneshot::channel();
        let sent = self.0.send(Job::Store(Box::new(new), answer)).await;
        match (sent, answered.await) {
            (Ok(()), Ok(stored)) => stored,
            _ => Err(ApiError::Internal),
        }
    }

    /// Records that these paths were used. Waits for room in the queue, not for the disk.
    pub(in super::super) async fn touch(&self, rows: Vec<i64>) {
        if !rows.is_empty() {
            let _ = self.0.send(Job::Touch(rows)).await; // without a writer, recency does not matter
        }
    }

    /// Reports that this NAR's file is missing, and waits until the thread has removed its row, so that the
    /// reader who is refused does not hear next that the cache has the path.
    pub(in super::super) async fn lost(&self, hash: NarHash) {
        let (removed, until_removed) = oneshot::channel();
        let _ = self.0.send(Job::Lost(hash, removed)).await;
        let _ = until_removed.await;
    }
}

struct Thread {
    connection: Connection,
    nar_dir: PathBuf,
    max_size: Option<u64>,
    /// Approximate size of everything stored, in bytes.
    size: u64,
    pins: Arc<Pins>,
    /// Keeps other processes out of the directory until the last row is written.
    _lock: File,
}

impl Thread {
    fn run(&mut self, mut inbox: mpsc::Receiver<Job>) {
        while let Some(first) = inbox.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH
                && let Ok(job) = inbox.try_recv()
            {
                batch.push(job);
            }
            self.batch(batch);
        }
    }

    /// Runs all jobs in one transaction. If it fails, runs each job in a transaction of its own, so that one
    /// job's failure does not affect the others.
    fn batch(&mut self, batch: Vec<Job>) {
        let outcome = self.transaction(&batch);
        match outcome {
            Ok(stored) => reply(batch, stored.into_iter().map(Ok)),
            Err(error) if batch.len() == 1 => {
                let error = ApiError::from_sql("storing", &error);
                self.discard(&batch[0]);
                if let [Job::Publish(..)] = batch[..] {
                    return;
                }
                reply(batch, std::iter::once(Err(error)));
            }
            Err(_) => {
                for job in batch {
                    self.batch(vec![job]);
                }
            }
        }
    }

    /// Removes a file whose row could not be written, unless another upload relies on it.
    fn discard(&self, job: &Job) {
        let Job::Store(new, _) = job else { return };
        if !matches!(new.content, Content::File { .. }) {
            return;
        }
        let hash = &new.record.nar_hash;
        let pins = self.pins.lock();
        let known = self
            .connection
            .prepare_cached("SELECT 1 FROM nar WHERE hash = ?1")
            .and_then(|mut q| q.exists([hash.0]));
        if matches!(known, Ok(false)) && pins.get(hash) == Some(&1) {
            let _ = std::fs::remove_file(nar_file(&self.nar_dir, hash)); // if this fails, the next start removes the file
        }
    }

    /// Runs the jobs in one transaction. Returns one answer for each `Job::Store`, in order. After an error
    /// nothing has changed.
    fn transaction(&mut self, batch: &[Job]) -> rusqlite::Result<Vec<Stored>> {
        let tx = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut added = 0;
        let mut answers = Vec::new();
        let mut removed = evict::Removed::default();
        for job in batch {
            match job {
                Job::Store(new, _) => {
                    let (stored, bytes) = store(&tx, new)?;
                    answers.push(stored);
                    added += bytes;
                }
                Job::Touch(rows) => touch(&tx, rows)?,
                Job::Publish(realisations, _) => publish(&tx, realisations)?,
                Job::Lost(hash, _) => {
                    let id: Option<i64> = tx
                        .query_row("SELECT id FROM nar WHERE hash = ?1", [hash.0], |r| r.get(0))
                        .optional()?;
                    removed.add(evict::drop_nars(&tx, id.as_slice())?);
                }
            }
        }
        let pins = self.pins.lock();
        if let Some(limit) = self.max_size
            && self.size + added > limit + removed.bytes
        {
            // Evicts down to nine tenths of the limit, so that not every later upload has to evict.
            let target = limit - limit / 10;
            removed.add(evict::make_room(
                &tx,
                (self.size + added).saturating_sub(removed.bytes + target),
                &pins,
            )?);
            still_there(&tx, batch, &mut answers)?;
        }
        tx.commit()?;
        // The removal of the rows is durable, so the files can be removed. This thread still
        // holds the lock of the pins: an upload that begins now sees row and file, or neither.
        for hash in &removed.files {
            let _ = std::fs::remove_file(nar_file(&self.nar_dir, hash)); // if this fails, the next start removes the file
        }
        drop(pins);
        self.size = (self.size + added).saturating_sub(removed.bytes);
        if removed.paths > 0 {
            crate::observe::event!(
                BUILT_IN_EVICTED,
                paths = removed.paths,
                bytes = removed.bytes,
                "built-in cache: evicted {} paths ({} bytes) to make room",
                removed.paths,
                removed.bytes
            );
            // This returns freed pages to the file system; the next eviction returns the pages that this one leaves.
            let _ = self.connection.execute_batch("PRAGMA incremental_vacuum(4096)");
        }
        Ok(answers)
    }
}

fn reply(batch: Vec<Job>, answers: impl Iterator<Item = Result<Stored, ApiError>>) {
    let waiting = batch.into_iter().filter_map(|job| match job {
        Job::Store(_, answer) => Some(answer),
        Job::Touch(_) => None,
        Job::Lost(_, done) | Job::Publish(_, done) => {
            let _ = done.send(());
            None
        }
    });
    for (waiting, answer) in waiting.zip(answers) {
        let _ = waiting.send(answer); // the client may have closed its connection
    }
}

fn store(tx: &Transaction<'_>, new: &NewPath) -> rusqlite::Result<(Stored, u64)> {
    let record = &new.record;
    let hash = record.path.hash_part();
    let present: Option<(Vec<u8>, i64)> = tx
        .prepare_cached(
            "SELECT n.hash, n.file_size FROM path p JOIN nar n ON n.id = p.nar WHERE p.cache = ?1 AND p.hash = ?2",
        )?
        .query_row((&new.cache, hash), |r| Ok((r.get(0)?, r.get(1)?)))
        .optional()?;
    if let Some((nar, size)) = present {
        let file_size = u64::try_from(size).unwrap_or(0);
        return Ok((Stored::Present { same_nar: nar == record.nar_hash.0, file_size }, 0));
    }
    let known: Option<i64> = tx
        .prepare_cached("SELECT id FROM nar WHERE hash = ?1")?
        .query_row([record.nar_hash.0], |r| r.get(0))
        .optional()?;
    let (nar, stored, bytes) = match (known, &new.content) {
        (Some(id), _) => (id, Stored::Deduplicated, 0),
        (None, Content::Known) => return Ok((Stored::NarEvicted, 0)),
        (None, Content::Small(data)) => insert_nar(tx, record, data.len() as u64, Some(data))?,
        (None, Content::File { size }) => insert_nar(tx, record, *size, None)?,
    };
    let refs = record.references.iter().map(StorePath::base).collect::<Vec<_>>().join(" ");
    let bytes = bytes + ROW + refs.len() as u64;
    tx.prepare_cached(
        "INSERT INTO path (cache, hash, nar, used_at, base, refs, system, deriver, ca, sigs)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
    )?
    .execute(rusqlite::params![
        new.cache,
        hash,
        nar,
        Wall::now().0,
        record.path.base(),
        refs,
        record.system,
        record.deriver.as_ref().map(StorePath::base),
        record.ca,
        record.sigs.join(" ")
    ])?;
    Ok((stored, bytes))
}

/// Corrects the answers after an eviction, which may also have evicted paths of this very batch: a closure
/// that does not fit loses the path that was uploaded last.
fn still_there(tx: &Transaction<'_>, batch: &[Job], answers: &mut [Stored]) -> rusqlite::Result<()> {
    let stores = batch.iter().filter_map(|job| match job {
        Job::Store(new, _) => Some(new),
        Job::Touch(_) | Job::Lost(..) | Job::Publish(..) => None,
    });
    let mut query = tx.prepare_cached("SELECT 1 FROM path WHERE cache = ?1 AND hash = ?2")?;
    for (new, answer) in stores.zip(answers) {
        if *answer != Stored::NarEvicted && !query.exists((&new.cache, new.record.path.hash_part()))? {
            *answer = Stored::NoRoom;
        }
    }
    Ok(())
}

fn insert_nar(
    tx: &Transaction<'_>,
    record: &PathRecord,
    file_size: u64,
    data: Option<&Vec<u8>>,
) -> rusqlite::Result<(i64, Stored, u64)> {
    let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    tx.prepare_cached("INSERT INTO nar (hash, nar_size, file_size, data) VALUES (?1, ?2, ?3, ?4)")?
        .execute((record.nar_hash.0, signed(record.nar_size), signed(file_size), data))?;
    Ok((tx.last_insert_rowid(), Stored::Uploaded { file_size }, file_size))
}

fn publish(tx: &Transaction<'_>, realisations: &[Realisation]) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached(
        "INSERT OR REPLACE INTO realisation (key, hash, base, dependencies, sigs) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?;
    for realisation in realisations {
        let path = &realisation.path;
        let dependencies: String =
            realisation.dependencies.iter().map(|(id, path)| format!("{id} {path}\n")).collect();
        let sigs = realisation.sigs.join(" ");
        insert.execute((
            realisations::key(&realisation.output),
            path.hash_part(),
            path.base(),
            dependencies,
            sigs,
        ))?;
    }
    Ok(())
}

fn touch(tx: &Transaction<'_>, rows: &[i64]) -> rusqlite::Result<()> {
    let now = Wall::now().0;
    let mut update = tx.prepare_cached("UPDATE path SET used_at = ?1 WHERE id = ?2")?;
    for row in rows {
        update.execute((now, row))?;
    }
    Ok(())
}
