//! What can be wrong with a configuration, and where. Knows how to say it;
//! knows no key.

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In a file; line and column count from 1, the column in characters.
    File {
        /// The file as it was opened.
        file: PathBuf,
        /// Its line.
        line: usize,
        /// The character in that line.
        column: usize,
    },
    /// In an environment variable.
    Environment(&'static str),
    /// Nowhere: it follows from what is absent.
    Absent,
}

impl Place {
    /// The place of a byte range in a file's text.
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

/// Why there are no settings. Never carries a secret: no file line is quoted,
/// and a URL with a password in it is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file could not be read.
    #[error("{}: cannot be read: {source}", file.display())]
    Read {
        /// The file, or the directory of further files.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file, or the number of files, is beyond what a configuration can be.
    #[error("{}: {what}, at most {limit} are read", file.display())]
    TooLarge {
        /// The file or directory.
        file: PathBuf,
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: String,
    },
    /// Something in it is wrong.
    #[error("{place}: {found}, expected {expected}{}", hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default())]
    Invalid {
        /// Where.
        place: Place,
        /// What was found there, with its key.
        found: String,
        /// What can be there instead.
        expected: String,
        /// What to do, when that is not plain from the rest.
        hint: Option<String>,
    },
}

impl ConfigError {
    /// Something wrong at a place.
    pub(super) fn invalid(place: Place, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self::Invalid { place, found: found.into(), expected: expected.into(), hint: None }
    }

    /// The same, with what to do about it.
    pub(super) fn hint(mut self, text: impl Into<String>) -> Self {
        if let Self::Invalid { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// The file, when one is to blame.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Read { file, .. } | Self::TooLarge { file, .. } => Some(file),
            Self::Invalid { place: Place::File { file, .. }, .. } => Some(file),
            Self::Invalid { .. } => None,
        }
    }

    /// Line and column, when they are known.
    pub fn position(&self) -> Option<(usize, usize)> {
        match self {
            Self::Invalid { place: Place::File { line, column, .. }, .. } => Some((*line, *column)),
            _ => None,
        }
    }
}
