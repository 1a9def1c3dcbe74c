//! What a builder's hook says.

use crate::attribution::{Lineage, Proc};
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::driver::Driver;
use crate::daemon::driver::requests::NAMED_MOST;
use crate::daemon::intake::Work;
use crate::types::{StoreDir, StorePath};

/// Bytes of a derivation that are read; its outputs stand at the beginning.
const DERIVATION_MOST: u64 = 4 << 20;

impl Driver {
    /// A builder's hook names what was built. Only who owns the store, or
    /// root, is a builder; others could claim what is not theirs.
    pub(in crate::daemon) fn hook(
        &self,
        peer: &Peer,
        derivation: Option<String>,
        outputs: Vec<String>,
        responder: Responder,
    ) {
        if outputs.len() > NAMED_MOST {
            return responder.refuse(ErrorCode::BadRequest, "too many paths in one request");
        }
        let (lock_watcher, bell, peer) = (self.lock_watcher.clone(), self.bell.clone(), *peer);
        let store_dir = self.transfers.store_dir.clone();
        tokio::task::spawn_blocking(move || {
            let owner =
                std::fs::metadata(store_dir.as_path()).map(|m| std::os::unix::fs::MetadataExt::uid(&m));
            if peer.uid != 0 && owner.ok() != Some(peer.uid) {
                return responder.refuse(ErrorCode::Denied, "only a builder of this store has a hook");
            }
            // Nix 2.8 leaves OUT_PATHS empty; the derivation says it too.
            let outputs = match derivation.filter(|_| outputs.is_empty()) {
                Some(drv) => {
                    store_dir.parse(&drv).map(|drv| outputs_of(&store_dir, &drv)).unwrap_or_default()
                }
                None => outputs,
            };
            let paths: Vec<StorePath> = outputs.iter().filter_map(|p| store_dir.parse(p).ok()).collect();
            if let Some(lineage) = peer.pid.and_then(|pid| Lineage::of(&Proc::default(), pid)) {
                let bases: Vec<String> = paths.iter().map(|p| p.base().to_owned()).collect();
                lock_watcher.hooked(&bases, &std::sync::Arc::new(lineage));
                bell.ask(Work::Hook(paths));
            }
            responder.reply(Reply::Done { message: "noted".to_owned() });
        });
    }
}

/// What a derivation makes; nothing when its file cannot be read.
fn outputs_of(store_dir: &StoreDir, derivation: &StorePath) -> Vec<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(store_dir.as_path().join(derivation.base()));
    let read = file.and_then(|file| file.take(DERIVATION_MOST).read_to_string(&mut text));
    if read.is_ok() { crate::store::derivation::outputs(&text) } else { Vec::new() }
}
