//! The order inside `src/daemon`: its rooms, which may name which, and that no two name
//! each other in a circle.

use std::collections::BTreeSet;

use crate::house::{self, Source};

/// The rooms of the daemon. A room names only rooms before it in this list.
pub(super) const ROOMS: [&str; 12] = [
    "blocking", "inbox", "host", "metrics", "gc_roots", "push", "attic", "caches", "verify", "intake",
    "sessions", "driver",
];

/// Who may name whom. `None`: there is no such room.
fn allowed(room: &str) -> Option<&'static [&'static str]> {
    Some(match room {
        "blocking" | "inbox" | "gc_roots" => &[],
        "host" | "metrics" => &["inbox"],
        "push" => &["blocking", "inbox", "gc_roots"],
        "attic" => &["inbox", "push"],
        "caches" => &["inbox", "push", "attic"],
        "verify" => &["push"],
        "intake" => &["inbox", "gc_roots", "push", "attic"],
        "sessions" => &["blocking", "inbox", "push", "intake"],
        // `mod.rs` and `start.rs` put the rooms together.
        "driver" | "mod" | "start" | "sim" => &ROOMS,
        _ => return None,
    })
}

/// The room of a file of the daemon; `None` for files of other rooms.
pub(super) fn room(source: &Source) -> Option<&str> {
    let rest = source.path.strip_prefix("daemon/")?;
    let first = rest.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

/// The rooms of the daemon that a file of the daemon names.
pub(super) fn named(source: &Source) -> BTreeSet<String> {
    // One `super::` fewer than to the top of the library.
    let levels = house::levels(source) - 1;
    let mut named = house::names(source, &["crate::daemon::"], levels.max(1));
    named.retain(|name| ROOMS.contains(&name.as_str()));
    if let Some(room) = room(source) {
        named.remove(room);
    }
    named
}

fn wrong_arrows(sources: &[Source]) -> Vec<String> {
    let mut wrong = Vec::new();
    for source in sources {
        let Some(room) = room(source) else { continue };
        let Some(allowed) = allowed(room) else {
            wrong.push(format!("src/{}: no such room in tests/it/house/daemon.rs", source.path));
            continue;
        };
        for other in named(source) {
            if !allowed.contains(&other.as_str()) {
                wrong.push(format!("src/{}: `daemon/{room}` must not know `{other}`", source.path));
            }
        }
    }
    wrong
}

#[test]
fn arrows_inside_the_daemon_point_one_way() {
    let wrong = wrong_arrows(&house::sources());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The table of allowed arrows has no circle: each arrow points to an earlier room.
#[test]
fn no_two_rooms_of_the_daemon_name_each_other() {
    for (n, room) in ROOMS.iter().enumerate() {
        for other in allowed(room).unwrap().iter().filter(|other| *other != room) {
            assert!(ROOMS[..n].contains(other), "{room} may name {other}, which comes after it");
        }
    }
}

#[test]
fn daemon_mod_rs_lists_the_rooms() {
    let sources = house::sources();
    let text = &sources.iter().find(|s| s.path == "daemon/mod.rs").unwrap().full;
    for room in ROOMS {
        assert!(text.contains(&format!("\nmod {room};")), "src/daemon/mod.rs has no room {room}");
        let row = format!("//! | [`{room}`] |");
        assert!(text.contains(&row), "src/daemon/mod.rs does not say what {room} knows");
    }
}

/// The reader above sees what it has to see.
#[test]
fn wrong_arrows_inside_the_daemon_are_seen() {
    for (path, text, expected) in [
        ("daemon/push/a.rs", "use crate::daemon::sessions::X;", &["sessions"][..]),
        ("daemon/push/a.rs", "use crate::daemon::{driver::D, host};", &["driver", "host"]),
        ("daemon/push/a.rs", "use super::super::caches::X;", &["caches"]),
        ("daemon/push/a.rs", "use super::caches::X;", &[]),
        ("daemon/push/mod.rs", "use super::caches::X;", &["caches"]),
        ("daemon/push/a/b.rs", "use super::super::super::{driver, intake};", &["driver", "intake"]),
        ("daemon/push/a.rs", "// crate::daemon::driver\nuse crate::attic::X; use crate::store::push;", &[]),
        ("daemon/inbox.rs", "use super::host::X;", &["host"]),
    ] {
        let names: Vec<String> = named(&Source::new(path, text)).into_iter().collect();
        assert_eq!(names, expected, "{path}: {text}");
    }
    let wrong = wrong_arrows(&[
        Source::new("daemon/push/a.rs", "use crate::daemon::driver::Driver;"),
        Source::new("daemon/driver/a.rs", "use crate::daemon::push::Pushes;"),
        Source::new("daemon/helpers/mod.rs", ""),
    ]);
    assert_eq!(
        wrong,
        [
            "src/daemon/push/a.rs: `daemon/push` must not know `driver`",
            "src/daemon/helpers/mod.rs: no such room in tests/it/house/daemon.rs",
        ]
    );
}
