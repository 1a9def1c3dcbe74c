//! `session start`, `list` and `show`. Must not know how things are printed.

use std::time::{Duration, Instant};

use super::{
    Context, anchor,
    args::StartArgs,
    ci,
    end::unexpected,
    link::{GRACE, Link},
    variable,
    verdict::{Exit, Failure},
};
use crate::control::messages::{ErrorCode, Reply, Request};

/// How long a daemon that has too much to do is asked again…
const BUSY: Duration = Duration::from_secs(3);
/// … and how often.
const PAUSE: Duration = Duration::from_millis(50);

/// What opens a session.
pub(super) struct Opening {
    pub(super) label: Option<String>,
    pub(super) cache: Option<String>,
    pub(super) anchor_pid: Option<u32>,
}

pub(super) fn start(context: &Context, args: StartArgs) -> Result<Exit, Failure> {
    let detected = ci::detect(variable);
    let system = detected.as_ref().map(|d| d.job.system.as_str());
    let anchor_pid = args.anchor_pid.or_else(|| anchor::find(system));
    let opening = Opening { label: args.label, cache: args.cache, anchor_pid };
    let (session, cache) = open(context, &opening)?;
    context.render.started(&session, &cache);
    Ok(Exit::Done)
}

/// Opens a session: its id and cache.
pub(super) fn open(context: &Context, opening: &Opening) -> Result<(String, String), Failure> {
    let mut link = context.link()?;
    let detected = ci::detect(variable);
    let (default, ci) = detected.map(|d| (d.label, d.job)).unzip();
    let request = Request::SessionStart {
        label: opening.label.clone().or(default),
        cache: opening.cache.clone(),
        anchor_pid: opening.anchor_pid,
        strict: context.strict,
        ci,
    };
    let until = Instant::now() + BUSY;
    loop {
        match link.ask(&request, GRACE, &mut |_| ())? {
            Reply::Started { session, cache } => return Ok((session, cache)),
            // Many jobs at once: a moment later there is room.
            Reply::Error { code: ErrorCode::Busy, .. } if Instant::now() < until => {
                std::thread::sleep(PAUSE);
                link = context.link()?;
            }
            other => return Err(unexpected(other)),
        }
    }
}

pub(super) fn list(context: &Context, all: bool) -> Result<Exit, Failure> {
    let mut link: Link = context.link()?;
    match link.ask(&Request::SessionList { all }, GRACE, &mut |_| ())? {
        Reply::Sessions(list) => context.render.sessions(&list),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}

pub(super) fn show(context: &Context, session: String) -> Result<Exit, Failure> {
    let mut link = context.link()?;
    match link.ask(&Request::SessionShow { session }, GRACE, &mut |_| ())? {
        Reply::Session(detail) => context.render.session(&detail),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}
