//! What Nix knows: store paths, the database read as a journal, closures, the
//! doorbell on the store directory, NAR streams and GC roots.
//!
//! Must not know: caches, sessions, the ledger. Nothing here writes to Nix's
//! database or store; the only things written at all are the files of
//! [`Roots`] and the file of [`TempRoots`].
//!
//! The Nix database is the truth and the doorbell only a hint to look at it: a
//! lost event costs a moment, never a path.

mod closure;
pub mod derivation;
mod doorbell;
mod info;
mod journal;
pub mod nar;
mod path;
mod roots;
mod schema;
mod temproots;
mod watch;

pub use closure::{Closure, ClosureIds};
pub use doorbell::{Doorbell, Health, Ring};
pub use info::{HashError, NarHash, Origin, PathInfo};
pub use journal::{DbIdentity, Journal, JournalError};
pub use path::{ParseError, StoreDir, StorePath};
pub use roots::{Roots, RootsError};
pub use temproots::{TempRoots, TempRootsError};
pub use watch::DoorbellError;
