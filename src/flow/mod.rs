//! The decisions, pure: what is asked, uploaded, retried, parked and when a
//! session is settled. `step(event, now) -> actions`; no I/O, no clock, and no
//! randomness but that of the seed it is given.
//!
//! Must not know: tokio, files, sockets, store paths. A task is a number; what
//! it stands for (one store path in one cache) is the business of the caller.
//!
//! ```text
//!            admit                 ask                 missing
//!  (unknown) ─────► Unasked ─────────► Asking ───────────────► Held ──┐ references
//!                      ▲  ▲               │ present               │   │ all settled
//!                retry │  │ ask failed    ▼                       │   ▼
//!                      │  └────────── (settled)                   │ Ready ◄──── Resting
//!                   Parked ◄──────────────▲────────────── refused │   │ slot       ▲
//!                      ▲                  │ confirmed  reference  ▼   ▼            │
//!                      └──────────────────┴──────────────────── Uploading ─────────┘
//!                               permanent                            transient
//! ```
//!
//! Invariants kept here: a task leaves only by a confirmation, by being gone
//! from the store, or parked with a cause; a task is uploaded only when none of
//! its references is unsettled or parked; one task's failure costs that task
//! and those that refer to it; every retry waits and is jittered.

mod ask;
mod cache;
mod client;
mod event;
mod fate;
mod gate;
mod lanes;
mod pace;
mod referrers;
mod retry;
mod session;
mod step;
mod task;

pub use cache::{CacheLimits, CacheView};
pub use client::{ClientAction, ClientEvent, ClientLife, ClientState, Found};
pub use event::{Action, CacheId, Cause, Event, Failure, NewTask, Outcome, SessionId, TaskId, Time};
pub use gate::GateState;
pub use retry::Backoff;
pub use step::Flow;

#[cfg(test)]
mod tests;
