//! `flywheelctl push --stdin`: a line for each path, in the order in which they settle.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use serde_json::Value;

use crate::nothing_lost::gc_roots::{garbage, store_dir};
use crate::support::cache::StandaloneCache;
use crate::support::daemon::Daemon;
use crate::support::nix::PrivateNix;

/// Filters everything, so that paths are pushed by name only.
const NOTHING: &str = "[push.filter]\nnames = [\"!*\"]\n";

struct Line(Value);

impl Line {
    fn is(&self, path: &str, outcome: &str) -> bool {
        self.0["path"] == path && self.0["outcome"] == outcome
    }
}

#[test]
fn each_path_gets_a_line_as_soon_as_it_has_settled() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|name| name.ends_with("-refused").then_some(400));
    let daemon = Daemon::start(nix, &format!("{}{NOTHING}", cache.config_at(&gate.url())));
    let [first, second, refused] = ["first", "second", "refused"].map(|name| daemon.nix.make(name));
    let mut push = daemon.client(&["push", "--stdin", "--json"]);
    let mut push = push.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = push.stdin.take().unwrap();
    let mut output = BufReader::new(push.stdout.take().unwrap()).lines();
    let mut say = |line: &str| writeln!(input, "{line}").unwrap();
    let mut hear = || Line(serde_json::from_str(&output.next().unwrap().unwrap()).unwrap());
    // The program at the other end writes the next path after it has read what became of this one.
    say(&first);
    assert!(hear().is(&first, "pushed"));
    say(&first);
    assert!(hear().is(&first, "pushed"), "it is in the cache still");
    say("");
    say("/etc/passwd");
    let invalid = hear();
    assert!(invalid.is("/etc/passwd", "failed") && invalid.0["class"] == "invalid", "{}", invalid.0);
    let never = format!("{}/{}-never", daemon.nix.store_dir().display(), "0".repeat(32));
    say(&never);
    let unknown = hear();
    assert!(unknown.is(&never, "failed"), "{}", unknown.0);
    say(&refused);
    let failed = hear();
    assert!(failed.is(&refused, "failed") && failed.0["class"] == "rejected", "{}", failed.0);
    say(&second);
    assert!(hear().is(&second, "pushed"));
    drop(input);
    assert!(output.next().is_none());
    assert_eq!(push.wait().unwrap().code(), Some(3));
    assert_eq!(cache.main().having(&[first, second, refused]), [true, true, false]);
}

#[test]
fn any_number_of_paths_is_taken() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let daemon = Daemon::start(nix, &format!("{}{NOTHING}", cache.config()));
    let dir = store_dir(&daemon.nix);
    let paths: Vec<String> = garbage(&daemon.nix, 1500).iter().map(|path| dir.full(path)).collect();
    let mut push = daemon.client(&["push", "--stdin", "--json"]);
    let mut push = push.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = push.stdin.take().unwrap();
    let text: String = paths.iter().map(|path| format!("{path}\n")).collect();
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()).unwrap());
    let lines = BufReader::new(push.stdout.take().unwrap()).lines();
    let mut settled: Vec<String> = lines
        .map(|line| {
            let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
            assert_eq!(line["outcome"], "pushed", "{line}");
            line["path"].as_str().unwrap().to_owned()
        })
        .collect();
    writer.join().unwrap();
    assert_eq!(push.wait().unwrap().code(), Some(0));
    settled.sort();
    let mut paths = paths;
    paths.sort();
    assert!(settled == paths, "{} of {}", settled.len(), paths.len());
}

#[test]
fn without_a_daemon_nothing_is_read() {
    let daemon = Daemon::prepare(PrivateNix::new(), "");
    let result = daemon.ctl(&["push", "--stdin"]);
    assert_eq!(result.code, 5, "{result:?}");
    assert_eq!(daemon.ctl(&["push", "--stdin", "/nix/store/x"]).code, 2);
    assert_eq!(daemon.ctl(&["push"]).code, 2);
}
