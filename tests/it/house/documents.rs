//! The documents: what they name and link to is there, and the README stays short.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::documents::blocks;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The pages of the book, sorted, without its table of contents.
fn book() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("docs")).unwrap().map(|e| e.unwrap().path());
    let mut pages: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "md")).collect();
    pages.retain(|p| !p.ends_with("SUMMARY.md"));
    pages.sort();
    pages
}

/// All documents that people read.
fn documents() -> Vec<PathBuf> {
    let top = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"].map(|page| root().join(page));
    top.into_iter().chain([root().join("docs/SUMMARY.md")]).chain(book()).collect()
}

/// What a page links to inside this repository: a file, an anchor, or both.
fn links(text: &str) -> Vec<(&str, Option<&str>)> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let targets = targets.filter(|to| !to.contains(':'));
    targets.map(|to| to.split_once('#').map_or((to, None), |(file, anchor)| (file, Some(anchor)))).collect()
}

/// The anchors of a page's headings, as GitHub and mdBook make them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = text.lines().filter(|l| l.starts_with('#')).map(|l| l.trim_start_matches('#').trim());
    let letters = |heading: &str| {
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(letters).collect()
}

/// The files that mdBook puts into a page.
fn included(text: &str) -> Vec<&str> {
    text.split("{{#include ").skip(1).map(|rest| rest.split("}}").next().unwrap()).collect()
}

#[test]
fn the_readme_has_at_most_150_lines() {
    let lines = fs::read_to_string(root().join("README.md")).unwrap().lines().count();
    assert!(lines <= 150, "README.md has {lines} lines: move something into docs/");
}

/// The files that the documents name in backquotes, include or link to exist, and so do the
/// headings that they link to.
#[test]
fn the_documents_name_what_is_there() {
    let (mut absent, mut seen) = (Vec::new(), 0);
    for page in documents() {
        let text = fs::read_to_string(&page).unwrap();
        let from = page.parent().unwrap();
        let named = text.split('`').skip(1).step_by(2).filter(|name| {
            ["src/", "tests/", "packaging/", "systemd/", "docs/"].iter().any(|d| name.starts_with(d))
                && !name.contains([' ', '*', '<', '…'])
        });
        let named = named.map(|name| root().join(name));
        for file in named.chain(included(&text).into_iter().map(|file| from.join(file))) {
            seen += 1;
            if !file.exists() {
                absent.push(format!("{} names {}", page.display(), file.display()));
            }
        }
        for (file, anchor) in links(&text) {
            seen += 1;
            let target = if file.is_empty() { page.clone() } else { from.join(file) };
            let there = match anchor {
                Some(anchor) => fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor)),
                None => target.exists(),
            };
            if !there {
                absent.push(format!("{} links to {file}#{}", page.display(), anchor.unwrap_or_default()));
            }
        }
    }
    assert!(absent.is_empty() && seen > 150, "{seen}: {}", absent.join("\n"));
}

/// Every page is in the table of contents, and links lead to pages of the book, since the files
/// outside of `docs` are not part of it.
#[test]
fn the_book_is_complete_and_closed() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).unwrap();
    let listed: BTreeSet<&str> = links(&summary).into_iter().map(|(file, _)| file).collect();
    for page in book() {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(listed.contains(name), "docs/SUMMARY.md does not list {name}");
        let mut text = fs::read_to_string(&page).unwrap();
        let pieces: Vec<PathBuf> =
            included(&text).iter().map(|file| root().join("docs").join(file)).collect();
        for piece in pieces.iter().filter(|p| p.extension().is_some_and(|e| e == "md")) {
            text.push_str(&fs::read_to_string(piece).unwrap());
        }
        for (file, _) in links(&text) {
            assert!(!file.starts_with(".."), "{name} links to {file}, which is not part of the book");
        }
    }
}

/// The commands that the README shows, and the tests that run them as they are written.
const RUN: [(&str, &str); 5] = [
    ("packaging/quickstart.sh", "quickstart::the_quick_start_prints_what_the_readme_shows"),
    // It runs this test, so no test runs it.
    ("tests/run.sh", ""),
    // systemd::readme has it make the package outside of the container, which has no Rust.
    ("packaging/deb.sh", "systemd::readme::the_package_is_installed_as_the_readme_says"),
    (
        "apt install ./target/debian/flywheel_*.deb",
        "systemd::readme::the_package_is_installed_as_the_readme_says",
    ),
    (
        "flywheelctl setup --server https://attic.example.com --cache main --user gitlab-runner --token-stdin",
        "systemd::readme::the_package_is_installed_as_the_readme_says",
    ),
];

/// Each command of the README has a test, and each of these tests exists.
#[test]
fn every_command_of_the_readme_is_run() {
    let shown = blocks("README.md", "sh").concat();
    let shown: BTreeSet<&str> = shown.lines().collect();
    let tested: BTreeSet<&str> = RUN.iter().map(|(command, _)| *command).collect();
    assert_eq!(shown, tested);
    for (command, test) in RUN.iter().filter(|(_, test)| !test.is_empty()) {
        let (module, function) = test.rsplit_once("::").unwrap();
        let file = root().join("tests/it").join(module.replace("::", "/")).with_extension("rs");
        let text = fs::read_to_string(file).unwrap();
        assert!(text.contains(&format!("fn {function}(")), "{command}: there is no test {test}");
    }
}

/// The words of a table's first column, under the heading of a page.
fn first_column(page: &str, heading: &str) -> BTreeSet<String> {
    let section = page.split(&format!("\n## {heading}\n")).nth(1).unwrap_or_else(|| panic!("no {heading}"));
    let section = section.split("\n## ").next().unwrap();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    cells.map(str::to_owned).collect()
}

/// Every error class and every `outcome` of an error in the sources has a row in docs/errors.md, and
/// no other word has one.
#[test]
fn every_error_has_its_row() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    // The words that a function returns, in a match.
    let returned = |path: &str, function: &str| -> BTreeSet<String> {
        let text = read(path);
        let body = text.split(function).nth(1).unwrap().split("\n    }\n").next().unwrap();
        body.split("=> \"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect()
    };
    let mut classes = returned("src/cache/error.rs", "pub fn as_str(self)");
    let recorded = super::sources();
    let recorded = recorded.iter().filter(|source| source.path.starts_with("daemon/"));
    for source in recorded {
        let words = source.full.split("PushError::new(\"").skip(1);
        classes.extend(words.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    let outcomes = returned("src/ctl/exit.rs", "fn outcome(&self)");
    assert!(classes.len() >= 13 && outcomes.len() >= 9, "{classes:?} {outcomes:?}");
    let page = read("docs/errors.md");
    assert_eq!(first_column(&page, "Error classes of a push"), classes);
    let man =
        Command::new("packaging/errors-man.sh").arg("docs/errors.md").current_dir(root()).output().unwrap();
    let man = String::from_utf8(man.stdout).unwrap();
    for class in &classes {
        let entry = format!(".TP\n\\fB\\fB{}\\fR\\fR\n", class.replace('-', "\\-"));
        assert!(man.contains(&entry), "{class} is not in flywheel-errors(7)");
    }
    assert_eq!(first_column(&page, "`outcome` of an error in JSON"), outcomes);
}
