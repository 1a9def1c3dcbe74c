//! Headers that every request to a cache's own hosts carries, for access proxies. They
//! come from a file and are secrets. Must not know what a header means.

use std::path::Path;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::error::{CacheError, ErrorClass};

/// Largest file in bytes. Common servers accept 8 KiB of headers.
const LONGEST: u64 = 16 * 1024;
/// Largest number of headers.
const MOST: usize = 32;
/// Headers that belong to the connection, to the token, or to the body.
const OWN: [&str; 16] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "accept-encoding",
];

/// The headers of a file. Their values are marked as sensitive.
pub(super) struct Headers(pub(super) HeaderMap);

impl Headers {
    /// Reads a file with one `Name: value` a line. Empty lines and lines that begin with `#` mean nothing. The
    /// error names the line and never its value.
    pub(super) fn read(file: &Path) -> Result<Self, CacheError> {
        use std::io::Read as _;
        let wrong = |why: String| {
            CacheError::new(ErrorClass::Unauthorized, format!("the headers_file {} {why}", file.display()))
        };
        let denied = |e: std::io::Error| {
            wrong(format!("cannot be read: {e}; check the path and that the service's user may read it"))
        };
        // Reading a pipe could block, and a directory has no content to read.
        if !std::fs::metadata(file).map_err(denied)?.is_file() {
            return Err(wrong("is not a regular file".to_owned()));
        }
        let mut text = Zeroizing::new(Vec::new());
        std::fs::File::open(file).and_then(|f| f.take(LONGEST + 1).read_to_end(&mut text)).map_err(denied)?;
        if text.len() as u64 > LONGEST {
            return Err(wrong(format!("has more than {LONGEST} bytes")));
        }
        let text = std::str::from_utf8(&text)
            .map_err(|_| wrong("is not text: it must have lines like `Name: value`".to_owned()))?;
        Self::parse(text).map_err(wrong)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (at, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim())) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, value)) = line.split_once(':') else {
                return Err(format!("has no colon in line {at}: write `Name: value`"));
            };
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| {
                format!("has a name in line {at} that no header can have: write `Name: value`")
            })?;
            if OWN.contains(&name.as_str())
                || name.as_str().starts_with("x-attic-")
                || name.as_str().starts_with("x-celler-")
            {
                let instead = if name == "authorization" {
                    "; the token comes from token_file or token_command"
                } else {
                    ""
                };
                return Err(format!(
                    "sets {name} in line {at}, which flywheel sets itself{instead}: remove the line"
                ));
            }
            let mut value =
                HeaderValue::from_str(value.trim()).ok().filter(|value| !value.is_empty()).ok_or_else(
                    || format!("has no usable value for {name} in line {at}: one line of visible ASCII"),
                )?;
            value.set_sensitive(true);
            headers.append(name, value);
            if headers.len() > MOST {
                return Err(format!("has more than {MOST} headers"));
            }
        }
        Ok(Self(headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_headers() {
        let text = "# for the access proxy\n\nCF-Access-Client-Id: 0123456789.access\r\n  cf-access-client-secret:  a b  \nCookie: x=1; y=2\nCookie: z\n";
        let Headers(headers) = Headers::parse(text).unwrap();
        assert_eq!(headers["cf-access-client-id"], "0123456789.access");
        assert_eq!(headers["cf-access-client-secret"], "a b");
        assert_eq!(headers.get_all("cookie").iter().count(), 2);
        assert!(headers.values().all(HeaderValue::is_sensitive));
    }

    #[test]
    fn what_is_no_header_is_named_without_its_value() {
        for (text, why) in [
            ("x: y\nsecret-text", "no colon in line 2"),
            ("a b: secret-text", "name in line 1"),
            ("Authorization: secret-text", "sets authorization in line 1"),
            ("HOST: secret-text", "sets host"),
            ("Content-Length: 5", "sets content-length"),
            ("Transfer-Encoding: secret-text", "sets transfer-encoding"),
            ("X-Attic-Nar-Info: secret-text", "sets x-attic-nar-info"),
            ("x:", "no usable value for x in line 1"),
            ("x: secret-text\u{7f}", "no usable value"),
            (&"x: y\n".repeat(40), "more than 32"),
        ] {
            let error = Headers::parse(text).map(|_| ()).unwrap_err();
            assert!(error.contains(why) && !error.contains("secret-text"), "{text}: {error}");
        }
        let dir = tempfile::tempdir().unwrap();
        let error = Headers::read(dir.path()).map(|_| ()).unwrap_err();
        assert!(error.message.contains("not a regular file"), "{error}");
        let large = dir.path().join("large");
        std::fs::write(&large, "#".repeat(20_000)).unwrap();
        assert!(Headers::read(&large).map(|_| ()).unwrap_err().message.contains("more than"));
    }
}
