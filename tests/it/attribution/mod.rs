//! Which session a path belongs to, and which cache it goes to.

mod end;
mod jobs;
pub(crate) mod life;
mod routes;
