//! Generates the manual pages of `flywheelctl` from its command line.

use std::path::Path;

use clap::CommandFactory;

use super::args::Cli;
use super::exit::{Exit, Failure};

/// Writes `flywheelctl.1` and a page for each of its commands into `dir`.
pub(super) fn write(dir: &Path) -> Result<Exit, Failure> {
    clap_mangen::generate_to(Cli::command(), dir)
        .map_err(|e| Failure::Usage(format!("cannot write manual pages to {}: {e}", dir.display())))?;
    Ok(Exit::Done)
}
