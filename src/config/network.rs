//! Validates how requests get to a cache: certificates, extra headers, proxy, HTTP
//! version; and names the settings that the cache's engine does not use.

use std::path::PathBuf;
use std::time::Duration;

use super::caches::readable_by_all;
use super::error::{ConfigError, Place};
use super::merge::Merged;
use super::raw::{At, RawCache};
use super::settings::{Cache, Engine, Network, Proxy, ProxyUrl, Target, Tls};
use super::token::{Token, TokenCommand};
use super::validate;

/// The default `token_command_timeout`.
const COMMAND_TIME: Duration = Duration::from_secs(10);
const COMMAND_TIME_MOST: Duration = Duration::from_secs(300);
/// Most words of a command.
const MOST_WORDS: usize = 64;

/// Where the keys of one cache are.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    pub(super) merged: &'a Merged,
    pub(super) name: &'a str,
    pub(super) target: &'a Target,
    pub(super) raw: &'a RawCache,
}

impl Keys<'_> {
    fn invalid<T>(&self, key: &str, at: &At<T>, found: &str, expected: &str) -> ConfigError {
        let found = format!("caches.{}.{key}: found {found}", self.name);
        ConfigError::invalid(self.merged.place(&at.spot), found, expected)
    }

    /// A setting that means nothing for the built-in cache.
    fn remote<'a, T>(&self, key: &str, at: &'a Option<At<T>>) -> Result<Option<&'a At<T>>, ConfigError> {
        match at {
            Some(at) if *self.target == Target::Embedded => {
                Err(self.invalid(key, at, "a setting for connections of the built-in cache", "none"))
            }
            at => Ok(at.as_ref()),
        }
    }

    fn file(&self, key: &str, at: &Option<At<String>>) -> Result<Option<PathBuf>, ConfigError> {
        if self.remote(key, at)?.is_none() {
            return Ok(None);
        }
        let key = format!("caches.{}.{key}", self.name);
        validate::path(self.merged, &key, at, || (Place::Absent, String::new())).map(Some)
    }

    /// Validates the settings of connections.
    pub(super) fn network(&self, warnings: &mut Vec<String>) -> Result<Network, ConfigError> {
        let raw = self.raw;
        let network = Network {
            tls: self.tls()?,
            headers_file: self.file("headers_file", &raw.headers_file)?,
            proxy: self.proxy(warnings)?,
            http2: self.remote("http2", &raw.http2)?.is_some_and(|at| at.value),
        };
        let secrets = [
            ("headers_file", &network.headers_file),
            ("client_key", &network.tls.client_key),
            ("proxy_file", &network.proxy.file().cloned()),
        ];
        for (key, file) in secrets {
            warnings.extend(file.as_ref().and_then(|file| readable_by_all(self.name, key, file)));
        }
        Ok(network)
    }

    fn tls(&self) -> Result<Tls, ConfigError> {
        let tls = Tls {
            ca_file: self.file("ca_file", &self.raw.ca_file)?,
            client_cert: self.file("client_cert", &self.raw.client_cert)?,
            client_key: self.file("client_key", &self.raw.client_key)?,
        };
        match &self.raw.client_key {
            Some(at) if tls.client_cert.is_none() => {
                Err(self.invalid("client_key", at, "a key without a certificate", "client_cert too"))
            }
            _ => Ok(tls),
        }
    }

    fn proxy(&self, warnings: &mut Vec<String>) -> Result<Proxy, ConfigError> {
        let file = self.file("proxy_file", &self.raw.proxy_file)?;
        let Some(at) = self.remote("proxy", &self.raw.proxy)? else {
            return Ok(file.map_or(Proxy::Environment, Proxy::File));
        };
        if file.is_some() {
            return Err(self.invalid("proxy", at, "a proxy beside proxy_file", "one of the two"));
        }
        if at.value == "none" {
            return Ok(Proxy::Direct);
        }
        let url = ProxyUrl::parse(&at.value).map_err(|why| {
            let expected = "\"none\", or a URL like \"http://proxy.example.com:3128\"";
            self.invalid("proxy", at, &format!("a proxy that cannot be used: {why}"), expected)
        })?;
        if let (true, Place::File { file, .. }) = (url.has_password(), self.merged.place(&at.spot)) {
            let readable = readable_by_all(self.name, "the password of proxy in", &file);
            warnings.extend(readable.map(|text| format!("{text}, or move the URL to a proxy_file")));
        }
        Ok(Proxy::At(url))
    }

    /// Validates the program that gives the token, if there is one.
    pub(super) fn token_command(&self) -> Result<Option<Token>, ConfigError> {
        let raw = self.raw;
        let limit = match self.remote("token_command_timeout", &raw.token_command_timeout)? {
            None => COMMAND_TIME,
            Some(at) if at.value.0.is_zero() || at.value.0 > COMMAND_TIME_MOST => {
                let found = at.value.to_string();
                return Err(self.invalid("token_command_timeout", at, &found, "more than 0 and at most 5m"));
            }
            Some(at) if raw.token_command.is_none() => {
                return Err(self.invalid(
                    "token_command_timeout",
                    at,
                    "a time limit without a command",
                    "token_command too",
                ));
            }
            Some(at) => at.value.0,
        };
        let Some(at) = self.remote("token_command", &raw.token_command)? else { return Ok(None) };
        if raw.token_file.is_some() {
            return Err(self.invalid("token_command", at, "a command beside token_file", "one of the two"));
        }
        let words: Vec<String> = at.value.iter().map(|word| word.get_ref().clone()).collect();
        let program = words.first().map(String::as_str).unwrap_or_default();
        let example = "a program and its arguments, like [\"/usr/bin/vault\", \"read\", \"…\"]";
        if program.is_empty() || words.len() > MOST_WORDS || words.iter().any(|word| word.contains('\0')) {
            let found = format!("{} words", words.len());
            return Err(self.invalid("token_command", at, &found, example));
        }
        if program.contains(char::is_whitespace) && words.len() == 1 {
            let error = self.invalid("token_command", at, "one word with white space", example);
            return Err(error.hint("no shell reads it: write each argument as a string of its own"));
        }
        if program.contains('/') && !program.starts_with('/') {
            return Err(self.invalid(
                "token_command",
                at,
                &format!("the relative path {program:?}"),
                "an absolute path, or a name that is found in $PATH",
            ));
        }
        Ok(Some(Token::Command(TokenCommand { words, limit })))
    }
}

/// Warns of settings that the attic client does not use.
pub(super) fn warn_of_engine(name: &str, cache: &Cache, warnings: &mut Vec<String>) {
    if cache.engine != Engine::Attic {
        return;
    }
    let network = &cache.network;
    let unused: Vec<&str> = [
        (network.tls.ca_file.is_some(), "ca_file"),
        (matches!(network.proxy, Proxy::At(_) | Proxy::Direct), "proxy"),
        (network.proxy.file().is_some(), "proxy_file"),
        (network.headers_file.is_some(), "headers_file"),
        (network.tls.client_cert.is_some(), "client_cert"),
        (network.tls.client_key.is_some(), "client_key"),
        (network.http2, "http2"),
        (cache.trust_api_endpoint, "trust_api_endpoint"),
    ]
    .into_iter()
    .filter_map(|(set, key)| set.then_some(key))
    .collect();
    if !unused.is_empty() {
        warnings.push(format!(
            "cache {name}: the attic client, which uploads to it (engine = \"attic\"), does not use {}; flywheeld's \
             own questions do. If the server needs them, set engine = \"native\"",
            unused.join(", ")
        ));
    }
}
