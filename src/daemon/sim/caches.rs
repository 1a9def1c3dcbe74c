//! The simulated caches: what they have, when they last said so, and how they fail.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use super::trace::Rng;
use crate::cache::{CacheConfig, CacheError, Discovered, ErrorClass, Uploaded};
use crate::daemon::push::CacheCall;

/// How a cache fails for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Unreachable,
    ServerError,
    Unauthorized,
    /// Uploads are stored, or not, and no answer comes.
    NoVerdict,
    /// 429 with a time to wait.
    Busy,
    /// Uploads are answered with success, and nothing is stored.
    StoresNothing,
    /// Uploads are refused because the NAR does not match its hash.
    Mismatch,
    /// 404: there is no cache of this name.
    NoSuchCache,
    /// Uploads are answered with 5xx, as when the server's disk is full.
    NoUploads,
}

impl Fault {
    pub(super) const ALL: [Self; 9] = [
        Self::Unreachable,
        Self::ServerError,
        Self::Unauthorized,
        Self::NoVerdict,
        Self::Busy,
        Self::StoresNothing,
        Self::Mismatch,
        Self::NoSuchCache,
        Self::NoUploads,
    ];

    /// What it is counted as.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Unreachable => "outages: unreachable",
            Self::ServerError => "outages: 5xx",
            Self::Unauthorized => "outages: 401",
            Self::NoVerdict => "outages: no verdict",
            Self::Busy => "outages: 429",
            Self::StoresNothing => "outages: 200, and nothing stored",
            Self::Mismatch => "outages: NAR does not match",
            Self::NoSuchCache => "outages: 404",
            Self::NoUploads => "outages: 5xx of uploads",
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    /// The hashes of the paths that it has.
    pub(super) has: BTreeSet<String>,
    /// When it last said that it has a path, or stored it. Simulated milliseconds.
    pub(super) confirmed: BTreeMap<String, u64>,
    /// When it said so of each path, and whether that was the answer to an upload.
    pub(super) answers: BTreeMap<String, Vec<(u64, bool)>>,
    pub(super) fault: Option<(Fault, u64)>,
    /// Answers take up to this many milliseconds.
    pub(super) slow: u64,
    /// Paths that it refuses for good.
    pub(super) too_large: BTreeSet<String>,
    /// When the question began that the daemon was asking last.
    pub(super) asked_at: u64,
    /// When the question began whose answer has shown the daemon that the cache deletes
    /// paths. What the cache had said before does not count any more.
    pub(super) distrusted_at: u64,
    /// Uploads that had begun when that answer came, and that the cache had not received.
    pub(super) begun_before: BTreeSet<String>,
    /// Hashes that the daemon has heard to be missing, and not to be there since.
    pub(super) told_missing: BTreeSet<String>,
}

/// A call on its way: it is processed at one time and answered at a later one.
pub(super) struct Request {
    pub(super) cache: u16,
    pub(super) made_at: u64,
    pub(super) process_at: u64,
    pub(super) answer_at: u64,
    pub(super) call: CacheCall,
    pub(super) result: Option<Answer>,
    /// The daemon began it when confirmations counted only from this time on.
    pub(super) trusted_since: u64,
}

pub(super) enum Answer {
    Missing(Result<HashSet<String>, CacheError>),
    Upload(Result<Uploaded, CacheError>),
    Discover(Result<Discovered, CacheError>),
}

fn error(class: ErrorClass, retry: Option<u64>) -> CacheError {
    CacheError {
        class,
        message: format!("simulated: {class}"),
        status: None,
        retry_after: retry.map(Duration::from_millis),
    }
}

impl Cache {
    pub(super) fn request(&mut self, cache: u16, call: CacheCall, now: u64, rng: &mut Rng) -> Request {
        let process_at = now + rng.below(self.slow + 2);
        let answer_at = process_at + rng.below(self.slow + 2);
        let trusted_since = match &call {
            CacheCall::Upload(hash, _) if self.begun_before.remove(hash) => 0,
            CacheCall::Upload(..) | CacheCall::Discover(_) => self.distrusted_at,
            CacheCall::Missing(..) => {
                self.asked_at = now;
                0
            }
        };
        Request { cache, made_at: now, process_at, answer_at, call, result: None, trusted_since }
    }

    /// The cache has the path from now on, and says so. `uploaded`: that is the answer to an
    /// upload.
    fn confirms(&mut self, hash: &str, now: u64, uploaded: bool) {
        self.confirmed.insert(hash.to_owned(), now);
        self.answers.entry(hash.to_owned()).or_default().push((now, uploaded));
        self.told_missing.remove(hash);
    }

    /// When an upload of the path was confirmed, if nothing else has confirmed it since `since`
    /// before that.
    pub(super) fn first_uploaded(&self, hash: &str, since: u64) -> Option<u64> {
        let first = self.answers.get(hash)?.iter().find(|(at, _)| *at >= since)?;
        first.1.then_some(first.0)
    }

