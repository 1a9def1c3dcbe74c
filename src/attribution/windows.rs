//! Decides which sessions own a newly valid path, from the time in which each
//! session was open and from the maker of the path. Pure.
//!
//! The Nix database gives each path that becomes valid a row id. The row ids that
//! it gave while a session was open are the session's window. When the maker is
//! known, the path belongs to the session whose anchor the maker descends from;
//! if there is none, the path has no owner, even if sessions with other anchors
//! are open. When the maker is unknown, the path belongs to the session that was
//! open, or to all of several.

use super::anchor::Anchor;
use super::lineage::Lineage;

/// Why a path is attributed to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Nix's post-build hook, which the builder runs, named the path.
    Hook,
    /// The maker of the path descends from the session's anchor.
    Process,
    /// The path became valid while only this session was open.
    Window,
    /// The path became valid while several sessions were open.
    Shared,
}

/// The time in which a session was open, as row ids of the Nix database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The session.
    pub session: i64,
    /// The window begins after this row id.
    pub after: i64,
    /// The window ends with this row id; `None` while the session is open.
    pub until: Option<i64>,
    /// The user who opened the session.
    pub uid: u32,
    /// The number of the cache that its paths are pushed to; `None`: to no cache.
    pub cache: Option<u16>,
    /// The process that its other processes descend from, if it is known.
    pub anchor: Option<Anchor>,
}

impl Window {
    fn holds(&self, number: i64) -> bool {
        number > self.after && self.until.is_none_or(|until| number <= until)
    }
}

/// The windows of all sessions that may still own new paths.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    open: Vec<Window>,
}

/// The maker of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// The process and its ancestors.
    pub lineage: std::sync::Arc<Lineage>,
    /// How the maker is known: [`Evidence::Hook`] or [`Evidence::Process`].
    pub evidence: Evidence,
}

/// The sessions that own a path, and the cache that they push it to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    /// The sessions, each with its evidence.
    pub sessions: Vec<(i64, Evidence)>,
    /// The sessions' cache, as in [`Window::cache`]; `None`: the path has no owner, and
    /// the routes decide.
    pub cache: Option<Option<u16>>,
}

impl Windows {
    /// Adds the window of a session.
    pub fn open(&mut self, window: Window) {
        self.open.push(window);
    }

    /// Ends the window of a session at row id `until`. Has no effect on a window that
    /// has ended.
    pub fn close(&mut self, session: i64, until: i64) {
        for window in self.open.iter_mut().filter(|w| w.session == session) {
            window.until = window.until.or(Some(until));
        }
    }

    /// Adapts the windows to a new Nix database, whose row ids begin at 1 again: open
    /// windows begin with its first row, and ended ones contain no row.
    pub fn renumber(&mut self) {
        for window in &mut self.open {
            window.after = 0;
            window.until = window.until.map(|_| 0);
        }
    }

    /// Adapts the windows to a Nix database that was put back: from now on, row ids
    /// above `from` belong to other, new paths.
    pub fn cut(&mut self, from: i64) {
        for window in &mut self.open {
            window.after = window.after.min(from);
            window.until = window.until.map(|until| until.min(from));
        }
    }

    /// Removes the window of a session.
    pub fn forget(&mut self, session: i64) {
        self.open.retain(|w| w.session != session);
    }

