//! The order of the rooms, read from the sources: which room may name which, how every file starts,
//! and where the wire format is named.

mod daemon;
mod documents;
mod fuzz;
mod mutants;
mod picture;
mod prose;
mod security;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const ROOMS: [&str; 13] = [
    "attic",
    "attribution",
    "cache",
    "config",
    "control",
    "ctl",
    "daemon",
    "embedded",
    "flow",
    "ledger",
    "observe",
    "store",
    "types",
];

/// Which rooms a room may name: the table of `src/lib.rs` in code. A room that is not listed here
/// must not exist.
fn allowed(room: &str) -> Option<&'static [&'static str]> {
    Some(match room {
        // Every room may name these two, which name no room.
        "types" | "observe" => &[],
        "flow" | "config" => &["types"],
        "attic" | "attribution" | "store" | "cache" | "embedded" | "ledger" | "control" => {
            &["observe", "types"]
        }
        "ctl" => &["control", "types"],
        "daemon" => &ROOMS,
        // The binaries and lib.rs.
        "" => &["daemon", "ctl", "config", "observe", "types"],
        _ => return None,
    })
}

/// A source file: its path below `src`, its room, its text without comments
/// and without what its strings and character literals say.
pub(super) struct Source {
    pub(super) path: String,
    pub(super) room: String,
    pub(super) full: String,
    pub(super) code: String,
}

impl Source {
    pub(super) fn new(path: &str, text: &str) -> Self {
        let first = path.split('/').next().unwrap();
        let room = match first.strip_suffix(".rs").unwrap_or(first) {
            "lib" | "bin" => "",
            // Calls the decoders of every room; not compiled into a program.
            "fuzz" => "daemon",
            room => room,
        };
        Self { path: path.to_owned(), room: room.to_owned(), full: text.to_owned(), code: code(text) }
    }
}

pub(super) fn sources() -> Vec<Source> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&src, &mut files);
    assert!(files.len() > ROOMS.len(), "the sources are read");
    let read = |file: PathBuf| {
        let path = file.strip_prefix(&src).unwrap().to_str().unwrap();
        Source::new(path, &fs::read_to_string(&file).unwrap())
    };
    files.into_iter().map(read).collect()
}

