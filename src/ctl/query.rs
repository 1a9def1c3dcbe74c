//! `push`, `flush`, `status`, `metrics` and `reload`. Must not know how things are printed.

use std::{thread::sleep, time::Duration};

use super::{
    Context,
    args::PushArgs,
    end::{milliseconds, resolve, unexpected},
    link::GRACE,
    metrics,
    render::Heading,
    verdict::{Exit, Failure},
};
use crate::control::messages::{Reply, Request};

/// Between two looks of `status --watch`.
const LOOK: Duration = Duration::from_secs(2);

pub(super) fn push(context: &Context, args: PushArgs) -> Result<Exit, Failure> {
    let mut link = context.link()?;
    let paths = resolve(context, &args.paths, &link.server.store_dir)?;
    if paths.is_empty() {
        return Err(Failure::Usage("nothing to push: no path given leads to the store".to_owned()));
    }
    let patience = if args.wait { args.timeout + GRACE } else { GRACE };
    let timeout_ms = milliseconds(args.timeout);
    let request = Request::Push { paths, cache: args.cache, wait: args.wait, timeout_ms };
    let mut bar = context.render.bar();
    let reply = link.ask(&request, patience, &mut |p| bar.show(p))?;
    bar.clear();
    settled(context, reply, Heading::Push, args.wait)
}

pub(super) fn flush(context: &Context, timeout: Duration) -> Result<Exit, Failure> {
    let mut link = context.link()?;
    let request = Request::Flush { timeout_ms: milliseconds(timeout) };
    let mut bar = context.render.bar();
    let reply = link.ask(&request, timeout + GRACE, &mut |p| bar.show(p))?;
    bar.clear();
    settled(context, reply, Heading::Flush, true)
}

fn settled(context: &Context, reply: Reply, heading: Heading, waited: bool) -> Result<Exit, Failure> {
    match reply {
        Reply::Pushed(summary) => {
            let exit = Exit::of(&summary, context.strict, waited);
            context.render.summary(&summary, heading, exit);
            Ok(exit)
        }
        Reply::Done { message } => {
            context.render.done(&message);
            Ok(Exit::Done)
        }
        other => Err(unexpected(other)),
    }
}

pub(super) fn status(context: &Context, watch: bool) -> Result<Exit, Failure> {
    let mut link = context.link()?;
    loop {
        let reader_left = match link.ask(&Request::Status, GRACE, &mut |_| ())? {
            Reply::Status(status) => context.render.status(&status, watch).is_err(),
            other => return Err(unexpected(other)),
        };
        if !watch || reader_left {
            return Ok(Exit::Done);
        }
        sleep(LOOK);
    }
}

pub(super) fn metrics(context: &Context) -> Result<Exit, Failure> {
    match context.link()?.ask(&Request::Status, GRACE, &mut |_| ())? {
        Reply::Status(status) => context.render.raw(metrics::page(&status).as_bytes()),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}

pub(super) fn reload(context: &Context) -> Result<Exit, Failure> {
    match context.link()?.ask(&Request::Reload, GRACE, &mut |_| ())? {
        Reply::Done { message } => context.render.done(&message),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}
