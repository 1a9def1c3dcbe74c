//! The formats of CI systems' logs: sections that can be collapsed, annotations, and
//! the files by which a step passes values to its runner. Pure; must not print.
//!
//! Sources: GitLab "Custom collapsible sections"; GitHub "Workflow commands for
//! GitHub Actions" (Gitea's and Forgejo's runners take the same); Buildkite
//! "Managing log output".

use std::fmt::Write;

use super::{ci, report::markdown, text};
use crate::control::messages::Summary;

/// The most annotations of one kind that GitHub shows for a step; it drops the rest.
const ANNOTATIONS: usize = 10;

/// The CI system whose log standard error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CiLog {
    /// None: a terminal, a file, Jenkins.
    Plain,
    /// GitLab.
    GitLab,
    /// GitHub, Gitea, Forgejo.
    Actions,
    /// Buildkite.
    Buildkite,
}

/// The severity of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    /// Information.
    Note,
    /// Something is wrong, and the job goes on.
    Warning,
    /// The reason why the exit status is not 0.
    Error,
}

impl CiLog {
    /// Finds the system by its environment variables.
    pub(super) fn of(lookup: impl Fn(&str) -> Option<String>) -> Self {
        match ci::detect(lookup).as_ref().map(|d| d.job.system.as_str()) {
            Some("gitlab") => Self::GitLab,
            Some("github" | "gitea" | "forgejo") => Self::Actions,
            Some("buildkite") => Self::Buildkite,
            _ => Self::Plain,
        }
    }

    /// Puts a summary's lines into a section that can be collapsed, and that is open
    /// when a path failed or is pending. The first line stays outside, because people
    /// and scripts look for it.
    pub(super) fn collapsed(self, lines: &str, summary: &Summary, now_s: u64) -> String {
        let (first, rest) = lines.split_once('\n').unwrap_or((lines, ""));
        let amiss = text::shortfall(summary).is_some();
        match self {
            Self::Plain => lines.to_owned(),
            Self::GitLab => {
                // Sections of one name would open and close together.
                let id = summary.session.as_deref().unwrap_or("push");
                let id: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
                let collapsed = !amiss;
                format!(
                    "{first}\nsection_start:{now_s}:flywheel_{id}[collapsed={collapsed}]\r\x1b[0Kflywheel: details\n\
                     {rest}section_end:{now_s}:flywheel_{id}\r\x1b[0K\n"
                )
            }
            // A group is always collapsed at first, so failures are annotations outside of it.
            Self::Actions => {
                format!("{first}\n::group::flywheel: details\n{rest}::endgroup::\n")
            }
            // A section reaches to the next heading.
            Self::Buildkite => {
                format!("{} flywheel: {}\n{lines}", if amiss { "+++" } else { "---" }, counts(summary))
            }
        }
    }

    /// Formats a message as an annotation, where the system has them.
    pub(super) fn annotation(self, level: Level, text: &str) -> Option<String> {
        let command = match (self, level) {
            (Self::Actions, Level::Warning) => "warning",
            (Self::Actions, Level::Error) => "error",
            _ => return None,
        };
        Some(format!("::{command} title=flywheel::{}\n", data(text)))
    }

    /// Formats annotations for the failed paths. One of the allowed annotations is left
    /// for the message about all of them.
    pub(super) fn failures(self, level: Level, summary: &Summary) -> String {
        let failed = summary.failed.iter().take(ANNOTATIONS - 1);
        let lines = failed.filter_map(|f| self.annotation(level, &format!("{}: {}", f.path, f.error)));
        lines.collect()
    }

    /// Returns the text for the file named by `GITHUB_STEP_SUMMARY`, if there is one.
    pub(super) fn step_summary(self, summary: &Summary) -> Option<String> {
        (self == Self::Actions).then(|| markdown::summary(summary))
    }

    /// Returns the line for the file named by `GITHUB_ENV`, which sets the session for
    /// the steps that follow.
    pub(super) fn step_environment(self, session: &str) -> Option<String> {
        // A line break would set other variables of the job.
        let plain = session.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        (self == Self::Actions && plain).then(|| format!("FLYWHEEL_SESSION={session}\n"))
    }
}

/// Escapes the message of a workflow command as the runner's `ActionCommand` expects.
fn data(message: &str) -> String {
    let lines = message.lines().map(|line| text::printable(line).replace('%', "%25"));
    lines.collect::<Vec<_>>().join("%0A")
}

/// Returns the main numbers of a summary in one line.
fn counts(s: &Summary) -> String {
    let mut out = format!("{} pushed, {} already cached", s.pushed, s.already_cached);
    for (n, what) in [(s.failed_total, "failed"), (s.pending, "pending")] {
        if n > 0 {
            let _ = write!(out, ", {n} {what}");
        }
    }
    out
}
