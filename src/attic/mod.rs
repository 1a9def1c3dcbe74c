//! The attic client that the daemon keeps: gets it, keeps it logged in, and pushes
//! through it. It is for administrators who want exactly that client, and for
//! jobs that call it themselves.
//!
//! Must not know: the control socket, sessions, and the ledger. The caller
//! decides when to get the client, log it in or push.
//!
//! | file | for |
//! |---|---|
//! | `installable` | what the configuration names: a flake, a store path, a program |
//! | `bootstrap` | getting it without building anything, and testing it before its first use |
//! | `home` | its configuration: servers, and where their tokens are |
//! | `child` | running a program with limits, so that it never outlives the daemon |
//! | `supervise` | the process between the daemon and the program |
//! | `push` | `attic push --stdin` |
//! | `lines` | its output, parsed |

mod bootstrap;
mod child;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod home;
mod installable;
mod lines;
mod push;
mod supervise;

pub use bootstrap::{Obtained, Unavailable, Workspace, check, obtain, present};
pub use child::{Ended, Limits, Runner, Scrub};
pub use home::{Home, Server};
pub use installable::Installable;
pub use lines::{Line, Meaning, meaning, parse};
pub use push::{Push, Pushed, push};
pub use supervise::{CALLED_AS, supervise};
