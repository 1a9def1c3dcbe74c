//! The events of the code, of the catalog and of the documentation are the same; and the entries
//! that a journald receives.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use flywheel::observe::events::{ALL, Kind};
use tracing::Level;

use crate::house::sources;
use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::journald::{Entry, FakeJournald};
use crate::support::nix::PrivateNix;

fn read(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap()
}

/// The events that the sources name, and all other calls that log.
#[test]
fn all_that_is_logged_has_a_kind_and_every_kind_is_logged() {
    let (mut listed, mut other) = (BTreeSet::new(), Vec::new());
    for source in sources() {
        for (at, _) in source.code.match_indices("event!(") {
            let before = source.code[..at].trim_end_matches(':');
            let name: String = source.code[at + "event!(".len()..]
                .trim_start()
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            if source.path != "observe/events.rs" {
                assert!(!before.ends_with("tracing"), "src/{}: tracing::event!", source.path);
                listed.insert(name);
            }
        }
        for level in ["error", "warn", "info", "debug", "trace"] {
            for call in [format!("tracing::{level}!"), format!(" {level}!("), format!("\n{level}!(")] {
                if source.code.contains(&call) {
                    other.push(format!("src/{}: {}", source.path, call.trim()));
                }
            }
        }
    }
    assert!(other.is_empty(), "use event! or detail!: {other:?}");
    let kinds: BTreeSet<String> = ALL.iter().map(|k| k.name.to_owned()).collect();
    assert_eq!(listed, kinds);
}

