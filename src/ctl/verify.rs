//! The command `verify`: whether caches can serve what they are said to have. Must not
//! know how things are printed, nor how paths are fetched.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    Context,
    args::VerifyArgs,
    connection::{Connection, REPLY_TIMEOUT},
    end::{milliseconds, resolve, unexpected},
    exit::{Exit, Failure},
    render::Bar,
};
use crate::control::messages::{MAX_VERIFIED, Reply, Request, Verification, VerifyScope};

/// What the command prints.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// `good`, `bad`, or `pending` when the deadline came before all paths were checked.
    pub(super) outcome: &'static str,
    #[serde(flatten)]
    pub(super) found: Verification,
    /// Paths that were absent, were pushed again, and can be read now.
    pub(super) repaired: Vec<String>,
    /// Why paths could not be pushed again.
    pub(super) repair_errors: Vec<String>,
}

impl Report {
    fn exit(&self) -> Exit {
        match (self.found.problems_total, self.found.unchecked) {
            (0, 0) => Exit::Done,
            (0, _) => Exit::Pending,
            _ => Exit::Failed,
        }
    }
}

pub(super) fn command(context: &Context, args: VerifyArgs) -> Result<Exit, Failure> {
    let until = Instant::now() + args.timeout;
    let mut connection = context.connect()?;
    let scope = match (args.scope.session, args.scope.sample) {
        (Some(session), _) => VerifyScope::Session(session),
        (None, Some(count)) => VerifyScope::Sample(count),
        (None, None) => {
            let (paths, unmatched) = resolve(context, &args.scope.paths, &connection.server)?;
            if unmatched || paths.is_empty() {
                return Err(Failure::Usage("each name must be a store path or a link to one".to_owned()));
            }
            if paths.len() > MAX_VERIFIED as usize {
                let count = paths.len();
                return Err(Failure::Usage(format!(
                    "{count} paths, at most {MAX_VERIFIED} at a time: name fewer"
                )));
            }
            VerifyScope::Paths(paths)
        }
    };
    let mut bar = context.render.bar();
    let found = ask(&mut connection, scope, args.cache, until, &mut bar)?;
    let mut report = Report { found, ..Report::default() };
    if args.repair {
        repair(&mut connection, &mut report, until, &mut bar);
    }
    bar.clear();
    let exit = report.exit();
    report.outcome = match exit {
        Exit::Done => "good",
        Exit::Pending => "pending",
        _ => "bad",
    };
    context.render.verification(&report);
    Ok(exit)
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn ask(
    connection: &mut Connection,
    scope: VerifyScope,
    cache: Option<String>,
    until: Instant,
    bar: &mut Bar,
) -> Result<Verification, Failure> {
    let request = Request::Verify { scope, cache, timeout_ms: milliseconds(left(until)) };
    match connection.ask(&request, left(until) + REPLY_TIMEOUT, &mut |progress| bar.show(progress))? {
        Reply::Verified(found) => Ok(found),
        other => Err(unexpected(other)),
    }
}

/// Pushes what is absent again, by the usual way, and verifies it once more.
fn repair(connection: &mut Connection, report: &mut Report, until: Instant, bar: &mut Bar) {
    let unlisted = report.found.problems_total.saturating_sub(report.found.problems.len() as u64);
    if unlisted > 0 {
        let why = format!("{unlisted} problems beyond the listed ones were not looked at: verify again");
        report.repair_errors.push(why);
    }
    let mut absent: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for problem in report.found.problems.iter().filter(|p| p.problem == "absent") {
        if problem.valid {
            absent.entry(problem.cache.clone()).or_default().push(problem.path.clone());
        } else {
            let why =
                format!("{}: it is not in the store any more, so it cannot be pushed again", problem.path);
            report.repair_errors.push(why);
        }
    }
    for (cache, paths) in absent {
        if let Err(failure) = push_again(connection, report, &cache, paths, until, bar) {
            report.repair_errors.push(format!("cache {cache}: {failure}"));
        }
    }
}

fn push_again(
    connection: &mut Connection,
    report: &mut Report,
    cache: &str,
    paths: Vec<String>,
    until: Instant,
    bar: &mut Bar,
) -> Result<(), Failure> {
    let named = || Some(cache.to_owned());
    let timeout_ms = milliseconds(left(until));
    let request = Request::Push { paths: paths.clone(), cache: named(), wait: true, timeout_ms };
    match connection.ask(&request, left(until) + REPLY_TIMEOUT, &mut |progress| bar.show(progress))? {
        Reply::Pushed(summary) => {
            let failures = summary.failed.iter().map(|f| format!("{}: {}", f.path, f.error));
            report.repair_errors.extend(failures);
            if summary.pending > 0 {
                let pending = summary.pending;
                let why =
                    format!("cache {cache}: {pending} pushes are pending; the daemon continues to push them");
                report.repair_errors.push(why);
            }
        }
        other => return Err(unexpected(other)),
    }
    let again = ask(connection, VerifyScope::Paths(paths.clone()), named(), until, bar)?;
    let still = |path: &String| again.problems.iter().any(|problem| problem.path == *path);
    let repaired: Vec<String> =
        paths.into_iter().filter(|path| again.unchecked == 0 && !still(path)).collect();
    report.found.problems.retain(|p| p.cache != cache || !repaired.contains(&p.path));
    let count = repaired.len() as u64;
    report.found.problems_total -= count;
    report.found.good += count;
    report.repaired.extend(repaired);
    Ok(())
}