fn walk(dir: &Path, files: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        match path.is_dir() {
            true => walk(&path, files),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
}

/// The code alone: comments and string literals are replaced by a blank. Handles raw strings and
/// escapes as far as Rust sources need it.
fn code(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let (mut out, mut i) = (String::new(), 0);
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    while i < chars.len() {
        match (chars[i], at(i + 1)) {
            ('/', '/') => {
                while i < chars.len() && chars[i] != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                while i < chars.len() && !(chars[i] == '*' && at(i + 1) == '/') {
                    i += 1;
                }
                i += 2;
            }
            ('r', '"' | '#') if !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                let hashes = (i + 1..).take_while(|j| at(*j) == '#').count();
                if at(i + 1 + hashes) == '"' {
                    i += 2 + hashes;
                    while i < chars.len() && !(chars[i] == '"' && (1..=hashes).all(|k| at(i + k) == '#')) {
                        i += 1;
                    }
                    i += 1 + hashes;
                } else {
                    out.push('r');
                    i += 1;
                }
            }
            ('"', _) => {
                i += 1;
                while i < chars.len() && chars[i] != '"' {
                    i += if chars[i] == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character, not a lifetime.
            ('\'', '\\') => {
                i += 3;
                while i < chars.len() && chars[i] != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (c, _) => {
                out.push(c);
                i += 1;
                continue;
            }
        }
        out.push(' ');
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The paths in a `use` tree or an expression, flattened: `a::{b::c, d}` is
/// `a::b::c` and `a::d`. `rest` begins behind the prefix's `::`.
fn heads(rest: &str) -> Vec<String> {
    let rest = rest.trim_start();
    let Some(group) = rest.strip_prefix('{') else {
        return vec![rest.chars().take_while(|c| is_word(*c)).collect()];
    };
    let (mut heads, mut depth, mut item) = (Vec::new(), 0, String::new());
    for c in group.chars() {
        match c {
            '}' if depth == 0 => break,
            ',' if depth == 0 => heads.push(std::mem::take(&mut item)),
            _ => {
                depth += i32::from(c == '{') - i32::from(c == '}');
                item.push(c);
            }
        }
    }
    heads.push(item);
    heads.iter().map(|h| h.trim().chars().take_while(|c| is_word(*c)).collect()).collect()
}

/// The rooms that a file names: behind `crate::` or `flywheel::`, or behind as
/// many `super::` as lead out of its room.
pub(super) fn named(source: &Source) -> BTreeSet<String> {
    let mut named = names(source, &["crate::", "flywheel::"], levels(source));
    named.retain(|name| ROOMS.contains(&name.as_str()));
    named.remove(&source.room);
    named
}

/// How many `super::` lead from a file to the top of the library: one from
/// `src/ROOM/mod.rs`, two from `src/ROOM/file.rs`.
fn levels(source: &Source) -> usize {
    source.path.split('/').count() - usize::from(source.path.ends_with("/mod.rs"))
}

/// What a file names behind one of `prefixes`, or behind at least `levels` times
/// `super::`. An inline module needs one more, which is why a surplus counts.
fn names(source: &Source, prefixes: &[&str], levels: usize) -> BTreeSet<String> {
    let code: String = source
        .code
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .replace(" ::", "::")
        .replace(":: ", "::");
    let mut named = BTreeSet::new();
    for prefix in prefixes {
        for (i, _) in code.match_indices(prefix) {
            if !code[..i].ends_with(is_word) {
                named.extend(heads(&code[i + prefix.len()..]));
            }
        }
    }
    for (i, _) in code.match_indices("super::") {
        if code[..i].ends_with(is_word) || code[..i].ends_with("::") {
            continue;
        }
        let mut rest = &code[i..];
        let mut supers = 0;
        while let Some(further) = rest.strip_prefix("super::") {
            (rest, supers) = (further, supers + 1);
        }
        if supers >= levels {
            named.extend(heads(rest));
        }
    }
    named
}

fn wrong_arrows(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        let Some(allowed) = allowed(&source.room) else {
            wrong.push(format!("src/{}: no such room in tests/it/house.rs", source.path));
            continue;
        };
        for other in named(source) {
            if !allowed.contains(&other.as_str()) {
                wrong.push(format!("src/{}: `{}` must not know `{other}`", source.path, source.room));
            }
        }
    }
    wrong
}

#[test]
fn arrows_point_inwards() {
    let wrong = wrong_arrows(&sources());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<String> = sources()
        .iter()
        .filter(|s| !s.full.lines().next().is_some_and(|line| line.len() > 8 && line.starts_with("//! ")))
        .map(|s| format!("src/{}: the first line is no `//! …`", s.path))
        .collect();
    assert!(silent.is_empty(), "{}", silent.join("\n"));
}

#[test]
fn lib_rs_lists_the_rooms() {
    let sources = sources();
    let lib = &sources.iter().find(|s| s.path == "lib.rs").unwrap().full;
    for room in ROOMS {
        assert!(lib.contains(&format!("pub mod {room};")), "lib.rs has no room {room}");
        assert!(lib.contains(&format!("//! | [`{room}`] |")), "lib.rs does not say what {room} knows");
    }
    assert_eq!(lib.matches("\npub mod ").count(), ROOMS.len() + 1, "a room is missing in tests/it/house.rs");
}

/// The wire format can be replaced in one place.
#[test]
fn bincode_is_named_once() {
    let files: Vec<String> =
        sources().into_iter().filter(|s| s.code.contains("bincode")).map(|s| s.path).collect();
    assert_eq!(files, ["control/codec.rs"]);
}

/// The checks above find what they are meant to find.
#[test]
fn wrong_arrows_are_seen() {
    for (path, text, expected) in [
        ("store/a.rs", "use crate::cache::X;", &["cache"][..]),
        ("store/a.rs", "use crate::{ledger::L, store::S, flow};", &["flow", "ledger"]),
        ("store/a.rs", "use crate::{\n  cache::{\n    A, B },\n  ctl,\n};", &["cache", "ctl"]),
        ("store/a.rs", "fn f() -> crate :: cache::X { }", &["cache"]),
        ("store/a.rs", "use super::super::cache::X;", &["cache"]),
        ("store/a.rs", "use super::cache::X;", &[]),
        ("store/mod.rs", "use super::cache::X;", &["cache"]),
        (
            "store/a/b.rs",
            "use super::super::cache::X; use super::super::super::{flow, ledger};",
            &["flow", "ledger"],
        ),
        (
            "store/a.rs",
            "// crate::cache\n/* crate::cache */ let s = \"crate::cache\"; let r = r#\"crate::\"cache\"#;",
            &[],
        ),
        ("store/a.rs", "let q = '\"'; use crate::cache; let l: &'static str = \"\\\"\";", &["cache"]),
        ("store/a.rs", "use mycrate::cache; use other::cache; mod cache;", &[]),
        ("bin/x.rs", "use flywheel::{daemon, store};", &["daemon", "store"]),
    ] {
        let names: Vec<String> = named(&Source::new(path, text)).into_iter().collect();
        assert_eq!(names, expected, "{path}: {text}");
    }
    let wrong = wrong_arrows(&[
        Source::new("store/a.rs", "use crate::cache;"),
        Source::new("bin/x.rs", "use flywheel::{daemon, store};"),
        Source::new("daemon/mod.rs", "use crate::{store, ctl};"),
        Source::new("utils/mod.rs", ""),
    ]);
    assert_eq!(
        wrong,
        [
            "src/store/a.rs: `store` must not know `cache`",
            "src/bin/x.rs: `` must not know `store`",
            "src/utils/mod.rs: no such room in tests/it/house.rs",
        ]
    );
}
