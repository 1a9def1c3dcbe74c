//! The baseline: which paths were valid at the daemon's first start and count as old.
//! Two files beside the ledger, so that they outlive it:
//!
//! - `begin`: the identity of the Nix database at the first start, the last row of it
//!   that counts as old, and the time. In that database the row number decides.
//! - `baseline`: a fingerprint of each old row. In another database, or one that went
//!   back to before that row, numbers mean nothing, and the fingerprints decide.
//!
//! A fingerprint is 64 bits of a SHA-256 over the path's base name and its NAR hash. The
//! file takes 8 bytes a path, in sorted runs of at most [`RUN`]. It is made after the
//! first start, in slices, and read with a few small reads for each row, so that memory
//! is bounded by one run while it is made.
//!
//! With a million old paths, one new row in 10^13 has the fingerprint of another path.
//! That row would count as old only if it was also registered before the first start, or
//! came by `nix-store --load-db`; see [`Baseline::has`].
//!
//! Must not know: where paths go.

use std::fs::File;
use std::io::{BufWriter, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::observe::event;
use crate::store::{NixDb, NixDbError, PathInfo, RowContent};
use crate::types::{NarHash, StorePath, replace_file, sync_dir};

const BEGIN: &str = "begin";
const FINGERPRINTS: &str = "baseline";
/// The first bytes of the file of fingerprints.
const MAGIC: &[u8; 8] = b"fwbase1\n";
/// Upper bound of the fingerprints of one run, which are in memory while it is made.
const RUN: usize = 1 << 20;
/// Rows that are read at a time while the fingerprints are made.
const SLICE: usize = 4096;

/// The daemon's first start.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Begin {
    /// The identity of the Nix database.
    identity: String,
    /// The last old row. `i64::MAX` after the database's content was replaced in place:
    /// then the fingerprints decide about each row.
    id: i64,
    /// When it was, in Unix seconds. 0 when an earlier version, which did not note the
    /// time, wrote the file.
    at: i64,
}

/// What was valid at the first start.
#[derive(Debug)]
pub(in crate::daemon) struct Baseline {
    dir: PathBuf,
    begin: Option<Begin>,
    fingerprints: Fingerprints,
}

#[derive(Debug)]
enum Fingerprints {
    /// There is no file yet.
    Absent,
    /// They are being made.
    Growing(Growing),
    Complete(Runs),
    /// They cannot be made or read: nothing in another database counts as old.
    Unavailable,
}

/// A file of fingerprints that is being made.
#[derive(Debug)]
struct Growing {
    file: BufWriter<File>,
    run: Vec<u64>,
    /// The last row that was read.
    after: i64,
}

/// A file of fingerprints. Each run is a number of fingerprints, and these in ascending
/// order, all as 8 bytes with the lowest first.
#[derive(Debug)]
struct Runs {
    file: File,
    /// Where each run begins, in bytes, and how many fingerprints it has.
    runs: Vec<(u64, u64)>,
}

impl Baseline {
    /// Reads what an earlier run of the daemon wrote. A file that cannot be understood
    /// is left out of account.
    pub(in crate::daemon) fn read(dir: &Path) -> Self {
        let begin = std::fs::read_to_string(dir.join(BEGIN)).ok().and_then(|text| parse(&text));
        let fingerprints = match Runs::open(&dir.join(FINGERPRINTS)) {
            Ok(runs) => Fingerprints::Complete(runs),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Fingerprints::Absent,
            Err(error) => {
                complain(&error);
                Fingerprints::Unavailable
            }
        };
        Self { dir: dir.to_owned(), begin, fingerprints }
    }

    /// Where to begin in this database without a cursor in the ledger, if this is not
    /// the first start: after the old rows, or where their numbers mean nothing, with
    /// the first row.
    pub(super) fn start(&self, identity: &str, head: i64) -> Option<i64> {
        let begin = self.begin.as_ref()?;
        Some(if begin.identity == identity && begin.id <= head { begin.id } else { 0 })
    }

    /// Whether there was a Nix database at some start of the daemon, also if the ledger does
    /// not know of it any more.
    pub(super) fn has_begun(&self) -> bool {
        self.begin.is_some()
    }