/// The fields that say what an entry is about, why, and where.
const TOLD: [&str; 18] = [
    "cache",
    "client",
    "endpoint",
    "error",
    "file",
    "keys",
    "ledger",
    "part",
    "path",
    "paths",
    "reason",
    "row",
    "session",
    "sessions",
    "set_aside",
    "socket",
    "store_path",
    "uid",
];
/// The text of each entry has what its fields have, because plain text is what most people see; and
/// no text is written for programmers.
#[test]
fn the_text_of_an_entry_says_what_its_fields_say() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for source in sources().iter().filter(|source| source.path != "observe/events.rs") {
        for (at, _) in source.full.match_indices("event!(") {
            let call = &source.full[at + "event!(".len()..];
            // Texts are literals; the sources are formatted, so the first quote at an argument's
            // beginning starts the text.
            let Some(start) = argument_text(call) else { continue };
            seen += 1;
            let (before, text) = call.split_at(start);
            let end = text[1..].match_indices('"').find(|(n, _)| !text[..n + 1].ends_with('\\')).unwrap().0;
            let text = &text[1..=end];
            let name = before.trim_start().split(',').next().unwrap().trim();
            let fields = TOLD.iter().filter(|field| {
                before.match_indices(&format!("{field} = ")).any(|(n, _)| before[..n].ends_with([' ', '\n']))
            });
            let about = fields.count();
            let named = text.matches('{').count() - 2 * text.matches("{{").count();
            if named < about || before.contains("= ?") || text.contains(":?}") {
                wrong.push(format!("src/{}: {name}: {text:?} ({named} of {about})", source.path));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(seen > 70, "{seen} calls of event! are read");
}

/// Where the text of a call of `event!` begins: the first literal that is an argument of its own.
fn argument_text(call: &str) -> Option<usize> {
    call.match_indices('"').map(|(at, _)| at).find(|at| call[..*at].trim_end().ends_with(','))
}

#[test]
fn ids_are_ids_and_differ() {
    let ids: BTreeSet<&str> = ALL.iter().map(|k| k.id).collect();
    assert_eq!(ids.len(), ALL.len());
    for id in ids {
        assert!(id.len() == 32 && id.bytes().all(|b| b"0123456789abcdef".contains(&b)), "{id}");
    }
}

/// An entry of the catalog: its header fields and its paragraphs.
struct Explained {
    header: BTreeMap<String, String>,
    paragraphs: Vec<String>,
}

fn catalog() -> BTreeMap<String, Explained> {
    let text = read("systemd/flywheel.catalog");
    let mut all = BTreeMap::new();
    for entry in text.split("\n-- ").skip(1) {
        let (id, rest) = entry.split_once('\n').unwrap();
        let (header, body) = rest.split_once("\n\n").unwrap_or((rest, ""));
        let header = header.lines().map(|line| line.split_once(": ").unwrap_or_else(|| panic!("{line}")));
        let explained = Explained {
            header: header.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            paragraphs: body.trim().split("\n\n").map(|p| p.replace('\n', " ")).collect(),
        };
        assert!(all.insert(id.to_owned(), explained).is_none(), "{id} is explained twice");
    }
    all
}

#[test]
fn the_catalog_explains_each_kind() {
    let catalog = catalog();
    let explained: BTreeSet<&str> = catalog.keys().map(String::as_str).collect();
    assert_eq!(explained, ALL.iter().map(|k| k.id).collect());
    for Kind { name, id, level, fields, .. } in ALL {
        let Explained { header, paragraphs } = &catalog[*id];
        assert!(header["Subject"].len() > 8, "{name}");
        assert_eq!(header["Defined-By"], "flywheel", "{name}");
        assert!(paragraphs.iter().all(|p| !p.is_empty()), "{name}: says nothing");
        // The explanation of a warning has two paragraphs: what happened, and what to do.
        let least = if *level == Level::ERROR { 2 } else { 1 };
        assert!(paragraphs.len() >= least, "{name}: what is to be done?");
        // `@FIELD@` is replaced by a field, which the event must have.
        let text = format!("{} {}", header["Subject"], paragraphs.join(" "));
        for field in text.split('@').skip(1).step_by(2) {
            let known = fields.iter().any(|f| field == format!("FLYWHEEL_{}", f.to_uppercase()));
            assert!(known, "{name}: {field} is no field of it");
        }
    }
}

#[test]
fn the_documentation_lists_each_kind() {
    let text = read("docs/journal.md");
    let listed: Vec<&str> = text.lines().skip_while(|l| !l.starts_with("| event |")).skip(2).collect();
    let expected: Vec<String> = ALL
        .iter()
        .map(|Kind { name, id, level, fields, when }| {
            let fields: Vec<String> = fields.iter().map(|f| format!("`{}`", f.to_uppercase())).collect();
            let fields = if fields.is_empty() { "–".to_owned() } else { fields.join(" ") };
            let level = level.as_str().to_lowercase();
            format!("| `{name}` | {level} | `{id}` | {fields} | {} |", when.trim())
        })
        .collect();
    assert_eq!(listed, expected);
    for field in
        ["session", "label", "cache", "store_path", "nar_size", "duration_ms", "attempt", "error_class"]
    {
        assert!(text.contains(&format!("| `FLYWHEEL_{}` |", field.to_uppercase())), "{field}");
        assert!(ALL.iter().any(|k| k.declares(field)), "nothing has {field}");
    }
}

fn name_of(entry: &Entry) -> &'static str {
    let id = entry.get("MESSAGE_ID").map(String::as_str);
    ALL.iter().find(|k| Some(k.id) == id).map_or("", |k| k.name)
}

fn names(entries: &[Entry]) -> Vec<&'static str> {
    entries.iter().map(name_of).collect()
}

/// A day without trouble, at the default level.
#[test]
fn an_undisturbed_day_logs_a_few_entries() {
    let Some(journald) = FakeJournald::start() else { return };
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    journald.under(&mut daemon);
    daemon.up();
    for label in ["one", "two"] {
        let session = daemon.session(&["--label", label]);
        for n in 0..20 {
            daemon.nix.build(&PrivateNix::shell(&format!("{label}-{n}"), "echo hi > $out"));
        }
        assert_eq!(daemon.end(&session, &[])["pushed"], 20);
    }
    daemon.stop();
    let entries = journald.entries();
    // Whether roots can be made depends on the machine.
    let day: Vec<&str> = names(&entries).into_iter().filter(|n| !n.starts_with("ROOTS_")).collect();
    let session = ["SESSION_STARTED", "SESSION_SUMMARY"];
    let mut expected = vec!["BUILT_IN_SERVES", "READY", "ENDPOINT_CHOSEN"];
    expected.extend([session, session].concat());
    expected.extend(["STOPPING", "STOPPED"]);
    assert_eq!(day, expected, "{entries:#?}");
}

