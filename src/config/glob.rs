//! Shell-like patterns for names, checked when they are read. Knows nothing
//! of what they are matched against.

use std::fmt;

/// A pattern: `*`, `?`, `[abc]`, as in a shell. A name has no directories, so
/// `*` matches any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob(glob::Pattern);

impl Glob {
    /// Reads a pattern; the error says what is wrong with it.
    pub fn new(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        glob::Pattern::new(text).map(Self).map_err(|e| format!("{} at character {}", e.msg, e.pos + 1))
    }

    /// Whether the whole of `text` is matched.
    pub fn matches(&self, text: &str) -> bool {
        self.0.matches(text)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
