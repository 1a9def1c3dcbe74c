//! Shortening a text. Must not know what it is for.

/// Stands for what is left out.
const GAP: &str = " … ";

/// Shortens a text to `most` bytes. The middle is left out, because a message begins with
/// what happened and ends in what to do. The result is cut between words where that loses
/// little, and never inside a character.
#[must_use]
pub fn shorten(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    let room = most.saturating_sub(GAP.len());
    // What to do needs more room than what happened.
    let head = floor(text, room / 4);
    let tail = ceil(text, text.len() - (room - head));
    // A word that is cut is left out if it is a short one.
    let head_end = text[..head].rfind(' ').filter(|at| head - at < 16).unwrap_or(head);
    let tail_at = text[tail..].find(' ').filter(|at| *at < 16).map_or(tail, |at| tail + at + 1);
    format!("{}{GAP}{}", &text[..head_end], &text[tail_at..])
}

/// The largest boundary of a character that is at most `at`.
fn floor(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|n| text.is_char_boundary(*n)).unwrap_or(0)
}

/// The smallest boundary of a character that is at least `at`.
fn ceil(text: &str, at: usize) -> usize {
    (at..=text.len()).find(|n| text.is_char_boundary(*n)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::shorten;

    #[test]
    fn the_end_of_a_message_stays_whole() {
        let remedy = "raise the limit of the server or of the proxy before it (nginx: client_max_body_size)";
        let text = format!("the upload failed: {}: {remedy}", "very long words of a server ".repeat(40));
        let short = shorten(&text, 300);
        assert!(short.len() <= 300 && short.ends_with(remedy), "{short}");
        assert!(short.starts_with("the upload failed: very"), "{short}");
        assert!(short.contains(" … "), "{short}");
        assert_eq!(shorten("short", 300), "short");
    }

    #[test]
    fn characters_are_never_cut() {
        for most in 0..60 {
            for text in ["é".repeat(200), "x".repeat(200), "€ 12 ".repeat(50)] {
                let short = shorten(&text, most);
                assert!(short.len() <= most.max(" … ".len()), "{most}: {short}");
            }
        }
    }
}
