//! Pushes that have settled after the intake read them in the ledger and before the driver
//! handles its report of them. Without a correction the driver would take a push that was
//! pending then as one that the ledger does not have as confirmed: if the cache has deleted
//! the path meanwhile, the ledger would keep it as confirmed until it is uploaded again.

use std::collections::{HashMap, HashSet};

use super::pushes::Pushes;
use crate::daemon::inbox::FoundPath;
use crate::flow::{NewPush, Outcome, Purpose};
use crate::types::{CacheId, PushId, StorePath};

impl Pushes {
    /// Corrects a report of the intake. Pushes that are not known and have settled since the
    /// intake read them in the ledger are there as they settled; the intake has protected those
    /// of them that it read as pending. `report` is the report's number.
    pub(in crate::daemon) fn correct(
        &self,
        cache: CacheId,
        report: u64,
        pushes: &mut [NewPush],
        paths: &[FoundPath],
    ) {
        let is_old = |found: &&FoundPath| !found.is_new && !self.by_id.contains_key(&found.push);
        let unknown: HashSet<PushId> = paths.iter().filter(is_old).map(|found| found.push).collect();
        let since = self.settlements.since(report, &unknown);
        if since.is_empty() {
            return;
        }
        let paths: HashMap<PushId, &StorePath> =
            paths.iter().map(|found| (found.push, &found.path)).collect();
        let mut valid_again = Vec::new();
        for push in pushes {
            let (Some(outcome), Some(path)) = (since.get(&push.id), paths.get(&push.id)) else { continue };
            let path = || (*path).clone();
            let was = push.purpose;
            push.purpose = match outcome {
                Outcome::Pushed | Outcome::Cached => Purpose::Recheck,
                Outcome::Upstream => Purpose::Upstream,
                // The intake has found its path in the store.
                Outcome::Collected => {
                    valid_again.push(push.id);
                    Purpose::Wanted
                }
            };
            let is_wanted = push.purpose == Purpose::Wanted;
            match was {
                Purpose::Wanted if is_wanted => {}
                Purpose::Wanted => self.gc_roots.release(cache.0, path()),
                Purpose::Failed | Purpose::Recheck | Purpose::Upstream if is_wanted => {
                    self.gc_roots.keep(cache.0, vec![(path(), push.nar_size)]);
                }
                Purpose::Failed | Purpose::Recheck | Purpose::Upstream => {}
            }
            if was == Purpose::Failed {
                self.gc_roots.forget_failed(cache.0, path());
            }
        }
        self.ledger.unconfirm(&valid_again);
    }
}

#[cfg(test)]
mod tests {
    use super::super::outcome::{Audience, Tally};
    use super::super::settlements::Settlements;
    use super::*;
    use crate::daemon::gc_roots::{Bounds, GcRoots, Places};
    use crate::daemon::inbox::DbRow;
    use crate::flow::{Action, CacheLimits, Event, Flow};
    use crate::ledger::{Admit, Disk, Ledger, NewPushRow, PushState};
    use crate::types::{Mono, StoreDir};

    const CACHE: CacheId = CacheId(0);

    /// The driver's pushes with a ledger, and what the intake has of them.
    struct Host {
        pushes: Pushes,
        flow: Flow,
        ledger: Ledger,
        disk: Disk,
        settlements: Settlements,
        gc_roots: GcRoots,
        _dir: tempfile::TempDir,
    }

    impl Host {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let (ledger, disk, _) = Ledger::open_simulated(&dir.path().join("ledger.sqlite")).unwrap();
            let store_dir = StoreDir::new(dir.path().join("store").to_str().unwrap()).unwrap();
            let places = Places {
                state_dir: dir.path().join("nix"),
                store_dir: store_dir.clone(),
                socket: dir.path().join("no-socket"),
                links: dir.path().join("gcroots"),
            };
            let gc_roots = GcRoots::simulated(places, Bounds { protect_max: None, min_free: 0 });
            let settlements = Settlements::default();
            let pushes = Pushes::new(ledger.clone(), gc_roots.clone(), store_dir, settlements.clone());
            let flow = Flow::new(&[CacheLimits { least: 1, most: 4 }], 7);
            Self { pushes, flow, ledger, disk, settlements, gc_roots, _dir: dir }
        }

