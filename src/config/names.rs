//! Finds the word that was probably meant by a misspelled one. Knows no key.

/// Returns the candidate that `word` was probably meant to be, if one is similar enough.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // The beginning of a word is as similar as a word with a typing error: `token` for
    // `token_file`.
    let near = |candidate: &str| {
        let distance = distance(word, candidate);
        let begins = word.len() >= 3 && candidate.starts_with(word);
        (begins || distance <= (word.len() / 3).max(1)).then_some(distance)
    };
    candidates.into_iter().filter_map(|c| near(c).map(|d| (d, c))).min().map(|(_, c)| c)
}

/// Returns the edit distance (Levenshtein) of the first 64 characters.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips() {
        let keys = ["socket", "state_dir", "store_dir", "token_file"];
        for (word, meant) in [
            ("sokcet", Some("socket")),
            ("socket_path", None),
            ("token", Some("token_file")),
            ("state-dir", Some("state_dir")),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, keys), meant, "{word}");
        }
    }
}
