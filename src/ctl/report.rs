//! The command `session report`. Must not know what the report looks like.

use std::path::Path;

use super::{
    Context,
    connection::REPLY_TIMEOUT,
    end::unexpected,
    exit::{Exit, Failure},
};
use crate::control::messages::{Reply, Request};

/// Writes the report of a session to a file or to standard output.
pub(super) fn command(context: &Context, session: String, output: Option<&Path>) -> Result<Exit, Failure> {
    match context.connect()?.ask(&Request::SessionShow { session }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Session(detail) => context.render.report(&detail, output).map_err(|e| {
            let file = output.map_or("standard output".into(), Path::to_string_lossy);
            Failure::Usage(format!("the report cannot be written to {file}: {e}"))
        })?,
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}
