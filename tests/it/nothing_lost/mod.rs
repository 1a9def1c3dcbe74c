//! No path is lost: each file breaks one thing and sees every path arrive.

mod bounds;
mod deleted;
mod disk;
mod events;
mod first_start;
pub mod gc_roots;
mod interruptions;
mod ledger;
mod multiuser;
mod nix_db;
mod protection;
mod stop;
mod token;
