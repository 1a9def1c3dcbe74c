//! Finds the store paths that a job names by patterns (`result*`), links or store
//! paths. Must not know whether they are valid; the daemon has the Nix database.

use std::{
    collections::VecDeque,
    ffi::OsString,
    path::{Component, Path, PathBuf},
};

use crate::control::codec::ServerHello;

/// The most links that are followed, as in Linux (path_resolution(7)).
const MOST_LINKS: u32 = 40;

/// The result of a search.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    /// Store paths in full, each once, in the order in which they were found.
    pub(super) paths: Vec<String>,
    /// Patterns that match nothing.
    pub(super) unmatched: Vec<String>,
}

/// The daemon's store directory and the directory in which its files are.
#[derive(Debug, Clone)]
pub(super) struct Store {
    pub(super) dir: String,
    pub(super) files: PathBuf,
}

impl Store {
    pub(super) fn of(server: &ServerHello) -> Self {
        Self { dir: server.store_dir.clone(), files: PathBuf::from(&server.store_files) }
    }
}

/// Expands patterns relative to `cwd`. The error is a message about the first pattern
/// that is wrong or leads out of the store.
pub(super) fn resolve(patterns: &[String], cwd: &Path, store: &Store) -> Result<Resolved, String> {
    let mut found = Resolved::default();
    for pattern in patterns {
        let matches = expand(pattern, cwd, store)?;
        if matches.is_empty() {
            found.unmatched.push(pattern.clone());
        }
        for path in matches {
            let full = follow(&path, store).ok_or_else(|| {
                format!("`{}` is neither in {} nor a link into it", path.display(), store.files.display())
            })?;
            if !found.paths.contains(&full) {
                found.paths.push(full);
            }
        }
    }
    Ok(found)
}

fn expand(pattern: &str, cwd: &Path, store: &Store) -> Result<Vec<PathBuf>, String> {
    let literal = cwd.join(pattern);
    // A file name may contain `?` (store paths do) or `[`. An existing file of that name
    // is meant.
    if literal.symlink_metadata().is_ok() {
        return Ok(vec![literal]);
    }
    let is_below = |dir: &Path| below(&literal, dir).is_some();
    if !pattern.contains(['*', '[']) && (is_below(Path::new(&store.dir)) || is_below(&store.files)) {
        return Ok(vec![literal]); // the daemon knows whether it is valid
    }
    // A pattern of names in the store directory is looked for where the files are.
    let inside = pattern.strip_prefix(&store.dir).and_then(|rest| rest.strip_prefix('/'));
    let moved =
        inside.map(|inside| format!("{}/{inside}", glob::Pattern::escape(&store.files.to_string_lossy())));
    let pattern = moved.as_deref().unwrap_or(pattern);
    let base = glob::Pattern::escape(&cwd.to_string_lossy());
    let absolute = if pattern.starts_with('/') { pattern.to_owned() } else { format!("{base}/{pattern}") };
    let options = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
    let wrong = |e: &dyn std::fmt::Display| format!("`{pattern}` is not a pattern: {e}");
    let matches = glob::glob_with(&absolute, options).map_err(|e| wrong(&e))?;
    matches.collect::<Result<_, _>>().map_err(|e| format!("cannot look for `{pattern}`: {e}"))
}

/// Returns the store path that `path` is, lies in, or leads to, in full.
///
/// Stops at the first store path: it may itself be a link to another one, but the
/// first one was named.
fn follow(path: &Path, store: &Store) -> Option<String> {
    let (dir, files) = (Path::new(&store.dir), &store.files);
    let real = files.canonicalize().unwrap_or_else(|_| files.clone());
    let mut at = PathBuf::new();
    let mut rest: VecDeque<OsString> = parts(path);
    let mut links = 0;
    loop {
        let ahead = at.join(rest.iter().collect::<PathBuf>());
        if let Some(base) = below(&ahead, dir).or_else(|| below(&ahead, files)).or_else(|| below(&at, &real))
        {
            return Some(format!("{}/{base}", store.dir));
        }
        let part = rest.pop_front()?;
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        if let Ok(target) = at.read_link() {
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            at.pop(); // pushing the root of an absolute target replaces all of it
            for part in parts(&target).into_iter().rev() {
                rest.push_front(part);
            }
        }
    }
}

fn parts(path: &Path) -> VecDeque<OsString> {
    path.components().filter(|c| *c != Component::CurDir).map(|c| c.as_os_str().to_owned()).collect()
}

/// Returns the name in `store` that `path` is or lies in, by its text alone.
fn below(path: &Path, store: &Path) -> Option<String> {
    let mut inside = path.strip_prefix(store).ok()?.components();
    let Component::Normal(base) = inside.next()? else { return None };
    if inside.any(|c| c == Component::ParentDir) {
        return None;
    }
    let base = base.to_str()?;
    is_store_name(base).then(|| base.to_owned())
}

/// 32 characters of hash, a dash, a name: nothing else in the store can be pushed.
fn is_store_name(base: &str) -> bool {
    let Some((hash, name)) = base.split_at_checked(32) else { return false };
    hash.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
        && name.starts_with('-')
        && name.len() > 1
}
