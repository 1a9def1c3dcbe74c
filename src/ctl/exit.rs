//! Exit statuses, and which failure has which. Only this file decides whether a job
//! fails. Must not know how anything is printed.

use std::process::ExitCode;

use super::connection::ConnectionError;
use crate::control::messages::{ErrorCode, Outcome, Summary};

/// The exit status of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exit {
    /// 0: done.
    Done,
    /// 1: internal error.
    Internal,
    /// 2: usage, bad input.
    Usage,
    /// 3: at least one path failed, or `doctor` found something bad.
    Failed,
    /// 4: the deadline was reached with paths pending.
    Pending,
    /// 5: there is no daemon, or it refused the request.
    Refused,
    /// The status of the command that `run` or `client exec` ran.
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

    /// Returns the status for a summary. Failed paths count more than pending ones.
    /// Pending paths count only when the caller waited for them, and so does a deadline that
    /// came before it was known whether there are any.
    pub(super) fn of(summary: &Summary, strict: bool, waited: bool) -> Self {
        match summary {
            _ if !(strict || summary.strict) => Self::Done,
            s if s.failed_total > 0 => Self::Failed,
            s if (s.pending > 0 || s.outcome == Outcome::Pending) && waited => Self::Pending,
            _ => Self::Done,
        }
    }
}

impl Exit {
    /// Returns the status for the end of a session, for which `bad_input` says that a
    /// pattern of `--push` matched nothing or named a path that is not valid.
    pub(super) fn of_session(summary: &Summary, strict: bool, waited: bool, bad_input: bool) -> Self {
        match Self::of(summary, strict, waited) {
            Self::Done if bad_input && (strict || summary.strict) => Self::Usage,
            exit => exit,
        }
    }
}

/// Why a command could not do what it was asked to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command line or its input is wrong.
    #[error("{0}")]
    Usage(String),
    /// flywheelctl has a fault.
    #[error("internal error: {0}")]
    Internal(String),
    /// The daemon cannot be asked.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The daemon refused the request.
    #[error("{message}")]
    Refused {
        /// The kind of error.
        code: ErrorCode,
        /// The daemon's message.
        message: String,
    },
    /// There is no session to end, and the caller named none.
    #[error("{0}")]
    NoSession(String),
    /// The reply is not one to the request.
    #[error(
        "the daemon's reply does not fit the request: restart flywheeld after an upgrade, so that both are of one version"
    )]
    Confused,
}

impl Failure {
    /// Returns the `outcome` of a JSON object about this failure.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Connection(ConnectionError::TooLong(_)) | Self::Usage(_) => "invalid",
            Self::Connection(_) => "unreachable",
            Self::NoSession(_) => "no_session",
            Self::Internal(_) | Self::Confused => "internal",
            Self::Refused { code, .. } => match code {
                ErrorCode::BadRequest => "invalid",
                ErrorCode::NotFound => "not_found",
                ErrorCode::Denied => "denied",
                ErrorCode::Busy => "busy",
                ErrorCode::Draining => "draining",
                ErrorCode::Internal => "internal",
                ErrorCode::Version => "version",
            },
        }
    }

    pub(super) fn exit(&self, strict: bool) -> Exit {
        let lenient = |exit| if strict { exit } else { Exit::Done };
        match self {
            Self::Usage(_) => Exit::Usage,
            Self::Internal(_) => Exit::Internal,
            Self::Connection(ConnectionError::TooLong(_)) => Exit::Usage,
            Self::Connection(_) | Self::NoSession(_) => lenient(Exit::Refused),
            Self::Confused => lenient(Exit::Internal),
            Self::Refused { code, .. } => match code {
                ErrorCode::BadRequest | ErrorCode::NotFound => Exit::Usage,
                // A fault of the daemon does not fail a job that did not ask for it.
                ErrorCode::Internal => lenient(Exit::Internal),
                ErrorCode::Denied | ErrorCode::Busy | ErrorCode::Draining | ErrorCode::Version => {
                    lenient(Exit::Refused)
                }
            },
        }
    }
}
