//! Calls of Nix's post-build-hook.

use std::sync::Arc;

use super::Driver;
use super::requests::PATHS_IN_REQUEST;
use crate::attribution::{Lineage, Proc};
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::intake::Work;
use crate::store::derivation;
use crate::types::{StoreDir, StorePath};

impl Driver {
    /// Notes what a builder's hook has built. Only the owner of the store directory
    /// and root are builders; anybody else could claim the paths of others.
    pub(super) fn hook(&self, peer: Peer, drv: Option<String>, outputs: Vec<String>, responder: Responder) {
        if outputs.len() > PATHS_IN_REQUEST {
            return responder.refuse(ErrorCode::BadRequest, "too many paths in one request");
        }
        let intake = &self.parts.intake;
        let (lock_watcher, handle) = (intake.lock_watcher().clone(), intake.handle().clone());
        let store_dir = self.parts.transfers.store().dir().clone();
        self.parts.blocking.start(move || {
            let owner =
                std::fs::metadata(store_dir.as_path()).map(|m| std::os::unix::fs::MetadataExt::uid(&m));
            if peer.uid != 0 && owner.ok() != Some(peer.uid) {
                return responder.refuse(
                    ErrorCode::Denied,
                    "only root or the owner of the store may report what was built",
                );
            }
            // Nix 2.8 leaves OUT_PATHS empty. The derivation names the outputs too.
            let outputs = match drv.filter(|_| outputs.is_empty()) {
                Some(drv) => {
                    store_dir.parse(&drv).map(|drv| outputs_of(&store_dir, &drv)).unwrap_or_default()
                }
                None => outputs,
            };
            let paths: Vec<StorePath> = outputs.iter().filter_map(|p| store_dir.parse(p).ok()).collect();
            if let Some(lineage) = peer.pid.and_then(|pid| Lineage::of(&Proc::default(), pid)) {
                let bases: Vec<String> = paths.iter().map(|p| p.base().to_owned()).collect();
                lock_watcher.hooked(&bases, &Arc::new(lineage));
                handle.ask(Work::Hook(paths));
            }
            responder.reply(Reply::Done { message: "noted".to_owned() });
        });
    }
}

/// The outputs of a derivation. None when its file cannot be read.
fn outputs_of(store_dir: &StoreDir, drv: &StorePath) -> Vec<String> {
    derivation::read(store_dir, drv).map(|text| derivation::outputs(&text)).unwrap_or_default()
}