    /// Notes the first start. Logs an error and goes on when it cannot be written.
    pub(super) fn note(&mut self, identity: &str, id: i64, at: i64) {
        self.write(Begin { identity: identity.to_owned(), id, at });
    }

    /// Notes that row numbers of this database mean nothing any more, because its
    /// content was replaced in place.
    pub(super) fn renumbered(&mut self, identity: &str) {
        if let Some(begin) = self.begin.clone().filter(|b| b.identity == identity && b.id > 0) {
            self.write(Begin { id: i64::MAX, ..begin });
        }
    }

    fn write(&mut self, begin: Begin) {
        let text = format!("{} {}\n{}\n", begin.id, begin.identity, begin.at);
        if let Err(error) = replace_file(&self.dir.join(BEGIN), text.as_bytes(), 0o600, None) {
            complain(&error);
        }
        self.begin = Some(begin);
    }

    /// Whether fingerprints of this database are still to be made: then
    /// [`Self::extend`] is due.
    pub(super) fn is_growing(&self, identity: &str) -> bool {
        match &self.fingerprints {
            Fingerprints::Growing(_) => true,
            Fingerprints::Absent => self
                .begin
                .as_ref()
                .is_some_and(|begin| begin.identity == identity && begin.id > 0 && begin.id < i64::MAX),
            Fingerprints::Complete(_) | Fingerprints::Unavailable => false,
        }
    }

    /// Reads a slice of the old rows. Paths that were collected before it is done are
    /// not in the file; neither are those that were not read yet when another database
    /// took the place of this one.
    pub(super) fn extend(&mut self, db: &NixDb, identity: &str) -> Result<(), NixDbError> {
        let Some(begin) = self.begin.as_ref() else { return Ok(()) };
        let after = if let Fingerprints::Growing(growing) = &self.fingerprints { growing.after } else { 0 };
        let is_same = begin.identity == identity && begin.id < i64::MAX;
        let rows = if is_same { db.contents(after, SLICE)? } else { Vec::new() };
        let until = begin.id;
        if let Err(error) = self.grow(&rows, until) {
            complain(&error);
            self.fingerprints = Fingerprints::Unavailable;
        }
        Ok(())
    }

    fn grow(&mut self, rows: &[RowContent], until: i64) -> std::io::Result<()> {
        let new = self.dir.join(format!("{FINGERPRINTS}~"));
        let mut growing = match std::mem::replace(&mut self.fingerprints, Fingerprints::Absent) {
            Fingerprints::Growing(growing) => growing,
            _ => Growing::create(&new)?,
        };
        for (id, content) in rows.iter().take_while(|(id, _)| *id <= until) {
            growing.after = *id;
            if let Some((path, hash)) = content {
                growing.add(fingerprint(path, hash))?;
            }
        }
        let is_last = rows.len() < SLICE || rows.last().is_some_and(|(id, _)| *id >= until);
        self.fingerprints = if is_last {
            growing.end()?;
            let place = self.dir.join(FINGERPRINTS);
            std::fs::rename(&new, &place)?;
            sync_dir(&self.dir)?;
            Fingerprints::Complete(Runs::open(&place)?)
        } else {
            Fingerprints::Growing(growing)
        };
        Ok(())
    }

    /// Whether a row was valid at the first start and counts as old, although the cursor
    /// is before it. In the database of the first start this is so for the old rows. In
    /// any other the row must have the path and NAR hash of an old one, and must be a
    /// copy of that row: either registered before the first start, as in a backup, or
    /// loaded with `nix-store --load-db`, which keeps no signature, no content address and
    /// not the mark of a build of this host. A path that was built or substituted again
    /// later is new.
    pub(super) fn has(&self, identity: &str, info: &PathInfo) -> bool {
        let (Some(begin), Fingerprints::Complete(runs)) = (&self.begin, &self.fingerprints) else {
            return false;
        };
        if begin.identity == identity && info.id > begin.id {
            return false;
        }
        let is_loaded = !info.ultimate && info.sigs.is_empty() && info.ca.is_none();
        let is_copy = is_loaded || info.registered_at <= begin.at;
        is_copy && runs.contain(fingerprint(&info.path, &info.nar_hash)).unwrap_or(false)
    }

