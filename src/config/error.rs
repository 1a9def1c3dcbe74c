//! Errors of a configuration, with their places. Must not know any key.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file; line and column count from 1, the column in characters.
    File {
        /// The path of the file.
        file: PathBuf,
        /// The line.
        line: usize,
        /// The character in the line.
        column: usize,
    },
    /// In an environment variable.
    Environment(&'static str),
    /// The value is absent.
    Absent,
}

impl Place {
    /// Returns the place of a byte range in a file's text.
    pub(super) fn at(file: &Path, text: &str, span: &Range<usize>) -> Self {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let before = &text[..start];
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        Self::File { file: file.to_path_buf(), line, column }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { file, line, column } => write!(f, "{}:{line}:{column}", file.display()),
            Self::Environment(name) => write!(f, "${name}"),
            Self::Absent => f.write_str("configuration"),
        }
    }
}

/// Why a configuration cannot be used. Contains no secret: it quotes no line of a
/// file and no URL with a password.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file, or the directory of further files.
        file: PathBuf,
        /// The error of the system call.
        source: io::Error,
    },
    /// A file is too large, or there are too many files.
    #[error("{}: {what}, at most {limit} are read", file.display())]
    TooLarge {
        /// The file or directory.
        file: PathBuf,
        /// What is too large.
        what: String,
        /// The limit.
        limit: String,
    },
    /// A value is wrong.
    #[error("{place}: {found}, expected {expected}{}", hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
    Invalid {
        /// The place of the value.
        place: Place,
        /// The key and what was found there.
        found: String,
        /// What was expected.
        expected: String,
        /// What to do, when the rest does not say it.
        hint: Option<String>,
    },
}

impl ConfigError {
    /// Returns an error at a place.
    pub(super) fn invalid(place: Place, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Invalid { place, found: found.into(), expected: expected.into(), hint: None }
    }

    /// Adds what to do about the error.
    pub(super) fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Invalid { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// Returns the file that has the error, if it is in one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Read { file, .. } | Self::TooLarge { file, .. } => Some(file),
            Self::Invalid { place: Place::File { file, .. }, .. } => Some(file),
            Self::Invalid { .. } => None,
        }
    }

    /// Returns line and column, if they are known.
    pub fn position(&self) -> Option<(usize, usize)> {
        match self {
            Self::Invalid { place: Place::File { line, column, .. }, .. } => Some((*line, *column)),
            _ => None,
        }
    }
}
