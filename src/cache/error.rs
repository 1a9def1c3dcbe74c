//! Error classes: what the caller should do next, and how a status, an answer
//! or a broken connection becomes one. Must not know retry policy.

use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::network::NetworkFault;
use super::secrets::Secrets;
use super::wire::ErrorAnswer;
use crate::types::is_unprintable;

/// The kind of a failure, which decides what the caller does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// No connection: refused, unknown host, TLS failure, or reset before the client sent anything. It concerns
    /// the whole cache.
    Unreachable,
    /// A temporary failure: 5xx, 408, 409, 421, 423, 425, 429, 460, 499, a stall, an answer that is cut or does
    /// not come from an Attic server, a connection that breaks while the client sends a body.
    Transient,
    /// An upload whose outcome is unknown: the client sent the body, and then a timeout, a reset or a gateway's
    /// error followed. The cache may have the path, so the caller must ask before it sends the path again.
    NoVerdict,
    /// 401, or the configured token cannot be read.
    Unauthorized,
    /// 403: the token is expired (on a public cache) or lacks the right to push.
    Forbidden,
    /// 404: the server has no cache of this name, or the address is not an Attic server's.
    NoSuchCache,
    /// The NAR does not match its hash and size. Permanent for the path.
    Mismatch,
    /// 413. Permanent for the path until someone raises a limit.
    TooLarge,
    /// Another 4xx, a redirect, or a request that the client must not send at all.
    Rejected,
    /// Reading the NAR failed on this side, before the server answered.
    Local,
}

impl ErrorClass {
    /// Returns the class as a fixed word, for the ledger, JSON and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Transient => "transient",
            Self::NoVerdict => "no-verdict",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::NoSuchCache => "no-such-cache",
            Self::Mismatch => "mismatch",
            Self::TooLarge => "too-large",
            Self::Rejected => "rejected",
            Self::Local => "local",
        }
    }
}

impl std::fmt::Display for ErrorClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A failed call. It never contains the token.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct CacheError {
    /// The kind of the failure.
    pub class: ErrorClass,
    /// What failed, where, and what to do about it.
    pub message: String,
    /// The status, when the server answered.
    pub status: Option<u16>,
    /// The time that the server asks the client to wait.
    pub retry_after: Option<Duration>,
}

/// Longest wait that a server can ask for.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);
/// Longest part of a server's text in a message, in characters.
const LONGEST_QUOTE: usize = 300;

impl CacheError {
    pub(super) fn new(class: ErrorClass, message: impl Into<String>) -> Self {
        Self { class, message: message.into(), status: None, retry_after: None }
    }

    /// Makes the error of an answer that is not a success. Its message begins with `doing`: "asking X for Y".
    pub(super) fn from_answer(
        status: StatusCode,
        headers: &HeaderMap,
        body: &[u8],
        secrets: &Secrets,
        doing: &str,
    ) -> Self {
        let structured: Option<ErrorAnswer> = serde_json::from_slice(body).ok();
        let said = match &structured {
            Some(answer) => quote(&format!("{}: {}", answer.error, answer.message), secrets),
            None => quote(page(&String::from_utf8_lossy(body)), secrets),
        };
        let (class, hint) = classify(status, structured.is_some(), &said);
        let said = if said.is_empty() { String::new() } else { format!(" ({said})") };
        Self {
            class,
            message: format!("{doing}: the server answered {status}{said}{hint}"),
            status: Some(status.as_u16()),
            retry_after: retry_after(headers, body, SystemTime::now()),
        }
    }

    /// Returns the error of an upload that ended with this error after the connection had taken `sent`.
    ///
    /// The error of a gateway does not show what the server behind it did with the bytes that it received.
    /// If only the connection broke, the server can have the path only if the client sent all of it.
    pub(super) fn of_upload(self, sent: Sent) -> Self {
        let gateway = self.status.is_some_and(is_gateway_error) && sent != Sent::Nothing;
        // Either the server reported a success whose body cannot be read, or it did not answer at all.
        let unclear = self.status.is_none_or(|status| (200..300).contains(&status)) && sent == Sent::All;
        if self.class != ErrorClass::Transient || !(gateway || unclear) {
            return self;
        }
        let message = format!(
            "{}; the cache is asked for the path before it is sent again; if this repeats, raise the \
             proxy's time limit (nginx: proxy_read_timeout) or the cache's stall_timeout",
            self.message
        );
        Self { class: ErrorClass::NoVerdict, message, ..self }
    }