    fn is_now(&self, fault: Fault, now: u64) -> bool {
        self.fault.is_some_and(|(kind, until)| kind == fault && now < until)
    }

    fn failure(&self, now: u64) -> Option<CacheError> {
        let (fault, until) = self.fault?;
        if now >= until {
            return None;
        }
        Some(match fault {
            // Only of uploads, see below.
            Fault::StoresNothing | Fault::Mismatch | Fault::NoUploads => return None,
            Fault::NoSuchCache => error(ErrorClass::NoSuchCache, None),
            Fault::Unreachable => error(ErrorClass::Unreachable, None),
            Fault::ServerError => error(ErrorClass::Transient, None),
            Fault::Unauthorized => error(ErrorClass::Unauthorized, None),
            Fault::Busy => error(ErrorClass::Transient, Some(2_000)),
            Fault::NoVerdict => error(ErrorClass::NoVerdict, None),
        })
    }

    /// Does what the call asks for. Returns the hash that was stored, if one was.
    pub(super) fn process(&mut self, request: &mut Request, now: u64, rng: &mut Rng) -> Option<String> {
        let failure = self.failure(now);
        let no_verdict = matches!(&failure, Some(error) if error.class == ErrorClass::NoVerdict);
        match &request.call {
            CacheCall::Missing(hashes, _) => {
                request.result = Some(Answer::Missing(match failure.filter(|_| !no_verdict) {
                    Some(error) => Err(error),
                    None => {
                        let (there, missing): (Vec<_>, Vec<_>) =
                            hashes.iter().cloned().partition(|hash| self.has.contains(hash));
                        there.iter().for_each(|hash| self.confirms(hash, now, false));
                        Ok(missing.into_iter().collect())
                    }
                }));
                None
            }
            CacheCall::Upload(hash, _) => {
                let hash = hash.clone();
                if self.too_large.contains(&hash) {
                    request.result = Some(Answer::Upload(Err(error(ErrorClass::TooLarge, None))));
                    return None;
                }
                if self.is_now(Fault::Mismatch, now) {
                    request.result = Some(Answer::Upload(Err(error(ErrorClass::Mismatch, None))));
                    return None;
                }
                if self.is_now(Fault::NoUploads, now) {
                    request.result = Some(Answer::Upload(Err(error(ErrorClass::Transient, None))));
                    return None;
                }
                if self.is_now(Fault::StoresNothing, now) {
                    self.confirms(&hash, now, true);
                    request.result =
                        Some(Answer::Upload(Ok(Uploaded { deduplicated: false, file_size: None })));
                    return None;
                }
                let stores = failure.is_none() || (no_verdict && rng.one_in(2));
                request.result = Some(Answer::Upload(match failure {
                    Some(error) => Err(error),
                    None => Ok(Uploaded { deduplicated: false, file_size: None }),
                }));
                if !stores {
                    return None;
                }
                self.has.insert(hash.clone());
                self.confirms(&hash, now, !no_verdict);
                Some(hash)
            }
            CacheCall::Discover(_) => {
                request.result = Some(Answer::Discover(match failure.filter(|_| !no_verdict) {
                    Some(error) => Err(error),
                    None => Ok(Discovered {
                        endpoint: "http://simulated".to_owned(),
                        config: CacheConfig::default(),
                        named_unusable: None,
                    }),
                }));
                None
            }
        }
    }

    /// Deletes paths for which `which` is true. Returns their hashes.
    pub(super) fn delete(&mut self, mut which: impl FnMut() -> bool) -> Vec<String> {
        let (deleted, kept) = std::mem::take(&mut self.has).into_iter().partition::<Vec<_>, _>(|_| which());
        self.has.extend(kept);
        deleted
    }
}

impl Request {
    /// Sends the answer. Returns what it was, in words.
    pub(super) fn answer(self) -> String {
        let words = |ok: bool| if ok { "ok" } else { "error" };
        match (self.call, self.result) {
            (CacheCall::Missing(hashes, answer), Some(Answer::Missing(result))) => {
                let missing = result.as_ref().map_or("error".to_owned(), |missing| missing.len().to_string());
                let _ = answer.send(result);
                format!("cache {}: {missing} of {} missing", self.cache, hashes.len())
            }
            (CacheCall::Upload(hash, answer), Some(Answer::Upload(result))) => {
                let text =
                    format!("cache {}: upload of {} {}", self.cache, short(&hash), words(result.is_ok()));
                let _ = answer.send(result);
                text
            }
            (CacheCall::Discover(answer), Some(Answer::Discover(result))) => {
                let text = format!("cache {}: probe {}", self.cache, words(result.is_ok()));
                let _ = answer.send(result);
                text
            }
            _ => unreachable!("an answer fits its call"),
        }
    }
}

/// The number in a simulated path's hash part.
pub(super) fn short(hash: &str) -> String {
    format!("p{}", hash.trim_start_matches('0').split('-').next().unwrap_or_default())
}
