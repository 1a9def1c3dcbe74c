//! The service and the package in a container with a real systemd.

mod credential;
mod journald;
mod newcomer;
mod package;
mod readme;
mod repository;
mod rpm;
mod sandbox;
mod setup;
mod supervision;
