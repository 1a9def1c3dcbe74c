//! nix.conf: a file of its own, which nix.conf includes. Must not know how paths get
//! into the cache.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::steps::{self, File};
use super::{Failure, Host};
use crate::ctl::attic_client::ask;
use crate::ctl::doctor::nix_reads_all;
use crate::ctl::{Context, nix_conf, text};

const NIX_CONF: &str = "/etc/nix/nix.conf";
/// The file that `setup` owns.
pub(super) const INCLUDED: &str = "/etc/nix/flywheel.conf";
/// The line of nix.conf. With the exclamation mark a missing file is no error.
const INCLUDE: &str = "!include flywheel.conf";
/// How long the cache may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(200);

/// Makes Nix read the caches, if it does not yet. Returns what was done, for people.
pub(super) fn write(context: &Context, host: &Host) -> Result<Vec<String>, Failure> {
    let until = Instant::now() + PATIENCE;
    let info = loop {
        match ask(context, false) {
            Ok(info) if info.servers.iter().all(|server| server.substituter.is_some()) => break info,
            Ok(_) if Instant::now() < until => std::thread::sleep(PAUSE),
            Ok(_) => {
                let text = "nix.conf stays as it is, because a cache has not reported its address and key: run \
                            `flywheelctl setup` again when `flywheelctl doctor` finds that it answers";
                context.render.warn(text);
                return Ok(Vec::new());
            }
            Err(failure) => {
                context.render.warn(&format!("nix.conf stays as it is: {failure}"));
                return Ok(Vec::new());
            }
        }
    };
    let settings = nix_conf::host(true).map_err(|why| {
        Failure::Usage(format!(
            "nix.conf stays as it is, because Nix cannot be asked for its settings: {why}"
        ))
    })?;
    if nix_reads_all(&info, &settings) {
        return Ok(Vec::new());
    }
    let servers: Vec<_> = info.servers.iter().collect();
    let lines = text::nix_conf(&nix_conf::lines(&servers, info.netrc.as_deref()));
    let main = host.at(Path::new(NIX_CONF));
    let before = std::fs::read_to_string(&main).unwrap_or_default();
    // On NixOS nix.conf is a link into the store, which configuration.nix makes.
    if std::fs::symlink_metadata(&main).is_ok_and(|meta| !meta.is_file()) {
        context.render.warn(&format!("{NIX_CONF} is made by something else; it needs these lines:\n{lines}"));
        return Ok(Vec::new());
    }
    let mut done = Vec::new();
    let marked = format!("# Written by `flywheelctl setup`, which replaces this file.\n{lines}");
    let mut files = vec![File::new(INCLUDED.into(), marked, 0o644)];
    if !before.lines().any(|line| line.trim() == INCLUDE) {
        let gap = if before.is_empty() || before.ends_with('\n') { "" } else { "\n" };
        files.push(File::new(NIX_CONF.into(), format!("{before}{gap}{INCLUDE}\n"), 0o644));
    }
    for file in files {
        if !file.is_there(host).map_err(Failure::Usage)? {
            file.write(host).map_err(Failure::Usage)?;
            done.push(format!("wrote {}", file.path.display()));
        }
    }
    let unit = Command::new("systemctl").args(["is-active", "--quiet", "nix-daemon.service"]).status();
    if !done.is_empty() && unit.is_ok_and(|status| status.success()) {
        steps::run(Command::new("systemctl").args(["restart", "nix-daemon.service"]))
            .map_err(Failure::Usage)?;
        done.push("restarted nix-daemon".to_owned());
    }
    for text in &done {
        context.render.note(text);
    }
    Ok(done)
}
