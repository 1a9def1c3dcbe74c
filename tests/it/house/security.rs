//! SECURITY.md names tests for what it promises; they exist.

use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a file has a test of this name; any test without a name.
fn has_test(file: &Path, name: Option<&str>) -> bool {
    let text = fs::read_to_string(file).unwrap_or_default();
    let Some(name) = name else { return text.contains("#[test]") || text.contains("#[tokio::test") };
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let is_named = |line: &str| {
        let rest = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
        rest.is_some_and(|rest| rest.strip_prefix(name).is_some_and(|rest| rest.starts_with('(')))
    };
    lines.iter().enumerate().any(|(at, line)| {
        // Attributes stand above the function.
        is_named(line)
            && lines[..at].iter().rev().take_while(|l| l.starts_with('#')).any(|l| l.contains("test"))
    })
}

/// Whether this is the path of a test, or of a module with tests.
fn exists(test: &str) -> bool {
    let words: Vec<&str> = test.split("::").collect();
    let files = |words: &[&str]| -> Vec<PathBuf> {
        let tops = [root().join("tests/it"), root().join("src")];
        let places = tops.iter().map(|top| words.iter().fold(top.clone(), |path, word| path.join(word)));
        places.flat_map(|place| [place.with_extension("rs"), place.join("mod.rs")]).collect()
    };
    (1..=words.len()).any(|count| {
        let name = match &words[count..] {
            [] => None,
            [name] | ["tests", name] => Some(*name),
            _ => return false,
        };
        files(&words[..count]).iter().any(|file| has_test(file, name))
    })
}

/// The cells of a row of a table.
fn cells(row: &str) -> Vec<&str> {
    row.trim().trim_matches('|').split('|').map(str::trim).collect()
}

/// The tests that a cell names.
fn tests(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect()
}

#[test]
fn every_row_of_who_can_do_what_names_tests_that_exist() {
    let page = fs::read_to_string(root().join("SECURITY.md")).unwrap();
    let table = page.split_once("| who | can | cannot | shown by |").unwrap().1;
    let rows: Vec<Vec<&str>> =
        table.lines().skip(2).take_while(|line| line.starts_with('|')).map(cells).collect();
    assert!(rows.len() > 10, "{rows:?}");
    let mut wrong = Vec::new();
    for row in &rows {
        assert_eq!(row.len(), 4, "{row:?}");
        let named = tests(row[3]);
        // Of root nothing is promised.
        if named.is_empty() && row[0] != "**root**" {
            wrong.push(format!("no test: {row:?}"));
        }
        wrong.extend(named.iter().filter(|test| !exists(test)).map(|test| format!("{test} does not exist")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_test_that_does_not_exist_is_noticed() {
    assert!(exists("house::security"));
    assert!(exists("house::security::a_test_that_does_not_exist_is_noticed"));
    assert!(exists("attribution::windows::tests::a_window_closes_once"));
    for absent in ["house::security::exists", "house::security::none", "house::none", "cache::tests::none::x"]
    {
        assert!(!exists(absent), "{absent}");
    }
}
