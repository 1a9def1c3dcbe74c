//! Replies as text for people. Pure; must not print, nor know where the text goes.

use std::{collections::BTreeSet, fmt::Write, time::Duration};

use super::doctor::{Finding, Level};
use super::nix_conf::{Knows, Lines};
use super::pace::Pace;
use super::push_stdin::Settled;
use super::render::Heading;
use super::report::steps;
use super::setup::Plan;
use super::verify::Report;
use crate::control::messages::{
    ClientInfo, ClientServer, ClientStatus, PathStory, Progress, SessionDetail, SessionEntry, SessionState,
    Status, Summary,
};
pub(super) use crate::types::printable;

pub(super) fn duration(d: Duration) -> String {
    match d.as_millis() {
        ms @ 0..=999 => format!("{ms} ms"),
        1000..=59_999 => format!("{:.1} s", d.as_secs_f64()),
        _ => {
            let s = d.as_secs();
            match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
                (0, 0, m, s) => format!("{m} min {s} s"),
                (0, h, m, _) => format!("{h} h {m} min"),
                (d, h, _, _) => format!("{d} d {h} h"),
            }
        }
    }
}

pub(super) fn bytes(n: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // one digit after the point is shown
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

pub(super) fn paths(n: u64) -> String {
    if n == 1 { "1 path".to_owned() } else { format!("{n} paths") }
}

/// What skipped paths are.
pub(super) const SKIPPED: &str =
    "sources, .drv files, or left out by a filter or route: `flywheelctl why PATH`";
/// What collected paths are.
pub(super) const COLLECTED: &str = "deleted from the store before they were pushed";

pub(super) fn summary(s: &Summary, heading: Heading) -> String {
    let mut out = String::new();
    let _ = match heading {
        // Scripts look for exactly this line.
        Heading::Session => writeln!(out, "watch-store pushed {} store paths incrementally", s.pushed),
        Heading::Push => writeln!(out, "pushed {} store paths", s.pushed),
        Heading::Flush => writeln!(out, "flushed: pushed {} store paths", s.pushed),
    };
    let mut line = |name: &str, value: String| {
        let _ = writeln!(out, "  {name:<15} {value}");
    };
    line("already cached:", s.already_cached.to_string());
    line("in upstream:", s.upstream.to_string());
    line("failed:", s.failed_total.to_string());
    line("pending:", s.pending.to_string());
    if s.skipped > 0 {
        line("skipped:", format!("{} ({SKIPPED})", s.skipped));
    }
    if s.collected > 0 {
        line("collected:", format!("{} ({COLLECTED})", s.collected));
    }
    line("bytes:", if s.bytes < 1024 { bytes(s.bytes) } else { format!("{} ({})", s.bytes, bytes(s.bytes)) });
    line("flush:", duration(Duration::from_millis(s.flush_ms)));
    if s.without_realisation > 0 {
        let why =
            "content-addressed; this cache keeps no realisations, so the next pipeline builds them again";
        line("not found again:", format!("{} ({why})", s.without_realisation));
    }
    match (s.engine.as_str(), s.waited_for_client) {
        ("attic", true) => line("engine:", "attic, which had to wait for its client".to_owned()),
        ("attic", false) => line("engine:", "attic".to_owned()),
        _ => {}
    }
    for failed in &s.failed {
        let class = in_brackets(failed.class.as_deref());
        let _ = writeln!(out, "failed: {}: {}{class}", printable(&failed.path), printable(&failed.error));
    }
    let listed = s.failed.len() as u64;
    if s.failed_total > listed {
        let _ = writeln!(out, "failed: {} more, not listed", paths(s.failed_total - listed));
    }
    out.push_str(&explained(s.failed.iter().filter_map(|failed| failed.class.as_deref())));
    out
}

/// The class of an error after its text: ` [too-large]`.
pub(super) fn in_brackets(class: Option<&str>) -> String {
    class.map(|class| format!(" [{}]", printable(class))).unwrap_or_default()
}

/// A line that says where these classes are explained; empty for none.
fn explained<'a>(classes: impl Iterator<Item = &'a str>) -> String {
    let classes: BTreeSet<&str> = classes.collect();
    if classes.is_empty() {
        return String::new();
    }
    let classes = printable(&classes.into_iter().collect::<Vec<_>>().join(", "));
    format!("help: `man flywheel-errors` (docs/errors.md) explains {classes}\n")
}

