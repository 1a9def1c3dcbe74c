//! Log entries about paths, grouped: paths that have the same trouble for the same reason
//! at about the same time share one entry, with their number and the names of the first.
//!
//! The first path opens a group, which is logged a second later. While a group is opened
//! again and again, the delay doubles, up to [`LONGEST`]. The entries of a session are
//! logged before the entry with its summary. Must not know what is done about a path.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use tokio::time::Instant;

use super::outcome::Audience;
use crate::observe::event;

/// The delay of the first entry of a group.
const FIRST: Duration = Duration::from_secs(1);
/// The longest delay of an entry.
const LONGEST: Duration = Duration::from_secs(10);
/// How long a group that was logged is remembered, so that its next delay is longer.
const REMEMBERED: Duration = Duration::from_secs(60);
/// The most groups. When there are more, all are logged.
const GROUPS: usize = 256;
/// The most paths of a group whose names an entry has.
const NAMED: usize = 3;

/// The most paths of a group that are told apart. Further ones are counted each time.
const KNOWN: usize = 4096;

/// A hash of a path's name.
fn hash(path: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    hasher.finish()
}

/// What happened to a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trouble {
    /// An upload went wrong. What follows is logged on its own.
    Upload,
    /// The push has failed.
    Failed,
    /// The Nix database could not be read.
    Unreadable,
    /// The attic client could not be used.
    Engine,
    /// The path was collected from the store.
    Collected,
}

/// One path and what happened to it.
#[derive(Debug, Clone)]
pub(super) struct Occurrence<'a> {
    pub(super) trouble: Trouble,
    pub(super) cache: &'a str,
    /// The store path, in full.
    pub(super) path: String,
    /// The class of the error; empty where there is none.
    pub(super) class: &'a str,
    pub(super) error: &'a str,
    pub(super) attempt: u32,
    /// The size of its NAR, in bytes, if it is known.
    pub(super) nar_size: Option<u64>,
    /// How long the upload took, if there was one.
    pub(super) took: Option<Duration>,
}

/// What the paths of one group have in common.
#[derive(Debug, PartialEq, Eq)]
struct Key {
    trouble: Trouble,
    cache: String,
    session: Option<String>,
    class: String,
    /// The error without the name of the path.
    reason: String,
}

#[derive(Debug)]
struct Group {
    key: Key,
    label: Option<String>,
    /// The first paths since the last entry, at most [`NAMED`].
    paths: Vec<String>,
    /// The number of all paths since the last entry.
    count: u64,
    /// Hashes of their names, at most [`KNOWN`]: a path that has the trouble again is not
    /// counted again.
    known: HashSet<u64>,
    /// The error of the first path.
    error: String,
    attempt: u32,
    nar_size: Option<u64>,
    took: Option<Duration>,
    delay: Duration,
    /// When the entry is due; while there are no paths, until when the group is remembered.
    due: Instant,
}

/// The groups, in the order of their first paths.
#[derive(Debug, Default)]
pub(super) struct LogGroups {
    groups: Vec<Group>,
}

impl LogGroups {
    /// Adds a path to the group of each session of its audience.
    pub(super) fn add(&mut self, occurrence: &Occurrence<'_>, audience: &Audience, now: Instant) {
        let reason = reason(occurrence);
        for listener in audience.iter() {
            let key = Key {
                trouble: occurrence.trouble,
                cache: occurrence.cache.to_owned(),
                session: listener.session.clone(),
                class: occurrence.class.to_owned(),
                reason: reason.clone(),
            };
            self.add_to(key, listener.label.clone(), occurrence, now);
        }
    }

    fn add_to(&mut self, key: Key, label: Option<String>, occurrence: &Occurrence<'_>, now: Instant) {
        let at = self.groups.iter().position(|group| group.key == key);
        let is_new = at.is_none_or(|at| self.groups[at].count == 0);
        let mut group = match at.map(|at| self.groups.remove(at)) {
            Some(group) if group.count > 0 => group,
            // Logged a while ago: the next entry takes longer.
            Some(group) if now < group.due => {
                let delay = (group.delay * 2).min(LONGEST);
                Group::new(group.key, label, occurrence, delay, now)
            }
            Some(Group { key, .. }) => Group::new(key, label, occurrence, FIRST, now),
            None => Group::new(key, label, occurrence, FIRST, now),
        };
        if group.known.len() >= KNOWN || group.known.insert(hash(&occurrence.path)) {
            group.count += 1;
            if group.paths.len() < NAMED {
                group.paths.push(occurrence.path.clone());
            }
        }
        group.attempt = group.attempt.max(occurrence.attempt);
        match at {
            // Its place is that of its first path.
            Some(at) if !is_new => self.groups.insert(at, group),
            _ => self.groups.push(group),
        }
        if self.groups.len() > GROUPS {
            self.groups.retain(|group| group.count > 0);
            if self.groups.len() > GROUPS {
                self.log(now, |_| true);
                self.groups.clear();
            }
        }
    }

