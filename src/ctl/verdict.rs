//! Exit statuses, and which trouble leads to which. The one place that decides
//! whether a job fails. Must not know how anything is printed.

use std::process::ExitCode;

use super::link::LinkError;
use crate::control::messages::{ErrorCode, Summary};

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// 0
    Done,
    /// 1
    Internal,
    /// 2
    Usage,
    /// 3: strict, at least one path failed
    Failed,
    /// 4: strict, deadline reached with paths pending
    Pending,
    /// 5: strict, no daemon or it refused
    Refused,
    /// Of the command that `run` ran.
    Command(u8),
}

impl Exit {
    pub(super) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Done => 0,
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Failed => 3,
            Self::Pending => 4,
            Self::Refused => 5,
            Self::Command(status) => status,
        })
    }

    /// What a summary means. A path that failed is a fact and outweighs a
    /// deadline. Without waiting there was no deadline to miss.
    pub(super) fn of(summary: &Summary, strict: bool, waited: bool) -> Self {
        match summary {
            _ if !(strict || summary.strict) => Self::Done,
            s if s.failed_total > 0 => Self::Failed,
            s if s.pending > 0 && waited => Self::Pending,
            _ => Self::Done,
        }
    }
}

/// Why a command could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The caller's mistake.
    #[error("{0}")]
    Usage(String),
    /// Our own.
    #[error("internal error: {0}")]
    Internal(String),
    /// No daemon, or none that can be understood.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The daemon said no.
    #[error("{message}")]
    Refused {
        /// For the exit status.
        code: ErrorCode,
        /// The daemon's words.
        message: String,
    },
    /// Nothing to end, and the caller named nothing.
    #[error("{0}")]
    NoSession(String),
    /// The answer does not fit the question.
    #[error("the daemon answered something else than was asked: is it of another version?")]
    Confused,
}

impl Failure {
    pub(super) fn exit(&self, strict: bool) -> Exit {
        let lenient = |exit| if strict { exit } else { Exit::Done };
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Internal(_) => Exit::Internal,
            Self::Link(LinkError::TooLong(_)) => Exit::Usage,
            Self::Link(_) | Self::NoSession(_) => lenient(Exit::Refused),
            Self::Confused => lenient(Exit::Internal),
            Self::Refused { code, .. } => match code {
                ErrorCode::BadRequest | ErrorCode::NotFound => Exit::Usage,
                // A fault of the daemon is no reason to fail a job that did not ask for it.
                ErrorCode::Internal => lenient(Exit::Internal),
                ErrorCode::Denied | ErrorCode::Busy | ErrorCode::Draining | ErrorCode::Version => {
                    lenient(Exit::Refused)
                }
            },
        }
    }
}
