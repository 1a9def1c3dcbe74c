//! Tests of the ledger, each with a real file in a directory of its own.

mod checkpoints;
mod opening;
mod power;
mod reference;
mod scale;
mod trouble;

use super::*;
use tempfile::TempDir;

pub(super) fn new_ledger() -> (TempDir, Ledger) {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, opened) = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    assert_eq!(opened, Opened::Fresh);
    (dir, ledger)
}

pub(super) fn path(n: usize) -> String {
    // Spread like hashes: paths that are admitted together are far apart in the index.
    format!("{:032x}-package-{n}-1.0", (n as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835))
}

pub(super) fn new_push(n: usize, sessions: &[(SessionRow, Evidence)]) -> NewPushRow {
    NewPushRow {
        valid_at: 7,
        route: None,
        cache: "main".into(),
        path: path(n),
        nar_size: 100,
        state: PushState::Pending,
        retry_failed: false,
        sessions: sessions.to_vec(),
        needed_by: None,
    }
}

pub(super) fn admit(pushes: Vec<NewPushRow>) -> Admit {
    Admit { cursor: None, pushes, at: 1000 }
}

pub(super) fn to(state: PushState) -> Settle {
    let failed = state == PushState::Failed;
    Settle {
        steps: Steps::default(),
        state,
        error_class: failed.then(|| "rejected".into()),
        error: failed.then(|| "the server said no".into()),
        attempts: 1,
        at: 2000,
    }
}

pub(super) fn session(ledger: &Ledger, id: &str) -> SessionRow {
    let new = NewSession {
        log_paths: false,
        route: None,
        id: id.into(),
        kind: SessionKind::Job,
        label: Some("test".into()),
        cache: "main".into(),
        uid: 1000,
        gid: 100,
        anchor_pid: Some((42, 77)),
        strict: true,
        ci: Some("{}".into()),
        started_at: 5,
        after: 7,
    };
    ledger.session_open(new).unwrap()
}

fn one(ledger: &Ledger, new: NewPushRow) -> (PushId, PushState, bool) {
    ledger.admit(admit(vec![new])).unwrap().pushes[0]
}

#[test]
fn what_a_cache_has_deleted_is_pending_again_for_live_sessions() {
    let (_dir, ledger) = new_ledger();
    let [maker, needs, over] = ["maker", "needs", "over"].map(|id| session(&ledger, id));
    let (id, ..) = one(&ledger, new_push(1, &[(maker, Evidence::Process)]));
    ledger.settle(id, to(PushState::Pushed));
    let named = new_push(1, &[(needs, Evidence::Closure), (over, Evidence::Closure)]);
    assert_eq!(one(&ledger, named), (id, PushState::Pushed, false), "admitting asks nobody");
    ledger.session_state(over, SessionState::Closed, 9, None);
    ledger.unconfirm(&[id]);
    let counts = |row| {
        let counts = ledger.summary(row).unwrap();
        (counts.pushed, counts.already_cached, counts.pending, counts.failed_total)
    };
    let all = || [counts(maker), counts(needs), counts(over)];
    assert_eq!(all(), [(0, 0, 1, 0), (0, 0, 1, 0), (0, 1, 0, 0)]);
    ledger.settle(id, to(PushState::Pushed));
    assert_eq!(all(), [(1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 0, 0)]);
    // The cache has it without a second upload: who pushed it has pushed it.
    ledger.unconfirm(&[id]);
    ledger.settle(id, to(PushState::Cached));
    assert_eq!(all(), [(1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 0, 0)]);
    // A second push that fails has failed, whatever the first one was.
    ledger.unconfirm(&[id]);
    ledger.settle(id, to(PushState::Failed));
    assert_eq!(all(), [(0, 0, 0, 1), (0, 0, 0, 1), (0, 1, 0, 0)]);
    assert_eq!(ledger.summary(maker).unwrap().bytes, 0);
}

