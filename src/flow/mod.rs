//! The decisions about pushes, pure: which cache is asked, what is uploaded,
//! retried or failed, and when a session has nothing left to wait for.
//! `step(event, now)` returns the actions. There is no I/O, no clock, and no
//! randomness except that of the seed.
//!
//! Must not know: tokio, files, sockets, store paths. A push is a number here;
//! the caller knows which store path in which cache it stands for.
//!
//! ```text
//! (unknown) ── admitted ──► Unasked ── query begins ──► Asking ── present ──► (settled)
//!                           ▲   ▲                        │  │
//!                           │   └───── query failed ─────┘  │ missing
//!                           │                               ▼
//!                     retry │     ┌── reference failed ─── Held
//!                           │     ▼                         │ all references settled
//!                         Failed ◄─── permanent error ──┐   ▼
//!                                                       │ Ready ◄──── wait over ──── Resting
//!                                                       │  │  ▲                        ▲
//!                                          place is free│  │  │ the cache is away or   │ error that
//!                                                       │  ▼  │ refuses the token      │ may pass
//!                                                       Uploading ─────────────────────┘
//!                                                          │ confirmed
//!                                                          ▼
//!                                                      (settled)
//! ```
//!
//! A query that the cache refuses for good fails the pushes it names. A push
//! whose path is removed from the store settles as collected in every phase.
//!
//! Invariants kept here: a push settles only by a confirmation or because its
//! path was removed from the store, and fails only with a cause. It is uploaded
//! only when none of its references is unsettled or failed. An error of one push
//! costs that push and its referrers only. Every retry waits, with jitter.

mod ask;
mod breaker;
mod cache;
mod client;
mod concurrency;
mod event;
mod fair_queue;
mod group;
mod id_set;
mod other_hosts;
mod push;
mod push_table;
mod retry;
mod sessions;
mod settling;
mod step;

pub(crate) use breaker::BreakerState;
pub(crate) use cache::CacheLimits;
pub(crate) use client::{ClientAction, ClientEvent, ClientLife, ClientState, Found};
pub(crate) use event::{Action, Cause, Event, Failure, NewPush, Outcome, Purpose};
pub(crate) use push_table::PushTable;
pub(crate) use sessions::{
    AnchorNow, Begun, Callers, Candidate, Ended, JobOf, Knows, Left, Meant, Moment, NamingQueue, NoSession,
    OpenFor, Opened, OpeningStep, Openings, Otherwise, Patience, PushSubject, Record, Resume, Return,
    SHORT_WAIT, SessionAction, SessionEvent, SessionLife, SessionLimits, Subject, TUNING, Target, meant,
    returns,
};
pub(crate) use step::Flow;

#[cfg(test)]
use retry::Backoff;

#[cfg(test)]
mod tests;
