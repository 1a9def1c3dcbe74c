//! Making text of others harmless for a line of a log or a terminal. Must not know what
//! the text is for.

/// Replaces control characters and those that change the direction of text by spaces: such
/// text must not move the cursor, begin another line or reorder this one.
#[must_use]
pub fn printable(text: &str) -> String {
    // Bidirectional formatting characters, Unicode Standard Annex 9.
    let reorders = |c: char| matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().map(|c| if c.is_control() || reorders(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn what_moves_the_cursor_or_turns_the_text_is_a_space() {
        assert_eq!(printable("a\nb\u{1b}[2Jc\u{202e}d\u{2066}é"), "a b [2Jc d é");
    }
}
