//! Takes in the paths that were named for a session, and asks the cache again about
//! everything that the session's answer is about: whole closures, however fresh the last
//! confirmation is.

use std::collections::{HashMap, HashSet};

use super::closure::{Enter, Roots};
use super::hand_over::PlannedPush;
use super::handle::Naming;
use super::{ITEMS, Intake, IntakeError};
use crate::daemon::inbox::{DbRow, FoundPath, Input};
use crate::flow::{NewPush, Purpose};
use crate::ledger::{Cursor, Evidence, Outcome, PushState};
use crate::observe::event;
use crate::store::PathInfo;
use crate::types::{Mono, PushId, StorePath};

/// Upper bound of the confirmed paths, of all caches, that a `flush` asks about again.
const FLUSHED: usize = 16_384;

/// A push of a session that the cache has confirmed.
#[derive(Debug, Clone, Copy)]
struct OfSession {
    id: PushId,
    nar_size: u64,
}

impl Intake {
    /// Takes in named paths with their whole closures, and asks again about everything
    /// else that the session has in the cache.
    pub(super) fn name(&mut self, naming: &Naming, cursor: &mut Cursor) -> Result<(), IntakeError> {
        if naming.close_window {
            let head = self.nix_db.db()?.head()?;
            self.windows().close(naming.session, head);
            self.ledger.session_until(naming.session, head);
            self.look(cursor)?;
        }
        if !naming.paths.is_empty() {
            self.room()?;
        }
        if naming.everything {
            self.confirm_latest(naming.session, cursor)?;
            return self.tell(Input::Named { token: naming.token, invalid: Vec::new() });
        }
        let (cache, session) = (naming.cache.0, naming.session);
        let ask_after = self.now();
        let (mut named, mut invalid) = self.rows_of(&naming.paths)?;
        if self.copy_up(&invalid)? {
            self.look(cursor)?;
            (named, invalid) = self.rows_of(&naming.paths)?;
        }
        // Read before the named paths are taken in, which belong to the session after that.
        let others = self.paths_of(session, cache)?;
        let mut named_plan = |this: &Self, info: PathInfo| {
            let sessions = vec![(session, Evidence::Closure)];
            PlannedPush { state: this.wanted(cache, &info), info, sessions, waits: None, route: None }
        };
        let roots = |rows, ask_after: Mono, retry| Roots {
            cache,
            rows,
            in_hand: HashMap::new(),
            enter: Enter::Everything,
            ask_after,
            retry,
        };
        let entered =
            self.take_in(roots(named, ask_after, naming.retry), &mut named_plan, Vec::new(), None)?;
        let paths: Vec<StorePath> = others.iter().map(|(path, _)| path.clone()).collect();
        let (mut rest, removed) = self.rows_of(&paths)?;
        let entered: HashSet<i64> = entered.into_iter().collect();
        rest.retain(|row| !entered.contains(row));
        let mut plan = |this: &Self, info: PathInfo| PlannedPush {
            state: this.wanted(cache, &info),
            info,
            sessions: Vec::new(),
            waits: Some(session),
            route: None,
        };
        if !rest.is_empty() {
            self.take_in(roots(rest, ask_after, false), &mut plan, Vec::new(), None)?;
        }
        let removed: HashSet<StorePath> = removed.into_iter().collect();
        let confirmed = others.into_iter().filter(|(path, _)| removed.contains(path));
        let confirmed: Vec<_> = confirmed.filter_map(|(path, confirmed)| Some((path, confirmed?))).collect();
        self.ask_about_removed(naming, ask_after, &confirmed)?;
        self.tell(Input::Named { token: naming.token, invalid })
    }

    /// Asks the caches again about the latest [`FLUSHED`] paths that they confirmed, and
    /// about what of their closures was not confirmed within `recheck_after`. `group` waits
    /// for them.
    fn confirm_latest(&mut self, group: i64, cursor: &mut Cursor) -> Result<(), IntakeError> {
        let ask_after = self.now();
        let mut from = self.ledger.latest_confirmed(FLUSHED)?;
        loop {
            let pushes = self.ledger.confirmed(from, ITEMS)?;
            let Some((last, ..)) = pushes.last() else { return Ok(()) };
            from = last + 1;
            let is_last = pushes.len() < ITEMS;
            let mut paths: Vec<Vec<StorePath>> = vec![Vec::new(); self.policy.caches.len()];
            for (_, cache, path) in &pushes {
                let cache = self.number_of(cache).and_then(|n| paths.get_mut(usize::from(n)));
                if let (Some(paths), Ok(path)) = (cache, StorePath::parse(path)) {
                    paths.push(path);
                }
            }
            for (cache, paths) in (0_u16..).zip(paths).filter(|(_, paths)| !paths.is_empty()) {
                let (rows, _) = self.rows_of(&paths)?;
                let in_hand = HashMap::new();
                let roots =
                    Roots { cache, rows, in_hand, enter: Enter::Unconfirmed, ask_after, retry: false };
                let mut plan = |this: &Self, info: PathInfo| PlannedPush {
                    state: this.wanted(cache, &info),
                    info,
                    sessions: Vec::new(),
                    waits: Some(group),
                    route: None,
                };
                self.take_in(roots, &mut plan, Vec::new(), None)?;
            }
            if is_last {
                return Ok(());
            }
            // New rows do not wait for all of it.
            self.look(cursor)?;
        }
    }