#[test]
fn a_session_whose_path_needs_a_failed_push_counts_the_failed_push() {
    let (_dir, ledger) = new_ledger();
    let [before, after, over] = ["before", "after", "over"].map(|id| session(&ledger, id));
    let counts = |row| {
        let counts = ledger.summary(row).unwrap();
        (counts.already_cached, counts.pending, counts.failed_total)
    };
    ledger.session_state(over, SessionState::Closed, 9, None);
    let needed = |row| NewPushRow { needed_by: Some(row), ..new_push(1, &[]) };
    let (id, ..) = one(&ledger, needed(before));
    assert_eq!(counts(before), (0, 0, 0), "what is only needed is no path of the session");
    ledger.settle(id, to(PushState::Failed));
    ledger.failed_for(id, vec![before, over]);
    one(&ledger, needed(after));
    assert_eq!([before, after, over].map(counts), [(0, 0, 1), (0, 0, 1), (0, 0, 0)]);
    assert_eq!(ledger.summary(before).unwrap().failed[0].class, "rejected");
    ledger.reopen(&[id]);
    assert_eq!([before, after].map(counts), [(0, 1, 0); 2]);
    // It was pushed before the change arrived.
    ledger.settle(id, to(PushState::Cached));
    ledger.failed_for(id, vec![before]);
    assert_eq!([before, after].map(counts), [(1, 0, 0); 2]);
}

#[test]
fn a_push_goes_from_admitted_to_pushed() {
    let (_dir, ledger) = new_ledger();
    let s = session(&ledger, "s");
    let cursor = Cursor { identity: "db".into(), id: 7, marks: "7 …".into() };
    let batch =
        Admit { cursor: Some(cursor.clone()), pushes: vec![new_push(1, &[(s, Evidence::Hook)])], at: 1 };
    let admitted = ledger.admit(batch).unwrap();
    let (id, state, pending) = admitted.pushes[0];
    assert_eq!((state, pending), (PushState::Pending, true));
    assert_eq!(ledger.cursor().unwrap(), Some(cursor));
    assert_eq!(ledger.summary(s).unwrap().pending, 1);
    ledger.uploading(id, 1);
    ledger.settle(id, to(PushState::Pushed));
    let counts = ledger.summary(s).unwrap();
    assert_eq!((counts.pushed, counts.pending, counts.bytes, counts.total()), (1, 0, 100, 1));
    assert_eq!(counts.by_evidence[Evidence::Hook as usize], 1);
    assert_eq!(
        ledger.lookup("main", &[path(1), path(2)]).unwrap(),
        [Some((id, PushState::Pushed, 2000)), None]
    );
    assert_eq!(ledger.lookup("other", &[path(1)]).unwrap(), [None]);
    assert!(ledger.unsettled(0, 10).unwrap().is_empty());
}

#[test]
fn an_upload_whose_answer_was_lost_counts_as_pushed() {
    let (dir, ledger) = new_ledger();
    let s = session(&ledger, "s");
    let (id, ..) = one(&ledger, new_push(1, &[(s, Evidence::Process)]));
    ledger.uploading(id, 2);
    drop(ledger);
    let (ledger, opened) = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    assert_eq!(opened, Opened::Continued);
    let left = ledger.unsettled(0, 10).unwrap();
    assert_eq!((left[0].id, left[0].state, left[0].attempts), (id, PushState::Uploading, 2));
    ledger.settle(id, to(PushState::Cached));
    assert_eq!(ledger.lookup("main", &[path(1)]).unwrap()[0].unwrap().1, PushState::Pushed);
    assert_eq!(ledger.summary(s).unwrap().pushed, 1);
}

#[test]
fn a_push_counts_for_the_session_that_made_the_path_if_there_is_one() {
    let (_dir, ledger) = new_ledger();
    let (a, b) = (session(&ledger, "a"), session(&ledger, "b"));
    let (x, ..) = one(&ledger, new_push(1, &[(a, Evidence::Process), (b, Evidence::Closure)]));
    let (y, ..) = one(&ledger, new_push(2, &[(a, Evidence::Window), (b, Evidence::Closure)]));
    ledger.settle(x, to(PushState::Pushed));
    ledger.settle(y, to(PushState::Pushed));
    let (a, b) = (ledger.summary(a).unwrap(), ledger.summary(b).unwrap());
    assert_eq!((a.pushed, a.already_cached, a.bytes), (2, 0, 200));
    assert_eq!((b.pushed, b.already_cached, b.bytes), (1, 1, 100));
}

