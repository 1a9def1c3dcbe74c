//! Looks up a session that is closed, for a `session end` that comes again or late.
//! Reads the ledger, so it runs on a thread that may block.

use super::report::{Engines, Reports};
use crate::control::messages::{CiJob, ErrorCode, Reply};
use crate::ledger::{SessionInfo, SessionState};

/// How a caller names a session.
pub(in crate::daemon) enum Name {
    /// By its id.
    Id(String),
    /// By the key of its CI job.
    Job {
        /// The key.
        key: String,
        /// The answer when the job had no session.
        otherwise: String,
    },
}

/// What a lookup found.
pub(in crate::daemon) enum Found {
    /// An abandoned session, and why the routes do not allow its cache any more, if they do
    /// not. The ledger has it as draining again.
    Abandoned(Box<SessionInfo>, Option<String>),
    /// The answer to the caller.
    Reply(Box<Reply>),
}

/// Looks a session up for the user `uid`. `forbidden` says why the routes do not allow a
/// session's cache, if they do not. Blocks.
pub(in crate::daemon) fn lookup(
    reports: &Reports,
    engines: &Engines,
    uid: u32,
    name: Name,
    forbidden: impl FnOnce(&SessionInfo) -> Option<String>,
) -> Found {
    let ledger = reports.ledger();
    let (found, otherwise) = match name {
        Name::Id(id) => {
            let hint = format!("there is no session {id:?} (`flywheelctl session list --all` shows them)");
            (ledger.session(&id), hint)
        }
        Name::Job { key, otherwise } => {
            let all = ledger.list_sessions(true, Some(uid));
            let infos = all.map(|all| all.into_iter().rev().map(|session| session.info));
            (infos.map(|mut infos| infos.find(|info| is_of_job(info, &key))), otherwise)
        }
    };
    let refuse = |code, message: String| Found::Reply(Box::new(Reply::Error { code, message }));
    match found {
        Ok(Some(info)) if reports.may_see(uid, info.new.uid) => {
            let again =
                info.state == SessionState::Abandoned && ledger.session_rejoin(info.row).unwrap_or(false);
            if again {
                let forbidden = forbidden(&info);
                Found::Abandoned(Box::new(info), forbidden)
            } else {
                let warnings = info.warnings.clone();
                Found::Reply(Box::new(reports.ended(engines, &info, warnings)))
            }
        }
        Ok(Some(_)) => refuse(ErrorCode::Denied, "the session belongs to another user".to_owned()),
        Ok(None) => refuse(ErrorCode::NotFound, otherwise),
        Err(error) => refuse(ErrorCode::Internal, error.to_string()),
    }
}

fn is_of_job(session: &SessionInfo, key: &str) -> bool {
    let ci: Option<CiJob> = session.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok());
    ci.is_some_and(|ci| ci.key() == key)
}
