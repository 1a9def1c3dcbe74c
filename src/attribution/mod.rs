//! Who made a path: which session a newly valid path belongs to, and by what
//! evidence. Pure; must not know caches, uploads, files or other rooms.
//!
//! The Nix database numbers what becomes valid; a session owns the numbers that
//! were given while it was open. With one session open that is its path; with
//! several, any of them may have made it, and all are named.

/// Why a path is thought to be a session's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
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
    /// Where its paths go: a cache by its number, or nowhere.
    pub cache: Option<u16>,
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

    /// The session is done with.
    pub fn forget(&mut self, session: i64) {
        self.open.retain(|w| w.session != session);
    }

    /// Where a session's window ends, when it has been closed.
    pub fn until(&self, session: i64) -> Option<i64> {
        self.open.iter().find(|w| w.session == session)?.until
    }

    /// Who owns the path with this number. Sessions that push to different
    /// caches leave the choice open: a path is never pushed to a cache only
    /// because somebody else's session happened to be open as well.
    pub fn owners(&self, number: i64) -> Owners {
        let holding: Vec<_> = self.open.iter().filter(|w| w.holds(number)).collect();
        let evidence = if holding.len() == 1 { Evidence::Window } else { Evidence::Shared };
        let cache = match holding.split_first() {
            Some((first, rest)) if rest.iter().all(|w| w.cache == first.cache) => Some(first.cache),
            Some(_) | None => None,
        };
        Owners { sessions: holding.iter().map(|w| (w.session, evidence)).collect(), cache }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(session: i64, after: i64, until: Option<i64>, cache: u16) -> Window {
        Window { session, after, until, cache: Some(cache) }
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
            (41, vec![(1, Shared), (3, Shared)], None),
        ];
        for (number, sessions, cache) in table {
            assert_eq!(windows.owners(number), Owners { sessions, cache }, "number {number}");
        }
    }

    #[test]
    fn a_window_closes_once() {
        let mut windows = Windows::default();
        windows.open(window(1, 0, None, 0));
        windows.close(1, 5);
        windows.close(1, 9);
        assert_eq!(windows.until(1), Some(5));
        assert!(windows.owners(6).sessions.is_empty());
        windows.forget(1);
        assert!(windows.owners(3).sessions.is_empty());
    }
}