#[test]
fn a_closed_session_keeps_its_failure_and_a_live_one_waits_again() {
    let (_dir, ledger) = new_ledger();
    let (over, live) = (session(&ledger, "over"), session(&ledger, "live"));
    let both = [(over, Evidence::Hook), (live, Evidence::Hook)];
    let (id, ..) = one(&ledger, new_push(1, &both));
    ledger.settle(id, to(PushState::Failed));
    ledger.session_state(over, SessionState::Closed, 9, Some(3));
    ledger.reopen(&[id]);
    assert_eq!(ledger.summary(live).unwrap().pending, 1);
    ledger.settle(id, to(PushState::Pushed));
    assert_eq!(ledger.summary(live).unwrap().pushed, 1);
    let counts = ledger.summary(over).unwrap();
    assert_eq!((counts.failed_total, counts.total()), (1, 1));
    let failure = Failure { path: path(1), class: "rejected".into(), error: "the server said no".into() };
    assert_eq!(counts.failed, [failure]);
    // A closed session and an unknown one gain no pushes.
    ledger.admit(admit(vec![new_push(2, &both), new_push(3, &[(99, Evidence::Hook)])])).unwrap();
    assert!(ledger.session_pushes(99, 0, 10).unwrap().is_empty());
    assert_eq!(ledger.session_pushes(live, 0, 10).unwrap().len(), 2);
    assert_eq!(ledger.session_pushes(over, 0, 10).unwrap().len(), 1);
}

#[test]
fn a_push_is_recorded_as_draining_and_an_abandoned_session_stays_so() {
    let (dir, ledger) = new_ledger();
    let job = session(&ledger, "job");
    let new = ledger.session("job").unwrap().unwrap().new;
    let push = NewSession { id: "push-1".into(), kind: SessionKind::Push, ..new };
    ledger.session_open(push).unwrap();
    ledger.session_draining(job, true, 9);
    drop(ledger);
    let (ledger, _) = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    let push = ledger.session("push-1").unwrap().unwrap();
    assert_eq!(
        (push.state, push.new.kind, push.ended_at),
        (SessionState::Draining, SessionKind::Push, Some(5))
    );
    let info = ledger.session("job").unwrap().unwrap();
    assert_eq!((info.state, info.abandoned, info.ended_at), (SessionState::Draining, true, Some(9)));
    ledger.session_draining(job, false, 10);
    let info = ledger.session("job").unwrap().unwrap();
    assert_eq!((info.abandoned, info.ended_at), (false, Some(9)));
}

#[test]
fn sessions_end_once() {
    let (_dir, ledger) = new_ledger();
    let row = session(&ledger, "s");
    assert_eq!(ledger.list_sessions(false, None).unwrap().len(), 1);
    assert_eq!(ledger.live_session_counts().unwrap(), (1, 0));
    ledger.session_state(row, SessionState::Draining, 10, None);
    ledger.session_state(row, SessionState::Closed, 20, Some(10));
    ledger.session_state(row, SessionState::Abandoned, 30, Some(99));
    let info = ledger.session("s").unwrap().unwrap();
    assert_eq!(info.state, SessionState::Closed);
    assert_eq!((info.ended_at, info.closed_at, info.flush_ms), (Some(10), Some(20), Some(10)));
    assert_eq!(info.new.anchor_pid, Some((42, 77)));
    assert_eq!(ledger.list_sessions(true, None).unwrap()[0].info, info);
    assert_eq!(ledger.list_sessions(true, Some(info.new.uid)).unwrap().len(), 1);
    assert!(ledger.list_sessions(true, Some(info.new.uid + 1)).unwrap().is_empty());
    assert!(
        ledger.list_sessions(false, None).unwrap().is_empty() && ledger.live_sessions().unwrap().is_empty()
    );
    assert_eq!(ledger.live_session_counts().unwrap(), (0, 0));
    assert_eq!(ledger.session_open(info.new), Err(LedgerError::SessionExists("s".into())));
    assert_eq!(ledger.summary(row + 1), Err(LedgerError::NoSession(row + 1)));
}

