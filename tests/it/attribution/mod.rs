//! Which session a path belongs to, and which cache it goes to.

mod confined;
mod jobs;
mod routes;
mod session_end;
pub(crate) mod sessions;
mod wide;
