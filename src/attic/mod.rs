//! The attic client that we own: having it, keeping it logged in, and pushing
//! through it. For those who want exactly that client, and for jobs that call
//! it themselves.
//!
//! Must not know: the control socket, sessions, the ledger, and when any of
//! this is to be done; that is decided by its caller.
//!
//! | file | for |
//! |---|---|
//! | `installable` | what the configuration names: a flake, a store path, a program |
//! | `bootstrap` | phase 1: getting it without building anything, and trying it before it is used |
//! | `home` | its configuration: servers, and where their tokens are |
//! | `child` | running a program that never outlives us, with limits |
//! | `supervise` | the other half of that: the process between us and it |
//! | `push` | `attic push --stdin` |
//! | `lines` | what it says |

mod bootstrap;
mod child;
mod home;
mod installable;
mod lines;
mod push;
mod supervise;

pub use bootstrap::{Miss, Obtained, Place, check, obtain, present};
pub use child::{Ended, Limits, Runner};
pub use home::{Home, Server};
pub use installable::Installable;
pub use lines::{Line, Meaning, meaning, parse};
pub use push::{Push, Pushed, push};
pub use supervise::{CALLED_AS, supervise};
