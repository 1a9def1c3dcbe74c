//! The host that the daemon runs on: systemd (readiness, status line, watchdog),
//! logind (shutdown and sleep), signals, and the lock of the state directory.
//!
//! Must not know caches, sessions or what is pushed; it reports to the driver's inbox.

pub(in crate::daemon) mod logind;
pub(in crate::daemon) mod notify;
pub(in crate::daemon) mod parts;
pub(in crate::daemon) mod signals;
pub(in crate::daemon) mod state_dir_lock;
pub(in crate::daemon) mod watchdog;
