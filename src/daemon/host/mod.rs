//! The host that the daemon runs on: systemd (readiness, status line, watchdog),
//! logind (shutdown and sleep), signals, the first process of a container, and the lock of
//! the state directory.
//!
//! Must not know caches, sessions or pushes. It reports to the driver's inbox.

mod examine;
mod first_process;
mod logind;
mod notify;
mod parts;
mod signals;
mod state_dir_lock;
mod watchdog;

pub(super) use examine::examine;
pub use first_process::as_first_process;
pub(super) use logind::inhibit_while_pending;
pub(super) use notify::Notify;
pub(super) use parts::Part;
pub(super) use signals::{Signal, Signals};
pub(super) use state_dir_lock::StateDirLock;
pub(super) use watchdog::INTAKE;
