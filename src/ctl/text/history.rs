//! What the daemon has recorded as text: the story of a path, sessions and their paths. Pure;
//! must not print.

use std::fmt::Write as _;
use std::time::Duration;

use super::super::render::Heading;
use super::super::report::steps;
use super::{age, bytes, duration, in_brackets, paths, printable, summary, table};
use crate::control::messages::{PathStory, SessionDetail, SessionEntry, SessionState};

/// Formats what happened to paths.
pub(in crate::ctl) fn stories(stories: &[PathStory], now_ms: i64) -> String {
    let mut out = String::new();
    for story in stories {
        let size = story.nar_size.map(|n| format!(" ({})", bytes(n))).unwrap_or_default();
        let _ = writeln!(out, "{}{size}\n  {}", printable(&story.path), printable(&story.summary));
        for s in &story.sessions {
            let label = s.label.as_deref().map(|l| format!(" ({})", printable(l))).unwrap_or_default();
            let outcome = printable(&s.outcome).replace('_', " ");
            let by = printable(&s.evidence);
            let to = match (s.cache.as_str(), &s.route) {
                (_, None) => String::new(),
                ("", Some(route)) => format!(" by {}", printable(route)),
                (cache, Some(route)) => format!(", to cache {} by {}", printable(cache), printable(route)),
            };
            let session = printable(&s.session);
            let _ = writeln!(out, "  session {session}{label}: {} (evidence {by})", because(&s.evidence));
            let _ = writeln!(out, "    {outcome}{to}");
        }
        if story.hidden_sessions > 0 {
            let _ = writeln!(out, "  sessions of other users: {}", story.hidden_sessions);
        }
        for push in &story.pushes {
            let state = printable(&push.state).replace('_', " ");
            let route = push.route.as_deref().map(printable);
            // A route of the path's session is beside the session.
            let _ = match (push.cache.as_str(), &route) {
                ("", None) => write!(out, "  no cache: {state} by the route of its session"),
                ("", Some(route)) => write!(out, "  no cache: {state} by {route}"),
                (cache, _) => write!(out, "  cache {}: {state}", printable(cache)),
            };
            if let Some(at) = push.settled_at {
                let _ = write!(out, " {} ago", age(at, now_ms));
            }
            match push.attempts {
                0 => {}
                1 => out.push_str(", 1 attempt"),
                n => {
                    let _ = write!(out, ", {n} attempts");
                }
            }
            if let Some(route) = route.filter(|_| !push.cache.is_empty()) {
                let _ = write!(out, ", sent there by {route}");
            }
            out.push('\n');
            let steps = [
                ("valid", push.valid_at),
                ("seen", push.seen_at),
                ("asked about", push.asked_at),
                ("last upload begun", push.begun_at),
            ];
            let steps: Vec<String> = steps
                .iter()
                .filter_map(|(what, at)| Some(format!("{what} {} ago", age((*at)?, now_ms))))
                .collect();
            if !steps.is_empty() {
                let _ = writeln!(out, "    {}", steps.join(", "));
            }
            if let Some(error) = &push.error {
                let class = in_brackets(push.class.as_deref());
                let _ = writeln!(out, "    last error: {}{class}", printable(error));
            }
            if let Some(next) = &push.next {
                let _ = writeln!(out, "    {}", printable(next));
            }
        }
    }
    out
}

/// Why a path belongs to a session with this evidence.
fn because(evidence: &str) -> &'static str {
    match evidence {
        "hook" => "Nix's post-build hook said that it built the path",
        "process" => "one of its processes built the path",
        "closure" => "it named the path, or one that refers to it",
        "window" => "it was the only open session when the path became valid",
        "shared" => "it was one of the open sessions when the path became valid",
        _ => "the path belongs to it",
    }
}

pub(in crate::ctl) fn sessions(list: &[SessionEntry], now_ms: i64) -> String {
    let rows = list.iter().map(|s| {
        [
            printable(&s.session),
            state(s.state).to_owned(),
            user(s.uid),
            printable(&s.cache),
            s.settled.to_string(),
            s.pending.to_string(),
            s.failed.to_string(),
            age(s.started_at, now_ms),
            printable(s.label.as_deref().unwrap_or("-")),
        ]
    });
    table(["SESSION", "STATE", "USER", "CACHE", "SETTLED", "PENDING", "FAILED", "AGE", "LABEL"], rows)
}

/// The name of a user, or the number where there is none.
fn user(uid: u32) -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| printable(&user.name))
}

pub(in crate::ctl) fn session(d: &SessionDetail, with_steps: bool, now_ms: i64) -> String {
    let mut out = sessions(std::slice::from_ref(&d.session), now_ms);
    if let Some(ci) = &d.session.ci {
        let _ = writeln!(out, "job: {}", printable(&ci.key()));
        for (name, value) in [("project", &ci.project), ("ref", &ci.git_ref), ("url", &ci.url)] {
            if let Some(value) = value {
                let _ = writeln!(out, "{name}: {}", printable(value));
            }
        }
    }
    out.push_str(&summary(&d.summary, Heading::Session));
    let a = &d.summary.attributed;
    let _ = writeln!(
        out,
        "attributed: process {}, hook {}, closure {}, window {}, shared {}, named {}",
        a.process, a.hook, a.closure, a.window, a.shared, a.named
    );
    if with_steps {
        out.push_str(&story(d));
    } else if !d.paths.is_empty() {
        let rows = d
            .paths
            .iter()
            .map(|p| [printable(&p.state), printable(&p.evidence), bytes(p.bytes), printable(&p.path)]);
        out.push_str(&table(["STATE", "BY", "SIZE", "PATH"], rows));
    }
    let listed = d.paths.len() as u64;
    if d.paths_total > listed {
        let _ = writeln!(out, "{} more, not listed", paths(d.paths_total - listed));
    }
    out
}

/// Formats the steps of each path of a session, counted from the session's start.
fn story(d: &SessionDetail) -> String {
    let mut out = String::new();
    let start = d.session.started_at;
    for p in &d.paths {
        let _ = writeln!(
            out,
            "{}\n  {} ({}, evidence {})",
            printable(&p.path),
            printable(&p.state).replace('_', " "),
            bytes(p.bytes),
            printable(&p.evidence)
        );
        let steps = steps(p).into_iter().map(|(what, at)| match u64::try_from(at - start) {
            Ok(ms) => format!("{what} after {}", duration(Duration::from_millis(ms))),
            Err(_) => format!("{what} before the session"),
        });
        let steps = steps.collect::<Vec<_>>().join(", ");
        let tries = if p.attempts > 1 { format!(", {} tries", p.attempts) } else { String::new() };
        if !steps.is_empty() {
            let _ = writeln!(out, "  {steps}{tries}");
        }
    }
    out
}

pub(in crate::ctl) fn state(s: SessionState) -> &'static str {
    match s {
        SessionState::Open => "open",
        SessionState::Draining => "draining",
        SessionState::Closed => "closed",
        SessionState::Abandoned => "abandoned",
    }
}