    /// Whether a row of another database can count as old.
    pub(super) fn is_known(&self) -> bool {
        matches!(self.fingerprints, Fingerprints::Complete(_))
    }
}

fn complain(error: &std::io::Error) {
    event!(
        BEGIN_NOT_NOTED,
        error = %error,
        "which paths were valid at the first start cannot be noted or read ({error}): if the ledger or the Nix database is replaced, they may count as new and be pushed"
    );
}

fn parse(text: &str) -> Option<Begin> {
    let mut lines = text.lines();
    let (id, identity) = lines.next()?.split_once(' ')?;
    let at = lines.next().and_then(|at| at.parse().ok()).unwrap_or(0);
    Some(Begin { identity: identity.to_owned(), id: id.parse().ok()?, at })
}

fn fingerprint(path: &StorePath, hash: &NarHash) -> u64 {
    let mut digest = Sha256::new();
    digest.update(path.base().as_bytes());
    digest.update([0]);
    digest.update(hash.0);
    let digest: [u8; 32] = digest.finalize().into();
    digest.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

impl Growing {
    fn create(path: &Path) -> std::io::Result<Self> {
        let mut file = BufWriter::new(File::create(path)?);
        file.write_all(MAGIC)?;
        Ok(Self { file, run: Vec::new(), after: 0 })
    }

    fn add(&mut self, fingerprint: u64) -> std::io::Result<()> {
        self.run.push(fingerprint);
        if self.run.len() < RUN { Ok(()) } else { self.end_run() }
    }

    fn end_run(&mut self) -> std::io::Result<()> {
        self.run.sort_unstable();
        self.file.write_all(&(self.run.len() as u64).to_le_bytes())?;
        self.run.iter().try_for_each(|fingerprint| self.file.write_all(&fingerprint.to_le_bytes()))?;
        self.run.clear();
        Ok(())
    }

    fn end(&mut self) -> std::io::Result<()> {
        self.end_run()?;
        self.file.flush()?;
        self.file.get_ref().sync_all()
    }
}

impl Runs {
    fn open(path: &Path) -> std::io::Result<Self> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let mut magic = [0; 8];
        file.read_exact(&mut magic)?;
        let damaged =
            || std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{} is damaged", path.display()));
        if &magic != MAGIC {
            return Err(damaged());
        }
        let (mut runs, mut at) = (Vec::new(), 8);
        while at < length {
            let count = number_at(&file, at)?;
            let bytes = count.checked_mul(8).and_then(|bytes| bytes.checked_add(at + 8));
            let end = bytes.filter(|end| *end <= length).ok_or_else(damaged)?;
            runs.push((at + 8, count));
            at = end;
        }
        Ok(Self { file, runs })
    }

    fn contain(&self, wanted: u64) -> std::io::Result<bool> {
        for (start, count) in &self.runs {
            let (mut low, mut high) = (0, *count);
            while low < high {
                let middle = low + (high - low) / 2;
                match number_at(&self.file, start + middle * 8)?.cmp(&wanted) {
                    std::cmp::Ordering::Equal => return Ok(true),
                    std::cmp::Ordering::Less => low = middle + 1,
                    std::cmp::Ordering::Greater => high = middle,
                }
            }
        }
        Ok(false)
    }
}