/// A job that asks for it has each pushed path in the journal, at the default level; a label cannot
/// begin another line.
#[test]
fn a_job_that_asks_has_its_paths_in_the_journal() {
    let Some(journald) = FakeJournald::start() else { return };
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    journald.under(&mut daemon);
    daemon.up();
    let quiet = daemon.session(&["--label", "quiet"]);
    daemon.nix.make("unsaid");
    daemon.end(&quiet, &[]);
    let asks = daemon.session(&["--label", "a\nERROR forged\u{202e}", "--log-paths"]);
    let path = daemon.nix.make("said");
    daemon.end(&asks, &[]);
    let shown = daemon.ctl(&["session", "show", &asks, "--paths"]).out;
    assert!(
        shown.contains(&path) && shown.contains(", asked after ") && shown.contains(", confirmed after "),
        "{shown}"
    );
    daemon.stop();

    let entries = journald.entries();
    let logged: Vec<&Entry> = entries.iter().filter(|e| name_of(e) == "PATH_LOGGED").collect();
    let [entry] = logged.as_slice() else { panic!("{logged:#?}") };
    assert_eq!((&entry["FLYWHEEL_SESSION"], &entry["FLYWHEEL_STORE_PATH"]), (&asks, &path));
    assert!(entry["MESSAGE"].contains(&path) && entry["MESSAGE"].contains("cache main"), "{entry:#?}");
    let started = entries.iter().rfind(|e| name_of(e) == "SESSION_STARTED").unwrap();
    assert!(started["MESSAGE"].contains("(a ERROR forged )"), "{started:#?}");
}

/// An entry about each of many paths would hide all others.
#[test]
fn many_paths_with_one_reason_share_an_entry() {
    const PATHS: usize = 24;
    let Some(journald) = FakeJournald::start() else { return };
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |s| s.max_nar_size = 64 << 10);
    let mut daemon = Daemon::prepare(nix, &cache.config());
    journald.under(&mut daemon);
    daemon.up();
    let id = daemon.session(&["--label", "many"]);
    let outs: String = (0..PATHS).map(|n| format!("(shell \"large-{n}\") ")).collect();
    let script = "head -c 200000 /dev/zero > $out";
    let shell = PrivateNix::shell("NAME", script).replace("\"NAME\"", "name");
    daemon.nix.build(&format!("let shell = name: {shell}; in [ {outs} ]"));
    assert_eq!(daemon.end(&id, &[])["failed_total"], PATHS);
    daemon.stop();

    let entries = journald.entries();
    for (name, most) in [("UPLOAD_FAILED", PATHS / 4), ("PATH_FAILED", PATHS / 4)] {
        let logged: Vec<&Entry> = entries.iter().filter(|e| name_of(e) == name).collect();
        let paths: usize = logged.iter().map(|e| e["FLYWHEEL_PATHS"].parse::<usize>().unwrap()).sum();
        assert_eq!(paths, PATHS, "{logged:#?}");
        assert!(logged.len() <= most, "{logged:#?}");
        for entry in logged {
            // The path, the cache, the reason and what to do.
            let text = &entry["MESSAGE"];
            for part in ["-large-", "cache main", "413", "client_max_body_size"] {
                assert!(text.contains(part), "{part}: {text}");
            }
        }
    }
}

