//! A token that a program of the administrator supplies and renews. The daemon runs the
//! program; this is the place where its answer is kept. Must not know processes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Notify, watch};
use zeroize::Zeroizing;

use super::error::{CacheError, ErrorClass};
use super::token::Secret;

/// The token of one cache's `token_command`. Clones share it.
#[derive(Clone, Debug)]
pub struct SuppliedToken(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    wanted: Notify,
    /// Whether somebody asked for a new token since the latest run. It outlives the task that runs the program.
    is_wanted: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    token: Option<Secret>,
    /// When it expires, in seconds since 1970, if that is known.
    expires: Option<i64>,
    /// Why the latest run gave no token, if it gave none.
    problem: Option<String>,
}

/// The answer of a program as JSON.
#[derive(serde::Deserialize)]
struct Answer {
    token: String,
    #[serde(default)]
    expires_at: serde_json::Value,
}

impl PartialEq for SuppliedToken {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SuppliedToken {}

impl Default for SuppliedToken {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: watch::Sender::new(State::default()),
            wanted: Notify::new(),
            is_wanted: AtomicBool::new(false),
        }))
    }
}

impl SuppliedToken {
    /// Takes a program's output: the token alone, or `{"token": …, "expires_at": …}` with the time of expiry in
    /// seconds since 1970 or as in RFC 3339. Returns whether it is another token than before. An error does not
    /// contain the output.
    pub fn supply(&self, output: &str) -> Result<bool, String> {
        let (token, expires) = parse(output)?;
        let changed = self.0.state.borrow().token.as_ref() != Some(&token);
        self.0.state.send_replace(State { token: Some(token), expires, problem: None });
        Ok(changed)
    }

    /// Notes that the latest run gave no token. The present one stays in use.
    pub fn failed(&self, why: String) {
        self.0.state.send_modify(|state| state.problem = Some(why));
    }

    /// Returns why the latest run gave no token, if it gave none.
    pub fn problem(&self) -> Option<String> {
        self.0.state.borrow().problem.clone()
    }

    /// Returns whether there is a token.
    pub fn is_there(&self) -> bool {
        self.0.state.borrow().token.is_some()
    }

    /// Returns when the token expires, in seconds since 1970, if that is known.
    pub fn expiry(&self) -> Option<i64> {
        self.0.state.borrow().expires
    }

    /// Removes the present token from a text.
    pub fn scrub(&self, text: &str) -> String {
        self.0.state.borrow().token.as_ref().map_or_else(|| text.to_owned(), |token| token.scrub(text))
    }

    /// Asks for a new token.
    pub fn want(&self) {
        self.0.is_wanted.store(true, Ordering::Release);
        self.0.wanted.notify_one();
    }

    /// Returns whether somebody asked for a new token since the latest run.
    pub fn is_wanted(&self) -> bool {
        self.0.is_wanted.load(Ordering::Acquire)
    }

    /// Notes that a run has ended, whatever it gave.
    pub fn ran(&self) {
        self.0.is_wanted.store(false, Ordering::Release);
    }

    /// Asks for a new token if the server has refused the present one.
    pub(super) fn refused(&self, token: Option<&Secret>) {
        if self.0.state.borrow().token.as_ref() == token {
            self.want();
        }
    }

    /// Waits until somebody asks for a new token. Only the task that runs the program may wait.
    pub async fn wanted(&self) {
        self.0.wanted.notified().await;
    }

    /// Waits until there is a token, or a reason why there is none.
    pub(super) async fn ready(&self) {
        let mut state = self.0.state.subscribe();
        let _ = state.wait_for(|state| state.token.is_some() || state.problem.is_some()).await;
    }

    pub(super) fn read(&self) -> Result<Option<Secret>, CacheError> {
        let state = self.0.state.borrow();
        if let Some(token) = &state.token {
            return Ok(Some(token.clone()));
        }
        let why = state.problem.as_deref().unwrap_or("it has not answered yet");
        Err(CacheError::new(ErrorClass::Unauthorized, format!("token_command gives no token: {why}")))
    }
}

