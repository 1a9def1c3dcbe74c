//! The source of the token, and the removal of the token from messages.
//!
//! The token is opaque: its content decides nothing. Only `exp` is read, for a
//! warning before the token expires. Must not know HTTP.
//!
//! Not guaranteed: that no copy stays in memory. The copy here is wiped when it is
//! dropped; the HTTP library does not wipe its header buffers.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

use super::error::{CacheError, ErrorClass};
use super::supplied::SuppliedToken;

/// Longest token in bytes: longer than any real one, and within the header limit of common proxies.
const LONGEST: usize = 16 * 1024;

/// Length of the shortest beginning of a token that [`Secret::scrub`] removes from the end of a text.
const SHORTEST_PART: usize = 8;

/// Length of the shortest part of a token that [`Secret::scrub`] removes from anywhere in a text: a server may
/// have broken the token into lines.
const SHORTEST_PIECE: usize = 12;

/// The source of the token. It is read again each time somebody asks for the token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum TokenSource {
    /// A file with the token and nothing else but white space around it.
    File(PathBuf),
    /// An environment variable of this process.
    Env(String),
    /// A program that the daemon runs.
    Supplied(SuppliedToken),
    /// No token; requests carry none.
    #[default]
    None,
}

/// A token. Neither `Debug` nor `Display` shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    text: Zeroizing<String>,
    /// Whether parts of it are secrets too. Those of a header's value may be common words.
    in_parts: bool,
}

impl Secret {
    /// Makes a token of `text` without the white space around it. An error names the
    /// source with `from`.
    pub(super) fn parse(text: &str, from: &str) -> Result<Self, CacheError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(unusable(format!("{from} is empty: put the cache's token there")));
        }
        if text.len() > LONGEST {
            return Err(unusable(format!("{from} holds more than {LONGEST} bytes: that is not a token")));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(unusable(format!(
                "{from} holds a character that a token cannot have (white space or a line break in the \
                 middle, a control character, or something outside ASCII): write the token alone, on one line"
            )));
        }
        Ok(Self { text: Zeroizing::new(text.to_owned()), in_parts: true })
    }

    /// Makes a secret of a text that is not a token, to remove it from messages. `None` for a text so short that
    /// removing it would make messages unreadable.
    pub(super) fn hidden(text: &str) -> Option<Self> {
        let text = text.trim();
        (text.len() >= SHORTEST_PART).then(|| Self { text: Zeroizing::new(text.to_owned()), in_parts: false })
    }

    /// Returns the token itself, for the request header and no other use.
    pub(super) fn expose(&self) -> &str {
        &self.text
    }

    /// Returns the token's `exp` in seconds since 1970, if the token is a readable JWT.
    pub(super) fn expiry(&self) -> Option<i64> {
        let payload = self.text.split('.').nth(1)?;
        let payload = Zeroizing::new(URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?);
        let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
        let exp = claims.get("exp")?;
        // RFC 7519 allows a fraction.
        #[allow(clippy::cast_possible_truncation)]
        exp.as_i64().or_else(|| exp.as_f64().map(|seconds| seconds as i64))
    }

    /// Returns `text` without the token, which a server or a proxy may have echoed: as it is, in base 64 (also
    /// as part of a login), percent-encoded and as JSON escapes it. Of a token, parts of at least
    /// [`SHORTEST_PIECE`] bytes are removed too. If `text` ends with the beginning of one of these forms, that
    /// part is removed too, because the text may have been cut. Scrub a text before you cut it.
    pub(super) fn scrub(&self, text: &str) -> String {
        let forms = self.forms();
        let mut text = if self.in_parts { without_pieces(text, &forms) } else { text.to_owned() };
        for form in forms {
            if text.contains(form.as_str()) {
                text = text.replace(form.as_str(), "[token]");
            }
            let part =
                (SHORTEST_PART..form.len()).rev().find(|&n| form.get(..n).is_some_and(|p| text.ends_with(p)));
            if let Some(part) = part {
                text.truncate(text.len() - part);
                text.push_str("[token]");
            }
        }
        text
    }

    /// Returns the forms in which the token may appear in a text, the token itself first.
    fn forms(&self) -> Vec<Zeroizing<String>> {
        let token = self.text.as_bytes();
        let mut forms = vec![self.text.clone(), Zeroizing::new(self.text.replace('/', "\\/"))];
        for digits in ["0123456789ABCDEF", "0123456789abcdef"] {
            let mut text = Zeroizing::new(String::with_capacity(token.len() * 3));
            for &byte in token {
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    let digit =
                        |n: u8| digits.as_bytes().get(usize::from(n)).copied().map_or('0', char::from);
                    text.extend(['%', digit(byte >> 4), digit(byte & 15)]);
                }
            }
            forms.push(text);
        }
        // Base 64 encodes a text differently at each of three offsets. The characters that also depend on the
        // neighbouring bytes are left out.
        for before in 0..3 {
            let mut bytes = Zeroizing::new(vec![0; before]);
            bytes.extend_from_slice(token);
            let (first, last) = ((before * 8).div_ceil(6), bytes.len() * 8 / 6);
            for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                let text = Zeroizing::new(engine.encode(bytes.as_slice()));
                forms.extend(text.get(first..last).map(|part| Zeroizing::new(part.to_owned())));
            }
        }
        forms.retain(|form| form.len() >= SHORTEST_PART || form.as_str() == self.expose());
        forms
    }
}

