//! Reads the Nix database and the store for uploads. Must not know caches.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use super::read_queue::{ReadQueue, Request};
use crate::daemon::blocking::Blocking;
use crate::store::{CurrentNixDb, NixDb, NixDbError, PathInfo, RealisationTable, nar};
use crate::types::{StoreDir, StorePath};

/// Largest NAR in bytes that is read into memory at once. Most paths are smaller,
/// and an upload takes little memory this way.
const SMALL: usize = 64 * 1024;

/// One connection to the Nix database, and the store directory. Clones share the
/// connection, so reads wait for each other: for some seconds at most while the
/// database is locked.
#[derive(Clone)]
pub(in crate::daemon) struct StoreReader {
    nix_db: Arc<Mutex<CurrentNixDb>>,
    store_dir: StoreDir,
    blocking: Blocking,
    queue: ReadQueue<ReadPath>,
}

/// What is read of a path: what the database knows of it, and its NAR if that is small.
/// `None`: the path is not valid.
type ReadPath = Result<Option<(PathInfo, Option<Vec<u8>>)>, String>;

impl StoreReader {
    /// Reads through `nix_db`. There may be no database yet.
    pub(in crate::daemon) fn new(nix_db: CurrentNixDb, store_dir: StoreDir, blocking: Blocking) -> Self {
        Self { nix_db: Arc::new(Mutex::new(nix_db)), store_dir, blocking, queue: ReadQueue::default() }
    }

    pub(in crate::daemon) fn dir(&self) -> &StoreDir {
        &self.store_dir
    }

    /// The file or directory of a store path.
    pub(super) fn file(&self, path: &StorePath) -> PathBuf {
        self.store_dir.file(path)
    }

    /// What the database knows of a path now. `None`: the path is not valid.
    pub(super) async fn info(&self, path: StorePath) -> Result<Option<PathInfo>, String> {
        let this = self.clone();
        let read = move || this.with_nix_db(|db| db.info(&path));
        self.blocking.run(read).await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// What the database knows of each of these paths now, in their order.
    pub(in crate::daemon) async fn infos(
        &self,
        paths: Vec<StorePath>,
    ) -> Vec<Result<Option<PathInfo>, String>> {
        let (this, count) = (self.clone(), paths.len());
        let read = move || paths.iter().map(|path| this.with_nix_db(|db| db.info(path))).collect();
        match self.blocking.run(read).await {
            Ok(infos) => infos,
            Err(e) => (0..count).map(|_| Err(e.to_string())).collect(),
        }
    }

    /// What the database knows of a path now, and its NAR if that is at most
    /// [`SMALL`] bytes. For a small path the change of threads costs most, so one blocking
    /// task reads both, and the paths that are asked for meanwhile as well. When the NAR
    /// cannot be read it is left out, and streaming it later reports the error.
    pub(super) async fn read(&self, path: StorePath) -> ReadPath {
        let (answer, read) = oneshot::channel();
        if let Some(mut reader) = self.queue.add(Request { path, answer }) {
            let this = self.clone();
            self.blocking.start(move || {
                while let Some(Request { path, answer }) = reader.next() {
                    // Fails when the upload was dropped.
                    let _ = answer.send(this.read_now(&path));
                }
            });
        }
        read.await.unwrap_or_else(|_| Err("the task that reads the store has ended".to_owned()))
    }

    fn read_now(&self, path: &StorePath) -> ReadPath {
        let Some(info) = self.with_nix_db(|db| db.info(path))? else { return Ok(None) };
        let size = usize::try_from(info.nar_size).ok().filter(|size| *size <= SMALL);
        let nar = size.and_then(|size| nar::whole(&self.file(path), size).ok().flatten());
        Ok(Some((info, nar)))
    }

    /// Closes the connection to the Nix database. The next read opens one. Blocks.
    pub(in crate::daemon) fn close(&self) {
        self.nix_db.lock().unwrap_or_else(PoisonError::into_inner).close();
    }

    /// Whether Nix takes a path from a substituter, by its derivation if that is there.
    pub(in crate::daemon) async fn is_substitutable(&self, info: PathInfo) -> bool {
        let this = self.clone();
        let read = move || this.with_nix_db(|db| db.is_substitutable(&info)).unwrap_or(true);
        self.blocking.run(read).await.unwrap_or(true)
    }

    /// Whether the Nix database has realisations of content-addressed derivations. Blocks.
    pub(in crate::daemon) fn has_realisations(&self) -> bool {
        let heads =
            |db: &NixDb| RealisationTable::ALL.into_iter().map(|table| db.realisations_head(table)).collect();
        self.with_nix_db(heads).is_ok_and(|heads: Vec<i64>| heads.into_iter().any(|head| head > 0))
    }

    /// How many of these paths have a realisation; 0 when that cannot be read. Blocks.
    pub(in crate::daemon) fn count_realised(&self, paths: &[StorePath]) -> u64 {
        self.with_nix_db(|db| db.count_realised(paths)).map_or(0, |count| count as u64)
    }

    /// The highest id that the Nix database has given to a row. Blocks.
    pub(in crate::daemon) fn head(&self) -> Result<i64, String> {
        self.with_nix_db(NixDb::head)
    }

    /// Reads from the Nix database. Opens it anew if its file was replaced.
    fn with_nix_db<R>(&self, read: impl FnOnce(&NixDb) -> Result<R, NixDbError>) -> Result<R, String> {
        let mut reader = self.nix_db.lock().unwrap_or_else(PoisonError::into_inner);
        reader.current().and_then(read).map_err(|e| e.to_string())
    }
}