/// The entries of one job (`journalctl FLYWHEEL_SESSION=…`), beside another job.
#[test]
fn the_journal_entries_of_one_job() {
    let Some(journald) = FakeJournald::start() else { return };
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |s| s.max_nar_size = 64 << 10);
    let mut daemon = Daemon::prepare(nix, &cache.config());
    daemon.env.push(("FLYWHEEL_LOG".to_owned(), "debug".to_owned()));
    journald.under(&mut daemon);
    daemon.up();
    let id = daemon.session(&["--label", "red"]);
    let small = daemon.nix.build(&PrivateNix::shell("small", "echo hi > $out")).remove(0);
    let large = daemon.nix.build(&PrivateNix::shell("large", "head -c 200000 /dev/zero > $out")).remove(0);
    assert_eq!(daemon.end(&id, &[])["failed_total"], 1);
    let other = daemon.session(&["--label", "green"]);
    daemon.nix.build(&PrivateNix::shell("other", "echo hi > $out"));
    daemon.end(&other, &[]);
    daemon.stop();

    let entries = journald.entries();
    let story: Vec<Entry> =
        entries.iter().filter(|e| e.get("FLYWHEEL_SESSION") == Some(&id)).cloned().collect();
    let order = names(&story);
    assert_eq!((order[0], order[order.len() - 1]), ("SESSION_STARTED", "SESSION_SUMMARY"), "{story:#?}");
    let middle: BTreeSet<&str> = order[1..order.len() - 1].iter().copied().collect();
    assert_eq!(middle, ["PATH_FAILED", "PATH_PUSHED", "UPLOAD_FAILED"].into(), "{story:#?}");
    for entry in &story {
        assert_eq!((entry["FLYWHEEL_LABEL"].as_str(), entry["FLYWHEEL_CACHE"].as_str()), ("red", "main"));
    }
    let of = |name: &str| story.iter().find(|e| name_of(e) == name).unwrap();
    let number = |entry: &Entry, field: &str| entry[field].parse::<u64>().unwrap();
    let pushed = of("PATH_PUSHED");
    assert_eq!((pushed["FLYWHEEL_STORE_PATH"].as_str(), number(pushed, "FLYWHEEL_ATTEMPT")), (&*small, 1));
    assert!(number(pushed, "FLYWHEEL_NAR_SIZE") > 100 && pushed.contains_key("FLYWHEEL_DURATION_MS"));
    for name in ["UPLOAD_FAILED", "PATH_FAILED"] {
        let failed = of(name);
        assert_eq!(failed["FLYWHEEL_STORE_PATH"], large);
        assert_eq!(failed["FLYWHEEL_ERROR_CLASS"], "too-large");
        assert!(failed["FLYWHEEL_ERROR"].contains("413"), "{failed:?}");
    }
    assert!(number(of("UPLOAD_FAILED"), "FLYWHEEL_NAR_SIZE") > 200_000);
    assert_eq!(number(of("SESSION_SUMMARY"), "FLYWHEEL_FAILED"), 1);
    assert!(of("SESSION_SUMMARY").contains_key("FLYWHEEL_DURATION_MS"));

    // Plain text is enough.
    for entry in &entries {
        for field in ["CACHE", "STORE_PATH", "ERROR", "FILE"] {
            let in_text =
                entry.get(&format!("FLYWHEEL_{field}")).is_none_or(|v| entry["MESSAGE"].contains(v));
            assert!(in_text || entry["PRIORITY"] == "7", "{field} is not in the text: {entry:#?}");
        }
    }

    // Every entry above debug has an id, and no entry has a field of another event.
    let levels =
        BTreeMap::from([("3", Level::ERROR), ("4", Level::WARN), ("6", Level::INFO), ("7", Level::DEBUG)]);
    for entry in entries.iter().filter(|e| e["TARGET"].starts_with("flywheel")) {
        let level = levels[entry["PRIORITY"].as_str()];
        match ALL.iter().find(|k| entry.get("MESSAGE_ID").is_some_and(|id| id == k.id)) {
            Some(kind) => assert_eq!(kind.level, level, "{entry:?}"),
            None => assert_eq!(level, Level::DEBUG, "{entry:?}"),
        }
        const OTHERS: [&str; 7] =
            ["MESSAGE", "MESSAGE_ID", "PRIORITY", "TARGET", "CODE_FILE", "CODE_LINE", "SYSLOG_IDENTIFIER"];
        for field in entry.keys() {
            assert!(field.starts_with("FLYWHEEL_") || OTHERS.contains(&field.as_str()), "{field}: {entry:?}");
        }
    }
}
