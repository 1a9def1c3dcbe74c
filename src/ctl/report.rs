//! `session report`: asks for a session and has it written as a page. Must not
//! know what the page looks like.

use std::path::Path;

use super::{
    Context,
    end::unexpected,
    link::GRACE,
    verdict::{Exit, Failure},
};
use crate::control::messages::{Reply, Request};

/// A page about a session, to a file or to standard output.
pub(super) fn command(context: &Context, session: String, output: Option<&Path>) -> Result<Exit, Failure> {
    match context.link()?.ask(&Request::SessionShow { session }, GRACE, &mut |_| ())? {
        Reply::Session(detail) => context.render.report(&detail, output).map_err(|e| {
            let file = output.map_or("standard output".into(), Path::to_string_lossy);
            Failure::Usage(format!("the report cannot be written to {file}: {e}"))
        })?,
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}