/// Formats what became of one path.
pub(super) fn settled(settled: &Settled) -> String {
    let outcome = printable(&settled.outcome).replace('_', " ");
    let error = settled.error.as_deref().map(|e| format!(": {}", printable(e))).unwrap_or_default();
    format!("{outcome}: {}{error}\n", printable(&settled.path))
}

/// Formats what a verification found.
pub(super) fn verification(report: &Report) -> String {
    let found = &report.found;
    let mut out = String::new();
    for problem in &found.problems {
        let kind = printable(&problem.problem).replace('_', " ");
        let (path, cache) = (printable(&problem.path), printable(&problem.cache));
        let _ = writeln!(out, "{kind}: {path} (cache {cache}): {}", printable(&problem.detail));
    }
    let listed = found.problems.len() as u64;
    if found.problems_total > listed {
        let _ = writeln!(out, "and {} more, not listed", paths(found.problems_total - listed));
    }
    let _ = write!(
        out,
        "verified {}: {} good, {} with a problem",
        paths(found.verified),
        found.good,
        found.problems_total
    );
    if !report.repaired.is_empty() {
        let _ = write!(out, ", {} repaired", report.repaired.len());
    }
    if found.upstream > 0 {
        let _ = write!(out, ", {} in an upstream cache", found.upstream);
    }
    if found.unchecked > 0 {
        let _ = write!(out, ", {} not checked before the deadline", found.unchecked);
    }
    let took = duration(Duration::from_millis(found.duration_ms));
    let _ = writeln!(out, " ({} in {took})", bytes(found.bytes));
    out
}

