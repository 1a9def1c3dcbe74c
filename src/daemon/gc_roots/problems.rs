//! Log entries and status text about kinds of GC roots that are not available. Must not
//! know how or when they are opened.

use std::path::Path;

use crate::observe::event;
use crate::store::{RootFilesError, TempRootsError};

/// Logs which kinds of GC roots are not available. Returns the text for `status` when
/// temporary roots are missing.
pub(super) fn report(
    links: &Path,
    no_links: Option<&RootFilesError>,
    no_temp: Option<&TempRootsError>,
) -> Option<String> {
    let hint = format!(
        "make {} and give it to the service's user (tmpfiles.d(5): `d {} 0755 flywheel -`), or set [nix] gc_roots",
        links.display(),
        links.display()
    );
    match (no_links, no_temp) {
        (None, None) => None,
        (Some(error), None) => {
            event!(
                ROOTS_PARTIAL,
                error = %error,
                "pending paths are protected from garbage collection while this runs, not while it is stopped; for that, {hint}"
            );
            None
        }
        (None, Some(error)) => {
            let text = format!(
                "pending paths are not protected from a garbage collection that runs already ({error}); \
                 let the service's user reach the nix-daemon's socket"
            );
            event!(ROOTS_MISSING, "{text}");
            Some(text)
        }
        (Some(links), Some(temp)) => {
            let text = format!(
                "pending paths are not protected from garbage collection ({temp}; {links}): let the service's \
                 user reach the nix-daemon's socket, and {hint}"
            );
            event!(ROOTS_MISSING, "{text}");
            Some(text)
        }
    }
}
