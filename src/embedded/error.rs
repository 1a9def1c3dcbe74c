//! Errors: [`EmbeddedError`] ends the server or keeps it from starting, and
//! [`ApiError`] is an answer to one request. The answers have the format recorded
//! from a real Attic server. Must not know the disk layout.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// Why the built-in cache cannot start, or has to stop.
#[derive(Debug, thiserror::Error)]
pub enum EmbeddedError {
    /// Another process serves this directory.
    #[error(
        "built-in cache: {0} is already served by another process; stop that one or set another [embedded] dir"
    )]
    InUse(PathBuf),
    /// A setting that cannot work.
    #[error("built-in cache: {0}")]
    Setting(String),
    /// The directory was made for another store directory.
    #[error(
        "built-in cache: {dir} holds paths of {found}, but nix.store_dir is {wanted}; use another [embedded] dir"
    )]
    StoreDir {
        /// The cache's directory.
        dir: PathBuf,
        /// What its database says.
        found: String,
        /// What the settings say.
        wanted: String,
    },
    /// A newer version of this program wrote the directory.
    #[error(
        "built-in cache: the database in {dir} has version {found}, this program knows up to {known}; upgrade it, or remove the directory"
    )]
    Newer {
        /// The cache's directory.
        dir: PathBuf,
        /// The version found.
        found: i64,
        /// The newest version known.
        known: i64,
    },
    /// The server cannot listen on the address.
    #[error(
        "built-in cache: cannot listen on {addr}: {source}; is something else there? See [embedded] listen"
    )]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A file or directory cannot be used.
    #[error("built-in cache: cannot {what} {path}: {source}")]
    File {
        /// The operation that failed, as a verb.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A token or key file with malformed content.
    #[error("built-in cache: {path}: {reason}; remove the file and a new one is made")]
    Secret {
        /// The file.
        path: PathBuf,
        /// The reason, without the content.
        reason: &'static str,
    },
    /// The database reported an error.
    #[error(
        "built-in cache: database {path}: {source}; it is only a cache: if this stays, remove the directory"
    )]
    Database {
        /// The database file.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// The writing thread ended although it was not stopped.
    #[error("built-in cache: the writing thread ended unexpectedly")]
    Writer,
}

impl EmbeddedError {
    pub(super) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}

/// An answer that is not a success. The texts are Attic's (`server/src/error.rs`),
/// because clients may compare them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ApiError {
    #[error("The URL you requested was not found.")]
    NotFound,
    #[error("Unauthorized.")]
    Unauthorized,
    #[error("Access error: User does not have permission to complete this action.")]
    Forbidden,
    #[error("The requested cache does not exist.")]
    NoSuchCache,
    #[error("The requested object does not exist.")]
    NoSuchObject,
    #[error(
        "The caches of this server are made and changed in flywheel's configuration only ([caches.NAME], [embedded])."
    )]
    FixedCaches,
    #[error("General request error: {0}")]
    Request(String),
    #[error("The NAR is too large: {size} bytes, this cache accepts at most {limit}.")]
    TooLarge { size: u64, limit: u64 },
    #[error("The cache's disk is full.")]
    DiskFull,
    #[error("The path changed while it was uploaded. Try again.")]
    TryAgain,
    #[error(
        "This server is not called {0:?}. If it is to be reached under that name, add it to host_names in \
         flywheel's configuration, section [embedded]."
    )]
    OtherHost(String),
    #[error("Nothing was received for too long.")]
    Stalled,
    #[error("The server encountered an internal error or misconfiguration.")]
    Internal,
}

impl ApiError {
    /// Returns the answer to a wrong hash, a wrong size or a cut body.
    pub(super) fn bad_nar() -> Self {
        Self::Request("Bad chunk hash or size".to_owned())
    }

    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::NotFound => (StatusCode::NOT_FOUND, "NotFound"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "AccessError"),
            Self::NoSuchCache => (StatusCode::NOT_FOUND, "NoSuchCache"),
            Self::NoSuchObject => (StatusCode::NOT_FOUND, "NoSuchObject"),
            Self::FixedCaches => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::Request(_) => (StatusCode::BAD_REQUEST, "RequestError"),
            Self::TooLarge { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "PayloadTooLarge"),
            Self::DiskFull => (StatusCode::INSUFFICIENT_STORAGE, "InsufficientStorage"),
            Self::TryAgain => (StatusCode::SERVICE_UNAVAILABLE, "TryAgain"),
            Self::OtherHost(_) => (StatusCode::MISDIRECTED_REQUEST, "MisdirectedRequest"),
            Self::Stalled => (StatusCode::REQUEST_TIMEOUT, "RequestTimeout"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "InternalServerError"),
        }
    }

    /// Returns the answer for a full disk, or logs the error and returns the answer for an internal one.
    pub(super) fn from_io(doing: &str, error: &io::Error) -> Self {
        if is_full(error) {
            return Self::DiskFull;
        }
        crate::observe::event!(BUILT_IN_FAILED, error = %error, "built-in cache: {doing} failed: {error}");
        Self::Internal
    }

    pub(super) fn from_sql(doing: &str, error: &rusqlite::Error) -> Self {
        if let rusqlite::Error::SqliteFailure(failure, _) = error
            && failure.code == rusqlite::ErrorCode::DiskFull
        {
            return Self::DiskFull;
        }
        crate::observe::event!(BUILT_IN_FAILED, error = %error, "built-in cache: {doing} failed");
        Self::Internal
    }
}

/// Returns whether the disk, a quota or the file size limit is exhausted; the client gets the same answer for all.
fn is_full(error: &io::Error) -> bool {
    use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
}

#[derive(Serialize)]
struct Body<'a> {
    code: u16,
    error: &'a str,
    message: String,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, error) = self.kind();
        (status, Json(Body { code: status.as_u16(), error, message: self.to_string() })).into_response()
    }
}
