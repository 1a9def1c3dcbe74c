//! One session that is not closed. Must not know the others.

use tokio::time::Instant;

use super::Watch;
use crate::control::messages::CiJob;
use crate::daemon::intake::NamedPaths;
use crate::flow::{SessionLife, Subject, TUNING};
use crate::ledger::{Ledger, SessionInfo, Warnings};
use crate::observe::event;
use crate::types::{CacheId, SessionId};

/// A session that is open or draining.
#[derive(Debug)]
pub(in crate::daemon) struct Session {
    pub(in crate::daemon) row: SessionId,
    pub(in crate::daemon) id: String,
    pub(in crate::daemon) label: Option<String>,
    /// The cache that it pushes to. `None`: its paths are skipped.
    pub(in crate::daemon) cache: Option<CacheId>,
    pub(in crate::daemon) uid: u32,
    pub(in crate::daemon) gid: u32,
    pub(in crate::daemon) ci: Option<CiJob>,
    /// Each of its pushed paths is logged at level info.
    pub(in crate::daemon) log_paths: bool,
    /// Where it stands.
    pub(in crate::daemon) life: SessionLife,
    /// When it began to drain. `None` while it is open.
    pub(in crate::daemon) draining_since: Option<Instant>,
    /// Reports the end of its anchor.
    pub(in crate::daemon) watch: Option<Watch>,
    /// What its summary warns of, for example named paths that were not valid.
    pub(in crate::daemon) warnings: Warnings,
    /// The intake has not finished its naming yet, and a caller has got an answer that says so.
    pub(in crate::daemon) incomplete: bool,
    /// The routes do not allow its cache any more: no further path is pushed for it.
    pub(in crate::daemon) confined: bool,
}

/// Most warnings that are kept of a session. One more says that there were more.
const WARNINGS: usize = 100;

impl Session {
    /// A session as the ledger has it, which continues with `life`.
    pub(super) fn restored(
        info: SessionInfo,
        cache: Option<CacheId>,
        life: SessionLife,
        draining_since: Option<Instant>,
    ) -> Self {
        Self {
            life,
            row: info.row,
            id: info.new.id,
            label: info.new.label,
            cache,
            uid: info.new.uid,
            gid: info.new.gid,
            log_paths: info.new.log_paths,
            ci: info.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok()),
            draining_since,
            watch: None,
            warnings: info.warnings,
            incomplete: false,
            confined: false,
        }
    }

    /// A closed session that its job ends after that, or ends with further paths.
    pub(in crate::daemon) fn rejoined(info: SessionInfo, cache: Option<CacheId>, since: Instant) -> Self {
        Self::restored(info, cache, SessionLife::draining(&TUNING, false), Some(since))
    }

    pub(in crate::daemon) fn is_open(&self) -> bool {
        self.life.is_open()
    }

    /// What an end of it with these paths asks for. A session whose paths are skipped pushes
    /// none, but its window is closed as any other's.
    pub(in crate::daemon) fn end_subject(&self, paths: NamedPaths) -> Subject<NamedPaths> {
        let pushes = self.cache.is_some() && !self.confined;
        Subject::End(self.row, if pushes { paths } else { NamedPaths::default() })
    }

    /// Adds a warning to the summary, unless it is there already.
    pub(in crate::daemon) fn warn(&mut self, ledger: &Ledger, text: String) {
        let texts = &mut self.warnings.texts;
        if texts.len() > WARNINGS || texts.contains(&text) {
            return;
        }
        let full = texts.len() == WARNINGS;
        texts.push(if full { "there were more warnings".to_owned() } else { text });
        ledger.session_warnings(self.row, &self.warnings);
    }

    /// Adds a warning about named paths that are not valid, and counts them.
    pub(in crate::daemon) fn warn_invalid(&mut self, ledger: &Ledger, count: usize, text: String) {
        let is_new = !self.warnings.texts.contains(&text);
        self.warnings.invalid += if is_new { count as u64 } else { 0 };
        self.warn(ledger, text);
    }

    /// Closes the session to further paths, because the routes do not allow its cache any
    /// more. Its window has to be forgotten as well.
    pub(in crate::daemon) fn confine(&mut self, ledger: &Ledger, why: String) {
        self.confined = true;
        event!(
            SESSION_CONFINED,
            session = self.id,
            label = self.label,
            reason = why,
            "session {} gets no further paths: {why}",
            self.id
        );
        self.warn(ledger, why);
    }
}
