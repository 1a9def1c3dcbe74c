//! Everything that is tested from outside, in one binary: one link instead of
//! thirty, and each test still runs in a process of its own under nextest.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    dead_code
)]

mod attic_client;
mod attribution;
mod ci;
mod contracts;
mod control;
mod daemon;
mod embedded;
mod faults;
mod house;
mod image;
mod monitoring;
mod networks;
mod nixos;
mod nothing_lost;
mod observe;
mod quickstart;
mod screen;
mod setup;
mod store;
mod stores;
mod support;
mod systemd;
