//! Combines configuration files: the main file, then `flywheel.toml.d/*.toml` beside
//! it in the order of their names. A later file replaces values key by key;
//! `[[route]]` entries are appended. Must not know what a key means.

use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Place};
use super::names;
use super::raw::{At, Named, Raw, RawRoute, Spot};

/// The largest file, in bytes. A larger one is not a configuration.
const MAX_FILE: u64 = 1 << 20;
const MAX_FILES: usize = 256;

/// A part of a configuration that a later file can change.
pub(super) trait Layer {
    /// Takes the values of `later`, which is from file number `file`.
    fn overlay(&mut self, later: Self, file: usize);
}

impl<T> Layer for Option<At<T>> {
    fn overlay(&mut self, later: Self, file: usize) {
        if let Some(mut at) = later {
            at.spot.file = file;
            *self = Some(at);
        }
    }
}

impl<T: Layer + Default> Layer for Named<T> {
    fn overlay(&mut self, later: Self, file: usize) {
        for (name, (spot, table)) in later.0 {
            let first = || (Spot { file, span: spot.span }, T::default());
            self.0.entry(name).or_insert_with(first).1.overlay(table, file);
        }
    }
}

impl Layer for Vec<At<RawRoute>> {
    fn overlay(&mut self, later: Self, file: usize) {
        self.extend(later.into_iter().map(|at| {
            let mut value = RawRoute::default();
            value.overlay(at.value, file);
            At { value, spot: Spot { file, span: at.spot.span } }
        }));
    }
}

/// All files in one, with the place of each value.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) raw: Raw,
    files: Vec<(PathBuf, String)>,
}

impl Merged {
    /// Reads `main` and the files beside it. Without `must_exist`, `main` may be absent.
    pub(super) fn read(main: &Path, must_exist: bool) -> Result<Self, ConfigError> {
        let mut merged = Self::default();
        match read_file(main) {
            Ok(text) => merged.add(main.to_path_buf(), text)?,
            Err(ConfigError::Read { source, .. }) if !must_exist && source.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        for file in beside(main)? {
            let text = read_file(&file)?;
            merged.add(file, text)?;
        }
        Ok(merged)
    }

    /// Adds the text of one file.
    pub(super) fn add(&mut self, file: PathBuf, text: String) -> Result<(), ConfigError> {
        let raw: Raw = toml::from_str(&text).map_err(|error| explain(&file, &text, &error))?;
        self.raw.overlay(raw, self.files.len());
        self.files.push((file, text));
        Ok(())
    }

    /// Returns the place of a value, for messages.
    pub(super) fn place(&self, spot: &Spot) -> Place {
        self.place_in(spot, &spot.span)
    }

    /// Returns the place of a part of a value, for messages.
    pub(super) fn place_in(&self, spot: &Spot, span: &Range<usize>) -> Place {
        match self.files.get(spot.file) {
            Some((file, text)) => Place::at(file, text, span),
            None => Place::Absent,
        }
    }

    /// Returns the files that were read, in order.
    pub(super) fn files(&self) -> Vec<PathBuf> {
        self.files.iter().map(|(file, _)| file.clone()).collect()
    }
}

fn read_file(file: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::Read { file: file.to_path_buf(), source };
    let mut text = String::new();
    let opened = std::fs::File::open(file).map_err(failed)?;
    opened.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        let (what, limit) = ("larger than a configuration file can be".to_owned(), "1 MiB".to_owned());
        return Err(ConfigError::TooLarge { file: file.to_path_buf(), what, limit });
    }
    Ok(text)
}

/// Returns the `*.toml` files in `flywheel.toml.d` beside `main`, sorted. The
/// directory may be absent.
fn beside(main: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let dir = main.with_file_name("flywheel.toml.d");
    let failed = |source| ConfigError::Read { file: dir.clone(), source };
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Editors write `.#10-site.toml`.
        if name.ends_with(".toml") && !name.starts_with('.') {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            let (what, limit) = ("contains too many files".to_owned(), MAX_FILES.to_string());
            return Err(ConfigError::TooLarge { file: dir, what, limit });
        }
    }
    files.sort();
    Ok(files)
}

/// Turns the parser's error into one with a place and, for a misspelled key, a hint.
fn explain(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let place = Place::at(file, text, &error.span().unwrap_or_default());
    let message = error.message().trim().replace('\n', " ");
    let (found, expected) = message.split_once(", expected ").unwrap_or((&message, "valid TOML"));
    let invalid = ConfigError::invalid(place, found, expected);
    // serde writes: "unknown field `a`, expected one of `b`, `c`".
    match found.strip_prefix("unknown field `").and_then(|rest| rest.strip_suffix('`')) {
        Some(key) => match names::nearest(key, expected.split('`').skip(1).step_by(2)) {
            Some(meant) => invalid.hint(format!("did you mean `{meant}`?")),
            None => invalid,
        },
        None => invalid,
    }
}