    /// When the next entry is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.groups.iter().filter(|group| group.count > 0).map(|group| group.due).min()
    }

    /// Logs the groups that are due.
    pub(super) fn log_due(&mut self, now: Instant) {
        self.log(now, |group| group.due <= now);
        self.groups.retain(|group| group.count > 0 || now < group.due);
    }

    /// Logs the groups of a session.
    pub(super) fn log_session(&mut self, session: &str, now: Instant) {
        self.log(now, |group| group.key.session.as_deref() == Some(session));
    }

    /// Logs all groups.
    pub(super) fn log_all(&mut self, now: Instant) {
        self.log(now, |_| true);
    }

    fn log(&mut self, now: Instant, which: impl Fn(&Group) -> bool) {
        for group in self.groups.iter_mut().filter(|group| group.count > 0 && which(group)) {
            group.log();
            group.count = 0;
            group.paths.clear();
            group.known = HashSet::new();
            group.due = now + REMEMBERED;
        }
    }
}

/// The error without the names of the path and of a reference, which differ within a group.
fn reason(occurrence: &Occurrence<'_>) -> String {
    if occurrence.class == "reference" {
        return String::new();
    }
    let name = occurrence.path.rsplit('/').next().unwrap_or_default();
    let hash = name.split('-').next().unwrap_or_default();
    let mut reason = occurrence.error.to_owned();
    for part in [occurrence.path.as_str(), name, hash] {
        if part.len() >= 32 {
            reason = reason.replace(part, "…");
        }
    }
    reason
}

impl Group {
    fn new(
        key: Key,
        label: Option<String>,
        occurrence: &Occurrence<'_>,
        delay: Duration,
        now: Instant,
    ) -> Self {
        Self {
            key,
            label,
            paths: Vec::new(),
            count: 0,
            known: HashSet::new(),
            error: occurrence.error.to_owned(),
            attempt: occurrence.attempt,
            nar_size: occurrence.nar_size,
            took: occurrence.took,
            delay,
            due: now + delay,
        }
    }

    /// The paths as the subject of a sentence: the only one, or their number and the first.
    fn subject(&self) -> String {
        match self.paths.as_slice() {
            [path] if self.count == 1 => path.clone(),
            named => {
                let more = self.count.saturating_sub(named.len() as u64);
                let more = if more > 0 { format!(" and {more} more") } else { String::new() };
                format!("{} paths ({}{more})", self.count, named.join(", "))
            }
        }
    }

    /// What makes failed pushes go on.
    fn retry(&self) -> String {
        match self.paths.as_slice() {
            [path] if self.count == 1 => format!("`flywheelctl push {path}` tries it again"),
            _ => "`flywheelctl reload` tries all failed paths again".to_owned(),
        }
    }

