//! Pushes whose upload could begin, but whose closure was confirmed too long ago.

use std::collections::HashMap;

use super::closure::{Enter, Roots};
use super::hand_over::PlannedPush;
use super::{Intake, IntakeError};
use crate::daemon::inbox::Input;
use crate::store::PathInfo;
use crate::types::{CacheId, Mono, PushId, StorePath};

/// Pushes to one cache whose closures are to be confirmed again.
#[derive(Debug)]
pub(in crate::daemon) struct Recheck {
    pub(in crate::daemon) cache: CacheId,
    pub(in crate::daemon) pushes: Vec<(PushId, StorePath)>,
}

impl Intake {
    /// Takes in the pushes again, with the rows of their closures that are not confirmed.
    pub(super) fn recheck(&mut self, recheck: &Recheck) -> Result<(), IntakeError> {
        let cache = recheck.cache.0;
        let (mut rows, mut collected) = (Vec::new(), Vec::new());
        let paths: Vec<StorePath> = recheck.pushes.iter().map(|(_, path)| path.clone()).collect();
        for ((push, _), row) in recheck.pushes.iter().zip(self.nix_db.db()?.ids(&paths)?) {
            match row {
                Some(row) => rows.push(row),
                None => collected.push(*push),
            }
        }
        let mut plan = |this: &Self, info: PathInfo| PlannedPush {
            state: this.wanted(cache, &info),
            info,
            sessions: Vec::new(),
            waits: None,
            route: None,
        };
        let roots = Roots {
            cache,
            rows,
            in_hand: HashMap::new(),
            enter: Enter::Unconfirmed,
            ask_after: Mono(0),
            retry: false,
        };
        self.take_in(roots, &mut plan, Vec::new(), None)?;
        self.tell(Input::Rechecked { cache: recheck.cache, collected })
    }
}
