//! What holds for every derivation and every answer of a nix-daemon.

/// Reads bytes as a derivation, and as what a nix-daemon sends.
pub(crate) fn decode(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = super::derivation::allows_substitutes(&text);
    let outputs = super::derivation::outputs(&text);
    assert!(outputs.iter().map(String::len).sum::<usize>() <= text.len());
    assert!(outputs.iter().all(|output| !output.is_empty() && text.contains(&format!("\"{output}\""))));
    super::temp_roots::fuzz(bytes);
}
