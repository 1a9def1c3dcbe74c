//! The command `session end`: names further paths, waits, and goes on waiting when
//! the daemon is restarted meanwhile. Must not know how a summary is printed.

use std::{
    path::Path,
    thread::sleep,
    time::{Duration, Instant},
};

use super::{
    Context,
    args::EndArgs,
    ci,
    connection::{CONNECT_TIMEOUT, Connection, ConnectionError, REPLY_TIMEOUT},
    exit::{Exit, Failure},
    paths,
    render::Heading,
    report, variable,
};
use crate::control::codec::ServerHello;
use crate::control::messages::{ErrorCode, Progress, Reply, Request, Summary};

/// How long the end of a session waits for uploads when the caller names no time.
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(240);
/// The time between two attempts to reach the daemon again.
const RETRY: Duration = Duration::from_millis(200);

/// Which session ends, and how.
pub(super) struct EndRequest {
    pub(super) session: Option<String>,
    pub(super) push: Vec<String>,
    pub(super) timeout: Duration,
    pub(super) wait: bool,
    /// The caller has chosen the timeout.
    pub(super) patient: bool,
}

pub(super) fn command(context: &Context, args: EndArgs) -> Result<Exit, Failure> {
    let named = args.session.is_some();
    let ending = EndRequest {
        session: args.session.or_else(|| variable("FLYWHEEL_SESSION")),
        push: args.push,
        timeout: args.timeout.unwrap_or(DEFAULT_TIMEOUT),
        wait: !args.no_wait,
        patient: args.timeout.is_some(),
    };
    let pages = args.report;
    let (summary, unmatched) = end_session(context, ending).map_err(|failure| match failure {
        // A job whose `session start` found no daemon has no session to end.
        Failure::Refused { code: ErrorCode::NotFound, message } if !named => Failure::NoSession(message),
        other => other,
    })?;
    let bad_input = unmatched || summary.invalid > 0;
    let exit = Exit::of_session(&summary, context.strict, !args.no_wait, bad_input);
    context.render.summary(&summary, Heading::Session, exit);
    let Some(id) = summary.session.clone() else { return Ok(exit) };
    let mut exit = exit;
    for page in pages {
        if let Err(failure) = report::command(context, id.clone(), Some(&page)) {
            // The session has ended anyway; only a strict caller fails for the report.
            if exit == Exit::Done && (context.strict || summary.strict) {
                exit = failure.exit(true);
            }
            context.render.report_failure(&failure, exit);
        }
    }
    Ok(exit)
}

/// Ends a session. Repeats the request while the daemon restarts or has no room,
/// until there is a reply or the time is over.
/// Also returns whether a pattern of `push` matched nothing.
pub(super) fn end_session(context: &Context, ending: EndRequest) -> Result<(Summary, bool), Failure> {
    let until = Instant::now() + ending.timeout;
    // A daemon that has no room for this long will hardly have it soon.
    let room_until = until.min(Instant::now() + REPLY_TIMEOUT);
    // Without a daemon at the first attempt the job does not wait for one.
    let mut connection = context.connect()?;
    let (push, unmatched) = resolve(context, &ending.push, &connection.server)?;
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
            patient: ending.patient,
        };
        let patience = if ending.wait { left + REPLY_TIMEOUT } else { REPLY_TIMEOUT };
        let mut progress = |p: &Progress| {
            // Without the id a repeated request would find open sessions only.
            session = p.session.clone().or_else(|| session.take());
            bar.show(p);
        };
        let failure = match connection.ask(&request, patience, &mut progress) {
            Ok(Reply::Ended(summary)) => return Ok((summary, unmatched)),
            Ok(Reply::Error { code: ErrorCode::Busy, message }) => {
                // Many jobs ask at once; the daemon has room again in a moment.
                sleep(RETRY.min(left));
                if Instant::now() >= room_until {
                    return Err(Failure::Refused { code: ErrorCode::Busy, message });
                }
                connection = context.connect()?;
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
        context.render.note("the connection to the daemon was lost; waiting until the daemon runs again");
        connection = reconnect(&context.socket, until).ok_or(failure)?;
    }
}

fn reconnect(socket: &Path, until: Instant) -> Option<Connection> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        sleep(RETRY.min(left));
        match Connection::open(socket, CONNECT_TIMEOUT.min(left)) {
            Ok(connection) => return Some(connection),
            Err(ConnectionError::Version { .. } | ConnectionError::Garbled { .. }) => return None,
            Err(_) => {}
        }
    }
}

/// Finds the store paths that patterns name. Warns of patterns that match nothing, and
/// returns whether there are any.
pub(super) fn resolve(
    context: &Context,
    patterns: &[String],
    server: &ServerHello,
) -> Result<(Vec<String>, bool), Failure> {
    if patterns.is_empty() {
        return Ok((Vec::new(), false));
    }
    let cwd = std::env::current_dir().map_err(|e| Failure::Usage(format!("no current directory: {e}")))?;
    let resolved = paths::resolve(patterns, &cwd, &paths::Store::of(server)).map_err(Failure::Usage)?;
    for pattern in &resolved.unmatched {
        context.render.warn(&format!("`{pattern}` matches nothing in {}", cwd.display()));
    }
    Ok((resolved.paths, !resolved.unmatched.is_empty()))
}

/// Turns an unexpected reply into a failure.
pub(super) fn unexpected(reply: Reply) -> Failure {
    match reply {
        Reply::Error { code, message } => Failure::Refused { code, message },
        _ => Failure::Confused,
    }
}

pub(super) fn milliseconds(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}
