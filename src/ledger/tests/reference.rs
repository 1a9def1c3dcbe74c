//! Random operations against a model in memory: after each step the counts of every
//! session and the state of every push agree.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const PUSHES: usize = 4;
const SESSIONS: usize = 3;

#[derive(Clone, Debug)]
enum Op {
    Admit { push: usize, state: PushState, retry: bool, by: Vec<(usize, Evidence)> },
    Uploading(usize),
    Settle(usize, PushState),
    Reopen(usize),
    Unconfirm(usize),
    Session(usize, SessionState),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    use PushState as S;
    let evidence = prop::sample::select(vec![
        Evidence::Hook,
        Evidence::Process,
        Evidence::Closure,
        Evidence::Window,
        Evidence::Shared,
    ]);
    let by = prop::collection::vec((0..SESSIONS, evidence), 0..3);
    let first = prop::sample::select(vec![S::Pending, S::Pending, S::Pending, S::Upstream, S::Skipped]);
    let end = prop::sample::select(vec![
        S::Pushed,
        S::Cached,
        S::Upstream,
        S::Failed,
        S::Failed,
        S::Collected,
        S::Pending,
    ]);
    let life =
        prop::sample::select(vec![SessionState::Draining, SessionState::Closed, SessionState::Abandoned]);
    prop_oneof![
        8 => (0..PUSHES, first, any::<bool>(), by)
            .prop_map(|(push, state, retry, by)| Op::Admit { push, state, retry, by }),
        2 => (0..PUSHES).prop_map(Op::Uploading),
        6 => (0..PUSHES, end).prop_map(|(push, state)| Op::Settle(push, state)),
        2 => (0..PUSHES).prop_map(Op::Reopen),
        2 => (0..PUSHES).prop_map(Op::Unconfirm),
        1 => (0..SESSIONS, life).prop_map(|(s, state)| Op::Session(s, state)),
        1 => Just(Op::Restart),
    ]
}

#[derive(Default)]
struct Model {
    /// State, settled at step.
    pushes: BTreeMap<usize, (PushState, i64)>,
    /// By (session, push): evidence and outcome.
    belongs: BTreeMap<(usize, usize), (Evidence, Outcome)>,
    /// What a session has pushed, and not only needed, as (session, push).
    has_pushed: BTreeSet<(usize, usize)>,
    sessions: [Option<SessionState>; SESSIONS],
}

impl Model {
    fn live(&self, s: usize) -> bool {
        self.sessions[s].is_none_or(SessionState::is_live)
    }

    fn wait_again(&mut self, push: usize) {
        for s in 0..SESSIONS {
            let live = self.live(s);
            if let Some((_, outcome @ (Outcome::Failed | Outcome::Skipped | Outcome::Collected))) =
                self.belongs.get_mut(&(s, push))
                && live
            {
                *outcome = Outcome::Pending;
            }
        }
    }

    fn settle(&mut self, push: usize, state: PushState) {
        let waiting: Vec<_> = self
            .belongs
            .iter()
            .filter(|((_, i), (_, o))| *i == push && *o == Outcome::Pending)
            .map(|((s, _), (e, _))| (*s, *e))
            .collect();
        for (s, evidence) in &waiting {
            let maker =
                waiting.iter().any(|(t, e)| t != s && matches!(e, Evidence::Hook | Evidence::Process));
            let outcome = match state {
                PushState::Pending | PushState::Uploading => return,
                PushState::Pushed if *evidence == Evidence::Closure && maker => Outcome::AlreadyCached,
                PushState::Pushed => Outcome::Pushed,
                PushState::Cached if self.has_pushed.contains(&(*s, push)) => Outcome::Pushed,
                PushState::Cached => Outcome::AlreadyCached,
                PushState::Upstream => Outcome::Upstream,
                PushState::Failed => Outcome::Failed,
                PushState::Skipped => Outcome::Skipped,
                PushState::Collected => Outcome::Collected,
            };
            match (state, outcome) {
                (PushState::Pushed, Outcome::Pushed) => drop(self.has_pushed.insert((*s, push))),
                (PushState::Pushed, _) => drop(self.has_pushed.remove(&(*s, push))),
                _ => {}
            }
            self.belongs.insert((*s, push), (*evidence, outcome));
        }
    }

    fn unconfirm(&mut self, push: usize, at: i64) {
        use PushState::{Cached, Collected, Pushed, Upstream};
        if !matches!(self.pushes[&push].0, Pushed | Cached | Upstream | Collected) {
            return;
        }
        self.pushes.insert(push, (PushState::Pending, at));
        for s in 0..SESSIONS {
            let live = self.live(s);
            let is_pending_again = |outcome: &Outcome| {
                use Outcome::{AlreadyCached, Collected, Pushed, Upstream};
                matches!(outcome, Pushed | AlreadyCached | Upstream | Collected)
            };
            if let Some((_, outcome)) = self.belongs.get_mut(&(s, push))
                && live
                && is_pending_again(outcome)
            {
                *outcome = Outcome::Pending;
            }
        }
    }

