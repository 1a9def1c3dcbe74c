//! A session's outcome as Markdown, for the summary of a CI step and for comments on merge
//! requests. Pure.

use std::{fmt::Write, time::Duration};

use super::digest::Digest;
use super::html;
use crate::control::messages::{SessionDetail, Summary};
use crate::ctl::text;

/// The most failures in a table. A step summary may have 1 MiB, a comment less.
const ROWS: usize = 100;

/// Returns the report of a session for a comment.
pub(in crate::ctl) fn page(d: &SessionDetail) -> String {
    let mut out = summary(&d.summary);
    let digest = Digest::of(d);
    if !digest.late.is_empty() {
        let _ = writeln!(
            out,
            "**What delayed the end** ({} had no outcome when the job ended)\n",
            text::paths(digest.late_total as u64)
        );
        for late in &digest.late {
            let when = match late.after {
                Some(after) => format!("{} after the job", text::duration(after)),
                None => "still pending".to_owned(),
            };
            let _ = writeln!(
                out,
                "- <code>{}</code>, {}, {when}",
                cell(&late.path.path),
                text::bytes(late.path.bytes)
            );
        }
        out.push('\n');
    }
    if let [first, ..] = digest.largest.as_slice()
        && first.bytes > 0
    {
        out.push_str("**The largest paths**\n\n");
        for path in &digest.largest {
            let state = path.state.replace('_', " ");
            let _ = writeln!(
                out,
                "- <code>{}</code>, {}, {}",
                cell(&path.path),
                text::bytes(path.bytes),
                cell(&state)
            );
        }
        out.push('\n');
    }
    let (count, bytes) = digest.there;
    if count > 0 {
        let _ = writeln!(
            out,
            "{} ({}) had been in a cache before.\n",
            text::paths(count as u64),
            text::bytes(bytes)
        );
    }
    let user = d.user.as_deref().map(|user| format!(", user {}", cell(user))).unwrap_or_default();
    let _ = writeln!(
        out,
        "<sub>session {} on {}{user}; <code>flywheelctl session show {}</code> lists every path</sub>",
        cell(&d.session.session),
        cell(&d.host),
        cell(&d.session.session)
    );
    out
}

/// Returns the numbers of a summary, and its failures.
pub(in crate::ctl) fn summary(s: &Summary) -> String {
    let mut out = String::from("### flywheel");
    if let Some(label) = &s.label {
        let _ = write!(out, ": {}", cell(label));
    }
    if let Some(shortfall) = text::shortfall(s) {
        let _ = write!(out, "\n\n**{}**", cell(&shortfall));
    }
    out.push_str("\n\n| | |\n|---|---:|\n");
    let mut row = |name: &str, value: String| {
        let _ = writeln!(out, "| {name} | {value} |");
    };
    row("pushed", s.pushed.to_string());
    row("already cached", s.already_cached.to_string());
    row("in upstream", s.upstream.to_string());
    row("failed", s.failed_total.to_string());
    row("pending", s.pending.to_string());
    for (name, why, n) in [("skipped", text::SKIPPED, s.skipped), ("collected", text::COLLECTED, s.collected)]
    {
        if n > 0 {
            row(&format!("{name}: {}", cell(why)), n.to_string());
        }
    }
    row("uploaded", text::bytes(s.bytes));
    row("flush", text::duration(Duration::from_millis(s.flush_ms)));
    if !s.failed.is_empty() {
        out.push_str("\n| failed | reason |\n|---|---|\n");
        for f in s.failed.iter().take(ROWS) {
            let class = text::in_brackets(f.class.as_deref());
            let _ = writeln!(out, "| <code>{}</code> | {}{} |", cell(&f.path), cell(&f.error), cell(&class));
        }
        let listed = s.failed.len().min(ROWS) as u64;
        if s.failed_total > listed {
            let _ = writeln!(out, "\n{} more, not listed", text::paths(s.failed_total - listed));
        }
    }
    out.push('\n');
    out
}

/// Escapes text for a Markdown table: characters of markup become entities.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in html::escape(&text::printable(text)).chars() {
        match c {
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '~' | '@' | '!' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::report::digest::tests::detail;

    #[test]
    fn a_comment_says_what_delayed_the_end_and_survives_hostile_labels() {
        let mut detail = detail();
        detail.summary.label = Some("a|b\n\u{202e}@all [x](javascript:x) <script>".to_owned());
        let page = page(&detail);
        assert!(page.contains("What delayed the end** (3 paths"), "{page}");
        assert!(page.contains("300.0 MiB, 2.5 s after the job"), "{page}");
        assert!(page.contains("1.0 MiB, still pending") && page.contains("on builder-7, user ci"), "{page}");
        assert!(page.contains("1 path (7.0 MiB) had been in a cache before."), "{page}");
        for bad in ["\u{202e}", "@all", "<script", "[x]", "a|b"] {
            assert!(!page.contains(bad), "{bad}: {page}");
        }
    }
}
