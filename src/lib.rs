//! flywheel: a host service that streams every path Nix builds to an Attic
//! binary cache while the build is still running, and tells each CI job the
//! truth about what happened to its paths.
//!
//! The house, a room a concern. A room is named after what it knows:
//!
//! | room | knows | must not know |
//! |---|---|---|
//! | [`store`] | Nix's store: paths, database journal, closure, doorbell, NARs | caches, sessions |
//! | [`cache`] | the Attic API, endpoints, tokens, what a server's answers mean | sessions, the ledger |
//! | [`attic`] | the attic client that we own: having it, its configuration, pushing through it | the control socket |
//! | [`embedded`] | a cache in a directory that speaks the same API | everything else |
//! | [`ledger`] | what is known durably: cursor, queue, sessions, results | HTTP, Nix |
//! | [`flow`] | the decisions, pure: order, fairness, retry, breaker, flush | tokio, files, sockets |
//! | [`attribution`] | who made a path: windows of sessions, evidence | uploads |
//! | [`control`] | the socket: messages, codec, server, peer credentials | how pushing works |
//! | [`daemon`] | assembly: driver, intake, supervision, signals | – |
//! | [`ctl`] | the client: commands and rendering | the daemon's inside |
//! | [`config`] | settings, raw and validated | – |
//! | [`observe`] | logging to journald or standard error | – |
//!
//! Dependencies point from `daemon` inwards and never sideways between
//! `store`, `cache`, `attic`, `embedded` and `ledger`; `flow` and the control
//! messages import no other room. What is to be logged goes to `observe`, which
//! knows nobody. `tests/it/house.rs` checks the arrows.

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod attic;
pub mod attribution;
pub mod cache;
pub mod config;
pub mod control;
pub mod ctl;
pub mod daemon;
pub mod embedded;
pub mod flow;
pub mod ledger;
pub mod observe;
pub mod store;
