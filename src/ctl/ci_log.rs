//! How a CI system's log wants to be written: folds, annotations, and the
//! files through which a step speaks to its runner. Pure; must not print, nor
//! know what the words say.
//!
//! Read in: GitLab "Custom collapsible sections"; GitHub "Workflow commands for
//! GitHub Actions" (Gitea's and Forgejo's runners take the same); Buildkite
//! "Managing log output".

use std::fmt::Write;

use super::{ci, html, text};
use crate::control::messages::Summary;

/// Annotations of one kind that GitHub shows for a step; the rest would be dropped unseen.
const ANNOTATIONS: usize = 10;
/// Failures in a step summary, which may have 1 MiB.
const ROWS: usize = 100;

/// Whose log it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CiLog {
    /// A terminal, a file, Jenkins.
    Plain,
    /// GitLab.
    GitLab,
    /// GitHub, Gitea, Forgejo.
    Actions,
    /// Buildkite.
    Buildkite,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Worth knowing.
    Note,
    /// Not as it should be, and the job goes on.
    Warning,
    /// Why the exit status is not 0.
    Error,
}

impl CiLog {
    /// By the variables that say which system it is.
    pub(super) fn of(lookup: impl Fn(&str) -> Option<String>) -> Self {
        match ci::detect(lookup).as_ref().map(|d| d.job.system.as_str()) {
            Some("gitlab") => Self::GitLab,
            Some("github" | "gitea" | "forgejo") => Self::Actions,
            Some("buildkite") => Self::Buildkite,
            _ => Self::Plain,
        }
    }

    /// A summary's lines with the details folded away, open when something is
    /// amiss. The first line stays outside: it is what people and scripts look for.
    pub(super) fn fold(self, lines: &str, summary: &Summary, now_s: u64) -> String {
        let (first, rest) = lines.split_once('\n').unwrap_or((lines, ""));
        let amiss = text::shortfall(summary).is_some();
        match self {
            Self::Plain => lines.to_owned(),
            Self::GitLab => {
                // Sections of one name in one log would open and close together.
                let id = summary.session.as_deref().unwrap_or("push");
                let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
                let collapsed = !amiss;
                format!(
                    "{first}\nsection_start:{now_s}:flywheel_{id}[collapsed={collapsed}]\r\x1b[0Kflywheel: details\n\
                     {rest}section_end:{now_s}:flywheel_{id}\r\x1b[0K\n"
                )
            }
            // A group is always closed at first, so failures stay outside it as annotations.
            Self::Actions => {
                format!("{first}\n::group::flywheel: details\n{}::endgroup::\n", tame(rest))
            }
            // A section goes on to the next heading, and what stands before it belongs to the step's own.
            Self::Buildkite => {
                format!("{} flywheel: {}\n{lines}", if amiss { "+++" } else { "---" }, counts(summary))
            }
        }
    }

    /// A line for people about something that happened.
    pub(super) fn remark(self, level: Level, text: &str) -> Option<String> {
        let command = match (self, level) {
            (Self::Actions, Level::Warning) => "warning",
            (Self::Actions, Level::Error) => "error",
            _ => return None,
        };
        Some(format!("::{command} title=flywheel::{}\n", data(text)))
    }

    /// Annotations for the paths that failed; one is left for what is said about all of them.
    pub(super) fn failures(self, level: Level, summary: &Summary) -> String {
        let failed = summary.failed.iter().take(ANNOTATIONS - 1);
        let lines = failed.filter_map(|f| self.remark(level, &format!("{}: {}", f.path, f.error)));
        lines.collect()
    }

    /// What goes to the file named by `GITHUB_STEP_SUMMARY`.
    pub(super) fn step_summary(self, summary: &Summary) -> Option<String> {
        (self == Self::Actions).then(|| markdown(summary))
    }

    /// What goes to the file named by `GITHUB_ENV`, for the steps that follow.
    pub(super) fn step_environment(self, session: &str) -> Option<String> {
        // A line break would set other variables of the job.
        let plain = session.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        (self == Self::Actions && plain).then(|| format!("FLYWHEEL_SESSION={session}\n"))
    }
}

/// The message of a workflow command, escaped as the runner's `ActionCommand` undoes it.
fn data(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control() || matches!(c, '\r' | '\n')).collect();
    tame(&text).replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// Runners take `##[command]` anywhere in a line for a command, from whoever it comes.
pub(super) fn tame(text: &str) -> String {
    text.replace("##[", "## [")
}

/// One line.
fn counts(s: &Summary) -> String {
    let mut out = format!("{} pushed, {} already cached", s.pushed, s.already_cached);
    for (n, what) in [(s.failed_total, "failed"), (s.pending, "pending")] {
        if n > 0 {
            let _ = write!(out, ", {n} {what}");
        }
    }
    out
}

fn markdown(s: &Summary) -> String {
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
    for (name, n) in [("skipped", s.skipped), ("collected", s.collected)] {
        if n > 0 {
            row(name, n.to_string());
        }
    }
    row("uploaded", text::bytes(s.bytes));
    row("flush", text::span(std::time::Duration::from_millis(s.flush_ms)));
    if !s.failed.is_empty() {
        out.push_str("\n| failed | reason |\n|---|---|\n");
        for f in s.failed.iter().take(ROWS) {
            let _ = writeln!(out, "| <code>{}</code> | {} |", cell(&f.path), cell(&f.error));
        }
        let listed = s.failed.len().min(ROWS) as u64;
        if s.failed_total > listed {
            let _ = writeln!(out, "\n{} more, not listed", text::paths(s.failed_total - listed));
        }
    }
    out.push('\n');
    out
}

/// Text in a Markdown table: what would be markup is written as an entity.
fn cell(text: &str) -> String {
    let mut out = String::new();
    for c in html::escape(&text::clean(text)).chars() {
        match c {
            '|' | '`' | '*' | '_' | '[' | ']' | '\\' | '~' | '@' | '!' => {
                let _ = write!(out, "&#{};", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}
