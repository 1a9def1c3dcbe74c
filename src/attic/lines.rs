//! Parser of the lines that the attic client writes (attic's `client/src/push.rs`).
//! Pure. The lines give the reason of each path's failure, for messages. They do
//! not prove that the cache has a path; only the cache's own answer does.

use crate::types::StorePath;

/// A line of the attic client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line<'a> {
    /// `✅ BASE (NOTE)`: the client says that it has uploaded this path.
    Pushed {
        /// Base name.
        base: &'a str,
        /// The upload's speed, or the remark that the server had the content already.
        note: &'a str,
    },
    /// `❌ BASE: ERROR`.
    Failed {
        /// Base name.
        base: &'a str,
        /// The reason that the client gives.
        error: &'a str,
    },
    /// `Error: …`: why the whole run failed.
    Fatal(&'a str),
    /// Any other line.
    Other(&'a str),
}

/// Parses one line.
pub fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix('✅')
        && let Some((base, note)) = rest.trim_start().split_once(" (")
        && StorePath::parse(base).is_ok()
    {
        return Line::Pushed { base, note: note.strip_suffix(')').unwrap_or(note) };
    }
    if let Some(rest) = line.strip_prefix('❌')
        && let Some((base, error)) = rest.trim_start().split_once(": ")
        && StorePath::parse(base).is_ok()
    {
        return Line::Failed { base, error };
    }
    match line.strip_prefix("Error: ") {
        Some(error) => Line::Fatal(error),
        None => Line::Other(line),
    }
}

/// The kind of a failure, as the client's reason shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meaning {
    /// The server refuses the token.
    Refused,
    /// The server has no cache of this name.
    NoSuchCache,
    /// The server, or a proxy, refuses the NAR because of its size.
    TooLarge,
    /// The NAR's hash or size differs from what Nix registered.
    Mismatch,
    /// A temporary failure; a retry can succeed.
    Transient,
    /// The reason is none of the known ones.
    Unknown,
}

/// Classifies an error that the client reports. The server's own errors are
/// `NAME: MESSAGE`, a proxy's are `HTTP STATUS: BODY`, and the rest comes from the
/// HTTP library.
pub fn meaning(error: &str) -> Meaning {
    let http = error.strip_prefix("HTTP ").and_then(|rest| rest.get(..3)?.parse::<u16>().ok());
    let named = error.split(':').next().unwrap_or_default();
    match (http, named) {
        (Some(401 | 403), _) | (_, "Unauthorized" | "AccessError") => Meaning::Refused,
        (Some(404), _) | (_, "NoSuchCache") => Meaning::NoSuchCache,
        (Some(413), _) => Meaning::TooLarge,
        (Some(408 | 409 | 421 | 423 | 425 | 429 | 460 | 499 | 500..=599), _) => Meaning::Transient,
        (_, "InternalServerError" | "DatabaseError" | "StorageError") => Meaning::Transient,
        _ if error.contains("Bad NAR Hash or Size") || error.contains("Bad chunk hash or size") => {
            Meaning::Mismatch
        }
        _ if error.contains("error sending request") || error.contains("timed out") => Meaning::Transient,
        _ => Meaning::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c-hello-2.12";

    #[test]
    fn each_kind_of_line_is_recognized() {
        let pushed = format!("✅ {BASE} (1.2 MiB/s, 3.0% deduplicated)\r");
        let failed = format!("❌ {BASE}: HTTP 413 Payload Too Large: <html>");
        let odd = format!("✅ {BASE}");
        for (line, expected) in [
            (pushed.as_str(), Line::Pushed { base: BASE, note: "1.2 MiB/s, 3.0% deduplicated" }),
            (&failed, Line::Failed { base: BASE, error: "HTTP 413 Payload Too Large: <html>" }),
            ("Error: Unauthorized: Unauthorized.", Line::Fatal("Unauthorized: Unauthorized.")),
            (
                "✅ All done! (3 already cached, 0 in upstream)",
                Line::Other("✅ All done! (3 already cached, 0 in upstream)"),
            ),
            (&odd, Line::Other(&odd)),
            ("❌ short: x", Line::Other("❌ short: x")),
            ("", Line::Other("")),
            ("\u{1}\u{fffd} (", Line::Other("\u{1}\u{fffd} (")),
        ] {
            assert_eq!(parse(line), expected, "{line:?}");
        }
    }

    #[test]
    fn reasons_have_a_meaning() {
        for (error, expected) in [
            ("Unauthorized: Unauthorized.", Meaning::Refused),
            ("AccessError: Access error: User does not have permission.", Meaning::Refused),
            ("HTTP 401 Unauthorized: ", Meaning::Refused),
            ("HTTP 403 Forbidden: x", Meaning::Refused),
            ("NoSuchCache: The requested cache does not exist.", Meaning::NoSuchCache),
            ("HTTP 404 Not Found: <html>", Meaning::NoSuchCache),
            ("HTTP 413 Payload Too Large: ", Meaning::TooLarge),
            ("HTTP 502 Bad Gateway: <html>", Meaning::Transient),
            ("HTTP 429 Too Many Requests: ", Meaning::Transient),
            ("InternalServerError: The server encountered an internal error", Meaning::Transient),
            ("RequestError: General request error: Bad NAR Hash or Size", Meaning::Mismatch),
            ("error sending request for url (http://127.0.0.1:1/)", Meaning::Transient),
            ("HTTP 4", Meaning::Unknown),
            ("something else", Meaning::Unknown),
            ("", Meaning::Unknown),
        ] {
            assert_eq!(meaning(error), expected, "{error}");
        }
    }
}
