//! Which session a newly valid path belongs to, from the time in which it was
//! open and from who made the path. Pure.
//!
//! The Nix database numbers what becomes valid; a session owns the numbers that
//! were given while it was open. Who made the path decides among those; where
//! that is unknown, the only open session has it, or all of several are named.
//! A path whose maker is known and descends from no anchor is nobody's, however
//! many sessions are open.

use super::anchor::Anchor;
use super::lineage::Lineage;

/// Why a path is thought to be a session's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Nix's hook, run by the builder, named it.
    Hook,
    /// Who made it descends from the session's anchor.
    Process,
    /// It became valid while exactly this session was open.
    Window,
    /// It became valid while several were open.
    Shared,
}

/// The time in which a session was open, as numbers of the Nix database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The session.
    pub session: i64,
    /// Its paths have numbers above this one.
    pub after: i64,
    /// And up to this one, when it has ended.
    pub until: Option<i64>,
    /// The user who opened the session.
    pub uid: u32,
    /// Where its paths go: a cache by its number, or nowhere.
    pub cache: Option<u16>,
    /// What its processes descend from, where that is known.
    pub anchor: Option<Anchor>,
}

impl Window {
    fn holds(&self, number: i64) -> bool {
        number > self.after && self.until.is_none_or(|until| number <= until)
    }
}

/// The sessions whose window is known.
#[derive(Debug, Clone, Default)]
pub struct Windows {
    open: Vec<Window>,
}

/// Who made a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Maker {
    /// The process, and what it descends from.
    pub lineage: std::sync::Arc<Lineage>,
    /// [`Evidence::Hook`], or [`Evidence::Process`].
    pub evidence: Evidence,
}

/// What is known about one path's making.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owners {
    /// The sessions, each with its evidence.
    pub sessions: Vec<(i64, Evidence)>,
    /// Where it goes, when the sessions agree; `None`: no session says.
    pub cache: Option<Option<u16>>,
}

impl Windows {
    /// Adds a session.
    pub fn open(&mut self, window: Window) {
        self.open.push(window);
    }

    /// Nothing above `until` is the session's.
    pub fn close(&mut self, session: i64, until: i64) {
        for window in self.open.iter_mut().filter(|w| w.session == session) {
            window.until = window.until.or(Some(until));
        }
    }

    /// The database was replaced and counts from one again: open windows begin
    /// anew, closed ones hold nothing.
    pub fn renumber(&mut self) {
        for window in &mut self.open {
            window.after = 0;
            window.until = window.until.map(|_| 0);
        }
    }

    /// The database went back: rows above `from` are other ones, and new.
    pub fn cut(&mut self, from: i64) {
        for window in &mut self.open {
            window.after = window.after.min(from);
            window.until = window.until.map(|until| until.min(from));
        }
    }

    /// The session is done with.
    pub fn forget(&mut self, session: i64) {
        self.open.retain(|w| w.session != session);
    }

    /// The sessions that own the path with this number.
    ///
    /// A maker that was seen has an effect only for sessions of the maker's user;
    /// root is excepted on both sides where the maker descends from the anchor (a
    /// runner of root's, `sudo` in a job). When no maker was seen and sessions of
    /// several users are open, the path is none of theirs: any of them could
    /// otherwise take what the others make.
    ///
    /// Sessions that push to different caches leave it open as well: a path is
    /// never pushed to a cache only because another session happened to be open.
    /// It is nobody's then, and a session that names it has it in its cache.
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
            // Without a match those sessions remain whose processes are unknown.
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
            // It goes where what nobody owns goes. A session that pushes to
            // another cache must not be told that it was pushed for it.
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
        windows.open(anchored(3, None, 110)); // a session within the first
        windows.open(anchored(4, Some(5), 200)); // one that the same process had before
        windows.open(anchored(6, None, 300));
        windows.open(anchored(7, None, 300)); // two that one process has at once
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
        // A session whose processes cannot be told may have made what no other did.
        windows.open(window(5, 0, None, 0));
        let rest = windows.owners(9, Some(&made_by(&[55, 1])));
        assert_eq!(rest, Owners { sessions: vec![(5, Alone)], cache: Some(Some(0)) });
        assert_eq!(windows.owners(9, Some(&made_by(&[200, 1]))).sessions, [(2, Process)]);
        assert_eq!(windows.owners(9, None).sessions.len(), 6, "an unknown maker leaves all");
        // With one that pushes elsewhere among them, it is nobody's.
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
            "not with an own anchor"
        );
        assert_eq!(sessions(&windows, Some(&made_by_user(&[55, 1], 1001))), [0; 0], "not without one");
        assert_eq!(sessions(&windows, Some(&made_by_user(&[101, 100, 1], 0))), [1], "sudo in the job");
        assert_eq!(sessions(&windows, Some(&made_by_user(&[55, 1], 0))), [0; 0], "root elsewhere");
        assert_eq!(
            sessions(&windows, None),
            [1, 2],
            "sessions of one user share what nobody was seen to make"
        );
        windows.open(of(0, anchored(3, None, 90)));
        assert_eq!(sessions(&windows, Some(&made_by_user(&[95, 90, 1], 1001))), [3], "a runner of root's");
        assert_eq!(sessions(&windows, None), [0; 0], "with sessions of two users it is nobody's");
        windows.forget(3);
        assert_eq!(sessions(&windows, None), [1, 2]);
    }
}
