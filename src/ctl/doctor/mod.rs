//! The command `doctor`: looks for everything that can keep paths out of the cache, or
//! Nix from reading them back, and names for each problem one command. Must not know
//! how things are printed.
//!
//! The daemon asks the caches, since it has the tokens; it also reads its own limits.
//! Everything else is read here, with the caller's rights. Each file is one kind of
//! check, a pure function from what was read to findings.

mod caches;
mod finding;
mod groups;
mod host;
mod reading;
mod service;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use super::attic_client::ask;
use super::connection::{Connection, REPLY_TIMEOUT};
use super::exit::{Exit, Failure};
use super::{Context, end::unexpected};
use crate::control::messages::{Diagnosis, Reply, Request, Status};
use crate::types::Wall;
pub(super) use finding::{Finding, Level};
use reading::NixSettings;
pub(super) use reading::nix_reads_all;

/// A token that expires sooner than this is a finding: a week, in seconds.
const SOON: i64 = 7 * 24 * 3600;
/// How long flywheelctl waits for the daemon's examination of its caches, which has a
/// shorter limit of its own.
const EXAMINATION: Duration = Duration::from_secs(60);
/// Shows what the daemon logged about a problem.
const LOG: &str = "journalctl -u flywheeld -p warning -n 20";

/// Runs all checks and prints the findings. `push`: each cache also gets a small path,
/// which is read back.
pub(super) fn command(context: &Context, push: bool) -> Result<Exit, Failure> {
    let (findings, failure) = examine(context, push);
    let bad = findings.iter().any(|finding| finding.level == Level::Bad);
    context.render.findings(&findings, bad, failure.as_ref());
    match failure {
        None => Ok(if bad { Exit::Failed } else { Exit::Done }),
        // The failure is part of what was printed.
        Some(failure) => Ok(failure.exit(true)),
    }
}

/// Returns the findings, and why the daemon was not asked, if it was not.
pub(super) fn examine(context: &Context, push: bool) -> (Vec<Finding>, Option<Failure>) {
    let mut all = groups::of_groups(&context.socket, Path::new("/proc"));
    let nix = NixSettings::of_host();
    let status = context.connect().and_then(|mut connection| status(&mut connection));
    let status = match status {
        Ok(status) => status,
        Err(failure) => {
            all.extend(service::of_service());
            all.push(Finding::unchecked("caches", "only flywheeld can ask them, since it has the tokens"));
            all.extend(reading::without_daemon(nix.as_ref()));
            return (all, Some(failure));
        }
    };
    all.extend(of_daemon(&status));
    let mut refused = None;
    let examined = diagnose(context, push).unwrap_or_else(|failure| {
        let text = format!("flywheeld did not examine them: {failure}");
        all.push(Finding::unchecked("caches", text));
        // Everything else is checked, and yet this is not what the caller asked for.
        refused = push.then_some(failure);
        Diagnosis::default()
    });
    let now = Wall::now().0 / 1000;
    for cache in &examined.caches {
        let status = status.cache.iter().find(|status| status.name == cache.name);
        all.extend(caches::of_cache(cache, status, &examined.host.store_dir, now));
    }
    if !examined.host.store_dir.is_empty() {
        all.extend(host::of_host(&examined.host));
    }
    match ask(context, true) {
        Ok(info) => all.extend(reading::of_reading(&info, &examined.caches, nix.as_ref())),
        Err(failure) => {
            all.push(Finding::unchecked("reading", format!("flywheeld was not asked: {failure}")));
        }
    }
    (all, refused)
}

fn status(connection: &mut Connection) -> Result<Status, Failure> {
    match connection.ask(&Request::Status, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected(other)),
    }
}

fn diagnose(context: &Context, push: bool) -> Result<Diagnosis, Failure> {
    match context.connect()?.ask(&Request::Diagnose { push }, EXAMINATION, &mut |_| ())? {
        Reply::Diagnosis(diagnosis) => Ok(diagnosis),
        other => Err(unexpected(other)),
    }
}

/// Checks the daemon's own state.
fn of_daemon(status: &Status) -> Vec<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let mut all = vec![if status.version == own {
        Finding::good("daemon", format!("version {own}, answers"))
    } else {
        let text = format!("is version {}, and this command is {own}", status.version);
        Finding::bad("daemon", text, "systemctl restart flywheeld")
    }];
    let store = &status.store;
    all.push(match &store.problem {
        Some(problem) => Finding::bad("store", format!("new paths are not followed: {problem}"), LOG),
        None => {
            let files = store.files.as_ref().map(|files| format!(" in {files}")).unwrap_or_default();
            Finding::good("store", format!("new paths are followed{files}, {} rows behind", store.lag))
        }
    });
    all.push(if status.ledger.state == "ok" {
        Finding::good("ledger", "can be written")
    } else {
        let detail = status.ledger.detail.as_deref().unwrap_or(&status.ledger.state);
        Finding::bad("ledger", format!("cannot be written: {detail}"), LOG)
    });
    let queue = &status.queue;
    all.push(if queue.failed > 0 {
        let failed = queue.failed;
        let text = format!(
            "{failed} failed for the reasons in `flywheelctl status`, and are retried only when asked"
        );
        Finding::bad("queue", text, "flywheelctl reload")
    } else {
        Finding::good(
            "queue",
            format!("{} pending, {} uploading, none failed", queue.pending, queue.uploading),
        )
    });
    let client = &status.client;
    let lacking = status.cache.iter().any(|cache| cache.engine == "attic") && client.path.is_none();
    all.push(if lacking {
        let why = client.error.as_deref().unwrap_or("there is none yet");
        let text = format!("is {}, and a cache with engine = \"attic\" waits for it: {why}", client.state);
        Finding::bad("attic client", text, "flywheelctl client status")
    } else {
        Finding::good("attic client", client.state.clone())
    });
    all.extend(status.warnings.iter().map(|text| Finding::bad("warning", text, LOG)));
    all
}
