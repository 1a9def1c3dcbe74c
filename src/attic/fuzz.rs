//! Fuzz target: properties that hold for every line of the attic client.

use super::lines::{Line, meaning, parse};

/// Parses arbitrary bytes as a line.
pub(crate) fn decode(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match parse(&text) {
        Line::Pushed { base, note } => assert!(text.contains(base) && text.contains(note)),
        Line::Failed { base, error } => {
            assert!(text.contains(base) && text.contains(error));
            let _ = meaning(error);
        }
        _ => {}
    }
    let _ = meaning(&text);
}