        /// The intake takes a path in, protects it if it is pending, and reports it.
        fn read(&self, n: u64) -> (u64, NewPush, FoundPath) {
            let path = StorePath::parse(&format!("{n:032}-p")).unwrap();
            let row = NewPushRow {
                cache: "main".to_owned(),
                path: path.base().to_owned(),
                nar_size: 1,
                valid_at: 0,
                state: PushState::Pending,
                retry_failed: false,
                sessions: Vec::new(),
                needed_by: None,
                route: None,
            };
            let admitted = self.ledger.admit(Admit { cursor: None, pushes: vec![row], at: 1 }).unwrap();
            let (id, state, is_new) = admitted.pushes[0];
            let purpose = if state == PushState::Pending { Purpose::Wanted } else { Purpose::Recheck };
            if purpose == Purpose::Wanted {
                self.gc_roots.protect(CACHE.0, [(&path, 1)]);
            }
            let push = NewPush {
                id,
                references: Vec::new(),
                nar_size: 1,
                built: true,
                sessions: Vec::new(),
                purpose,
                closure_at: Some(Mono::MAX),
                ask_after: Mono(0),
            };
            let row = DbRow { generation: 0, id: 1 };
            (
                self.settlements.report(),
                push,
                FoundPath { push: id, row, path, seen_at: 1, nar_size: 1, is_new },
            )
        }

        /// The driver handles the intake's report.
        fn found(&mut self, (report, push, path): (u64, NewPush, FoundPath)) -> PushId {
            let (id, mut found, paths) = (push.id, vec![push], vec![path]);
            self.pushes.correct(CACHE, report, &mut found, &paths);
            let of = |purpose| found.iter().filter(move |push| push.purpose == purpose).map(|push| push.id);
            let wanted: Vec<_> = of(Purpose::Wanted).collect();
            let rechecks = of(Purpose::Recheck).chain(of(Purpose::Upstream)).collect();
            self.pushes.add(CACHE, paths, Vec::new(), &wanted, &rechecks);
            self.step(Event::Admit { cache: CACHE, pushes: found });
            id
        }

        fn step(&mut self, event: Event) -> Vec<Action> {
            let actions = self.flow.step(event, Mono(0));
            for action in actions.clone() {
                match action {
                    Action::Settled(id, outcome) => {
                        let (mut tally, audience) = (Tally::default(), Audience::default());
                        self.pushes.settle(id, outcome, "main", &mut tally, &audience);
                    }
                    Action::Wanted(ids) => self.pushes.unconfirm(&ids),
                    _ => {}
                }
            }
            actions
        }

        fn state(&self, id: PushId) -> PushState {
            let path = format!("{id:032}-p");
            self.ledger.lookup("main", &[path]).unwrap()[0].unwrap().1
        }

        /// Whether a GC root protects the path.
        fn is_protected(&self, id: PushId) -> bool {
            self.gc_roots.turn();
            self._dir.path().join("gcroots").join(format!("{id:032}-p")).symlink_metadata().is_ok()
        }
    }

    fn missing(id: PushId) -> Event {
        Event::Asked { cache: CACHE, present: Vec::new(), missing: vec![id] }
    }

    #[test]
    fn a_push_that_settles_between_the_reading_and_the_report_is_as_it_settled() {
        let mut host = Host::new();
        host.settlements.take();
        let report = host.read(1);
        let id = host.found(report);
        host.step(missing(id));
        // The intake reads it as pending, and then its upload ends.
        let report = host.read(1);
        assert_eq!(report.1.purpose, Purpose::Wanted);
        host.step(Event::Uploaded(id, std::time::Duration::ZERO));
        assert_eq!(host.state(id), PushState::Pushed);
        host.found(report);
        assert!(!host.is_protected(id), "it is confirmed as far as anybody knows");
        // The cache has deleted it.
        let actions = host.step(missing(id));
        assert_eq!(host.state(id), PushState::Pending, "{actions:?}");
        assert!(actions.iter().any(|action| matches!(action, Action::Distrust(..))), "{actions:?}");
        assert!(host.is_protected(id));
        host.step(Event::Uploaded(id, std::time::Duration::ZERO));
        assert_eq!(host.state(id), PushState::Pushed);
        assert!(!host.is_protected(id));
        drop(host.disk);
    }

    #[test]
    fn a_path_that_is_valid_again_is_pending_although_its_push_is_settled_as_collected_later() {
        let mut host = Host::new();
        host.settlements.take();
        let report = host.read(1);
        let id = host.found(report);
        // The path has been collected and built again, and the driver hears of that last.
        let report = host.read(1);
        host.step(Event::Collected(id));
        assert_eq!(host.state(id), PushState::Collected);
        host.found(report);
        assert_eq!(host.state(id), PushState::Pending);
        assert!(host.is_protected(id));
    }
}
