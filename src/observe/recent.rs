//! The last entries of the log, for `status`. Must not know who may see which.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

use super::events;

/// The most entries that are kept.
const KEPT: usize = 50;
/// The longest text that is kept, in characters.
const TEXT: usize = 1000;

/// An entry of the log.
#[derive(Debug, Clone)]
pub(crate) struct Recent {
    /// When it was logged, in ms since 1970.
    pub(crate) at: i64,
    /// `error`, `warn` or `info`.
    pub(crate) level: &'static str,
    pub(crate) text: String,
    /// The session that it is about.
    pub(crate) session: Option<String>,
    /// Every user may see it: it is about the daemon or a cache, not about a path or a user.
    pub(crate) public: bool,
}

static ENTRIES: Mutex<VecDeque<Recent>> = Mutex::new(VecDeque::new());

fn entries() -> MutexGuard<'static, VecDeque<Recent>> {
    ENTRIES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the last entries of this process, oldest first.
pub(crate) fn recent() -> Vec<Recent> {
    entries().iter().cloned().collect()
}

/// Keeps the entries that have an id. Has to be filtered to level info and above.
pub(super) struct Keep;

impl<S: Subscriber> Layer<S> for Keep {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut read = Read::default();
        event.record(&mut read);
        let Some(id) = read.id else { return };
        let public = [
            events::READY,
            events::STOPPING,
            events::CACHE_ONLINE,
            events::CACHE_OFFLINE,
            events::CACHE_REFUSES,
            events::ENDPOINT_CHOSEN,
        ];
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let entry = Recent {
            at: i64::try_from(now).unwrap_or(i64::MAX),
            level: match *event.metadata().level() {
                tracing::Level::ERROR => "error",
                tracing::Level::WARN => "warn",
                _ => "info",
            },
            text: read.text.chars().take(TEXT).collect(),
            session: read.session,
            public: public.iter().any(|kind| kind.id == id),
        };
        let mut entries = entries();
        if entries.len() >= KEPT {
            entries.pop_front();
        }
        entries.push_back(entry);
    }
}

/// The fields of an entry that are kept.
#[derive(Default)]
struct Read {
    id: Option<String>,
    text: String,
    session: Option<String>,
}

impl Visit for Read {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "MESSAGE_ID" => self.id = Some(value.to_owned()),
            "FLYWHEEL_session" => self.session = Some(value.to_owned()),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing to a string does not fail.
            let _ = write!(self.text, "{value:?}");
        }
    }
}
