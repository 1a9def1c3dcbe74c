//! Ending a session: names what belongs to it, waits, and survives a daemon
//! that is restarted meanwhile. Must not know how a summary is printed.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    Context,
    args::EndArgs,
    ci,
    link::{GRACE, Link, LinkError, PATIENCE},
    paths,
    render::Heading,
    report, variable,
    verdict::{Exit, Failure},
};
use crate::control::messages::{ErrorCode, Progress, Reply, Request, Summary};

/// Between two attempts to find a daemon that went away.
const RETRY: Duration = Duration::from_millis(200);

/// What to end, and how.
pub(super) struct Ending {
    pub(super) session: Option<String>,
    pub(super) push: Vec<String>,
    pub(super) timeout: Duration,
    pub(super) wait: bool,
}

pub(super) fn command(context: &Context, args: EndArgs) -> Result<Exit, Failure> {
    let named = args.session.is_some();
    let ending = Ending {
        session: args.session.or_else(|| variable("FLYWHEEL_SESSION")),
        push: args.push,
        timeout: args.timeout,
        wait: !args.no_wait,
    };
    let page = args.report;
    let summary = finish(context, ending).map_err(|failure| match failure {
        // A job whose start found no daemon has nothing to end, which is not its mistake.
        Failure::Refused { code: ErrorCode::NotFound, message } if !named => Failure::NoSession(message),
        other => other,
    })?;
    let exit = Exit::of(&summary, context.strict, !args.no_wait);
    context.render.summary(&summary, Heading::Session, exit);
    let Some((page, id)) = page.zip(summary.session.clone()) else { return Ok(exit) };
    match report::command(context, id, Some(&page)) {
        Ok(_) => Ok(exit),
        // What the session's end said stands; a page that is missing fails nobody who was not strict.
        Err(failure) => {
            let exit = match exit {
                Exit::Done if context.strict || summary.strict => failure.exit(true),
                exit => exit,
            };
            context.render.failure(&failure, exit);
            Ok(exit)
        }
    }
}

/// Asks until there is an answer or the time is over.
pub(super) fn finish(context: &Context, ending: Ending) -> Result<Summary, Failure> {
    let until = Instant::now() + ending.timeout;
    // A daemon that has no room for so long will not have it soon.
    let room_until = until.min(Instant::now() + GRACE);
    // No daemon at the first attempt is no daemon: a job does not wait for one to be installed.
    let mut link = context.link()?;
    let push = resolve(context, &ending.push, &link.server.store_dir)?;
    let mut session = ending.session;
    let ci_job = ci::detect(variable).map(|d| d.job.key());
    let mut bar = context.render.bar();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let request = Request::SessionEnd {
            session: session.clone(),
            ci_job: ci_job.clone(),
            push: push.clone(),
            timeout_ms: milliseconds(left),
            wait: ending.wait,
        };
        let patience = if ending.wait { left + GRACE } else { GRACE };
        let mut progress = |p: &Progress| {
            // Asked again without it, the daemon would look among open sessions only.
            session = p.session.clone().or_else(|| session.take());
            bar.show(p);
        };
        let failure = match link.ask(&request, patience, &mut progress) {
            Ok(Reply::Ended(summary)) => return Ok(summary),
            Ok(Reply::Error { code: ErrorCode::Busy, message }) => {
                // Many jobs at once: a moment later there is room.
                sleep(RETRY.min(left));
                if Instant::now() >= room_until {
                    return Err(Failure::Refused { code: ErrorCode::Busy, message });
                }
                link = context.link()?;
                continue;
            }
            Ok(Reply::Error { code: ErrorCode::Draining, message }) if ending.wait => {
                Failure::Refused { code: ErrorCode::Draining, message }
            }
            Ok(other) => return Err(unexpected(other)),
            Err(e) if ending.wait && e.may_return() => e.into(),
            Err(e) => return Err(e.into()),
        };
        bar.clear();
        context.render.note("the daemon went away; waiting for it to come back");
        link = reconnect(&context.socket, until).ok_or(failure)?;
    }
}

fn reconnect(socket: &Path, until: Instant) -> Option<Link> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        sleep(RETRY.min(left));
        match Link::open(socket, PATIENCE.min(left)) {
            Ok(link) => return Some(link),
            Err(LinkError::Version { .. } | LinkError::Garbled { .. }) => return None,
            Err(_) => {}
        }
    }
}

/// Patterns to store paths, with a warning for what matched nothing.
pub(super) fn resolve(
    context: &Context,
    patterns: &[String],
    store_dir: &str,
) -> Result<Vec<String>, Failure> {
    if patterns.is_empty() {
        return Ok(Vec::new());
    }
    let cwd = std::env::current_dir().map_err(|e| Failure::Usage(format!("no current directory: {e}")))?;
    let resolved = paths::resolve(patterns, &cwd, store_dir).map_err(Failure::Usage)?;
    for pattern in &resolved.unmatched {
        context.render.warn(&format!("`{pattern}` matches nothing in {}", cwd.display()));
    }
    Ok(resolved.paths)
}

/// A reply that is not the one asked for.
pub(super) fn unexpected(reply: Reply) -> Failure {
    match reply {
        Reply::Error { code, message } => Failure::Refused { code, message },
        _ => Failure::Confused,
    }
}

pub(super) fn milliseconds(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
