//! The daemon as a whole: its commands, its configuration, its start and its end.

mod caches;
mod cases;
mod commands;
mod failures;
mod logind;
mod notify;
mod reload;
mod restart;
mod story;
