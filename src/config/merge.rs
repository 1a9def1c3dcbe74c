//! Files laid over each other: FILE, then `flywheel.toml.d/*.toml` beside it
//! in the order of their names. A later file wins key by key; `[[route]]`
//! entries are appended. Knows files and positions, not what a key means.

use std::io::{ErrorKind, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::error::{ConfigError, Place};
use super::names;
use super::raw::{At, Named, Raw, RawRoute, Spot};

/// A configuration is written by hand; what is larger is the wrong file.
const MAX_FILE: u64 = 1 << 20;
const MAX_FILES: usize = 256;

/// Something a later file can be laid over.
pub(super) trait Layer {
    /// Takes what `later`, read from file number `file`, says.
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

/// All files as one, and where each value in it stands.
#[derive(Debug, Default)]
pub(super) struct Merged {
    pub(super) raw: Raw,
    files: Vec<(PathBuf, String)>,
}

impl Merged {
    /// Reads `main` (must it exist?) and the files beside it.
    pub(super) fn read(main: &Path, must_exist: bool) -> Result<Self, ConfigError> {
        let mut merged = Self::default();
        match read_file(main) {
            Ok(text) => merged.lay(main.to_path_buf(), text)?,
            Err(ConfigError::Read { source, .. }) if !must_exist && source.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        for file in beside(main)? {
            let text = read_file(&file)?;
            merged.lay(file, text)?;
        }
        Ok(merged)
    }

    /// Lays one file's text over what is there.
    pub(super) fn lay(&mut self, file: PathBuf, text: String) -> Result<(), ConfigError> {
        let raw: Raw = toml::from_str(&text).map_err(|error| explain(&file, &text, &error))?;
        self.raw.overlay(raw, self.files.len());
        self.files.push((file, text));
        Ok(())
    }

    /// The place of a spot.
    pub(super) fn place(&self, spot: &Spot) -> Place {
        self.place_in(spot, &spot.span)
    }

    /// The place of a span in the same file as a spot.
    pub(super) fn place_in(&self, spot: &Spot, span: &Range<usize>) -> Place {
        match self.files.get(spot.file) {
            Some((file, text)) => Place::at(file, text, span),
            None => Place::Absent,
        }
    }

    /// The files that were read, in order.
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
        let (what, limit) = ("larger than a configuration can be".to_owned(), "1 MiB".to_owned());
        return Err(ConfigError::TooLarge { file: file.to_path_buf(), what, limit });
    }
    Ok(text)
}

/// The `*.toml` in `flywheel.toml.d` beside `main`, sorted; none is no error.
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
        // An editor's `.#10-site.toml` is nobody's configuration.
        if name.ends_with(".toml") && !name.starts_with('.') {
            files.push(path);
        }
        if files.len() > MAX_FILES {
            let (what, limit) = ("holds too many files".to_owned(), MAX_FILES.to_string());
            return Err(ConfigError::TooLarge { file: dir, what, limit });
        }
    }
    files.sort();
    Ok(files)
}

/// The parser's message, with a place, and with what was probably meant.
fn explain(file: &Path, text: &str, error: &toml::de::Error) -> ConfigError {
    let place = Place::at(file, text, &error.span().unwrap_or_default());
    let message = error.message().trim().replace('\n', " ");
    let (found, expected) = message.split_once(", expected ").unwrap_or((&message, "valid TOML"));
    let invalid = ConfigError::invalid(place, found, expected);
    // serde's words: "unknown field `a`, expected one of `b`, `c`".
    match found.strip_prefix("unknown field `").and_then(|rest| rest.strip_suffix('`')) {
        Some(key) => match names::nearest(key, expected.split('`').skip(1).step_by(2)) {
            Some(meant) => invalid.hint(format!("did you mean `{meant}`?")),
            None => invalid,
        },
        None => invalid,
    }
}
