//! Opens a session: finds its cache and its anchor, writes it to the ledger, and opens
//! its window. This reads files, runs programs and waits for the ledger, so it runs on
//! a thread that may block. Must not know what follows.

use std::sync::{Arc, Mutex, PoisonError};

use super::Session;
use super::session_id::new_id;
use crate::attribution::{Anchor, Proc, ProcId, Window, Windows};
use crate::control::messages::{CiJob, ErrorCode};
use crate::control::server::Peer;
use crate::daemon::intake::Routes;
use crate::daemon::push::StoreReader;
use crate::flow::{SessionLife, TUNING};
use crate::ledger::{Ledger, NewSession, SessionKind, Warnings};
use crate::observe::detail;
use crate::types::{CacheId, Mono, Wall, printable};

/// Characters of a label that are kept.
const LABEL: usize = 200;

/// What a session is opened with, apart from its user.
#[derive(Debug, Default)]
pub(in crate::daemon) struct OpenRequest {
    /// What its id begins with.
    pub(in crate::daemon) prefix: &'static str,
    pub(in crate::daemon) label: Option<String>,
    /// The cache that was named. `None`: the routes decide.
    pub(in crate::daemon) cache: Option<CacheId>,
    pub(in crate::daemon) anchor_pid: Option<u32>,
    pub(in crate::daemon) strict: bool,
    pub(in crate::daemon) ci: Option<CiJob>,
    pub(in crate::daemon) log_paths: bool,
}

/// What an opening needs.
pub(in crate::daemon) struct OpenParts {
    pub(in crate::daemon) routes: Routes,
    /// The names of the caches, by their numbers.
    pub(in crate::daemon) names: Vec<String>,
    pub(in crate::daemon) ledger: Ledger,
    pub(in crate::daemon) windows: Arc<Mutex<Windows>>,
    pub(in crate::daemon) store: StoreReader,
    /// The last row that the intake has taken in.
    pub(in crate::daemon) cursor: i64,
    /// Where processes are looked up.
    pub(in crate::daemon) proc: Proc,
    /// When it was asked for.
    pub(in crate::daemon) now: Mono,
}

/// A new session and its anchor, or why it is refused.
pub(in crate::daemon) type Recorded = Result<(Session, Option<ProcId>), (ErrorCode, String)>;

/// Opens a session of `peer`. `with_window`: it is a job's. Blocks.
pub(in crate::daemon) fn open(
    parts: &OpenParts,
    peer: Peer,
    request: OpenRequest,
    with_window: bool,
) -> Recorded {
    let OpenRequest { prefix, label, cache, anchor_pid, strict, ci, log_paths } = request;
    // It is in the text of log entries, and must not forge another one.
    let label = label.map(|l| printable(&l.chars().take(LABEL).collect::<String>()));
    let chosen = parts.routes.of_session((peer.uid, peer.gid), label.as_deref(), cache);
    let (cache, route) = chosen.map_err(|forbidden| (ErrorCode::Denied, forbidden.to_string()))?;
    let resolve = |pid| Anchor::resolve(&parts.proc, pid, peer.pid, peer.uid);
    let anchor = anchor_pid.map(resolve).transpose().map_err(|e| (ErrorCode::BadRequest, e.to_string()))?;
    let anchor = anchor.flatten();
    if anchor.is_none() && anchor_pid.is_some() {
        detail!(pid = anchor_pid, "the job's processes cannot be seen from here");
    }
    let process = anchor.as_ref().map(|a| a.id);
    let id = format!("{prefix}{}", new_id());
    // The window's beginning is read and the window opened under the lock of the
    // windows: the intake asks for owners of later rows only after that.
    let mut windows = parts.windows.lock().unwrap_or_else(PoisonError::into_inner);
    // When the head cannot be read, rows that are not taken in yet may be the
    // session's own. Counting too many as its own is better than losing some.
    let after = parts.store.head().unwrap_or(parts.cursor);
    let new = NewSession {
        id: id.clone(),
        kind: if with_window { SessionKind::Job } else { SessionKind::Push },
        label: label.clone(),
        cache: cache.map(|c| parts.names[c.index()].clone()).unwrap_or_default(),
        route: Some(route),
        uid: peer.uid,
        gid: peer.gid,
        anchor_pid: process.map(|id| (id.pid, id.start)),
        strict,
        log_paths,
        ci: ci.as_ref().and_then(|ci| serde_json::to_string(ci).ok()),
        started_at: Wall::now().0,
        after,
    };
    let opened =
        if with_window { parts.ledger.session_unanswered(new) } else { parts.ledger.session_open(new) };
    let row = opened.map_err(|e| (ErrorCode::Internal, format!("the session cannot be recorded: {e}")))?;
    if with_window {
        let cache = cache.map(|c| c.0);
        windows.open(Window { session: row, after, until: None, uid: peer.uid, cache, anchor });
    }
    drop(windows);
    let session = Session {
        row,
        id,
        label,
        cache,
        uid: peer.uid,
        gid: peer.gid,
        ci,
        log_paths,
        life: if with_window {
            SessionLife::open(&TUNING, process.is_some(), parts.now)
        } else {
            SessionLife::draining(&TUNING, false)
        },
        draining_since: None,
        watch: None,
        warnings: Warnings::default(),
        incomplete: false,
        confined: false,
    };
    Ok((session, process))
}
