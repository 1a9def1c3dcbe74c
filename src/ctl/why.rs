//! The command `why`: what happened to paths and what they wait for. Must not know
//! how things are printed.

use super::{
    Context,
    connection::REPLY_TIMEOUT,
    end::{resolve, unexpected},
    exit::{Exit, Failure},
};
use crate::control::messages::{Reply, Request};
use crate::types::PathHash;

/// Prints the story of each path. Fails when nothing is known of one.
pub(super) fn command(context: &Context, names: &[String]) -> Result<Exit, Failure> {
    let mut connection = context.connect()?;
    let mut paths = Vec::new();
    for name in names {
        if PathHash::parse(name).is_ok() {
            paths.push(name.clone());
            continue;
        }
        let (found, unmatched) = resolve(context, std::slice::from_ref(name), &connection.server)?;
        if unmatched {
            return Err(Failure::Usage(format!(
                "`{name}` is not a store path, nor the hash of one, nor a link to one"
            )));
        }
        paths.extend(found);
    }
    match connection.ask(&Request::Why { paths }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Why(stories) => {
            context.render.stories(&stories);
            let unknown = stories.iter().any(|s| s.valid == Some(false) && s.pushes.is_empty());
            Ok(if unknown { Exit::Usage } else { Exit::Done })
        }
        other => Err(unexpected(other)),
    }
}
