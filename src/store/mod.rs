//! What belongs to Nix: store paths, the Nix database, closures, the watch on the
//! store directory, NAR streams and GC roots.
//!
//! Must not know: caches, sessions, the ledger. This room never writes to the Nix
//! database or the store. It writes only the files of [`RootFiles`] and the file
//! of [`TempRoots`].
//!
//! Only the Nix database says which paths are valid. An event of the store watch
//! is a hint to read the new rows: after a lost event they are read a little
//! later, and no path is lost.

pub mod derivation;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod info;
mod lower;
pub mod nar;
mod nix_db;
mod root_files;
mod source_path;
mod temp_roots;
mod text_path;
mod watch;

pub use info::{Origin, PathInfo};
pub use lower::LowerStore;
pub(crate) use nix_db::RowContent;
pub use nix_db::{CurrentNixDb, DbIdentity, Look, Mark, NixDb, NixDbError, RealisationTable};
pub use root_files::{RootFiles, RootFilesError};
pub use temp_roots::{TempRoots, TempRootsError};
pub(crate) use text_path::TextPath;
pub use watch::{Health, StoreWatch, WatchError, WatchEvent};
