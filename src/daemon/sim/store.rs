//! The simulated Nix store: a Nix database that builds and collections change. It
//! remembers every path that it ever had.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rusqlite::Connection;

use super::trace::Moment;
use crate::types::StoreDir;

/// A path that was valid at some time.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub(super) references: Vec<String>,
    /// The user whose process was seen to make it.
    pub(super) seen: Option<u32>,
    /// The user whose process made it, seen or not.
    pub(super) maker: u32,
    /// The job that made it, by its number.
    pub(super) job: Option<usize>,
    /// Caches that it may go to on its own account.
    pub(super) allowed: BTreeSet<u16>,
    pub(super) row: i64,
    pub(super) at: Moment,
    pub(super) valid: bool,
    /// Users who had a session at that time.
    pub(super) open: BTreeSet<u32>,
    /// Its earlier registrations: who was seen, and the users with a session.
    pub(super) before: Vec<(Option<u32>, BTreeSet<u32>)>,
}

pub(super) struct Store {
    pub(super) dir: PathBuf,
    pub(super) store_dir: StoreDir,
    db: Connection,
    /// By base name.
    pub(super) made: BTreeMap<String, Made>,
    count: u64,
    backup: Option<i64>,
    pub(super) rollbacks: u32,
    /// The highest row that was left when the database went back, until the daemon has noticed.
    unnoticed: Option<i64>,
}

