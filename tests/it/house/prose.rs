//! The words that people read: in documents, help, manual pages, the catalog, configuration comments
//! and messages. One thing has one name, and sentences say who does what.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::house::sources;

/// Words that are not used, each with what to write instead. They are compared without regard to
/// case, and stand between characters that are not letters.
const WORDS: [(&str, &str); 43] = [
    ("parked", "failed"),
    ("given up", "failed"),
    ("gave up", "failed"),
    ("gives up", "has failed, or stops waiting"),
    ("ware", "push"),
    ("goes on", "continues"),
    ("go on", "continue"),
    ("going on", "continuing"),
    ("went on", "continued"),
    ("told", "reported, or: the job's output says"),
    ("tells the truth", "reports what became of"),
    ("the truth about", "what became of"),
    ("say two lines", "have two lines"),
    ("how the daemon is", "the state of the daemon"),
    ("is no substituter", "is not a substituter"),
    ("is no store path", "is not a store path"),
    ("of ours", "of flywheel"),
    ("of theirs", "of their own"),
    ("whoever", "those who, or: the user that"),
    ("whatever no", "what no, or: paths that no"),
    ("mend", "repair, or correct"),
    ("mended", "repaired, or corrected"),
    ("is had", "exists, or is installed"),
    ("is to be done", "there is nothing to do"),
    ("of its own accord", "without being named"),
    ("taken up", "taken in, or continued"),
    ("takes up", "takes in, or continues"),
    ("under way", "running"),
    ("doorbell", "wake-up"),
    ("wares", "pushes"),
    ("line of the log", "log entry"),
    ("said again", "repeated"),
    ("has gone", "has ended, or was removed"),
    ("is gone", "was removed, or has ended"),
    ("all the same", "anyway, or still"),
    ("anew", "again"),
    ("passing error", "temporary error"),
    ("passing errors", "temporary errors"),
    ("in passing", "beside its work"),
    ("said once", "logged once"),
    ("is away", "cannot be reached, or is absent"),
    ("are away", "cannot be reached, or are absent"),
    ("for want of", "because … is missing"),
];

/// The findings in a text, as `PLACE:LINE: word: what to write instead`.
fn findings(place: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.to_lowercase();
        for (word, instead) in WORDS {
            let stands_alone = |at: usize| {
                let before = line[..at].chars().next_back();
                let after = line[at + word.len()..].chars().next();
                ![before, after].into_iter().flatten().any(|c| c.is_alphabetic() || c == '_')
            };
            if line.match_indices(word).any(|(at, _)| stands_alone(at)) {
                found.push(format!("{place}:{}: \"{word}\": write {instead}", number + 1));
            }
        }
    }
    found
}

/// The files below a directory with one of these extensions; an empty one means no extension.
fn below(dir: &Path, extensions: &[&str], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let extension = path.extension().map_or("", |e| e.to_str().unwrap());
        match path.is_dir() {
            true => below(&path, extensions, found),
            false if extensions.contains(&extension) => found.push(path),
            false => {}
        }
    }
}

/// A source file with nothing but its string literals that have more than one word, on their lines.
/// Comments and tests are left out.
fn messages(source: &str) -> String {
    let code: Vec<char> = source.split("#[cfg(test)]").next().unwrap().chars().collect();
    let (mut text, mut at) = (String::new(), 0);
    // The literal that is being read.
    let mut literal: Option<String> = None;
    while at < code.len() {
        let (c, next) = (code[at], code.get(at + 1).copied().unwrap_or(' '));
        match &mut literal {
            Some(words) if c == '"' => {
                let is_prose = words.split_whitespace().count() > 1;
                text.extend(words.chars().filter(|c| is_prose || *c == '\n'));
                text.push(' ');
                literal = None;
            }
            Some(words) if c == '\\' => {
                words.push(if next == '\n' { '\n' } else { ' ' });
                at += 1;
            }
            Some(words) => words.push(c),
            None if c == '/' && next == '/' => {
                at = code[at..].iter().position(|c| *c == '\n').map_or(code.len(), |end| at + end);
                continue;
            }
            // The character literal '"' begins no string.
            None if c == '"' && (at == 0 || code[at - 1] != '\'') => literal = Some(String::new()),
            None if c == '\n' => text.push(c),
            None => {}
        }
        at += 1;
    }
    text
}

#[test]
fn people_read_the_glossarys_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md", "SECURITY.md", "CONTRIBUTING.md", "nixos-module.nix", "flake.nix"]
            .map(|file| root.join(file))
            .to_vec();
    below(&root.join("docs"), &["md"], &mut files);
    below(
        &root.join("packaging"),
        &["md", "toml", "yml", "yaml", "nix", "spec", "sh", "service", "timer", "json", ""],
        &mut files,
    );
    below(&root.join("systemd"), &["catalog", "service", "socket", "conf"], &mut files);
    files.push(root.join("src/bin/flywheeld.roff"));
    assert!(files.len() > 40, "{files:?}");
    let mut found = Vec::new();
    for file in files {
        let place = file.strip_prefix(root).unwrap().display().to_string();
        found.extend(findings(&place, &fs::read_to_string(&file).unwrap()));
    }
    // Help and manual pages, as they are generated.
    let pages = tempfile::tempdir().unwrap();
    let made = Command::new(env!("CARGO_BIN_EXE_flywheelctl")).arg("man").arg(pages.path()).status().unwrap();
    assert!(made.success());
    let mut manual = Vec::new();
    below(pages.path(), &["1"], &mut manual);
    for page in &manual {
        let text = fs::read_to_string(page).unwrap().replace("\\-", "-");
        found.extend(findings(page.file_name().unwrap().to_str().unwrap(), &text));
    }
    assert!(manual.len() > 10);
    for source in sources().iter().filter(|s| !s.path.contains("tests")) {
        found.extend(findings(&format!("src/{}", source.path), &messages(&source.full)));
    }
    let found: BTreeSet<String> = found.into_iter().collect();
    assert!(found.is_empty(), "{}", found.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_banned_word_is_found() {
    let text =
        "A good line.\nThe path is Parked here; the daemon goes on.\nSoftware compartments are parkedish.";
    let found = findings("page.md", text);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("page.md:2: \"parked\": write failed"), "{found:?}");
    // A word alone is a key, and a line of a literal may continue on the next line.
    let code = "    // it goes on\n    warn(\"https://x it \\\n  goes on\", '\"', \"parked\");\n#[cfg(test)]\n    \"is parked\"\n";
    assert_eq!(findings("a.rs", &messages(code)), ["a.rs:3: \"goes on\": write continues"]);
}