/// Formats what happened to paths.
pub(super) fn stories(stories: &[PathStory], now_ms: i64) -> String {
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

/// Returns how many paths are failed or pending, in words; none when all are in the
/// cache.
pub(super) fn shortfall(s: &Summary) -> Option<String> {
    let cache = if s.cache.is_empty() { String::new() } else { format!(" to cache {}", printable(&s.cache)) };
    let failed = format!("pushing {}{cache} failed", paths(s.failed_total));
    let verb = if s.pending == 1 { "is" } else { "are" };
    let waits = "and the daemon continues";
    match (s.failed_total, s.pending) {
        (0, 0) => None,
        (0, p) => Some(format!("pushing {}{cache} is not finished: the daemon continues", paths(p))),
        (_, 0) => Some(failed),
        (_, p) => Some(format!("{failed}; {} {verb} pending, {waits}", paths(p))),
    }
}

/// Formats how far a wait is: its paths and bytes, the rate, the time left and the slow ones.
pub(super) fn progress(p: &Progress, pace: &Pace) -> String {
    let mut out = format!("{}/{} paths", p.settled, p.total);
    if p.uploading > 0 {
        let _ = write!(out, ", {} uploading", p.uploading);
    }
    match (p.bytes_sent, p.bytes_left) {
        (0, 0) => {}
        (sent, 0) => {
            let _ = write!(out, ", {} sent", bytes(sent));
        }
        (sent, left) => {
            let _ = write!(out, ", {} of {} sent", bytes(sent), bytes(sent + left));
        }
    }
    if let Some(rate) = pace.rate().filter(|_| p.bytes_left > 0) {
        let _ = write!(out, ", {}/s", bytes(rate));
    }
    if let Some(left) = pace.left(p.bytes_left) {
        let _ = write!(out, ", about {} left", duration(left));
    }
    if !p.slow.is_empty() {
        let slow = p.slow.iter().map(|u| {
            let running = duration(Duration::from_secs(u.running_ms / 1000));
            let sent = if u.measured { format!("{} of ", bytes(u.sent)) } else { String::new() };
            format!("{} ({sent}{}, {running})", name(&u.path), bytes(u.nar_size))
        });
        let _ = write!(out, "; slow: {}", slow.collect::<Vec<_>>().join(", "));
    }
    if let Some(note) = &p.note {
        let _ = write!(out, ", {}", printable(note));
    }
    out
}

/// The name of a store path without its directory and hash, which say little to people.
pub(super) fn name(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    printable(base.split_once('-').map_or(base, |(_, name)| name))
}

/// `[#####---------------]`
pub(super) fn bar(p: &Progress) -> String {
    const WIDTH: u64 = 20;
    let full = p.settled.min(p.total).saturating_mul(WIDTH).checked_div(p.total).unwrap_or_default();
    let width = |n: u64| usize::try_from(n).unwrap_or_default();
    format!("[{}{}]", "#".repeat(width(full)), "-".repeat(width(WIDTH - full)))
}

pub(super) fn sessions(list: &[SessionEntry], now_ms: i64) -> String {
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

pub(super) fn session(d: &SessionDetail, with_steps: bool, now_ms: i64) -> String {
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

pub(super) fn status(s: &Status, now_ms: i64) -> String {
    let mut out = String::new();
    let draining = if s.draining { ", stopping" } else { "" };
    let _ = writeln!(
        out,
        "flywheel {}, up {}{draining}",
        printable(&s.version),
        duration(Duration::from_millis(s.uptime_ms))
    );
    for c in &s.cache {
        let state = c.state.as_str();
        let endpoint = printable(c.endpoint.as_deref().unwrap_or("no endpoint found"));
        let _ =
            write!(out, "cache {}: {state}, {endpoint}, engine {}", printable(&c.name), printable(&c.engine));
        if let Some(reason) = &c.reason {
            let _ = write!(out, ": {}", printable(reason));
        }
        out.push('\n');
    }
    let q = &s.queue;
    let _ = writeln!(out, "queue: {} pending, {} uploading, {} failed", q.pending, q.uploading, q.failed);
    let _ = write!(out, "store: {} behind (cursor {})", paths(s.store.lag), s.store.cursor);
    if let Some(files) = &s.store.files {
        let _ = write!(out, ", in {}", printable(files));
    }
    if let Some(problem) = &s.store.problem {
        let _ = write!(out, ": {}", printable(problem));
    }
    let _ = write!(out, "\nledger: {}", printable(&s.ledger.state));
    if let Some(detail) = &s.ledger.detail {
        let _ = write!(out, ": {}", printable(detail));
    }
    let _ = writeln!(out, "\nclient: {}", client(&s.client, now_ms));
    if !s.sessions.is_empty() {
        out.push_str(&sessions(&s.sessions, now_ms));
    }
    for p in &s.failed {
        let _ = writeln!(out, "failed: {}: {}", printable(&p.path), printable(&p.error));
    }
    let listed = s.failed.len() as u64;
    if q.failed > listed && listed > 0 {
        let _ = writeln!(out, "failed: {} more, not listed", paths(q.failed - listed));
    }
    out
}

fn client(c: &ClientStatus, now_ms: i64) -> String {
    let mut out = printable(&c.state);
    if let Some(path) = &c.path {
        let _ = write!(out, ", {}", printable(path));
    }
    if let Some(version) = &c.version {
        let _ = write!(out, " ({})", printable(version));
    }
    if let Some(since) = c.since {
        let _ = write!(out, ", here for {}", age(since, now_ms));
    }
    if let Some(error) = &c.error {
        let _ = write!(out, ": {}", printable(error));
    }
    out
}

/// Formats the findings of `doctor`, bad ones first.
pub(super) fn findings(findings: &[Finding]) -> String {
    let mut out = String::new();
    for (level, word) in
        [(Level::Bad, "BAD"), (Level::Unchecked, "not checked"), (Level::Note, "note"), (Level::Good, "good")]
    {
        for f in findings.iter().filter(|f| f.level == level) {
            let _ = writeln!(out, "{word:<11}  {}: {}", printable(&f.what), printable(&f.text));
            if let Some(command) = &f.command {
                let _ = writeln!(out, "{:<11}  run: {}", "", printable(command));
            }
        }
    }
    out
}

/// Formats what `setup` will do.
pub(super) fn plan(plan: &Plan, dry_run: bool) -> String {
    let mut out = String::new();
    for kept in &plan.kept {
        let _ = writeln!(out, "  ok  {}", printable(kept));
    }
    if plan.steps.is_empty() {
        out.push_str("There is nothing to change.\n");
    } else {
        out.push_str(if dry_run { "This would be done:\n" } else { "This will be done:\n" });
    }
    for step in &plan.steps {
        let text: Vec<String> = step.text().lines().map(printable).collect();
        let _ = writeln!(out, "  -   {}", text.join("\n"));
    }
    for later in &plan.later {
        let _ = writeln!(out, "  -   then {}", printable(later));
    }
    out
}

pub(super) fn client_info(info: &ClientInfo, known: &[Option<Knows>], now_ms: i64) -> String {
    let c = &info.client;
    let mut out = format!("client: {}\n", client(c, now_ms));
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "  {name:<12} {value}");
        }
    };
    line("from:", c.installable.as_deref().map(printable));
    line("fetched in:", c.took_ms.map(|ms| duration(Duration::from_millis(ms))));
    line("waited:", c.waited_ms.map(|ms| duration(Duration::from_millis(ms))));
    for (server, knows) in info.servers.iter().zip(known) {
        reading(&mut out, server, knows.as_ref(), info.netrc.as_deref());
    }
    out
}

