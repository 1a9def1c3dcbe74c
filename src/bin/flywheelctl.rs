//! `flywheelctl`: what jobs and operators call. Everything is in [`flywheel::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flywheel::ctl::main(std::env::args_os())
}
