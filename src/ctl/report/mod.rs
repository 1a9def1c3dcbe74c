//! The command `session report`, and what reports contain. Must not know where the
//! values come from.

mod digest;
pub(super) mod html;
pub(super) mod markdown;

use std::path::Path;

use super::{
    Context,
    connection::REPLY_TIMEOUT,
    end::unexpected,
    exit::{Exit, Failure},
    session::find_session,
};
use crate::control::messages::{Reply, Request, SessionDetail};

pub(super) use digest::steps;

/// Writes the report of the session that is meant, see [`find_session`].
pub(super) fn for_session(
    context: &Context,
    session: Option<String>,
    output: Option<&Path>,
) -> Result<Exit, Failure> {
    let session = find_session(context, session)?;
    command(context, session, output)
}

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

/// Returns the report for a file of this name: Markdown for `.md`, else HTML.
pub(super) fn page(detail: &SessionDetail, file: Option<&Path>) -> String {
    let extension = file.and_then(Path::extension);
    match extension.is_some_and(|extension| extension.eq_ignore_ascii_case("md")) {
        true => markdown::page(detail),
        false => html::page(detail),
    }
}