/// Formats whether Nix on this host reads a cache, and what to do if it does not.
fn reading(out: &mut String, server: &ClientServer, knows: Option<&Knows>, netrc: Option<&str>) {
    let url = server.substituter.as_deref().unwrap_or("its substituter is not known yet");
    let _ = writeln!(out, "cache {}: {}", printable(&server.name), printable(url));
    let mut line = |name: &str, good: bool, otherwise: &str| {
        let _ = writeln!(out, "  {name:<22} {}", if good { "yes" } else { otherwise });
    };
    if let Some(knows) = knows.filter(|_| server.substituter.is_some()) {
        let hint = "no: add what `flywheelctl nix-conf` prints to nix.conf";
        line("a substituter of Nix:", knows.substituter, hint);
        line("its key is trusted:", knows.public_key, hint);
        match (knows.netrc, netrc) {
            (None, _) => {}
            (Some(good), Some(_)) => line("Nix uses its netrc:", good, hint),
            (Some(good), None) => {
                line(
                    "Nix uses its netrc:",
                    good,
                    "no: it is private; set [nix] netrc and its pull_token_file",
                );
            }
        }
    }
    let problem = printable(server.problem.as_deref().unwrap_or("the reason is not known"));
    match server.readable {
        Some(good) => line("can be read:", good, &format!("no: {problem}")),
        None => line("can be read:", false, "not known: the cache has not answered yet"),
    }
}

/// Formats lines for nix.conf.
pub(super) fn nix_conf(lines: &Lines) -> String {
    let mut out = String::new();
    for (key, values) in [
        ("extra-substituters", &lines.substituters),
        ("extra-trusted-public-keys", &lines.trusted_public_keys),
    ] {
        if !values.is_empty() {
            let _ = writeln!(out, "{key} = {}", printable(&values.join(" ")));
        }
    }
    if let Some(file) = &lines.netrc_file {
        let _ = writeln!(out, "netrc-file = {}", printable(file));
    }
    if lines.client_certificates {
        out.push_str("# Nix 2.34 and newer send the certificate that a substituter's address names.\n");
    }
    for file in &lines.ca_files {
        let file = printable(file);
        let _ = write!(
            out,
            "# The authority of a server is private. Nix reads one file for all substituters: make one with the\n\
             # system's certificates and those in {file}, and name it here:\n# ssl-cert-file = /etc/ssl/nix-authorities.pem\n"
        );
    }
    if lines.fallback {
        out.push_str(
            "# Builds continue while a cache cannot be reached. Restart the nix-daemon to make it read nix.conf.\n",
        );
        out.push_str("fallback = true\n");
    }
    if let Some(seconds) = lines.connect_timeout {
        let _ = writeln!(out, "connect-timeout = {seconds}");
    }
    out
}

pub(super) fn state(s: SessionState) -> &'static str {
    match s {
        SessionState::Open => "open",
        SessionState::Draining => "draining",
        SessionState::Closed => "closed",
        SessionState::Abandoned => "abandoned",
    }
}

fn age(started_ms: i64, now_ms: i64) -> String {
    match u64::try_from((now_ms - started_ms) / 1000).unwrap_or_default() {
        seconds @ 0..=59 => format!("{seconds} s"),
        seconds => duration(Duration::from_secs(seconds)),
    }
}

/// Formats a table. Each column but the last is as wide as its widest cell.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
