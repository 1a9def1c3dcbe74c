//! The driver's side of pushes: which pushes are known, the questions, uploads and
//! probes that carry them out, what came of each, and how the ledger records it.
//!
//! Must not know sessions, nor why a path is pushed. What to do next is decided in
//! [`crate::flow`].

mod cache_api;
mod log_groups;
mod outcome;
mod pushes;
mod rate;
mod read_queue;
mod records;
mod settlements;
#[cfg(test)]
mod simulated;
mod since;
mod store_reader;
mod target;
mod transfer;
mod upstream_check;
mod upstream_keys;

pub(super) use cache_api::CacheApi;
pub(super) use outcome::{Audience, Listener, Tally, Times, failure_of};
pub(super) use pushes::Pushes;
pub(super) use rate::Rate;
pub(super) use records::{UPSTREAM, collected};
pub(super) use settlements::{Settlement, Settlements};
#[cfg(test)]
pub(super) use simulated::{Board, CacheCall, SimulatedCache};
pub(super) use store_reader::StoreReader;
pub(super) use target::Target;
pub(super) use transfer::Transfers;
pub(super) use upstream_check::UpstreamCheck;
pub(super) use upstream_keys::UpstreamKeys;