    fn admit(&mut self, push: usize, new: PushState, retry: bool, by: &[(usize, Evidence)], at: i64) {
        use PushState as S;
        let again = match self.pushes.get(&push) {
            None => true,
            Some((S::Pending | S::Uploading, _)) => false,
            Some((S::Failed, _)) => retry,
            Some((S::Pushed | S::Cached | S::Upstream, _)) => false,
            Some((old @ (S::Skipped | S::Collected), _)) => *old != new,
        };
        if again {
            let old = self.pushes.insert(push, (new, at));
            if old.is_some() {
                self.wait_again(push);
                self.settle(push, new);
            }
        }
        let now = self.pushes[&push].0;
        for (s, evidence) in by.iter().filter(|(s, _)| self.live(*s)).copied().collect::<Vec<_>>() {
            let outcome = match now {
                S::Pending | S::Uploading => Outcome::Pending,
                S::Pushed | S::Cached => Outcome::AlreadyCached,
                S::Upstream => Outcome::Upstream,
                S::Failed => Outcome::Failed,
                S::Skipped => Outcome::Skipped,
                S::Collected => Outcome::Collected,
            };
            self.belongs
                .entry((s, push))
                .and_modify(|(e, o)| {
                    *e = evidence.min(*e);
                    if outcome == Outcome::Pending {
                        *o = Outcome::Pending;
                    }
                })
                .or_insert((evidence, outcome));
        }
    }

    fn counts(&self, session: usize) -> Counts {
        let mut counts = Counts::default();
        for ((_, push), (evidence, outcome)) in self.belongs.iter().filter(|((s, _), _)| *s == session) {
            counts.by_evidence[*evidence as usize] += 1;
            match outcome {
                Outcome::Pending => counts.pending += 1,
                Outcome::Pushed => {
                    counts.pushed += 1;
                    counts.bytes += 1 << push;
                }
                Outcome::AlreadyCached => counts.already_cached += 1,
                Outcome::Upstream => counts.upstream += 1,
                Outcome::Failed => counts.failed_total += 1,
                Outcome::Skipped => counts.skipped += 1,
                Outcome::Collected => counts.collected += 1,
            }
        }
        counts
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// The ledger with its thread, and the one of the simulation, do the same.
    #[test]
    fn counts_agree_with_the_model(simulated in any::<bool>(), ops in prop::collection::vec(op(), 1..50)) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ledger.db");
        let open = || if simulated {
            Ledger::open_simulated(&file).map(|(ledger, ..)| ledger)
        } else {
            Ledger::open(&file).map(|(ledger, _)| ledger)
        };
        let mut ledger = open().unwrap();
        let rows: Vec<_> = (0..SESSIONS).map(|n| session(&ledger, &format!("s{n}"))).collect();
        let mut model = Model::default();
        let mut ids = BTreeMap::new();
        for (at, op) in (10_i64..).step_by(10).zip(ops) {
            match op {
                Op::Admit { push: n, state, retry, by } => {
                    let sessions: Vec<_> = by.iter().map(|(s, e)| (rows[*s], *e)).collect();
                    let new = NewPushRow { nar_size: 1 << n, state, retry_failed: retry, ..new_push(n, &sessions) };
                    let before = model.pushes.get(&n).map(|push| push.0);
                    let got = ledger.admit(Admit { cursor: None, pushes: vec![new], at }).unwrap().pushes[0];
                    model.admit(n, state, retry, &by, at);
                    let now = model.pushes[&n].0;
                    let pending = now == PushState::Pending
                        && !matches!(before, Some(PushState::Pending | PushState::Uploading));
                    prop_assert_eq!(got, (*ids.entry(n).or_insert(got.0), now, pending));
                }
                Op::Uploading(n) => if let Some(id) = ids.get(&n) {
                    ledger.uploading(*id, 1);
                    let known = model.pushes.get_mut(&n).unwrap();
                    if known.0 == PushState::Pending { known.0 = PushState::Uploading; }
                },
                Op::Settle(n, state) => if let Some(id) = ids.get(&n) {
                    ledger.settle(*id, Settle { at, ..to(state) });
                    let lost_answer = model.pushes[&n].0 == PushState::Uploading && state == PushState::Cached;
                    let now = if lost_answer { PushState::Pushed } else { state };
                    model.pushes.insert(n, (now, at));
                    model.settle(n, now);
                },
                Op::Reopen(n) => if let Some(id) = ids.get(&n) {
                    ledger.reopen(&[*id]);
                    if model.pushes[&n].0 == PushState::Failed {
                        model.pushes.insert(n, (PushState::Pending, at));
                        model.wait_again(n);
                    }
                },
                Op::Unconfirm(n) => if let Some(id) = ids.get(&n) {
                    ledger.unconfirm(&[*id]);
                    model.unconfirm(n, at);
                },
                Op::Session(s, state) => {
                    ledger.session_state(rows[s], state, at, None);
                    if model.live(s) { model.sessions[s] = Some(state); }
                }
                Op::Restart => {
                    // Changes that nobody waits for are lost when the process is killed before.
                    ledger.sync().unwrap();
                    drop(ledger);
                    ledger = open().unwrap();
                }
            }
            for (s, row) in rows.iter().enumerate() {
                let mut got = ledger.summary(*row).unwrap();
                prop_assert_eq!(got.failed.len() as u64, got.failed_total);
                prop_assert!(got.failed.iter().all(|f| f.class == "rejected"));
                got.failed.clear();
                prop_assert_eq!(got, model.counts(s), "session {}", s);
            }
            for (n, (state, _)) in &model.pushes {
                prop_assert_eq!(ledger.lookup("main", &[path(*n)]).unwrap()[0].unwrap().1, *state);
            }
            let open = model.pushes.values().filter(|(s, _)| {
                matches!(s, PushState::Pending | PushState::Uploading | PushState::Failed)
            });
            prop_assert_eq!(ledger.unsettled(0, 100).unwrap().len(), open.count());
        }
    }
}