    /// Returns the sessions that own the path with this row id.
    ///
    /// A known maker's path can belong only to sessions of the same user. The user
    /// root, of either the maker or the session, is an exception if the maker descends
    /// from the anchor: a runner that root started, or `sudo` in a job. When the maker
    /// is unknown and sessions of several users are open, the path has no owner:
    /// otherwise each user could claim what the others make.
    ///
    /// The path has no owner either when several sessions could own it and they push
    /// to different caches: being open at the right time is not a reason to push a
    /// path to another session's cache. A session that names the path gets it in its
    /// own cache.
    pub fn owners(&self, number: i64, maker: Option<&Maker>) -> Owners {
        let mut holding: Vec<_> = self.open.iter().filter(|w| w.holds(number)).collect();
        let mut known = None;
        if let Some(maker) = maker {
            let uid = maker.lineage.person.map(|(uid, _)| uid);
            let near = |w: &Window| {
                let may_own = uid.is_some_and(|uid| uid == w.uid || uid == 0 || w.uid == 0);
                w.anchor.as_ref().filter(|_| may_own)?.distance(&maker.lineage)
            };
            let nearest = holding.iter().filter_map(|w| near(w)).min();
            if nearest.is_some() {
                known = Some(maker.evidence);
            }
            // If no anchor matches, only sessions of this user whose anchor is unknown
            // can own the path.
            let unmatched = |w: &Window| w.anchor.is_none() && uid == Some(w.uid);
            holding.retain(|w| if nearest.is_some() { near(w) == nearest } else { unmatched(w) });
        } else if holding.iter().any(|w| w.uid != holding[0].uid) {
            holding.clear();
        }
        let evidence = match (holding.len(), known) {
            (1, Some(evidence)) => evidence,
            (1, None) => Evidence::Window,
            _ => Evidence::Shared,
        };
        let Some((first, rest)) = holding.split_first() else {
            return Owners { sessions: Vec::new(), cache: None };
        };
        if rest.iter().any(|w| w.cache != first.cache) {
            // The routes for paths without an owner decide. A session must not count a
            // path that is pushed to another cache.
            return Owners { sessions: Vec::new(), cache: None };
        }
        let cache = Some(first.cache);
        Owners { sessions: holding.iter().map(|w| (w.session, evidence)).collect(), cache }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::proc::ProcId;

    fn window(session: i64, after: i64, until: Option<i64>, cache: u16) -> Window {
        Window { session, after, until, uid: 1000, cache: Some(cache), anchor: None }
    }

    #[test]
    fn a_path_belongs_to_the_sessions_that_were_open_when_it_became_valid() {
        use Evidence::{Shared, Window as Alone};
        let mut windows = Windows::default();
        windows.open(window(1, 10, None, 0));
        windows.open(window(2, 20, Some(30), 0));
        windows.open(window(3, 40, None, 1));
        type Row = (i64, Vec<(i64, Evidence)>, Option<Option<u16>>);
        let table: [Row; 7] = [
            (10, vec![], None),
            (11, vec![(1, Alone)], Some(Some(0))),
            (20, vec![(1, Alone)], Some(Some(0))),
            (21, vec![(1, Shared), (2, Shared)], Some(Some(0))),
            (30, vec![(1, Shared), (2, Shared)], Some(Some(0))),
            (31, vec![(1, Alone)], Some(Some(0))),
            (41, vec![], None),
        ];
        for (number, sessions, cache) in table {
            assert_eq!(windows.owners(number, None), Owners { sessions, cache }, "number {number}");
        }
    }

    #[test]
    fn a_window_closes_once() {
        let mut windows = Windows::default();
        windows.open(window(1, 0, None, 0));
        windows.close(1, 5);
        windows.close(1, 9);
        assert_eq!(windows.owners(5, None).sessions.len(), 1);
        assert!(windows.owners(6, None).sessions.is_empty());
        windows.forget(1);
        assert!(windows.owners(3, None).sessions.is_empty());
    }

    fn anchored(session: i64, until: Option<i64>, pid: i32) -> Window {
        let id = ProcId { pid, start: 1 };
        Window { anchor: Some(Anchor { id, session: None, cgroup: None }), ..window(session, 0, until, 0) }
    }

    fn made_by(line: &[i32]) -> Maker {
        made_by_user(line, 1000)
    }

    fn made_by_user(line: &[i32], uid: u32) -> Maker {
        let line = line.iter().map(|pid| ProcId { pid: *pid, start: 1 }).collect();
        let lineage = Lineage { line, session: 1, cgroup: None, person: Some((uid, uid)) }.into();
        Maker { lineage, evidence: Evidence::Process }
    }

    #[test]
    fn who_made_it_decides() {
        use Evidence::{Process, Shared, Window as Alone};
        let mut windows = Windows::default();
        windows.open(anchored(1, None, 100));
        windows.open(anchored(2, None, 200));
        windows.open(anchored(3, None, 110)); // a session within session 1
        windows.open(anchored(4, Some(5), 200)); // an earlier session with the anchor of session 2
        windows.open(anchored(6, None, 300));
        windows.open(anchored(7, None, 300)); // two sessions with one anchor at the same time
        type Row = (i64, &'static [i32], Vec<(i64, Evidence)>);
        let table: [Row; 7] = [
            (9, &[101, 100, 1], vec![(1, Process)]),
            (9, &[201, 200, 1], vec![(2, Process)]),
            (9, &[111, 110, 100, 1], vec![(3, Process)]),
            (5, &[200, 1], vec![(2, Shared), (4, Shared)]),
            (6, &[200, 1], vec![(2, Process)]),
            (9, &[300, 1], vec![(6, Shared), (7, Shared)]),
            (9, &[55, 1], vec![]),
        ];
        for (number, line, sessions) in table {
            assert_eq!(windows.owners(number, Some(&made_by(line))).sessions, sessions, "{number} {line:?}");
        }
        let nobody = windows.owners(9, Some(&made_by(&[55, 1])));
        assert_eq!(nobody, Owners { sessions: vec![], cache: None });
        // A session with an unknown anchor may have made a path that no other session made.
        windows.open(window(5, 0, None, 0));
        let rest = windows.owners(9, Some(&made_by(&[55, 1])));
        assert_eq!(rest, Owners { sessions: vec![(5, Alone)], cache: Some(Some(0)) });
        assert_eq!(windows.owners(9, Some(&made_by(&[200, 1]))).sessions, [(2, Process)]);
        assert_eq!(windows.owners(9, None).sessions.len(), 6, "an unknown maker leaves all");
        // If one of them pushes to another cache, the path has no owner.
        windows.open(window(8, 0, None, 1));
        assert_eq!(windows.owners(9, None), Owners { sessions: vec![], cache: None });
    }

    #[test]
    fn no_user_gets_what_another_made() {
        let of = |uid, window: Window| Window { uid, ..window };
        let mut windows = Windows::default();
        windows.open(of(1000, anchored(1, None, 100)));
        windows.open(of(1000, window(2, 0, None, 0)));
        let sessions = |windows: &Windows, maker: Option<&Maker>| -> Vec<i64> {
            windows.owners(9, maker).sessions.iter().map(|(session, _)| *session).collect()
        };
        assert_eq!(sessions(&windows, Some(&made_by_user(&[101, 100, 1], 1000))), [1]);
        assert_eq!(
            sessions(&windows, Some(&made_by_user(&[101, 100, 1], 1001))),
            [0; 0],
            "not even below the session's anchor"
        );
        assert_eq!(sessions(&windows, Some(&made_by_user(&[55, 1], 1001))), [0; 0], "not without an anchor");
        assert_eq!(sessions(&windows, Some(&made_by_user(&[101, 100, 1], 0))), [1], "sudo in the job");
        assert_eq!(sessions(&windows, Some(&made_by_user(&[55, 1], 0))), [0; 0], "root outside of the job");
        assert_eq!(sessions(&windows, None), [1, 2], "sessions of one user share paths of unknown makers");
        windows.open(of(0, anchored(3, None, 90)));
        assert_eq!(
            sessions(&windows, Some(&made_by_user(&[95, 90, 1], 1001))),
            [3],
            "a runner that root started"
        );
        assert_eq!(sessions(&windows, None), [0; 0], "with sessions of two users it has no owner");
        windows.forget(3);
        assert_eq!(sessions(&windows, None), [1, 2]);
    }
}
