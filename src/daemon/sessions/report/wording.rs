//! Rows of the ledger as messages of the control socket. Must not know who asks, nor
//! who waits.

use super::Engines;
use super::PATHS_MOST;
use crate::control::messages as m;
use crate::control::messages::{ErrorCode, Reply};
use crate::ledger::{
    Counts, Evidence, Ledger, LedgerError, ListedSession, Outcome, SessionInfo, SessionState, Warnings,
};
use crate::types::{StoreDir, Wall};

/// The answer when the ledger cannot be read.
pub(super) fn internal(error: &LedgerError) -> Reply {
    Reply::Error { code: ErrorCode::Internal, message: format!("the ledger: {error}") }
}

fn state(state: SessionState) -> m::SessionState {
    match state {
        SessionState::Open => m::SessionState::Open,
        SessionState::Draining => m::SessionState::Draining,
        SessionState::Closed => m::SessionState::Closed,
        SessionState::Abandoned => m::SessionState::Abandoned,
    }
}

/// The summary of a session with these counts.
pub(super) fn summary(
    store_dir: &StoreDir,
    engines: &Engines,
    info: &SessionInfo,
    c: Counts,
    without_realisation: u64,
    warnings: Warnings,
) -> m::Summary {
    let (engine, waited_for_client) = engines.of(info);
    let by = |evidence: Evidence| c.by_evidence[evidence as usize];
    let until = info.ended_at.unwrap_or_else(|| Wall::now().0);
    m::Summary {
        session: Some(info.new.id.clone()),
        label: info.new.label.clone(),
        cache: info.new.cache.clone(),
        outcome: m::Outcome::of(c.failed_total, c.pending),
        pushed: c.pushed,
        already_cached: c.already_cached,
        upstream: c.upstream,
        failed_total: c.failed_total,
        pending: c.pending,
        skipped: c.skipped,
        collected: c.collected,
        bytes: c.bytes,
        attributed: m::Attributed {
            process: by(Evidence::Process),
            hook: by(Evidence::Hook),
            closure: by(Evidence::Closure),
            window: by(Evidence::Window),
            shared: by(Evidence::Shared),
            named: 0,
        },
        failed: c
            .failed
            .into_iter()
            .map(|f| m::Failed {
                path: format!("{}/{}", store_dir.as_str(), f.path),
                error: f.error,
                class: Some(f.class),
            })
            .collect(),
        flush_ms: info.flush_ms.unwrap_or(0),
        duration_ms: u64::try_from(until - info.new.started_at).unwrap_or(0),
        state: state(info.state),
        strict: info.new.strict,
        warnings: warnings.texts,
        engine,
        waited_for_client,
        invalid: warnings.invalid,
        route: info.new.route.clone(),
        without_realisation,
    }
}

/// A session as an entry of a list.
pub(super) fn entry(listed: &ListedSession) -> m::SessionEntry {
    let ListedSession { info, pending, settled, failed } = listed;
    m::SessionEntry {
        session: info.new.id.clone(),
        label: info.new.label.clone(),
        cache: info.new.cache.clone(),
        state: state(info.state),
        uid: info.new.uid,
        strict: info.new.strict,
        started_at: info.new.started_at,
        ended_at: info.ended_at,
        settled: *settled,
        pending: *pending,
        failed: *failed,
        ci: info.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok()),
    }
}

/// A session with its summary and its first [`PATHS_MOST`] paths.
pub(super) fn detail(
    ledger: &Ledger,
    store_dir: &StoreDir,
    engines: &Engines,
    info: &SessionInfo,
    without_realisation: u64,
    user: Option<String>,
) -> Result<Reply, LedgerError> {
    let counts = ledger.summary(info.row)?;
    let pushes = ledger.session_pushes(info.row, 0, PATHS_MOST)?;
    let paths = pushes
        .into_iter()
        .map(|push| m::PathEntry {
            path: format!("{}/{}", store_dir.as_str(), push.path),
            state: outcome_word(push.outcome).to_owned(),
            evidence: evidence_word(push.evidence).to_owned(),
            bytes: push.nar_size,
            attempts: push.attempts,
            valid_at: known(push.valid_at),
            seen_at: known(push.seen_at),
            asked_at: known(push.steps.asked_at),
            begun_at: known(push.steps.begun_at),
            settled_at: known(push.settled_at),
        })
        .collect();
    let settled = counts.pushed + counts.already_cached + counts.upstream;
    let (pending, failed) = (counts.pending, counts.failed_total);
    let session = entry(&ListedSession { info: info.clone(), pending, settled, failed });
    let paths_total = counts.total();
    let summary = summary(store_dir, engines, info, counts, without_realisation, Warnings::default());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    Ok(Reply::Session(m::SessionDetail { session, summary, paths, paths_total, host, user }))
}

/// A time of the ledger, where 0 stands for none.
fn known(at: i64) -> Option<i64> {
    (at > 0).then_some(at)
}

/// An outcome as the JSON has it.
pub(in crate::daemon) fn outcome_word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Pending => "pending",
        Outcome::Pushed => "pushed",
        Outcome::AlreadyCached => "already_cached",
        Outcome::Upstream => "upstream",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
        Outcome::Collected => "collected",
    }
}

/// A kind of evidence as the JSON has it.
pub(in crate::daemon) fn evidence_word(evidence: Evidence) -> &'static str {
    match evidence {
        Evidence::Hook => "hook",
        Evidence::Process => "process",
        Evidence::Closure => "closure",
        Evidence::Window => "window",
        Evidence::Shared => "shared",
    }
}