    /// Returns whether the server says that it has not looked at the request: REFUSED_STREAM, or GOAWAY without
    /// an error (RFC 9113, 8.7).
    pub(super) fn is_refused_stream(error: &reqwest::Error) -> bool {
        let mut next = std::error::Error::source(error);
        while let Some(error) = next {
            if let Some(error) = error.downcast_ref::<h2::Error>() {
                let closes = error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
                return error.is_remote() && (closes || error.reason() == Some(h2::Reason::REFUSED_STREAM));
            }
            next = error.source();
        }
        false
    }

    /// Makes the error of a request without an answer. `sent` says whether the connection had taken any of a body.
    pub(super) fn from_transport(error: &reqwest::Error, sent: bool, doing: &str) -> Self {
        let why = NetworkFault::of(error);
        let (class, text) = if error.is_builder() {
            (ErrorClass::Rejected, format!("the request cannot be made: {why}"))
        } else if sent && !error.is_connect() {
            // The cause may be this one path, so it must not count against the
            // cache. If the server is down, the next attempt shows it.
            (ErrorClass::Transient, format!("while the path was being sent, {why}"))
        } else {
            (ErrorClass::Unreachable, why.to_string())
        };
        Self::new(class, format!("{doing}: {text}"))
    }

    /// Ranks the failures of several endpoints; the lowest rank is the most informative about the cache.
    pub(super) fn rank(&self) -> u8 {
        match self.class {
            ErrorClass::Unauthorized => 0,
            ErrorClass::Forbidden => 1,
            ErrorClass::NoSuchCache => 2,
            ErrorClass::Transient | ErrorClass::NoVerdict => 3,
            ErrorClass::Mismatch | ErrorClass::TooLarge | ErrorClass::Rejected | ErrorClass::Local => 4,
            ErrorClass::Unreachable => 5,
        }
    }
}

/// How much of an upload's body the connection had taken when the upload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Nothing,
    Part,
    All,
}

/// Returns whether a proxy or a load balancer uses this status when it has no answer from the server behind
/// it. 460 (AWS's load balancer) and 499 (nginx) mean that the client's connection ended first, 520 to 524
/// are Cloudflare's, 598 and 599 are those of older proxies.
fn is_gateway_error(status: u16) -> bool {
    matches!(status, 460 | 499 | 502 | 504 | 520..=524 | 598 | 599)
}

fn classify(status: StatusCode, structured: bool, said: &str) -> (ErrorClass, &'static str) {
    match status.as_u16() {
        401 => (ErrorClass::Unauthorized, ": give it a token that is valid for this cache"),
        403 => (ErrorClass::Forbidden, ": the token is expired or lacks the right to push to this cache"),
        // A server that knows the API answers in JSON; any other body most likely comes from a proxy or another site.
        404 if structured => (ErrorClass::NoSuchCache, ": create the cache or correct its name"),
        404 => (ErrorClass::NoSuchCache, ": the answer is not from an Attic server; check the address"),
        // Every request passes the proxy, so the failure does not depend on the path.
        407 => (ErrorClass::Unreachable, ": the HTTP proxy needs a login; put it into the proxy's URL"),
        408 | 409 | 421 | 423 | 425 | 429 | 460 | 499 | 500..=599 => (ErrorClass::Transient, ""),
        413 => (
            ErrorClass::TooLarge,
            ": raise the limit of the server or of the proxy before it (nginx: client_max_body_size)",
        ),
        // Attic's `server/src/api/v1/upload_path.rs` has these two texts for it.
        400 if said.contains("Bad chunk hash or size") || said.contains("Bad NAR Hash or Size") => (
            ErrorClass::Mismatch,
            ": the files are no longer what Nix registered; `nix-store --verify-path` shows it",
        ),
        300..=399 => {
            (ErrorClass::Rejected, ": flywheel follows no redirect with a token; configure the final address")
        }
        _ => (ErrorClass::Rejected, ""),
    }
}

