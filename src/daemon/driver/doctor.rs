//! The answer to `doctor`: asks all caches and looks at the host, beside the driver.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::timeout;

use super::Driver;
use crate::config::Target;
use crate::control::messages::{Diagnosis, ErrorCode, HostDiagnosis, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::blocking::Blocking;
use crate::daemon::caches::Examination;
use crate::daemon::host::examine;
use crate::daemon::sessions::Sight;

/// The longest that an examination may take.
const PATIENCE: Duration = Duration::from_secs(45);

impl Driver {
    /// Serves `doctor`. Only those who may see everything may have the path uploaded.
    pub(super) fn diagnose(&self, peer: Peer, push: bool, responder: Responder) {
        let Ok(place) = Arc::clone(&self.diagnoses).try_acquire_owned() else {
            return responder.refuse(ErrorCode::Busy, "other `doctor` commands run: try again in a moment");
        };
        let store_dir = self.parts.transfers.store().dir().clone();
        let netrc = self.parts.netrc.as_ref();
        let settings = &self.parts.settings;
        let is_built_in =
            |name: &str| settings.caches.get(name).is_some_and(|c| c.target == Target::Embedded);
        let of = |cache| Examination::of(cache, netrc, &store_dir, is_built_in(cache.name()));
        let caches: Vec<Examination> = self.parts.caches.iter().map(of).collect();
        let mut dirs = vec![("store", store_dir.as_path().to_owned()), ("state", settings.state_dir.clone())];
        dirs.extend(settings.embedded.as_ref().map(|own| ("built-in cache", own.dir.clone())));
        let (reports, admins) = (self.parts.reports.clone(), settings.admins.clone());
        let blocking = self.parts.blocking.clone();
        tokio::spawn(async move {
            let _place = place;
            if push {
                let sight = blocking.run(move || reports.sight(peer, admins.as_deref())).await;
                if !matches!(sight, Ok(Sight::All)) {
                    let text = "`doctor --push` is for root, the service's user and the group `admins`; \
                                `flywheelctl push PATH --wait` pushes a path of yours";
                    return responder.refuse(ErrorCode::Denied, text);
                }
            }
            let asked = join_all(caches.into_iter().map(|cache| cache.run(push)));
            let both = async { tokio::join!(asked, host(&blocking, store_dir.as_str().to_owned(), dirs)) };
            match timeout(PATIENCE, both).await {
                Ok((caches, host)) => responder.reply(Reply::Diagnosis(Diagnosis { caches, host })),
                Err(_) => {
                    let text = format!("the caches were not examined within {} s", PATIENCE.as_secs());
                    responder.refuse(ErrorCode::Busy, text);
                }
            }
        });
    }
}

/// Looks at the host, on a thread that may block.
async fn host(blocking: &Blocking, store_dir: String, dirs: Vec<(&'static str, PathBuf)>) -> HostDiagnosis {
    blocking.run(move || examine(&store_dir, &dirs)).await.unwrap_or_default()
}
