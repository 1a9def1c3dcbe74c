//! The commands `push`, `flush`, `status`, `metrics` and `reload`. Must not know how
//! things are printed.

use std::{thread::sleep, time::Duration};

use super::{
    Context,
    args::PushArgs,
    connection::{Connection, REPLY_TIMEOUT},
    end::{milliseconds, resolve, unexpected},
    exit::{Exit, Failure},
    push_stdin,
    render::Heading,
    screen,
};
use crate::control::messages::{Reply, Request, Status};

/// The time between two requests of `status --watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(2);

pub(super) fn push(context: &Context, args: PushArgs) -> Result<Exit, Failure> {
    if args.stdin {
        return push_stdin::command(context, args.cache.as_deref(), args.timeout);
    }
    let mut connection = context.connect()?;
    let (paths, unmatched) = resolve(context, &args.paths, &connection.server)?;
    if paths.is_empty() {
        return Err(Failure::Usage("nothing to push: the patterns match no store path".to_owned()));
    }
    let patience = if args.wait { args.timeout + REPLY_TIMEOUT } else { REPLY_TIMEOUT };
    let timeout_ms = milliseconds(args.timeout);
    let request = Request::Push { paths, cache: args.cache, wait: args.wait, timeout_ms };
    let mut bar = context.render.bar();
    let reply = connection.ask(&request, patience, &mut |p| bar.show(p))?;
    bar.clear();
    let invalid = matches!(&reply, Reply::Pushed(summary) if summary.invalid > 0);
    let exit = print_result(context, reply, Heading::Push, args.wait)?;
    Ok(if exit == Exit::Done && (unmatched || invalid) { Exit::Usage } else { exit })
}

pub(super) fn flush(context: &Context, timeout: Duration) -> Result<Exit, Failure> {
    let mut connection = context.connect()?;
    let request = Request::Flush { timeout_ms: milliseconds(timeout) };
    let mut bar = context.render.bar();
    let reply = connection.ask(&request, timeout + REPLY_TIMEOUT, &mut |p| bar.show(p))?;
    bar.clear();
    print_result(context, reply, Heading::Flush, true)
}

fn print_result(context: &Context, reply: Reply, heading: Heading, waited: bool) -> Result<Exit, Failure> {
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
    let connection = context.connect()?;
    if watch && context.render.has_screen() {
        return screen::run(&context.socket, connection);
    }
    let mut connection = Some(connection);
    let mut lost = false;
    loop {
        match ask_status(context, &mut connection) {
            Ok(status) => {
                lost = false;
                let reader_left = context.render.status(&status).is_err();
                if !watch || reader_left {
                    return Ok(Exit::Done);
                }
            }
            Err(failure) if !watch => return Err(failure),
            // The daemon may be restarting.
            Err(failure) => {
                connection = None;
                if !std::mem::replace(&mut lost, true) {
                    context.render.warn(&format!("{failure}; waiting until the daemon runs again"));
                }
            }
        }
        sleep(WATCH_INTERVAL);
    }
}

fn ask_status(context: &Context, connection: &mut Option<Connection>) -> Result<Status, Failure> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(context.connect()?),
    };
    match open.ask(&Request::Status, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected(other)),
    }
}

pub(super) fn metrics(context: &Context) -> Result<Exit, Failure> {
    match context.connect()?.ask(&Request::Metrics, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Metrics(page) => context.render.raw(page.as_bytes()),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}

pub(super) fn reload(context: &Context) -> Result<Exit, Failure> {
    match context.connect()?.ask(&Request::Reload, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Done { message } => context.render.done(&message),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}
