//! The service and the package in a container with a real systemd.

mod journald;
mod life;
mod package;
mod secret;
mod trouble;
