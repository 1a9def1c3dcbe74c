//! What Nix knows: store paths, the Nix database, closures, the
//! doorbell on the store directory, NAR streams and GC roots.
//!
//! Must not know: caches, sessions, the ledger. Nothing here writes to Nix's
//! database or store; the only things written at all are the files of
//! [`RootFiles`] and the file of [`TempRoots`].
//!
//! The Nix database is the truth and the doorbell only a hint to look at it: a
//! lost event costs a moment, never a path.

pub mod derivation;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod info;
pub mod nar;
mod nix_db;
mod root_files;
mod source_path;
mod temp_roots;
mod watch;

pub use info::{Origin, PathInfo};
pub use nix_db::{CurrentNixDb, DbIdentity, Look, Mark, NixDb, NixDbError};
pub use root_files::{RootFiles, RootFilesError};
pub use temp_roots::{TempRoots, TempRootsError};
pub use watch::{Health, StoreWatch, WatchError, WatchEvent};
