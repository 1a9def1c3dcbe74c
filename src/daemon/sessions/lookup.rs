//! Looks up a session that is not live, for a `session end` that comes again or late. Reads
//! the ledger, so it runs on a thread that may block. Must not know what follows.

use std::collections::HashSet;

use super::report::Reports;
use crate::control::messages::CiJob;
use crate::daemon::intake::NamedPaths;
use crate::flow::Record;
use crate::ledger::{Ledger, LedgerError, SessionInfo, SessionState};
use crate::types::StorePath;

/// Pushes of a session that are read at a time.
const PUSHES: usize = 1024;

/// How a caller names a session.
#[derive(Debug, Clone)]
pub(in crate::daemon) enum Name {
    /// By its id.
    Id(String),
    /// By the key of its CI job: the latest one.
    Job(String),
}

/// A session as the ledger has it.
#[derive(Debug)]
pub(in crate::daemon) struct Found {
    pub(in crate::daemon) info: SessionInfo,
    pub(in crate::daemon) record: Record,
    /// Why the routes do not allow its cache any more, if they do not.
    pub(in crate::daemon) forbidden: Option<String>,
}

/// Looks a session up for the user `uid`, who names these paths for it. `forbidden` says why
/// the routes do not allow a session's cache, if they do not. Blocks.
pub(in crate::daemon) fn lookup(
    reports: &Reports,
    uid: u32,
    name: &Name,
    paths: &NamedPaths,
    forbidden: impl FnOnce(&SessionInfo) -> Option<String>,
) -> Result<Option<Found>, LedgerError> {
    let ledger = reports.ledger();
    let info = match name {
        Name::Id(id) => ledger.session(id)?,
        Name::Job(key) => {
            let all = ledger.list_sessions(true, Some(uid))?.into_iter().rev();
            all.map(|session| session.info).find(|info| is_of_job(info, key))
        }
    };
    let Some(info) = info else { return Ok(None) };
    if !reports.may_see(uid, info.new.uid) {
        return Ok(Some(Found { info, record: Record::Forbidden, forbidden: None }));
    }
    let (record, forbidden) = match info.state {
        SessionState::Open | SessionState::Draining => (Record::Live, None),
        SessionState::Closed => {
            let names_more = names_more(ledger, &info, paths)?;
            (Record::Closed { names_more }, names_more.then(|| forbidden(&info)).flatten())
        }
        SessionState::Abandoned => (Record::Abandoned, forbidden(&info)),
    };
    Ok(Some(Found { info, record, forbidden }))
}

/// Whether some of these paths are not the session's, and would be pushed for it.
fn names_more(ledger: &Ledger, info: &SessionInfo, paths: &NamedPaths) -> Result<bool, LedgerError> {
    if info.new.cache.is_empty() {
        return Ok(false);
    }
    let mut missing: HashSet<&str> = paths.iter().map(StorePath::base).collect();
    let mut after = 0;
    while !missing.is_empty() {
        let pushes = ledger.session_pushes(info.row, after, PUSHES)?;
        let Some(last) = pushes.last() else { return Ok(true) };
        after = last.push;
        for push in &pushes {
            missing.remove(push.path.as_str());
        }
    }
    Ok(false)
}

fn is_of_job(session: &SessionInfo, key: &str) -> bool {
    let ci: Option<CiJob> = session.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok());
    ci.is_some_and(|ci| ci.key() == key)
}