fn parse(output: &str) -> Result<(Secret, Option<i64>), String> {
    let from = "its output";
    let text = output.trim();
    if !text.starts_with('{') {
        let token = Secret::parse(text, from).map_err(|e| e.message)?;
        let expires = token.expiry();
        return Ok((token, expires));
    }
    // The library's message would quote the text.
    let answer: Answer = serde_json::from_str(text).map_err(|e| {
        let (line, column) = (e.line(), e.column());
        format!(
            "its output is not JSON like {{\"token\": \"…\", \"expires_at\": 1700000000}} (line {line}, column {column})"
        )
    })?;
    let text = Zeroizing::new(answer.token);
    let token = Secret::parse(&text, from).map_err(|e| e.message)?;
    let expires = match &answer.expires_at {
        serde_json::Value::Null => token.expiry(),
        #[allow(clippy::cast_possible_truncation)]
        serde_json::Value::Number(seconds) => seconds.as_f64().map(|seconds| seconds as i64),
        serde_json::Value::String(text) => match text.parse() {
            Ok(seconds) => Some(seconds),
            Err(_) => Some(rfc3339(text).ok_or(EXPIRES)?),
        },
        _ => return Err(EXPIRES.to_owned()),
    };
    Ok((token, expires))
}

const EXPIRES: &str =
    "its output has an `expires_at` that is neither seconds since 1970 nor a time like 2030-01-31T12:00:00Z";

/// Parses a time of RFC 3339 to seconds since 1970, without the fraction of a second.
fn rfc3339(text: &str) -> Option<i64> {
    Some(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_of_programs() {
        let is = |output: &str| parse(output).map(|(token, expires)| (token.expose().to_owned(), expires));
        assert_eq!(is(" tok-1\n"), Ok(("tok-1".to_owned(), None)));
        assert_eq!(is(r#"{"token":"tok-1"}"#), Ok(("tok-1".to_owned(), None)));
        assert_eq!(
            is(r#"{"token":"t","expires_at":1700000000,"more":1}"#),
            Ok(("t".to_owned(), Some(1_700_000_000)))
        );
        assert_eq!(
            is(r#"{"token":"t","expires_at":"1700000000"}"#),
            Ok(("t".to_owned(), Some(1_700_000_000)))
        );
        let text = r#"{"token":"t","expires_at":"2023-11-14T23:13:20.5+01:00"}"#;
        assert_eq!(is(text), Ok(("t".to_owned(), Some(1_700_000_000))));
        // The token's own time counts where the answer names none.
        let jwt = "eyJhbGciOiJIUzI1NiJ9.eyJleHAiOjE3MDAwMDAwMDB9.c2ln";
        assert_eq!(is(jwt), Ok((jwt.to_owned(), Some(1_700_000_000))));
        for (output, why) in [
            ("", "empty"),
            ("tok-5ecret more", "white space"),
            (r#"{"tokn":"tok-5ecret"}"#, "not JSON like"),
            (r#"{"token":"tok-5ecret","expires_at":"soon"}"#, "expires_at"),
            (r#"{"token":"tok-5ecret","expires_at":[]}"#, "expires_at"),
            (r#"{"token":"tok-5ecret"#, "not JSON like"),
            (r#"{"token":""}"#, "empty"),
        ] {
            let error = is(output).unwrap_err();
            assert!(error.contains(why) && !error.contains("5ecret"), "{output}: {error}");
        }
    }

    #[test]
    fn times_of_rfc_3339() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("2000-02-29t12:00:00z", Some(951_825_600)),
            ("2030-01-31T12:00:00.123456Z", Some(1_896_091_200)),
            ("2030-01-31 12:00:00-05:30", Some(1_896_111_000)),
            ("2030-01-31T12:00:00", None),
            ("2030-13-31T12:00:00Z", None),
            ("2030-01-31T24:00:00Z", None),
            ("2030-01-31T12:00:00.Z", None),
            ("31 Jan 2030", None),
            ("", None),
            ("2030-01-3ü12:00:00Z", None),
        ] {
            assert_eq!(rfc3339(text), seconds, "{text}");
        }
    }

    #[tokio::test]
    async fn the_old_token_stays_when_a_run_fails() {
        let supplied = SuppliedToken::default();
        assert!(supplied.read().unwrap_err().message.contains("not answered yet"));
        supplied.failed("it ended with status 1".to_owned());
        supplied.ready().await;
        assert!(supplied.read().unwrap_err().message.contains("status 1"));
        assert_eq!((supplied.supply("tok-1"), supplied.supply("tok-1")), (Ok(true), Ok(false)));
        supplied.failed("it ended with status 2".to_owned());
        assert_eq!(supplied.read().unwrap().unwrap().expose(), "tok-1");
        assert_eq!(supplied.problem().as_deref(), Some("it ended with status 2"));
        // A refusal of an older token does not ask for a new one.
        supplied.refused(None);
        let asked = tokio::time::timeout(std::time::Duration::ZERO, supplied.wanted()).await;
        assert!(asked.is_err());
        supplied.refused(supplied.read().unwrap().as_ref());
        supplied.wanted().await;
    }
}
