//! What became of paths as text: summaries, single outcomes, verification and progress. Pure;
//! must not print.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use super::super::pace::Pace;
use super::super::push_stdin::Settled;
use super::super::render::Heading;
use super::super::verify::Report;
use super::{bytes, duration, paths, printable};
use crate::control::messages::{Progress, Summary};

/// What skipped paths are.
pub(in crate::ctl) const SKIPPED: &str =
    "sources, .drv files, or left out by a filter or route: `flywheelctl why PATH`";

/// What collected paths are.
pub(in crate::ctl) const COLLECTED: &str = "deleted from the store before they were pushed";

pub(in crate::ctl) fn summary(s: &Summary, heading: Heading) -> String {
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
pub(in crate::ctl) fn in_brackets(class: Option<&str>) -> String {
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
pub(in crate::ctl) fn settled(settled: &Settled) -> String {
    let outcome = printable(&settled.outcome).replace('_', " ");
    let error = settled.error.as_deref().map(|e| format!(": {}", printable(e))).unwrap_or_default();
    format!("{outcome}: {}{error}\n", printable(&settled.path))
}

/// Formats what a verification found.
pub(in crate::ctl) fn verification(report: &Report) -> String {
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

/// Returns how many paths are failed or pending, in words; none when all are in the
/// cache.
pub(in crate::ctl) fn shortfall(s: &Summary) -> Option<String> {
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
pub(in crate::ctl) fn progress(p: &Progress, pace: &Pace) -> String {
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
pub(in crate::ctl) fn name(path: &str) -> String {
    let base = path.rsplit('/').next().unwrap_or(path);
    printable(base.split_once('-').map_or(base, |(_, name)| name))
}

/// `[#####---------------]`
pub(in crate::ctl) fn bar(p: &Progress) -> String {
    const WIDTH: u64 = 20;
    let full = p.settled.min(p.total).saturating_mul(WIDTH).checked_div(p.total).unwrap_or_default();
    let width = |n: u64| usize::try_from(n).unwrap_or_default();
    format!("[{}{}]", "#".repeat(width(full)), "-".repeat(width(WIDTH - full)))
}
