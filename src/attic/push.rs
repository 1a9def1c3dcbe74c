//! One run of `attic push --stdin` for some paths. Its result holds what the client
//! reported about each path; only the cache's own answer proves that it has a path.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use super::bootstrap::Workspace;
use super::child::{Ended, Limits};
use super::lines::{Line, parse};

/// Largest number of failures kept from one run, one for each path.
const MOST: usize = 1024;
/// Longest reason kept, in characters.
const REASON: usize = 400;

/// The paths and the limits of one run.
#[derive(Debug, Clone, Copy)]
pub struct Push<'a> {
    /// The client's program.
    pub program: &'a Path,
    /// `SERVER:CACHE`.
    pub cache: &'a str,
    /// Full store paths, none of which refers to another.
    pub paths: &'a [String],
    /// Number of uploads at a time.
    pub jobs: u32,
    /// Limits of the run.
    pub limits: Limits,
}

/// The outcome of a run.
#[derive(Debug)]
pub struct Pushed {
    /// How the client ended.
    pub ended: Ended,
    /// The reasons that it gave for paths that failed, by base name.
    pub failed: HashMap<String, String>,
    /// Why the whole run failed, or else the last line of its output.
    pub last: Option<String>,
}

/// Runs the client and calls `heard` with each line of its output as soon as it arrives.
pub async fn push(workspace: &Workspace, push: Push<'_>, mut heard: impl FnMut(Line<'_>)) -> Pushed {
    let mut command: Vec<OsString> = vec![push.program.into()];
    // The daemon has chosen the paths and has checked that the cache has their references.
    command.extend(["push", "--stdin", "--no-closure", "--ignore-upstream-cache-filter"].map(OsString::from));
    command.extend(["--jobs".into(), push.jobs.to_string().into(), push.cache.into()]);
    let home = [("XDG_CONFIG_HOME", workspace.home.dir().as_os_str().to_owned())];
    let mut failed = HashMap::new();
    let (mut last, mut fatal) = (None, None);
    let short = |text: &str| text.chars().filter(|c| !c.is_control()).take(REASON).collect::<String>();
    let said = |_, line: &str| {
        let line = parse(line);
        match line {
            Line::Failed { base, error } if failed.len() < MOST => {
                failed.insert(base.to_owned(), short(error));
            }
            Line::Fatal(error) => fatal = Some(short(error)),
            Line::Other(text) => last = Some(short(text)),
            Line::Failed { .. } | Line::Pushed { .. } => {}
        }
        heard(line);
    };
    let ended = workspace.runner.run(&command, &home, push.paths, push.limits, said).await;
    Pushed { ended, failed, last: fatal.or(last) }
}