/// Returns the time that the server asks the client to wait: from the header `Retry-After` (RFC 9110,
/// 10.2.3), else from the member `retry_after` of a problem-details body (RFC 9457, as Cloudflare sends it).
pub(super) fn retry_after(headers: &HeaderMap, body: &[u8], now: SystemTime) -> Option<Duration> {
    #[derive(serde::Deserialize)]
    struct Problem {
        #[serde(alias = "retry-after", alias = "retryAfter")]
        retry_after: serde_json::Value,
    }
    let header = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let wait =
        header.and_then(|text| wait_of(text, now)).or_else(|| {
            match serde_json::from_slice::<Problem>(body).ok()?.retry_after {
                serde_json::Value::String(text) => wait_of(&text, now),
                number => Duration::try_from_secs_f64(number.as_f64()?).ok(),
            }
        });
    wait.map(|wait| wait.min(LONGEST_WAIT))
}

/// Parses seconds or an HTTP date. A date in the past gives zero.
fn wait_of(text: &str, now: SystemTime) -> Option<Duration> {
    match text.trim().parse::<u64>() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => Some(httpdate::parse_http_date(text.trim()).ok()?.duration_since(now).unwrap_or_default()),
    }
}

/// Returns the title of a proxy's page, or the whole text if it has none. The rest of
/// a page is layout and would leave no room for the hint in a message of bounded length.
fn page(text: &str) -> &str {
    let title = text.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    title.map_or(text, |(title, _)| title)
}

