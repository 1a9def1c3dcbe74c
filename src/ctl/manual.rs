//! Generates the manual pages of `flywheelctl`: names and options from its command
//! line, the other sections from the tables below.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use clap::CommandFactory;

use super::args::{Cli, EXITS};
use super::exit::{Exit, Failure};

/// Lines to type, with a sentence that says what they are for.
type Example = (&'static str, &'static str);

/// The examples of a page, by the page's name.
const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "flywheelctl",
        &[
            (
                "Push what a job builds while it builds, and report it at the end:",
                "flywheelctl session start\nnix-build\nflywheelctl session end --push 'result*'",
            ),
            ("Find out why a path is not in the cache:", "flywheelctl why result"),
            ("Check this host:", "flywheelctl doctor"),
        ],
    ),
    (
        "flywheelctl-session",
        &[(
            "Show the open sessions and the paths of one of them:",
            "flywheelctl session list\nflywheelctl session show ID",
        )],
    ),
    (
        "flywheelctl-session-start",
        &[
            (
                "Open a session for a CI job; its label comes from the CI system:",
                "flywheelctl session start || true",
            ),
            ("Open one by hand and keep its id:", "ID=$(flywheelctl session start --label 'release 1.2')"),
        ],
    ),
    (
        "flywheelctl-session-end",
        &[
            (
                "End the job's session, and also push the results that it links to:",
                "flywheelctl session end --push 'result*'",
            ),
            (
                "Fail the job when one of its paths is not in the cache after ten minutes:",
                "flywheelctl --strict session end --timeout 10m",
            ),
            ("Keep a report with the job's artifacts:", "flywheelctl session end --report flywheel.html"),
        ],
    ),
    (
        "flywheelctl-session-list",
        &[("List the closed sessions as well, as JSON:", "flywheelctl --json session list --all")],
    ),
    (
        "flywheelctl-session-show",
        &[("Show the paths of a session with the evidence for each:", "flywheelctl session show ID")],
    ),
    (
        "flywheelctl-session-report",
        &[("Write a page about a session:", "flywheelctl session report ID --output report.html")],
    ),
    (
        "flywheelctl-run",
        &[(
            "Build in a session and exit with the build's status:",
            "flywheelctl run --push 'result*' -- nix-build release.nix",
        )],
    ),
    (
        "flywheelctl-push",
        &[
            (
                "Push a path with its closure, and wait until it is in the cache:",
                "flywheelctl push --wait ./result",
            ),
            ("Retry a path that has failed:", "flywheelctl push /nix/store/...-name"),
        ],
    ),
    (
        "flywheelctl-flush",
        &[("Wait at most ten minutes before the host is deleted:", "flywheelctl flush --timeout 10m")],
    ),
    ("flywheelctl-why", &[("Show what happened to a build's result:", "flywheelctl why result")]),
    ("flywheelctl-status", &[("Watch caches, queue and sessions:", "flywheelctl status --watch")]),
    (
        "flywheelctl-client",
        &[("Show the attic client and whether Nix can read the caches:", "flywheelctl client")],
    ),
    (
        "flywheelctl-client-status",
        &[("Show the attic client and whether Nix can read the caches:", "flywheelctl client status")],
    ),
    (
        "flywheelctl-client-exec",
        &[("Ask a cache for its settings:", "flywheelctl client exec -- cache info main")],
    ),
    (
        "flywheelctl-nix-conf",
        &[(
            "Let this host's Nix read the caches, as root:",
            "flywheelctl nix-conf >>/etc/nix/nix.conf\nsystemctl restart nix-daemon",
        )],
    ),
    (
        "flywheelctl-hook",
        &[(
            "A line of nix.conf on the machine that builds (the program is a link to flywheelctl):",
            "post-build-hook = /usr/lib/flywheel/flywheel-hook",
        )],
    ),
    (
        "flywheelctl-reload",
        &[("Use a changed configuration:", "flywheeld --check-config && flywheelctl reload")],
    ),
    (
        "flywheelctl-verify",
        &[
            (
                "Fetch a hundred paths that caches should have, and push again what is absent:",
                "flywheelctl verify --sample 100 --repair",
            ),
            ("Check the paths of one session:", "flywheelctl verify --session ID"),
        ],
    ),
    (
        "flywheelctl-logs",
        &[
            ("Show the journal of the job's session:", "flywheelctl logs"),
            (
                "Show the daemon's warnings with their explanations:",
                "flywheelctl logs --daemon --explain --warnings",
            ),
        ],
    ),
    (
        "flywheelctl-setup",
        &[
            (
                "Set this host up for an Attic server, as root, with the token from a file:",
                "flywheelctl setup --server https://attic.example.com --cache main --user gitlab-runner --token-stdin <token",
            ),
            (
                "The same with a program that gives the token whenever one is needed:",
                "flywheelctl setup --server https://attic.example.com --token-command /usr/bin/vault read -field=token attic/ci",
            ),
            ("Replace the token:", "flywheelctl setup --token-stdin <token"),
        ],
    ),
    (
        "flywheelctl-doctor",
        &[(
            "Check this host, also that a path can be pushed and read back, as root:",
            "flywheelctl doctor --push",
        )],
    ),
    (
        "flywheelctl-metrics",
        &[("Write a file for node_exporter's textfile collector:", "flywheelctl metrics >flywheel.prom")],
    ),
    (
        "flywheelctl-completions",
        &[("Complete commands in this shell:", "source <(flywheelctl completions bash)")],
    ),
];

