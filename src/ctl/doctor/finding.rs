//! The result of one check. Must not know how it is printed.

use serde::Serialize;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::ctl) enum Level {
    /// Something keeps paths out of a cache, or Nix from reading them, or soon will.
    Bad,
    /// It could not be checked, and the text says why.
    Unchecked,
    /// It works, and somebody may want to know more about it.
    Note,
    /// It is as it should be.
    Good,
}

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::ctl) struct Finding {
    /// What was checked.
    pub(in crate::ctl) what: String,
    /// How the check ended.
    pub(in crate::ctl) level: Level,
    /// How it is, in one sentence.
    pub(in crate::ctl) text: String,
    /// The command that mends it, or shows more.
    pub(in crate::ctl) command: Option<String>,
}

impl Finding {
    fn new(level: Level, what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { what: what.into(), level, text: text.into(), command: None }
    }

    pub(super) fn good(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Level::Good, what, text)
    }

    pub(super) fn note(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Level::Note, what, text)
    }

    pub(super) fn unchecked(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self::new(Level::Unchecked, what, text)
    }

    /// A bad finding, and the command that mends it.
    pub(super) fn bad(what: impl Into<String>, text: impl Into<String>, command: impl Into<String>) -> Self {
        Self::new(Level::Bad, what, text).run(command)
    }

    /// The finding with a command.
    pub(super) fn run(self, command: impl Into<String>) -> Self {
        Self { command: Some(command.into()), ..self }
    }
}

impl Serialize for Finding {
    /// Earlier versions had no `level`; `good` is false for what is bad or unchecked.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeStruct as _;
        let mut fields = serializer.serialize_struct("Finding", 5)?;
        fields.serialize_field("what", &self.what)?;
        fields.serialize_field("good", &matches!(self.level, Level::Good | Level::Note))?;
        fields.serialize_field("text", &self.text)?;
        fields.serialize_field("level", &self.level)?;
        fields.serialize_field("command", &self.command)?;
        fields.end()
    }
}