fn number_at(file: &File, at: u64) -> std::io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, at)?;
    Ok(u64::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(n: i64) -> StorePath {
        StorePath::parse(&format!("{n:032}-p")).unwrap()
    }

    fn rows(ids: impl Iterator<Item = i64>) -> Vec<RowContent> {
        ids.map(|id| (id, Some((path(id), NarHash([1; 32]))))).collect()
    }

    /// A row as `nix-store --load-db` makes it.
    fn loaded(id: i64, what: i64) -> PathInfo {
        PathInfo::for_tests(id, path(what), NarHash([1; 32]), 900)
    }

    fn with_old(dir: &Path, count: i64) -> Baseline {
        let mut baseline = Baseline::read(dir);
        baseline.note("a:1", count, 500);
        assert!(baseline.is_growing("a:1") && !baseline.is_growing("b:1") && !baseline.is_known());
        for slice in rows(1..=count + 3).chunks(SLICE) {
            if baseline.is_growing("a:1") {
                baseline.grow(slice, count).unwrap();
            }
        }
        assert!(!baseline.is_growing("a:1"));
        baseline
    }

    #[test]
    fn an_old_row_is_one_in_any_database_and_a_new_one_in_none() {
        let dir = tempfile::tempdir().unwrap();
        let count = SLICE as i64 + 10;
        drop(with_old(dir.path(), count));
        let mut baseline = Baseline::read(dir.path());
        assert!(baseline.is_known() && !baseline.is_growing("a:1"));
        for old in [1, 2, SLICE as i64, SLICE as i64 + 1, count] {
            assert!(baseline.has("b:1", &loaded(old + 100_000, old)), "{old}");
            // In the database of the first start a row with a higher number is new,
            // and in a part of it that went back the fingerprint decides.
            assert!(!baseline.has("a:1", &loaded(count + 1, old)), "{old}");
            assert!(baseline.has("a:1", &loaded(old, old)), "{old}");
        }
        for new in [0, count + 1, count + 2] {
            assert!(!baseline.has("b:1", &loaded(1, new)) && !baseline.has("a:1", &loaded(1, new)), "{new}");
        }
        baseline.renumbered("b:1");
        assert!(!baseline.has("a:1", &loaded(count + 1, 1)));
        baseline.renumbered("a:1");
        assert!(Baseline::read(dir.path()).has("a:1", &loaded(count + 1, 1)), "after a replacement in place");
    }

    #[test]
    fn only_a_copy_of_an_old_row_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let baseline = with_old(dir.path(), 10);
        let of = |change: fn(&mut PathInfo)| {
            let mut info = loaded(7, 3);
            change(&mut info);
            baseline.has("b:1", &info)
        };
        assert!(of(|_| ()));
        assert!(!of(|info| info.ultimate = true), "built again");
        assert!(!of(|info| info.sigs.push("k:s".into())), "substituted again");
        assert!(!of(|info| info.ca = Some("fixed:…".into())), "added again");
        assert!(!of(|info| info.nar_hash = NarHash([2; 32])), "built again with another content");
        assert!(of(|info| (info.ultimate, info.registered_at) = (true, 500)), "from a backup");
        assert!(!of(|info| (info.ultimate, info.registered_at) = (true, 501)), "built after the first start");
    }

    #[test]
    fn several_runs_are_searched() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        let mut growing = Growing::create(&file).unwrap();
        for run in [[5, 1, 9], [8, 2, u64::MAX]] {
            run.into_iter().for_each(|n| growing.add(n).unwrap());
            growing.end_run().unwrap();
        }
        growing.end().unwrap();
        let runs = Runs::open(&file).unwrap();
        let found: Vec<u64> = (0..=10).chain([u64::MAX]).filter(|n| runs.contain(*n).unwrap()).collect();
        assert_eq!(found, [1, 2, 5, 8, 9, u64::MAX]);
        // A file that was cut is not used.
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len() - 9]).unwrap();
        assert!(Runs::open(&file).is_err());
    }

    #[test]
    fn the_first_start_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut baseline = Baseline::read(dir.path());
        assert_eq!(baseline.start("a:1", 99), None);
        baseline.note("a:1", 42, 7);
        let baseline = Baseline::read(dir.path());
        assert_eq!([baseline.start("a:1", 99), baseline.start("a:1", 41)], [Some(42), Some(0)]);
        assert_eq!(baseline.start("b:1", 99), Some(0), "the fingerprints decide");
        // Of an earlier version, and damaged.
        assert_eq!(parse("42 a:1\n"), Some(Begin { identity: "a:1".into(), id: 42, at: 0 }));
        assert_eq!(parse("nonsense"), None);
    }
}
