//! How outcomes are written down and failures are told apart: the one place
//! where a cache's answers become decisions' input and ledger entries.

use crate::cache::{CacheError, ErrorClass};
use crate::flow::{Failure, Outcome};
use crate::ledger::{PushState, Settle};
use crate::types::Wall;

/// What an answer means for the decisions.
pub(in crate::daemon) fn failure(error: &CacheError) -> Failure {
    match error.class {
        ErrorClass::Unreachable => Failure::Unreachable,
        ErrorClass::Transient | ErrorClass::NoVerdict => {
            Failure::Transient { retry_after: error.retry_after }
        }
        ErrorClass::Unauthorized | ErrorClass::Forbidden => Failure::Refused,
        ErrorClass::NoSuchCache => Failure::NoSuchCache,
        ErrorClass::Mismatch => Failure::Mismatch,
        ErrorClass::TooLarge => Failure::TooLarge,
        ErrorClass::Rejected => Failure::Rejected,
        ErrorClass::Local => Failure::Local,
    }
}

/// The ledger's entry for a settled push.
pub(in crate::daemon) fn settled(outcome: Outcome, attempts: u32) -> Settle {
    let state = match outcome {
        Outcome::Pushed => PushState::Pushed,
        Outcome::Cached => PushState::Cached,
        Outcome::Upstream => PushState::Upstream,
        Outcome::Collected => PushState::Collected,
    };
    Settle { state, error_class: None, error: None, attempts, at: Wall::now().0 }
}

/// The ledger's entry for a path that was gone when the daemon came back.
pub(in crate::daemon) fn collected(attempts: u32) -> Settle {
    settled(Outcome::Collected, attempts)
}

/// The ledger's entry for a parked push.
pub(in crate::daemon) fn parked(class: &str, error: String, attempts: u32) -> Settle {
    Settle {
        state: PushState::Failed,
        error_class: Some(class.to_owned()),
        error: Some(error),
        attempts,
        at: Wall::now().0,
    }
}
