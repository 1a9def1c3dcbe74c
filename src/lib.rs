//! flywheel: a host service that streams every path Nix builds to an Attic
//! binary cache while the build is still running, and tells each CI job the
//! truth about what happened to its paths.
//!
//! The library is divided into rooms. Each is named after what it knows:
//!
//! | room | knows | must not know |
//! |---|---|---|
//! | [`types`] | the words that all rooms share: store paths, hashes, names, ids, clocks | anything else |
//! | [`store`] | Nix: its database, closures, new paths, NARs, GC roots | caches, sessions |
//! | [`cache`] | the Attic API, endpoints, tokens, what a server's answers mean | sessions, the ledger |
//! | [`attic`] | the attic client that the daemon keeps: obtaining it, its configuration, pushing through it | the control socket |
//! | [`embedded`] | the built-in cache: a directory that speaks the same API and serves Nix | everything else |
//! | [`ledger`] | what must survive a restart: cursor, pushes, sessions, results | HTTP, Nix |
//! | [`flow`] | the decisions, pure: order, fairness, retry, circuit breaker, flush | tokio, files, sockets |
//! | [`attribution`] | who made a path: locks, processes, sessions' windows, evidence | uploads |
//! | [`control`] | the socket: messages, codec, server, peer credentials | how pushing works |
//! | [`daemon`] | assembly: the driver, the intake, supervision, signals | – |
//! | [`ctl`] | `flywheelctl`: commands, CI detection, rendering | the daemon's inside |
//! | [`config`] | settings, raw and validated | – |
//! | [`observe`] | logging to journald or standard error | – |
//!
//! Dependencies point from `daemon` inwards and never sideways between
//! `store`, `cache`, `attic`, `embedded` and `ledger`. Every room may name
//! `types` and `observe`, which name nobody; `flow` and the control messages
//! name `types` alone. `tests/it/house/` checks the arrows.

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
#[cfg(any(fuzzing, test))]
pub mod fuzz;
pub mod ledger;
pub mod observe;
pub mod store;
pub mod types;