    fn log(&self) {
        let Self { key: Key { trouble, cache, session, class, .. }, label, .. } = self;
        let (session, label) = (session.as_deref(), label.as_deref());
        let (subject, error) = (self.subject(), self.error.as_str());
        let path = self.paths.first().map(String::as_str);
        let of_them = if self.count == 1 { "" } else { "; the error of the first" };
        let (was, them) = if self.count == 1 { ("was", "it") } else { ("were", "them") };
        match trouble {
            Trouble::Upload => event!(
                UPLOAD_FAILED,
                session = session,
                label = label,
                cache = cache.as_str(),
                store_path = path,
                paths = self.count,
                nar_size = self.nar_size,
                attempt = self.attempt,
                duration_ms = self.took.map(crate::types::millis),
                error_class = class.as_str(),
                error = error,
                "an upload of {subject} to cache {cache} went wrong (attempt {}{of_them}): {error}",
                self.attempt
            ),
            Trouble::Failed => event!(
                PATH_FAILED,
                session = session,
                label = label,
                cache = cache.as_str(),
                store_path = path,
                paths = self.count,
                attempt = self.attempt,
                error_class = class.as_str(),
                error = error,
                "{subject} {was} not pushed to cache {cache}{of_them}: {error}; when the cause is removed, {}",
                self.retry()
            ),
            Trouble::Unreadable => event!(
                PATH_UNREADABLE,
                session = session,
                label = label,
                cache = cache.as_str(),
                store_path = path,
                paths = self.count,
                attempt = self.attempt,
                error = error,
                "{subject} {was} not pushed to cache {cache} yet, because the Nix database cannot be read: {error}; \
                 flywheeld retries {them}",
            ),
            Trouble::Engine => event!(
                UPLOAD_UNDONE,
                session = session,
                label = label,
                cache = cache.as_str(),
                store_path = path,
                paths = self.count,
                attempt = self.attempt,
                error = error,
                "{subject} {was} not pushed to cache {cache} yet, because the attic client has not done it: {error}; \
                 flywheeld retries {them}",
            ),
            Trouble::Collected => event!(
                PATH_COLLECTED,
                session = session,
                label = label,
                cache = cache.as_str(),
                store_path = path,
                paths = self.count,
                "{subject} {was} collected from the store before flywheeld had pushed {them} to cache {cache}",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(n: u64) -> String {
        format!("/nix/store/{n:032}-p")
    }

    fn occurrence(n: u64, error: &str) -> Occurrence<'_> {
        Occurrence {
            trouble: Trouble::Failed,
            cache: "main",
            path: path(n),
            class: "too-large",
            error,
            attempt: 1,
            nar_size: None,
            took: None,
        }
    }

    fn audience(session: &str) -> Audience {
        Audience::of(session)
    }

    #[test]
    fn five_hundred_paths_with_one_reason_are_one_entry() {
        let mut groups = LogGroups::default();
        let now = Instant::now();
        for n in 0..500 {
            let error = format!("{} is too large: raise the limit", path(n));
            groups.add(&occurrence(n, &error), &audience("s"), now);
        }
        assert_eq!(groups.groups.len(), 1);
        let group = &groups.groups[0];
        let named = format!("500 paths ({}, {}, {} and 497 more)", path(0), path(1), path(2));
        assert_eq!(group.subject(), named);
        assert_eq!(groups.next_due(), Some(now + FIRST));
        groups.log_due(now + FIRST);
        assert_eq!(groups.next_due(), None);
        // While it goes on, the delay grows; after a pause it is short again.
        groups.add(&occurrence(1, "too large: raise the limit"), &audience("s"), now + FIRST);
        groups.add(&occurrence(2, "… is too large: raise the limit"), &audience("s"), now + FIRST);
        let delays: Vec<_> = groups.groups.iter().map(|group| (group.count, group.delay)).collect();
        assert_eq!(delays, [(1, FIRST), (1, 2 * FIRST)]);
        groups.log_all(now + 2 * FIRST);
        groups.log_due(now + 2 * FIRST + REMEMBERED);
        assert!(groups.groups.is_empty());
    }

    #[test]
    fn a_path_with_the_same_trouble_again_is_one_path() {
        let mut groups = LogGroups::default();
        let now = Instant::now();
        for (n, attempt) in [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3)] {
            groups.add(&Occurrence { attempt, ..occurrence(n, "no answer") }, &audience("s"), now);
        }
        let group = &groups.groups[0];
        assert_eq!(group.subject(), format!("2 paths ({}, {})", path(1), path(2)));
        assert_eq!(group.attempt, 3);
        // After the entry it is named again.
        groups.log_all(now);
        groups.add(&occurrence(1, "no answer"), &audience("s"), now);
        assert_eq!(groups.groups[0].subject(), path(1));
    }

    #[test]
    fn sessions_caches_and_reasons_have_entries_of_their_own() {
        let mut groups = LogGroups::default();
        let now = Instant::now();
        groups.add(&occurrence(1, "a"), &audience("s"), now);
        groups.add(&occurrence(1, "b"), &audience("s"), now);
        groups.add(&occurrence(1, "a"), &audience("t"), now);
        groups.add(&Occurrence { cache: "other", ..occurrence(1, "a") }, &audience("s"), now);
        assert_eq!(groups.groups.len(), 4);
        assert_eq!(groups.groups[0].subject(), path(1));
        groups.log_session("s", now);
        let left: Vec<_> = groups.groups.iter().filter(|group| group.count > 0).collect();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].key.session.as_deref(), Some("t"));
    }

    #[test]
    fn the_number_of_groups_is_bounded() {
        let mut groups = LogGroups::default();
        let now = Instant::now();
        for n in 0..10_000 {
            groups.add(&occurrence(n, &format!("error {n}")), &audience("s"), now);
            assert!(groups.groups.len() <= GROUPS);
        }
    }
}
