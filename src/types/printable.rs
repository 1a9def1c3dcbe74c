//! Making text of others harmless for a line of a log or a terminal, also for the log of a
//! CI job, whose runner looks for commands in it. Must not know what the text is for.

use std::fmt::Write as _;

/// Whether a character moves the cursor, begins another line, or changes the direction of
/// the text (bidirectional formatting characters, Unicode Standard Annex 9).
pub(crate) fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
        )
}

/// Whether a character is invisible and left out when texts are compared by their look, as
/// some runners do.
fn is_ignorable(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}'
            | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
    )
}

/// Finds each second `#` of a `##`: `##[`, `##vso[` and `##teamcity[` are commands for the
/// runners of GitHub, Azure and TeamCity, wherever they are in a line.
#[derive(Default)]
struct Hashes {
    after_one: bool,
}

impl Hashes {
    /// Returns whether this character, which follows those before it, completes a `##`.
    fn completes(&mut self, c: char) -> bool {
        let completes = self.after_one && c == '#';
        self.after_one = c == '#' || (self.after_one && is_ignorable(c));
        completes
    }
}

/// Returns where the second colon of a text is that begins with `::`, which is a command
/// for GitHub's runner.
fn second_colon(text: &str) -> Option<usize> {
    let mut chars = text.char_indices().skip_while(|(_, c)| c.is_whitespace() || is_ignorable(*c));
    let begins = chars.next().is_some_and(|(_, c)| c == ':');
    chars.find(|(_, c)| !is_ignorable(*c)).filter(|(_, c)| begins && *c == ':').map(|(at, _)| at)
}

/// Replaces characters that move the cursor, begin another line or change the direction of
/// text by spaces, and takes apart what the runner of a CI job takes for a command: `##`,
/// and `::` at the beginning. A second call changes nothing.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut hashes = Hashes::default();
    for c in text.chars() {
        match c {
            c if hashes.completes(c) => out.push_str(" #"),
            c if is_unprintable(c) => out.push(' '),
            c => out.push(c),
        }
    }
    if let Some(at) = second_colon(&out) {
        out.insert(at, ' ');
    }
    out
}

/// Does the same for JSON without white space between its parts, whose meaning stays: the
/// characters become escapes.
#[must_use]
pub fn printable_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut hashes = Hashes::default();
    for c in json.chars() {
        if hashes.completes(c) || is_unprintable(c) {
            let _ = write!(out, "\\u{:04x}", u32::from(c)); // writing to a String cannot fail
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{printable, printable_json};

    #[test]
    fn what_moves_the_cursor_or_turns_the_text_is_a_space() {
        assert_eq!(printable("a\nb\u{1b}[2Jc\u{202e}d\u{2066}é\u{2028}f\u{9b}"), "a b [2Jc d é f ");
    }

    #[test]
    fn what_a_runner_takes_for_a_command_is_taken_apart() {
        for (text, shown) in [
            ("x ##[error]y", "x # #[error]y"),
            ("##vso[task.setvariable variable=A]b", "# #vso[task.setvariable variable=A]b"),
            ("#\u{200d}#teamcity[x]", "#\u{200d} #teamcity[x]"),
            ("####", "# # # #"),
            ("::set-output name=a::b", ": :set-output name=a::b"),
            ("\n ::add-mask::x", "  : :add-mask::x"),
            (":\u{feff}:stop", ":\u{feff} :stop"),
            ("a::b # c", "a::b # c"),
            (":", ":"),
            ("", ""),
        ] {
            assert_eq!(printable(text), shown, "{text:?}");
            assert_eq!(printable(shown), shown, "{text:?}");
        }
    }

    #[test]
    fn json_keeps_its_meaning() {
        let text = "##[a]\u{202e}\u{9b}\u{7f}\n\\##\"###\u{2028} é 🦀";
        let json = serde_json::to_string(&[text]).unwrap();
        let harmless = printable_json(&json);
        assert_eq!(serde_json::from_str::<Vec<String>>(&harmless).unwrap(), [text]);
        assert!(!harmless.contains("##") && !harmless.contains(super::is_unprintable), "{harmless}");
    }
}