const ENVIRONMENT: &[Example] = &[
    ("FLYWHEEL_SOCKET", "The socket of the daemon, unless --socket is given."),
    ("FLYWHEEL_SESSION", "The session that `session end` ends when it is called without an id."),
    (
        "CI_JOB_ID, GITHUB_RUN_ID, BUILDKITE_JOB_ID, BUILD_TAG and others of the CI system",
        "They name the job: `session start` takes the label from them, and `session end` finds the job's session by them. They authorize nothing.",
    ),
    (
        "GITHUB_ENV, GITHUB_STEP_SUMMARY",
        "Files of the CI system: the session's id and the summary are written to them.",
    ),
];

const FILES: &[Example] = &[
    ("/run/flywheel/control.sock", "The socket of the daemon, open to root and the group flywheel."),
    ("/usr/lib/flywheel/flywheel-hook", "A link to flywheelctl, for Nix's post-build-hook."),
];

/// Writes `flywheelctl.1` and a page for each of its commands into `dir`.
pub(super) fn write(dir: &Path) -> Result<Exit, Failure> {
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    pages(&command, dir)
        .map_err(|e| Failure::Usage(format!("cannot write manual pages to {}: {e}", dir.display())))?;
    Ok(Exit::Done)
}

/// Writes the pages of a command and of its visible subcommands.
fn pages(command: &clap::Command, dir: &Path) -> io::Result<()> {
    for subcommand in command.get_subcommands().filter(|s| !s.is_hide_set()) {
        pages(subcommand, dir)?;
    }
    let page = clap_mangen::Man::new(command.clone()).manual("flywheel");
    let name = page.get_filename();
    let out = &mut File::create(dir.join(&name))?;
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    if command.get_subcommands().any(|s| !s.is_hide_set()) {
        page.render_subcommands_section(out)?;
    }
    let name = name.trim_end_matches(".1");
    section(out, "EXIT STATUS", &exit_statuses(name))?;
    section(out, "ENVIRONMENT", &owned(ENVIRONMENT))?;
    section(out, "FILES", &owned(FILES))?;
    writeln!(out, ".SH EXAMPLES")?;
    for (why, lines) in examples(name) {
        writeln!(out, ".PP\n{}\n.PP\n.nf\n.RS", escaped(why))?;
        for line in lines.lines() {
            writeln!(out, "{}", escaped(line))?;
        }
        writeln!(out, ".RE\n.fi")?;
    }
    writeln!(out, ".SH \"SEE ALSO\"")?;
    if name != "flywheelctl" {
        writeln!(out, ".BR flywheelctl (1),")?;
    }
    writeln!(out, ".BR flywheeld (8),\n.BR flywheel.toml (5)")
}

/// The examples of a page.
fn examples(page: &str) -> &'static [Example] {
    EXAMPLES.iter().find(|(name, _)| *name == page).map_or(&[], |(_, examples)| *examples)
}

/// The statuses of the help text, each with its meaning.
fn exit_statuses(page: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in EXITS.lines().skip(1) {
        match line.trim().split_once("  ") {
            Some((status, meaning)) => found.push((status.to_owned(), meaning.to_owned())),
            // The line continues the one before it.
            None => found.last_mut().into_iter().for_each(|(_, meaning)| {
                meaning.push(' ');
                meaning.push_str(line.trim());
            }),
        }
    }
    if page == "flywheelctl-run" {
        let meaning =
            "The command's own status. With --strict, one of the others when the command succeeded.";
        found.push(("any other".to_owned(), meaning.to_owned()));
    }
    found
}

fn owned(items: &[Example]) -> Vec<(String, String)> {
    items.iter().map(|(term, text)| ((*term).to_owned(), (*text).to_owned())).collect()
}

/// Writes a section of terms with their explanations.
fn section(out: &mut File, heading: &str, items: &[(String, String)]) -> io::Result<()> {
    writeln!(out, ".SH \"{heading}\"")?;
    for (term, text) in items {
        writeln!(out, ".TP\n{}\n{}", escaped(term), escaped(text))?;
    }
    Ok(())
}

/// A line of text as roff has it: a leading dot or quote would be a request.
fn escaped(line: &str) -> String {
    let line = line.replace('\\', "\\e").replace('-', "\\-");
    if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command has a page with an example, and no page is left of a command that was removed.
    #[test]
    fn every_page_has_an_example() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap_or_else(|_| panic!("no pages"));
        let mut pages: Vec<String> = Vec::new();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            assert!(!examples(&name).is_empty(), "{name}: EXAMPLES has none");
            for heading in ["EXIT STATUS", "ENVIRONMENT", "FILES", "EXAMPLES", "SEE ALSO"] {
                let shown = [format!(".SH \"{heading}\"\n"), format!(".SH {heading}\n")];
                assert!(shown.iter().any(|s| text.contains(s)), "{name}: {heading}");
            }
            pages.push(name);
        }
        for (name, _) in EXAMPLES {
            assert!(pages.iter().any(|page| page == name), "there is no command {name}");
        }
    }
}
