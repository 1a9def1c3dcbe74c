//! The decisions, pure: what is asked, uploaded, retried, failed and when a
//! session is settled. `step(event, now) -> actions`; no I/O, no clock, and no
//! randomness but that of the seed it is given.
//!
//! Must not know: tokio, files, sockets, store paths. A push is a number; what
//! it stands for (one store path in one cache) is the business of the caller.
//!
//! ```text
//!            admit                 ask                 missing
//!  (unknown) ─────► Unasked ─────────► Asking ───────────────► Held ──┐ references
//!                      ▲  ▲               │ present               │   │ all settled
//!                retry │  │ ask failed    ▼                       │   ▼
//!                      │  └────────── (settled)                   │ Ready ◄──── Resting
//!                   Failed ◄──────────────▲────────────── refused │   │ slot       ▲
//!                      ▲                  │ confirmed  reference  ▼   ▼            │
//!                      └──────────────────┴──────────────────── Uploading ─────────┘
//!                               permanent                            transient
//! ```
//!
//! Invariants kept here: a push leaves only by a confirmation, by being gone
//! from the store, or failed with a cause; a push is uploaded only when none of
//! its references is unsettled or failed; one push's failure costs that push
//! and those that refer to it; every retry waits and is jittered.

mod ask;
mod breaker;
mod cache;
mod client;
mod concurrency;
mod event;
mod fair_queue;
mod group;
mod push;
mod referrers;
mod retry;
mod settling;
mod step;

pub use breaker::BreakerState;
pub use cache::{CacheLimits, CacheView};
pub use client::{ClientAction, ClientEvent, ClientLife, ClientState, Found};
pub use event::{Action, Cause, Event, Failure, NewPush, Outcome};
pub use retry::Backoff;
pub use step::Flow;

#[cfg(test)]
mod tests;
