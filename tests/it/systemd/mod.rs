//! The service and the package in a container with a real systemd.

mod credential;
mod journald;
mod package;
mod sandbox;
mod supervision;