impl Store {
    pub(super) fn new(dir: &Path) -> Self {
        for sub in ["store", "nix/db", "state", "runtime"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        let db = Connection::open(dir.join("nix/db/db.sqlite")).unwrap();
        db.execute_batch(
            "pragma journal_mode = wal; pragma synchronous = off;
             create table ValidPaths (id integer primary key autoincrement, path text unique, hash text,
               registrationTime integer, deriver text, narSize integer, ultimate integer, sigs text, ca text);
             create table Refs (referrer integer, reference integer);
             create index IndexReferrer on Refs(referrer); create index IndexReference on Refs(reference);",
        )
        .unwrap();
        let store_dir = StoreDir::new(dir.join("store").to_str().unwrap()).unwrap();
        Self {
            dir: dir.to_owned(),
            store_dir,
            db,
            made: BTreeMap::new(),
            count: 0,
            backup: None,
            rollbacks: 0,
            unnoticed: None,
        }
    }

    /// Names for new paths.
    pub(super) fn new_name(&mut self) -> String {
        self.count += 1;
        format!("{:032}-p{}", self.count, self.count)
    }

    pub(super) fn valid(&self) -> Vec<String> {
        self.made.iter().filter(|(_, made)| made.valid).map(|(base, _)| base.clone()).collect()
    }

    pub(super) fn full(&self, base: &str) -> String {
        format!("{}/{base}", self.store_dir.as_str())
    }

    /// Registers a path.
    pub(super) fn register(&mut self, base: &str, mut made: Made, size: u64) {
        let full = self.full(base);
        let tx = self.db.unchecked_transaction().unwrap();
        tx.prepare_cached(
            "insert into ValidPaths (path, hash, registrationTime, narSize, ultimate) values (?1, ?2, ?3, ?4, 1)",
        )
        .unwrap()
        .execute((&full, format!("sha256:{:064x}", self.count), made.at.ms.cast_signed(), size.cast_signed()))
        .unwrap();
        made.row = tx.last_insert_rowid();
        for reference in &made.references {
            tx.prepare_cached("insert into Refs select ?1, id from ValidPaths where path = ?2")
                .unwrap()
                .execute((made.row, self.full(reference)))
                .unwrap();
        }
        tx.commit().unwrap();
        self.made.insert(base.to_owned(), made);
    }

    /// All paths that a path needs, itself included, as they are or were.
    pub(super) fn closure(&self, base: &str) -> BTreeSet<String> {
        let mut closure = BTreeSet::new();
        let mut stack = vec![base.to_owned()];
        while let Some(base) = stack.pop() {
            if closure.insert(base.clone())
                && let Some(made) = self.made.get(&base)
            {
                stack.extend(made.references.iter().cloned());
            }
        }
        closure
    }

    /// Removes paths that no other valid path needs and that are not in `kept`.
    pub(super) fn collect(
        &mut self,
        kept: &BTreeSet<String>,
        mut wanted: impl FnMut(&str) -> bool,
    ) -> Vec<String> {
        let mut alive: BTreeSet<String> = BTreeSet::new();
        for base in kept {
            alive.extend(self.closure(base));
        }
        let dead: Vec<String> = self.valid().into_iter().filter(|base| !alive.contains(base)).collect();
        let chosen: BTreeSet<String> = dead.into_iter().filter(|base| wanted(base)).collect();
        let mut removed = Vec::new();
        // Referrers before references; one that a valid path needs stays.
        loop {
            let needed: BTreeSet<String> = self
                .made
                .iter()
                .filter(|(_, made)| made.valid)
                .flat_map(|(base, made)| made.references.iter().filter(move |r| *r != base).cloned())
                .collect();
            let Some(base) =
                chosen.iter().find(|base| self.made[*base].valid && !needed.contains(*base)).cloned()
            else {
                return removed;
            };
            let full = self.full(&base);
            self.db
                .execute(
                    "delete from Refs where referrer = (select id from ValidPaths where path = ?1)",
                    [&full],
                )
                .unwrap();
            self.db.execute("delete from ValidPaths where path = ?1", [&full]).unwrap();
            self.made.get_mut(&base).unwrap().valid = false;
            removed.push(base);
        }
    }

    /// Notes the present state for [`Self::roll_back`].
    pub(super) fn back_up(&mut self) {
        let head =
            self.db.query_row("select coalesce(max(seq), 0) from sqlite_sequence", [], |row| row.get(0));
        self.backup = head.ok();
    }

    /// Whether [`Self::roll_back`] would put the database back.
    pub(super) fn is_backed_up(&self) -> bool {
        self.backup.is_some()
    }

    /// Puts the database back: later rows were never there, and their numbers are given
    /// again. Returns the paths that are not valid any more.
    pub(super) fn roll_back(&mut self) -> Option<Vec<String>> {
        let head = self.backup.take()?;
        self.rollbacks += 1;
        self.unnoticed = Some(self.unnoticed.map_or(head, |before| before.min(head)));
        self.db
            .execute_batch(&format!(
                "delete from Refs where referrer > {head}; delete from ValidPaths where id > {head};
                 update sqlite_sequence set seq = {head} where seq > {head};"
            ))
            .unwrap();
        let mut removed = Vec::new();
        for (base, made) in &mut self.made {
            if made.valid && made.row > head {
                made.valid = false;
                removed.push(base.clone());
            }
        }
        Some(removed)
    }

    /// The last of the present rows that a daemon has read whose ledger has this cursor. While
    /// it has not noticed that the database went back, the numbers up to its cursor belong to
    /// rows that it has not seen.
    pub(super) fn read_up_to(&self, cursor: i64) -> i64 {
        self.unnoticed.map_or(cursor, |head| cursor.min(head))
    }

    /// The daemon has this cursor: it knows of the present rows only.
    pub(super) fn cursor_is(&mut self, cursor: i64) {
        self.unnoticed = self.unnoticed.filter(|head| cursor > *head);
    }

    /// The daemon may have forgotten that the database went back.
    pub(super) fn forget_that_it_was_noticed(&mut self) {
        if self.rollbacks > 0 {
            self.unnoticed = Some(0);
        }
    }

    /// Moves the database away, or back to its place.
    pub(super) fn set_away(&self, away: bool) {
        let (here, there) = (self.dir.join("nix/db"), self.dir.join("nix/db-away"));
        let (from, to) = if away { (here, there) } else { (there, here) };
        let _ = std::fs::rename(from, to);
    }

    /// Whether the path has been valid since this time. What is not in the store cannot be
    /// pushed again, and what was made again later is another answer's.
    pub(super) fn was_there(&self, base: &str, since: Moment) -> bool {
        self.made.get(base).is_some_and(|made| made.valid && made.at.line < since.line)
    }

    /// Whether the path has a GC root that outlives a process.
    pub(super) fn is_root(&self, base: &str) -> bool {
        self.dir.join("gcroots").join(base).symlink_metadata().is_ok()
    }

    /// The paths that need this one, itself included, as they are or were.
    pub(super) fn needing(&self, base: &str) -> BTreeSet<String> {
        let mut needing = BTreeSet::from([base.to_owned()]);
        loop {
            let more: Vec<&String> = self
                .made
                .iter()
                .filter(|(other, made)| {
                    !needing.contains(*other) && made.references.iter().any(|r| needing.contains(r))
                })
                .map(|(other, _)| other)
                .collect();
            if more.is_empty() {
                return needing;
            }
            needing.extend(more.into_iter().cloned());
        }
    }

    /// The paths with GC roots that outlive a process.
    pub(super) fn roots(&self) -> BTreeSet<String> {
        let entries = std::fs::read_dir(self.dir.join("gcroots")).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| !name.starts_with('.')).collect()
    }
}
