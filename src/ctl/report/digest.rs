//! What is worth knowing about a session: what delayed its end, its largest paths, and
//! what was in the cache before. Pure; must not know how it is shown.

use std::time::Duration;

use crate::control::messages::{PathEntry, SessionDetail};

/// The most paths of each list.
const SHOWN: usize = 5;

/// A path that had its outcome after the job had ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Late<'a> {
    pub(super) path: &'a PathEntry,
    /// How long after the job's end; none while it is pending.
    pub(super) after: Option<Duration>,
}

/// What is worth knowing about a session.
#[derive(Debug)]
pub(super) struct Digest<'a> {
    /// The paths that delayed the end most, the last one first.
    pub(super) late: Vec<Late<'a>>,
    /// How many paths had no outcome when the job ended.
    pub(super) late_total: usize,
    /// The largest paths that were uploaded, or are to be.
    pub(super) largest: Vec<&'a PathEntry>,
    /// The number and bytes of the paths that a cache had before.
    pub(super) there: (usize, u64),
    /// The largest of them.
    pub(super) there_largest: Vec<&'a PathEntry>,
}

impl<'a> Digest<'a> {
    pub(super) fn of(d: &'a SessionDetail) -> Self {
        let mut late: Vec<Late<'a>> =
            d.paths.iter().filter_map(|path| late(path, d.session.ended_at)).collect();
        // Pending paths first, then what came last.
        late.sort_by_key(|late| std::cmp::Reverse(late.after.unwrap_or(Duration::MAX)));
        let late_total = late.len();
        late.truncate(SHOWN);
        let by_size = |which: &dyn Fn(&PathEntry) -> bool| {
            let mut paths: Vec<&'a PathEntry> = d.paths.iter().filter(|path| which(path)).collect();
            paths.sort_by_key(|path| std::cmp::Reverse(path.bytes));
            paths.truncate(SHOWN);
            paths
        };
        let was_there = |path: &PathEntry| matches!(path.state.as_str(), "already_cached" | "upstream");
        let there = d.paths.iter().filter(|path| was_there(path));
        Self {
            late,
            late_total,
            largest: by_size(&|path| matches!(path.state.as_str(), "pushed" | "pending" | "failed")),
            there: there.fold((0, 0), |(n, bytes), path| (n + 1, bytes + path.bytes)),
            there_largest: by_size(&was_there),
        }
    }
}

/// Whether a path had no outcome when the job ended.
fn late(path: &PathEntry, ended_at: Option<i64>) -> Option<Late<'_>> {
    let ended = ended_at?;
    if path.state == "pending" {
        return Some(Late { path, after: None });
    }
    let after = u64::try_from(path.settled_at? - ended).ok().filter(|ms| *ms > 0)?;
    Some(Late { path, after: Some(Duration::from_millis(after)) })
}

/// The steps of a path that are known, in their order: what happened, and when, in ms
/// since 1970.
pub(in crate::ctl) fn steps(path: &PathEntry) -> Vec<(&'static str, i64)> {
    let done = match path.state.as_str() {
        "pushed" => "confirmed",
        "already_cached" | "upstream" => "found in a cache",
        "failed" => "failed",
        "collected" => "collected",
        _ => "left out",
    };
    // Nix notes whole seconds. Within the same second the two are taken for one.
    let valid = path.valid_at.map(|at| match path.seen_at {
        Some(seen) if seen.div_euclid(1000) == at.div_euclid(1000) => seen,
        _ => at,
    });
    let all = [
        ("valid", valid),
        ("seen", path.seen_at),
        ("asked", path.asked_at),
        ("upload", path.begun_at),
        (done, path.settled_at),
    ];
    all.into_iter().filter_map(|(what, at)| Some((what, at?))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::control::messages::{SessionEntry, Summary};

    pub(in crate::ctl::report) fn path(
        n: u32,
        state: &str,
        bytes: u64,
        settled_at: Option<i64>,
    ) -> PathEntry {
        PathEntry {
            path: format!("/nix/store/{n:032}-path-{n}"),
            state: state.to_owned(),
            evidence: "process".to_owned(),
            bytes,
            attempts: 1,
            valid_at: Some(1_700_000_001_000),
            seen_at: Some(1_700_000_001_005),
            asked_at: Some(1_700_000_001_010),
            begun_at: Some(1_700_000_001_020),
            settled_at,
        }
    }

    pub(in crate::ctl::report) fn detail() -> SessionDetail {
        let paths = vec![
            path(1, "pushed", 5 << 20, Some(1_700_000_001_100)),
            path(2, "pushed", 300 << 20, Some(1_700_000_012_500)),
            path(3, "already_cached", 7 << 20, Some(1_700_000_001_050)),
            path(4, "pending", 1 << 20, None),
            path(5, "failed", 2 << 30, Some(1_700_000_011_000)),
        ];
        let session = SessionEntry {
            session: "s1".into(),
            label: Some("group/project build #42".into()),
            cache: "main".into(),
            uid: 1000,
            started_at: 1_700_000_000_000,
            ended_at: Some(1_700_000_010_000),
            ..SessionEntry::default()
        };
        let summary =
            Summary { pushed: 2, already_cached: 1, failed_total: 1, pending: 1, ..Summary::default() };
        let (host, user) = ("builder-7".to_owned(), Some("ci".to_owned()));
        SessionDetail { session, summary, paths_total: 5, paths, host, user }
    }

    #[test]
    fn what_delayed_the_end_and_what_was_there() {
        let detail = detail();
        let digest = Digest::of(&detail);
        let late: Vec<_> = digest.late.iter().map(|late| (late.path.bytes, late.after)).collect();
        assert_eq!(
            late,
            [
                (1 << 20, None),
                (300 << 20, Some(Duration::from_millis(2500))),
                (2 << 30, Some(Duration::from_millis(1000)))
            ]
        );
        assert_eq!((digest.late_total, digest.there), (3, (1, 7 << 20)));
        let largest: Vec<u64> = digest.largest.iter().map(|path| path.bytes).collect();
        assert_eq!(largest, [2 << 30, 300 << 20, 5 << 20, 1 << 20]);
        let names: Vec<&str> = steps(&detail.paths[0]).iter().map(|(what, _)| *what).collect();
        assert_eq!(names, ["valid", "seen", "asked", "upload", "confirmed"]);
    }
}
