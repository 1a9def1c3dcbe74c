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

mod attribution_end;
mod attribution_jobs;
mod attribution_life;
mod attribution_routes;
mod client_life;
mod client_reading;
mod control;
mod daemon_caches;
mod daemon_cases;
mod daemon_commands;
mod daemon_failures;
mod daemon_logind;
mod daemon_reload;
mod daemon_restart;
mod daemon_story;
mod daemon_systemd;
mod embedded;
mod engine_attic;
mod house;
mod house_picture;
mod journal;
mod lab;
mod nixos_flake;
mod nixos_module;
mod nothing_lost_books;
mod nothing_lost_bounds;
mod nothing_lost_database;
mod nothing_lost_disk;
mod nothing_lost_events;
mod nothing_lost_multiuser;
mod nothing_lost_roots;
mod nothing_lost_stop;
mod nothing_lost_token;
mod nothing_lost_trouble;
mod observe;
mod quickstart;
mod support;

mod ci_files;
mod ci_gitlab;
mod ci_jobs;
mod ci_manner;

mod store_closure;
mod store_doorbell;
mod store_journal;
mod store_locks;
mod store_nar;
mod store_roots;

mod systemd_journal;
mod systemd_life;
mod systemd_package;
mod systemd_secret;
mod systemd_trouble;
