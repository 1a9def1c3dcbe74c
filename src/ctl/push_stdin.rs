//! The command `push --stdin`: paths come in one by one, and each gets a final line in the
//! order in which they settle, for programs that drive many builds. Must not know how
//! things are printed.
//!
//! A few connections push what has come in so far, up to a hundred paths at a time. While
//! all of them wait for the daemon, nothing more is read, so that the program at the
//! other end of the pipe waits too.

use std::{
    collections::HashMap,
    io::{self, BufRead as _},
    sync::{
        Mutex, PoisonError,
        mpsc::{Receiver, sync_channel},
    },
    thread::{scope, sleep},
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    Context,
    connection::REPLY_TIMEOUT,
    end::{milliseconds, unexpected},
    exit::{Exit, Failure},
    paths,
};
use crate::control::messages::{ErrorCode, PathStory, Reply, Request};

/// Connections that push at a time.
const WORKERS: usize = 8;
/// Most paths in one request. All workers together stay below the daemon's limit of
/// unsettled pushes for each user, and below [`crate::control::messages::MAX_ASKED`].
const BATCH: usize = 100;
/// Lines that are read ahead.
const AHEAD: usize = 100;
/// The pause before a request that the daemon had no room for, or a restart interrupted.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of one path.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Settled {
    pub(super) path: String,
    pub(super) cache: Option<String>,
    /// `pushed`, `already_cached`, `upstream`, `failed`, `skipped`, `collected`, or
    /// `pending` at the deadline.
    pub(super) outcome: String,
    pub(super) error: Option<String>,
    pub(super) class: Option<String>,
    pub(super) attempts: u32,
}

impl Settled {
    fn failed(path: &str, class: &str, error: impl Into<String>) -> Self {
        Self {
            path: path.to_owned(),
            cache: None,
            outcome: "failed".to_owned(),
            error: Some(error.into()),
            class: Some(class.to_owned()),
            attempts: 0,
        }
    }
}

/// Pushes the paths of standard input until it ends. `timeout`: for each path.
pub(super) fn command(context: &Context, cache: Option<&str>, timeout: Duration) -> Result<Exit, Failure> {
    // Without a daemon nothing is read.
    let store = paths::Store::of(&context.connect()?.server);
    let (lines, waiting) = sync_channel(AHEAD);
    let waiting = Mutex::new(waiting);
    let outcomes = Mutex::new((0_u64, 0_u64));
    let read = scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(batch) = next(&waiting) {
                    for settled in push(context, cache, &store, &batch, timeout) {
                        let mut outcomes = outcomes.lock().unwrap_or_else(PoisonError::into_inner);
                        outcomes.0 += u64::from(settled.outcome == "failed");
                        outcomes.1 += u64::from(settled.outcome == "pending");
                        drop(outcomes);
                        context.render.settled(&settled);
                    }
                }
            });
        }
        let read = read(|line| lines.send(line).is_ok());
        drop(lines);
        read
    });
    read.map_err(|error| Failure::Usage(format!("standard input cannot be read: {error}")))?;
    let (failed, pending) = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(match (failed, pending) {
        (0, 0) => Exit::Done,
        (0, _) => Exit::Pending,
        _ => Exit::Failed,
    })
}

/// Hands on each line that is not empty, until `to` returns false.
fn read(mut to: impl FnMut(String) -> bool) -> io::Result<()> {
    for line in io::stdin().lock().split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim().to_owned();
        if !line.is_empty() && !to(line) {
            break;
        }
    }
    Ok(())
}

/// Waits for a line and takes those that are there already. `None` after the last.
fn next(waiting: &Mutex<Receiver<String>>) -> Option<Vec<String>> {
    let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    let mut batch = vec![waiting.recv().ok()?];
    while batch.len() < BATCH
        && let Ok(line) = waiting.try_recv()
    {
        batch.push(line);
    }
    Some(batch)
}