/// Replaces all parts of a text that are at least [`SHORTEST_PIECE`] bytes of one of these forms, which are
/// ASCII.
fn without_pieces(text: &str, forms: &[Zeroizing<String>]) -> String {
    let pieces: HashSet<&[u8]> =
        forms.iter().flat_map(|form| form.as_bytes().windows(SHORTEST_PIECE)).collect();
    let (mut out, mut kept, mut end) = (String::new(), 0, 0);
    for (at, piece) in text.as_bytes().windows(SHORTEST_PIECE).enumerate() {
        if !pieces.contains(piece) {
            continue;
        }
        // A piece that overlaps the one before, or follows it at once, is a part of the same echo.
        if at > end || end == 0 {
            out.push_str(text.get(kept..at).unwrap_or_default());
            out.push_str("[token]");
        }
        end = at + SHORTEST_PIECE;
        kept = end;
    }
    out.push_str(text.get(kept..).unwrap_or_default());
    out
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret([token])")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[token]")
    }
}

impl TokenSource {
    /// Reads the token and returns it as text. Only for a file that the daemon writes
    /// and that gives nobody more rights than the source does.
    pub fn text(&self) -> Result<Option<Zeroizing<String>>, CacheError> {
        Ok(self.read()?.map(|secret| secret.text.clone()))
    }

    /// Reads the token from its source.
    pub(super) fn read(&self) -> Result<Option<Secret>, CacheError> {
        match self {
            Self::None => Ok(None),
            Self::Supplied(supplied) => supplied.read(),
            Self::Env(name) => {
                let from = format!("the environment variable {name}");
                match std::env::var(name) {
                    Ok(text) => Secret::parse(&Zeroizing::new(text), &from).map(Some),
                    Err(std::env::VarError::NotPresent) => Err(unusable(format!(
                        "{from} is not set: set it to the cache's token, or name a token file"
                    ))),
                    Err(std::env::VarError::NotUnicode(_)) => Err(unusable(format!("{from} is not text"))),
                }
            }
            Self::File(path) => {
                let from = format!("the token file {}", path.display());
                let denied = |e: &std::io::Error| {
                    unusable(format!(
                        "{from} cannot be read: {e}; check the path and that the service's user may read it"
                    ))
                };
                // Reading a pipe could block, and a directory has no content to read.
                if !std::fs::metadata(path).map_err(|e| denied(&e))?.is_file() {
                    return Err(unusable(format!("{from} is not a regular file")));
                }
                let mut text = Zeroizing::new(String::new());
                let limit = LONGEST as u64 + 1024;
                match File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)) {
                    Ok(_) => Secret::parse(&text, &from).map(Some),
                    Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                        Err(unusable(format!("{from} is not text: it must hold the token alone")))
                    }
                    Err(e) => Err(denied(&e)),
                }
            }
        }
    }
}

/// Makes the error of a token that cannot be read. It has the class of a token that the
/// server refuses: an administrator must act, and the cache waits until then.
fn unusable(message: String) -> CacheError {
    CacheError::new(ErrorClass::Unauthorized, message)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn a_token_is_taken_out_in_every_form() {
        let token = Secret::parse("eyJhbGciOi/JIUzI1+NiJ9.payload==", "here").unwrap();
        let raw = token.expose();
        let mut texts = vec![
            format!("got {raw} from you"),
            "got eyJhbGciOi%2FJIUzI1%2BNiJ9.payload%3D%3D from you".to_owned(),
            "got eyJhbGciOi%2fJIUzI1%2bNiJ9.payload%3d%3d from you".to_owned(),
            format!("got {}", &raw[..20]),
        ];
        for login in ["", "a:", "ab:", "flywheel:", "x"] {
            texts.push(format!("Basic {} is wrong", STANDARD.encode(format!("{login}{raw}"))));
            texts.push(format!("Basic {}", URL_SAFE_NO_PAD.encode(format!("{login}{raw}tail"))));
        }
        for text in texts {
            let clean = token.scrub(&text);
            assert!(clean.contains("[token]"), "{text} -> {clean}");
            for part in ["JIUzI1", "payload", "ZXlKaGJHY2lP", "xheWxvY", "F5bG9h", "cGF5bG9h"] {
                assert!(!clean.contains(part), "{text} -> {clean}");
            }
        }
        assert_eq!(token.scrub("nothing of it"), "nothing of it");
        assert_eq!(token.scrub(&format!("{raw}{raw} and {raw}")), "[token] and [token]");
        let escaped = raw.replace('/', "\\/");
        assert_eq!(token.scrub(&format!("{{\"é\":\"{escaped}\"}}")), r#"{"é":"[token]"}"#);
        // Broken into lines, as base 64 in mails is, or cut at its beginning.
        let encoded = STANDARD.encode(format!("flywheel:{raw}"));
        for text in [
            format!("a {} {} b", &raw[..14], &raw[14..]),
            format!("a {} {} b", &encoded[..28], &encoded[28..]),
        ] {
            let clean = token.scrub(&text);
            assert!(clean.matches("[token]").count() == 2 && clean.len() < 36, "{text} -> {clean}");
        }
        assert_eq!(token.scrub(&format!("…{}.", &raw[9..])), "…[token].");
        // A header's value is removed as a whole only.
        let value = Secret::hidden("https://cache.example.com").unwrap();
        assert_eq!(value.scrub("https://cache.example.org"), "https://cache.example.org");
    }
}