#[test]
fn prune_removes_old_sessions_and_their_pushes_only() {
    let (_dir, ledger) = new_ledger();
    let (old, live) = (session(&ledger, "old"), session(&ledger, "live"));
    let (named, ..) = one(&ledger, new_push(1, &[(old, Evidence::Hook), (live, Evidence::Hook)]));
    let (free, ..) = one(&ledger, new_push(2, &[(old, Evidence::Hook)]));
    let (waiting, ..) = one(&ledger, new_push(3, &[(old, Evidence::Hook)]));
    ledger.settle(named, to(PushState::Pushed));
    ledger.settle(free, to(PushState::Failed));
    ledger.session_state(old, SessionState::Closed, 10, None);
    assert_eq!(ledger.prune(10).unwrap(), Pruned::default());
    assert_eq!(ledger.prune(5000).unwrap(), Pruned { sessions: 1, pushes: 1 });
    assert_eq!(ledger.session("old").unwrap(), None);
    assert_eq!(ledger.unsettled(0, 10).unwrap().iter().map(|push| push.id).collect::<Vec<_>>(), [waiting]);
    assert_eq!(ledger.summary(live).unwrap().pushed, 1);
    let reasons: i64 =
        ledger.read(|conn| Ok(conn.query_row("SELECT count(*) FROM reason", [], |r| r.get(0))?)).unwrap();
    assert_eq!(reasons, 0);
    // An id is never used twice.
    assert!(one(&ledger, new_push(2, &[])).0 > waiting);
}

#[test]
fn a_refused_call_does_not_roll_back_other_calls() {
    let (_dir, ledger) = new_ledger();
    let (id, ..) = one(&ledger, new_push(1, &[]));
    ledger.settle(id, to(PushState::Upstream));
    let half: Result<()> = ledger.write(|conn| {
        conn.execute("INSERT INTO meta VALUES ('half', 'done')", [])?;
        Err(LedgerError::SessionExists("x".into()))
    });
    assert!(half.is_err());
    assert_eq!(ledger.meta("half").unwrap(), None);
    assert_eq!(ledger.lookup("main", &[path(1)]).unwrap()[0].unwrap().1, PushState::Upstream);
    ledger.set_meta("k", "v").unwrap();
    assert_eq!(ledger.meta("k").unwrap().as_deref(), Some("v"));
}

#[tokio::test]
async fn call_reaches_the_ledger_from_async_code() {
    let (_dir, ledger) = new_ledger();
    assert_eq!(ledger.call(super::Ledger::cursor).await.unwrap(), None);
}

#[test]
fn long_errors_lose_their_middle() {
    let (_dir, ledger) = new_ledger();
    let (id, ..) = one(&ledger, new_push(1, &[]));
    let error = Some(format!("x{}: raise the limit", "é".repeat(5000)));
    ledger.settle(id, Settle { error, ..to(PushState::Failed) });
    let stored = ledger.unsettled(0, 1).unwrap()[0].error.clone().unwrap();
    assert!(stored.len() <= MAX_ERROR && stored.ends_with(": raise the limit"), "{stored}");
}

#[test]
fn a_session_is_open_from_the_answer_to_its_caller_on() {
    let (_dir, ledger) = new_ledger();
    let known = session(&ledger, "known");
    let new = |id: &str| NewSession { id: id.into(), ..ledger.session_by_row(known).unwrap().unwrap().new };
    let (unheard, heard) = (
        ledger.session_unanswered(new("unheard")).unwrap(),
        ledger.session_unanswered(new("heard")).unwrap(),
    );
    ledger.session_answered(heard).unwrap();
    let state = |row| ledger.session_by_row(row).unwrap().unwrap();
    assert_eq!((state(unheard).state, state(unheard).abandoned), (SessionState::Draining, true));
    let heard = state(heard);
    assert_eq!((heard.state, heard.abandoned, heard.ended_at), (SessionState::Open, false, None));
    // One that was closed meanwhile does not open again.
    ledger.session_state(unheard, SessionState::Abandoned, 5, None);
    ledger.session_answered(unheard).unwrap();
    assert_eq!(state(unheard).state, SessionState::Abandoned);
}
