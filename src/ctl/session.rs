//! `session start`, `list` and `show`. Must not know how things are printed.

use super::{
    Context,
    args::StartArgs,
    ci,
    end::unexpected,
    link::{GRACE, Link},
    variable,
    verdict::{Exit, Failure},
};
use crate::control::messages::{Reply, Request};

/// What opens a session.
pub(super) struct Opening {
    pub(super) label: Option<String>,
    pub(super) cache: Option<String>,
    pub(super) anchor_pid: Option<u32>,
}

pub(super) fn start(context: &Context, args: StartArgs) -> Result<Exit, Failure> {
    let opening = Opening { label: args.label, cache: args.cache, anchor_pid: args.anchor_pid };
    let (session, cache) = open(context, opening)?;
    context.render.started(&session, &cache);
    Ok(Exit::Done)
}

/// Opens a session: its id and cache.
pub(super) fn open(context: &Context, opening: Opening) -> Result<(String, String), Failure> {
    let mut link = context.link()?;
    let detected = ci::detect(variable);
    let (default, ci) = detected.map(|d| (d.label, d.job)).unzip();
    let request = Request::SessionStart {
        label: opening.label.or(default),
        cache: opening.cache,
        anchor_pid: opening.anchor_pid,
        strict: context.strict,
        ci,
    };
    match link.ask(&request, GRACE, &mut |_| ())? {
        Reply::Started { session, cache } => Ok((session, cache)),
        other => Err(unexpected(other)),
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
