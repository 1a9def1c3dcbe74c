//! `flywheelctl`, for jobs and administrators. All of it is in [`flywheel::ctl`].

use std::process::ExitCode;

fn main() -> ExitCode {
    flywheel::ctl::main(std::env::args_os())
}
