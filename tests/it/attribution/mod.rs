//! Which session a path belongs to, and which cache it goes to.

mod confined;
mod jobs;
mod namespaces;
mod routes;
mod session_end;
pub(crate) mod sessions;
mod users;
mod wide;