/// Prepares a server's text for a message: one line of bounded length, without secrets, without control
/// characters and without marks that change the direction of writing.
pub(super) fn quote(text: &str, secrets: &Secrets) -> String {
    let line: String = text
        .split_whitespace()
        .flat_map(|word| [" ", word])
        .skip(1)
        .flat_map(str::chars)
        .filter(|&c| !is_unprintable(c))
        .collect();
    let line = secrets.scrub(&line);
    let mut quoted: String = line.chars().take(LONGEST_QUOTE).collect();
    if quoted.len() < line.len() {
        quoted.push('…');
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_seconds_and_as_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (value, expected) in [
            ("7", Some(7)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:50:07 GMT", Some(30)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("99999999999", Some(86_400)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
            assert_eq!(retry_after(&headers, b"", now).map(|d| d.as_secs()), expected, "{value}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), b"", now), None);
    }

    #[test]
    fn retry_after_in_a_problem_details_body() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (body, expected) in [
            (r#"{"title":"Error 1015","status":429,"retry_after":30,"retryable":true}"#, Some(30)),
            (r#"{"retry_after":"12"}"#, Some(12)),
            (r#"{"retryAfter":2.5}"#, Some(2)),
            (r#"{"retry-after":"Sun, 06 Nov 1994 08:50:07 GMT"}"#, Some(30)),
            (r#"{"retry_after":1e300}"#, None),
            (r#"{"retry_after":99999999999}"#, Some(86_400)),
            (r#"{"retry_after":-1}"#, None),
            (r#"{"retry_after":null}"#, None),
            (r#"{"title":"x"}"#, None),
            ("<html>", None),
        ] {
            let wait = retry_after(&HeaderMap::new(), body.as_bytes(), now);
            assert_eq!(wait.map(|d| d.as_secs()), expected, "{body}");
        }
        let headers = HeaderMap::from_iter([(RETRY_AFTER, "7".parse().unwrap())]);
        let wait = retry_after(&headers, br#"{"retry_after":30}"#, now);
        assert_eq!(wait, Some(Duration::from_secs(7)), "the header counts first");
    }

    #[test]
    fn every_status_has_a_class() {
        use ErrorClass::{Forbidden, Mismatch, NoSuchCache, Rejected, TooLarge, Unauthorized, Unreachable};
        for (status, body, class) in [
            (301, "", Rejected),
            (400, "x", Rejected),
            (
                400,
                r#"{"code":400,"error":"RequestError","message":"General request error: Bad NAR Hash or Size"}"#,
                Mismatch,
            ),
            (401, "", Unauthorized),
            (403, "", Forbidden),
            (404, "<html>", NoSuchCache),
            (407, "", Unreachable),
            (402, "", Rejected),
            (405, "", Rejected),
            (410, "", Rejected),
            (411, "", Rejected),
            (413, "", TooLarge),
            (414, "", Rejected),
            (422, "", Rejected),
            (431, "", Rejected),
            (451, "", Rejected),
            (600, "", Rejected),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            let error = CacheError::from_answer(
                status,
                &HeaderMap::new(),
                body.as_bytes(),
                &Secrets::default(),
                "doing",
            );
            assert_eq!(error.class, class, "{status} {body}");
            assert_eq!(error.status, Some(status.as_u16()));
        }
    }

    /// The class of a status as the answer to a question, to an upload before the connection took any of its
    /// body, and to an upload after it took part or all of it.
    #[test]
    fn statuses_that_pass() {
        use ErrorClass::{NoVerdict, Transient};
        let all = [408, 409, 421, 423, 425, 429, 460, 499].into_iter().chain(500..=599);
        for status in all {
            let error = CacheError::from_answer(
                StatusCode::from_u16(status).unwrap(),
                &HeaderMap::new(),
                b"",
                &Secrets::default(),
                "doing",
            );
            assert_eq!(error.class, Transient, "{status}");
            assert_eq!(error.clone().of_upload(Sent::Nothing).class, Transient, "{status}");
            let open = matches!(status, 460 | 499 | 502 | 504 | 520 | 521 | 522 | 523 | 524 | 598 | 599);
            for sent in [Sent::Part, Sent::All] {
                let error = error.clone().of_upload(sent);
                assert_eq!(error.class, if open { NoVerdict } else { Transient }, "{status} {sent:?}");
                assert_eq!(error.message.contains("is asked for the path before"), open, "{}", error.message);
            }
        }
    }

    #[test]
    fn an_upload_without_an_answer() {
        let lost = |class| CacheError::new(class, "no answer");
        for (class, sent, expected) in [
            (ErrorClass::Transient, Sent::All, ErrorClass::NoVerdict),
            (ErrorClass::Transient, Sent::Part, ErrorClass::Transient),
            (ErrorClass::Transient, Sent::Nothing, ErrorClass::Transient),
            (ErrorClass::Unreachable, Sent::Nothing, ErrorClass::Unreachable),
            (ErrorClass::Local, Sent::Part, ErrorClass::Local),
            (ErrorClass::Mismatch, Sent::All, ErrorClass::Mismatch),
        ] {
            assert_eq!(lost(class).of_upload(sent).class, expected, "{class} {sent:?}");
        }
        let unreadable = CacheError { status: Some(200), ..lost(ErrorClass::Transient) };
        assert_eq!(unreadable.of_upload(Sent::All).class, ErrorClass::NoVerdict);
        let error = CacheError { status: Some(503), ..lost(ErrorClass::Transient) };
        assert_eq!(error.of_upload(Sent::All).class, ErrorClass::Transient, "the server's own refusal");
    }

    #[test]
    fn a_proxys_page_is_its_title_and_leaves_room_for_the_hint() {
        let body =
            "<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>nginx</body></html>";
        let status = StatusCode::PAYLOAD_TOO_LARGE;
        let error =
            CacheError::from_answer(status, &HeaderMap::new(), body.as_bytes(), &Secrets::default(), "doing");
        assert!(error.message.contains("(413 Request Entity Too Large): raise"), "{}", error.message);
        assert_eq!(page("<title>cut off"), "<title>cut off");
    }

    #[test]
    fn quotes_are_one_bounded_line() {
        assert_eq!(quote("a\r\n\tb\u{1b}[31m  c ", &Secrets::default()), "a b[31m c");
        assert_eq!(quote("a\u{202e}b\u{2066}c\u{200f}", &Secrets::default()), "abc");
        assert_eq!(quote(&"x".repeat(5000), &Secrets::default()).chars().count(), LONGEST_QUOTE + 1);
    }
}
