//! Which names are legal, and which one was probably meant. Knows no key.

/// Attic's rule for the name of a cache (attic's `attic/src/cache.rs`): up to
/// 50 ASCII letters, digits, `-`, `_`, `+`, the first one a letter or digit.
pub fn is_cache_name(name: &str) -> bool {
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    first && name.len() <= 50 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_+".contains(&b))
}

/// The candidate that `word` was probably meant to be, if one is near enough.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // `token` for `token_file` is as plain a slip as `token_fil`.
    let near = |candidate: &str| {
        let distance = distance(word, candidate);
        let begins = word.len() >= 3 && candidate.starts_with(word);
        (begins || distance <= (word.len() / 3).max(1)).then_some(distance)
    };
    candidates.into_iter().filter_map(|c| near(c).map(|d| (d, c))).min().map(|(_, c)| c)
}

/// Edit distance (Levenshtein), on characters.
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
    fn attics_names() {
        for good in ["a", "main", "plan9", "user+cache", "A_b-c", &"x".repeat(50)] {
            assert!(is_cache_name(good), "{good}");
        }
        for bad in ["", "_a", "-a", "+a", "a b", "a/b", "a.b", "ä", "team-*", &"x".repeat(51)] {
            assert!(!is_cache_name(bad), "{bad}");
        }
    }

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
