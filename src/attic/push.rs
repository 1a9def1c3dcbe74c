//! `attic push --stdin`: one run for some paths. Whether they are in the cache
//! afterwards is not told by this; what is told is what the client said of each.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;

use super::bootstrap::Place;
use super::child::{Ended, Limits};
use super::lines::{Line, parse};

/// Failures that are remembered of one run; there is one a path.
const MOST: usize = 1024;
/// Longest reason that is kept.
const REASON: usize = 400;

/// One run.
#[derive(Debug, Clone, Copy)]
pub struct Push<'a> {
    /// The client.
    pub program: &'a Path,
    /// `SERVER:CACHE`.
    pub cache: &'a str,
    /// Full store paths, none of which refers to another.
    pub paths: &'a [String],
    /// Uploads at a time.
    pub jobs: u32,
    /// What it may take.
    pub limits: Limits,
}

/// What came of it.
#[derive(Debug)]
pub struct Pushed {
    /// How the client ended.
    pub ended: Ended,
    /// What it said of paths that failed, by base name.
    pub failed: HashMap<String, String>,
    /// Why it gave up as a whole, or the last thing it said.
    pub last: Option<String>,
}

/// Runs it; each line is told to `heard` as it comes.
pub async fn push(place: &Place, push: Push<'_>, mut heard: impl FnMut(Line<'_>)) -> Pushed {
    let mut command: Vec<OsString> = vec![push.program.into()];
    // What is pushed, and that its references are there, has been decided.
    command.extend(["push", "--stdin", "--no-closure", "--ignore-upstream-cache-filter"].map(OsString::from));
    command.extend(["--jobs".into(), push.jobs.to_string().into(), push.cache.into()]);
    let home = [("XDG_CONFIG_HOME", place.home.dir().as_os_str().to_owned())];
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
    let ended = place.runner.run(&command, &home, push.paths, push.limits, said).await;
    Pushed { ended, failed, last: fatal.or(last) }
}
