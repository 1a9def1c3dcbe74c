//! The picture in docs/architecture.md shows what the imports say. To draw it again:
//! FLYWHEEL_DRAW=1 cargo nextest run -E 'test(house::picture)'

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;

use crate::house::{self, ROOMS, Source, daemon};

const BEGIN: &str = "<!-- drawn from the imports: begin -->\n";
const END: &str = "<!-- drawn from the imports: end -->";
const DRAW: &str = "FLYWHEEL_DRAW=1 cargo nextest run -E 'test(house::picture)'";

/// The house, and the rooms of the daemon: who names whom, and what each room knows.
fn picture(sources: &[Source]) -> String {
    let house = sources.iter().filter(|s| s.path != "lib.rs").map(|source| {
        let room = if source.room.is_empty() { "bin" } else { source.room.as_str() };
        (room, house::named(source))
    });
    let inside = sources.iter().filter_map(|source| {
        let room = daemon::room(source).filter(|room| daemon::ROOMS.contains(room))?;
        Some((room, daemon::named(source)))
    });
    let mut text = graph(house);
    text.push_str(&table(sources, "lib.rs", "src", &ROOMS));
    text.push_str("\nInside `src/daemon`; `mod.rs` and `start.rs` put these rooms together:\n");
    text.push_str(&graph(inside));
    text.push_str(&table(sources, "daemon/mod.rs", "src/daemon", &daemon::ROOMS));
    text.push('\n');
    text
}

/// A graph of rooms and who names whom.
fn graph<'a>(rooms: impl Iterator<Item = (&'a str, BTreeSet<String>)>) -> String {
    let mut arrows: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (room, named) in rooms {
        arrows.entry(room).or_default().extend(named);
    }
    let mut text = String::from("\n```mermaid\ngraph TD\n");
    for (room, named) in &arrows {
        match named.is_empty() {
            true => writeln!(text, "  {room}").unwrap(),
            false => {
                let named: Vec<&str> = named.iter().map(String::as_str).collect();
                writeln!(text, "  {room} --> {}", named.join(" & ")).unwrap();
            }
        }
    }
    text.push_str("```\n");
    text
}

/// What the comments of `file` say of each room below `dir`.
fn table(sources: &[Source], file: &str, dir: &str, rooms: &[&str]) -> String {
    let mut text = String::from("\n| room | knows | must not know |\n|---|---|---|\n");
    let comments = &sources.iter().find(|s| s.path == file).expect(file).full;
    for room in rooms {
        // `//! | [`room`] | knows | must not know |`
        let row = comments.lines().find(|l| l.starts_with(&format!("//! | [`{room}`] |"))).expect("its row");
        let mut cells = row.split('|').skip(2).map(str::trim);
        let (knows, not) = (cells.next().unwrap(), cells.next().unwrap());
        writeln!(text, "| `{dir}/{}` | {knows} | {not} |", file_of(dir, room)).unwrap();
    }
    text
}

/// A room is a folder, or a file.
fn file_of(dir: &str, room: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join(room);
    if path.is_dir() { room.to_owned() } else { format!("{room}.rs") }
}

#[test]
fn the_picture_is_what_the_imports_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let page = fs::read_to_string(&file).unwrap();
    let (before, rest) = page.split_once(BEGIN).expect("docs/architecture.md has a place for the picture");
    let (found, after) = rest.split_once(END).expect("docs/architecture.md has an end of the picture");
    let drawn = picture(&house::sources());
    if std::env::var_os("FLYWHEEL_DRAW").is_some() {
        fs::write(&file, format!("{before}{BEGIN}{drawn}{END}{after}")).unwrap();
        return;
    }
    assert_eq!(found, drawn, "docs/architecture.md shows another house than src; draw it again:\n  {DRAW}\n");
}

/// The picture changes with a new arrow.
#[test]
fn the_picture_follows_the_sources() {
    let mut sources = house::sources();
    let before = picture(&sources);
    let store = sources.iter_mut().find(|s| s.room == "store").unwrap();
    *store = Source::new(&store.path.clone(), "use crate::cache::Client;");
    let after = picture(&sources);
    assert!(!before.contains("store --> cache") && after.contains("store --> cache"), "{after}");
}

/// SECURITY.md names tests that exist: `room::file::test`, a file or a folder of
/// `tests/it` or of `src`.
#[test]
fn the_tests_that_security_md_names_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("SECURITY.md")).unwrap();
    let named: BTreeSet<&str> = page.split('`').skip(1).step_by(2).filter(|n| n.contains("::")).collect();
    let is_file_with = |file: String, test: &str| {
        fs::read_to_string(root.join(file)).is_ok_and(|text| text.contains(&format!("fn {test}(")))
    };
    let exists = |name: &str| {
        let (module, test) = name.rsplit_once("::").unwrap();
        // `mod tests` at the end of a file is not a file.
        let modules = [module, module.trim_end_matches("::tests")].map(|m| m.replace("::", "/"));
        ["tests/it", "src"].iter().any(|top| {
            root.join(top).join(name.replace("::", "/")).with_extension("rs").is_file()
                || modules.iter().any(|module| {
                    is_file_with(format!("{top}/{module}.rs"), test)
                        || is_file_with(format!("{top}/{module}/mod.rs"), test)
                })
        })
    };
    let absent: Vec<&&str> = named.iter().filter(|n| !exists(n)).collect();
    assert!(absent.is_empty() && named.len() > 10, "{} tests; not found: {absent:?}", named.len());
}
