//! The commands `session start`, `list` and `show`. Must not know how things are
//! printed.

use std::time::{Duration, Instant};

use super::{
    Context, anchor,
    args::StartArgs,
    ci,
    connection::{Connection, REPLY_TIMEOUT},
    end::unexpected,
    exit::{Exit, Failure},
    variable,
};
use crate::control::messages::{ErrorCode, MAX_FIELD, Reply, Request};

/// How long `session start` repeats a request that the daemon has no room for.
const BUSY: Duration = Duration::from_secs(3);
/// The time between two of these requests.
const PAUSE: Duration = Duration::from_millis(50);

/// The options of a new session.
pub(super) struct StartRequest {
    pub(super) label: Option<String>,
    pub(super) cache: Option<String>,
    pub(super) anchor_pid: Option<u32>,
    pub(super) log_paths: bool,
}

pub(super) fn start(context: &Context, args: StartArgs) -> Result<Exit, Failure> {
    let detected = ci::detect(variable);
    let system = detected.as_ref().map(|d| d.job.system.as_str());
    let anchor_pid = args.anchor_pid.or_else(|| anchor::find(system));
    let opening =
        StartRequest { label: args.label, cache: args.cache, anchor_pid, log_paths: args.log_paths };
    let (session, cache) = open(context, &opening)?;
    context.render.started(&session, &cache);
    Ok(Exit::Done)
}

/// Shortens text that a CI system or a caller gives to what a request may contain.
fn shorten(text: &mut String) {
    let mut end = text.len().min(MAX_FIELD as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// Opens a session and returns its id and cache.
pub(super) fn open(context: &Context, opening: &StartRequest) -> Result<(String, String), Failure> {
    let mut connection = context.connect()?;
    let detected = ci::detect(variable);
    let (default, mut ci) = detected.map(|d| (d.label, d.job)).unzip();
    if let Some(job) = &mut ci {
        let optional = [&mut job.url, &mut job.project, &mut job.git_ref].into_iter().flatten();
        [&mut job.system, &mut job.id].into_iter().chain(optional).for_each(shorten);
    }
    let mut label = opening.label.clone().or(default);
    label.iter_mut().for_each(shorten);
    let request = Request::SessionStart {
        label,
        cache: opening.cache.clone(),
        anchor_pid: opening.anchor_pid,
        strict: context.strict,
        ci,
        log_paths: opening.log_paths,
    };
    let until = Instant::now() + BUSY;
    loop {
        match connection.ask(&request, REPLY_TIMEOUT, &mut |_| ())? {
            Reply::Started { session, cache } => return Ok((session, cache)),
            // Many jobs ask at once; the daemon has room again in a moment.
            Reply::Error { code: ErrorCode::Busy, .. } if Instant::now() < until => {
                std::thread::sleep(PAUSE);
                connection = context.connect()?;
            }
            other => return Err(unexpected(other)),
        }
    }
}

pub(super) fn list(context: &Context, all: bool) -> Result<Exit, Failure> {
    let mut connection: Connection = context.connect()?;
    match connection.ask(&Request::SessionList { all }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Sessions(list) => context.render.sessions(&list),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}

pub(super) fn show(context: &Context, session: String, paths: bool) -> Result<Exit, Failure> {
    let mut connection = context.connect()?;
    match connection.ask(&Request::SessionShow { session }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Session(detail) => context.render.session(&detail, paths),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}