/// Pushes a batch and waits for it. Returns what became of each path, in the order in
/// which they settled.
fn push(
    context: &Context,
    cache: Option<&str>,
    store: &paths::Store,
    batch: &[String],
    timeout: Duration,
) -> Vec<Settled> {
    let mut settled = Vec::new();
    let mut named: Vec<String> = Vec::new();
    let cwd = std::env::current_dir().unwrap_or_default();
    for line in batch {
        match paths::resolve(std::slice::from_ref(line), &cwd, store) {
            Ok(found) if found.unmatched.is_empty() => {
                named
                    .extend(found.paths.into_iter().filter(|path| !named.contains(path)).collect::<Vec<_>>());
            }
            Ok(_) => {
                settled.push(Settled::failed(
                    line,
                    "invalid",
                    "it is neither a store path nor a link to one",
                ));
            }
            Err(error) => settled.push(Settled::failed(line, "invalid", error)),
        }
    }
    for paths in named.chunks(BATCH) {
        match ask(context, cache, paths, timeout) {
            Ok(done) => settled.extend(done),
            Err(failure) => {
                let why = failure.to_string();
                settled
                    .extend(paths.iter().map(|path| Settled::failed(path, failure.outcome(), why.clone())));
            }
        }
    }
    settled
}

fn ask(
    context: &Context,
    cache: Option<&str>,
    paths: &[String],
    timeout: Duration,
) -> Result<Vec<Settled>, Failure> {
    let until = Instant::now() + timeout;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let failure = match push_once(context, cache, paths, left) {
            Ok(settled) => return Ok(settled),
            Err(failure) => failure,
        };
        let passing = match &failure {
            Failure::Connection(error) => error.may_return(),
            Failure::Refused { code, .. } => matches!(code, ErrorCode::Busy | ErrorCode::Draining),
            _ => false,
        };
        if !passing || Instant::now() + PAUSE > until {
            return Err(failure);
        }
        sleep(PAUSE);
    }
}

fn push_once(
    context: &Context,
    cache: Option<&str>,
    paths: &[String],
    left: Duration,
) -> Result<Vec<Settled>, Failure> {
    let mut connection = context.connect()?;
    let request = Request::Push {
        paths: paths.to_vec(),
        cache: cache.map(str::to_owned),
        wait: true,
        timeout_ms: milliseconds(left),
    };
    let summary = match connection.ask(&request, left + REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Pushed(summary) => summary,
        other => return Err(unexpected(other)),
    };
    let failed: HashMap<&str, _> = summary.failed.iter().map(|f| (f.path.as_str(), f)).collect();
    let stories = match connection.ask(&Request::Why { paths: paths.to_vec() }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Why(stories) => stories,
        other => return Err(unexpected(other)),
    };
    let mut settled: Vec<(Option<i64>, Settled)> = stories
        .into_iter()
        .map(|story| match failed.get(story.path.as_str()) {
            Some(f) => {
                let class = f.class.clone().unwrap_or_default();
                let cache = Some(summary.cache.clone());
                (None, Settled { cache, ..Settled::failed(&story.path, &class, f.error.clone()) })
            }
            None => of_story(story, &summary.cache),
        })
        .collect();
    settled.sort_by_key(|(at, _)| at.unwrap_or(i64::MAX));
    Ok(settled.into_iter().map(|(_, settled)| settled).collect())
}

/// What the daemon knows of a path that has not failed, and when it settled.
fn of_story(story: PathStory, cache: &str) -> (Option<i64>, Settled) {
    let Some(push) = story.pushes.into_iter().find(|push| push.cache == cache) else {
        let why = match story.valid {
            Some(false) => "the path is not valid in the store",
            Some(true) | None => "the daemon has no push for it",
        };
        return (None, Settled::failed(&story.path, "invalid", why));
    };
    let outcome = match push.state.as_str() {
        "pending" | "uploading" => "pending",
        state => state,
    };
    let settled = Settled {
        path: story.path,
        cache: Some(push.cache),
        outcome: outcome.to_owned(),
        error: push.error.filter(|_| matches!(outcome, "failed" | "pending")),
        class: push.class.filter(|_| matches!(outcome, "failed" | "pending")),
        attempts: push.attempts,
    };
    (push.settled_at, settled)
}
