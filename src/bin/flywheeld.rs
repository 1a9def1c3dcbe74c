//! `flywheeld`: reads the command line and the configuration, runs the daemon, and
//! logs why it ended.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser};
use flywheel::{config::Settings, daemon, observe};

/// Streams every path Nix builds to an Attic binary cache, for all jobs of this host.
#[derive(Debug, Parser)]
#[command(name = "flywheeld", version, after_help = MORE)]
struct Args {
    /// Configuration file [default: /etc/flywheel/flywheel.toml, when it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Check the configuration, print what is wrong with it, and exit
    #[arg(long)]
    check_config: bool,
    /// Print the manual page, for packages
    #[arg(long, hide = true, exclusive = true)]
    man: bool,
}

/// The text of `--help` after the options.
const MORE: &str = "\
Files:
  /etc/flywheel/flywheel.toml        the configuration, see flywheel.toml(5)
  /etc/flywheel/flywheel.toml.d/     this host's settings, read afterwards
  /var/lib/flywheel/                 the ledger and other state
  /run/flywheel/control.sock         the socket of flywheelctl(1)

Signals:
  SIGTERM, SIGINT  stop: running uploads may finish until a deadline, and the rest
                   waits for the next start; a second signal ends the daemon at once
  SIGHUP           reads configuration and tokens again, like `flywheelctl reload`

Exit status:
  0  stopped by a signal
  1  cannot start or continue; the last message gives the reason
  2  the configuration cannot be used";

/// The sections of the manual page after the options.
const MANUAL: &str = include_str!("flywheeld.roff");

/// Exit status of a configuration that cannot be used.
const BAD_CONFIG: u8 = 2;

/// Writes the manual page.
fn manual(out: &mut dyn Write) -> std::io::Result<()> {
    let page = clap_mangen::Man::new(Args::command()).section("8").manual("System administration");
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    out.write_all(MANUAL.as_bytes())
}

fn main() -> ExitCode {
    let words: Vec<_> = std::env::args_os().collect();
    if let Some(ended) = daemon::supervise(&words) {
        return ended;
    }
    let args = Args::parse();
    if args.man {
        return manual(&mut std::io::stdout()).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    if let Some(ended) = daemon::as_first_process(&words) {
        return ended;
    }
    // This changes the environment, so it must come before any thread is started.
    let passed = daemon::passed();
    let target = if args.check_config { observe::Target::Stderr } else { observe::Target::Auto };
    observe::init(target);
    let check_config = args.check_config;
    let load: daemon::Load =
        Arc::new(move || Settings::load(args.config.as_deref(), &|name| std::env::var(name).ok()));
    let settings = match load() {
        Ok(settings) => settings,
        Err(error) => {
            observe::configuration_refused(&error);
            return ExitCode::from(BAD_CONFIG);
        }
    };
    if check_config {
        let missing = settings.missing_files();
        let warnings = [settings.warnings.clone(), missing, daemon::unknown_names(&settings)].concat();
        observe::configuration_good(&warnings, settings.caches.len());
        return ExitCode::SUCCESS;
    }
    let passed = match passed {
        Ok(passed) => passed,
        Err(error) => {
            observe::failed(&error);
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(64)
        .thread_keep_alive(std::time::Duration::from_secs(5))
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => {
            // The driver runs on a worker: messages between a worker and this thread would
            // cost a wake-up each.
            let running = runtime.spawn(daemon::run(settings, load, passed));
            let ended = runtime.block_on(running).unwrap_or_else(|panicked| Err(panicked.into()));
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
            ended
        }
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            observe::failed(&format_args!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}