    /// Returns the state in which a wanted row enters the ledger. The filter does not count.
    pub(super) fn wanted(&self, cache: u16, info: &PathInfo) -> PushState {
        let upstream = self.policy.caches[usize::from(cache)].upstream_keys.have_signed(info);
        if upstream { PushState::Upstream } else { PushState::Pending }
    }

    /// Makes Nix copy those of these paths into the Nix database that only the lower store
    /// has. Returns whether there are any.
    fn copy_up(&mut self, missing: &[StorePath]) -> Result<bool, IntakeError> {
        let Some(lower) = self.lower.as_mut().filter(|_| !missing.is_empty()) else { return Ok(false) };
        let paths = lower.among(missing).map_err(IntakeError::Lower)?;
        if paths.is_empty() {
            return Ok(false);
        }
        let copied = lower.copy_up(&paths);
        if let Err(error) = &copied {
            event!(
                LOWER_STORE_UNREACHED,
                paths = paths.len(),
                error = %error,
                "{} named paths are in the lower store only, and the nix-daemon of the store cannot be asked to take \
                 them over ({error}): they are not pushed; any Nix command that looks at them does it too, such as \
                 `nix-store --check-validity`",
                paths.len()
            );
        }
        Ok(copied.is_ok())
    }

    /// Returns the rows of these paths, and the paths that are not valid.
    pub(super) fn rows_of(&self, paths: &[StorePath]) -> Result<(Vec<i64>, Vec<StorePath>), IntakeError> {
        let (mut rows, mut invalid) = (Vec::with_capacity(paths.len()), Vec::new());
        for (path, row) in paths.iter().zip(self.nix_db.db()?.ids(paths)?) {
            match row {
                Some(row) => rows.push(row),
                None => invalid.push(path.clone()),
            }
        }
        Ok((rows, invalid))
    }

    /// Has the cache asked about paths that it had and that are not valid any more. They have no
    /// rows, so their closures are not known. One that the cache does not have either ends as
    /// collected.
    fn ask_about_removed(
        &mut self,
        naming: &Naming,
        ask_after: Mono,
        removed: &[(StorePath, OfSession)],
    ) -> Result<(), IntakeError> {
        // It is no row's number.
        let row = DbRow { generation: self.generation, id: -1 };
        for chunk in removed.chunks(ITEMS) {
            let pushes = chunk.iter().map(|(_, push)| NewPush {
                id: push.id,
                nar_size: push.nar_size,
                built: false,
                references: Vec::new(),
                sessions: vec![naming.session],
                purpose: Purpose::Recheck,
                closure_at: Some(Mono::MAX),
                ask_after,
            });
            let paths = chunk.iter().map(|(path, push)| FoundPath {
                push: push.id,
                row,
                path: path.clone(),
                seen_at: 0,
                nar_size: push.nar_size,
                is_new: false,
            });
            let (pushes, paths) = (pushes.collect(), paths.collect());
            self.tell(Input::Found {
                cache: naming.cache,
                pushes,
                paths,
                reasons: Vec::new(),
                retry: false,
                report: self.settlements.report(),
            })?;
        }
        Ok(())
    }

    /// Returns the session's paths that its answer counts as in the cache, or would if they
    /// arrived there: those that the ledger has as pushed, already cached, pending or failed, and
    /// as in an upstream cache if the upstream caches of `cache` are asked. The
    /// closure of a pending one was confirmed at some time before, and the session may wait
    /// for it only in the ledger: it came back as another session's reference. A failed one is
    /// not tried again here, and the session waits for it when it is: after a restart or a reload
    /// that is so only in the ledger, too. Those that the cache had come with their pushes.
    fn paths_of(&self, session: i64, cache: u16) -> Result<Vec<(StorePath, Option<OfSession>)>, IntakeError> {
        let asks_upstreams = self.policy.caches[usize::from(cache)].asks_upstreams;
        let (mut paths, mut after) = (Vec::new(), 0);
        loop {
            let items = self.ledger.session_pushes(session, after, ITEMS)?;
            let Some(last) = items.last() else { return Ok(paths) };
            after = last.push;
            let counts = |outcome| match outcome {
                Outcome::Pushed | Outcome::AlreadyCached | Outcome::Pending | Outcome::Failed => true,
                Outcome::Upstream => asks_upstreams,
                Outcome::Skipped | Outcome::Collected => false,
            };
            let items = items.iter().filter(|item| counts(item.outcome));
            paths.extend(items.filter_map(|item| {
                let confirmed = matches!(item.outcome, Outcome::Pushed | Outcome::AlreadyCached);
                let push = OfSession { id: item.push, nar_size: item.nar_size };
                Some((StorePath::parse(&item.path).ok()?, confirmed.then_some(push)))
            }));
        }
    }
}
