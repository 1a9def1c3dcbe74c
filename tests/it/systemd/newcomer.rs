//! A newcomer's hour: from the package to a cache, a job, an outage, its end. What each command
//! prints is compared with a file that a person has read and found good.

use super::credential::remote;
use crate::support::container::{Container, until};

const EXPECTED: &str = "tests/newcomer.txt";

/// Replaces what is another one at each run: ids, hashes, times, sizes, ports that are free.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let words: Vec<String> = line.split(' ').map(word).collect();
        let mut line = words.join(" ");
        for unit in ["ms", "s", "min", "h"] {
            for (before, after) in [("", " ago"), ("for ", ":"), ("flush:          ", "")] {
                line = line.replace(&format!("{before}N {unit}{after}"), &format!("{before}N TIME{after}"));
            }
        }
        for unit in ["MiB", "GiB", "TiB"] {
            line = line.replace(&format!("N {unit} left"), "N SIZE left");
        }
        // Either question may be the first that gets no answer.
        line = line.replace("which of N paths it lacks", "for the cache main");
        // The end of a session asks again about a path whose upload has ended by then.
        line =
            line.replace("cache main: already cached N TIME ago", "cache main: pushed N TIME ago, N attempt");
        if let Some((what, _)) = line.split_once("attic client: ") {
            line = format!("{what}attic client: STATE");
        }
        out.push_str(line.replace("attempts", "attempt").trim_end());
        out.push('\n');
    }
    out
}

fn word(word: &str) -> String {
    let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric() && c != '/');
    let digits = core.bytes().filter(u8::is_ascii_digit).count();
    let is_hash =
        |text: &str| text.len() >= 16 && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    // A session's id, which may have no digit.
    let is_id = core.len() == 16 && is_hash(core) && !core.contains(['e', 'o', 't', 'u']);
    let other = if let Some(rest) = core.strip_prefix("/nix/store/").filter(|rest| rest.len() > 33) {
        format!("/nix/store/HASH{}", &rest[32..])
    } else if core.starts_with("/nix/store/") && core.contains("…") {
        core.to_owned()
    } else if is_id || is_hash(core) && digits > 0 {
        "ID".to_owned()
    } else if core.starts_with("main:") && core.ends_with('=') || core.starts_with("main:") && core.len() > 40
    {
        "main:KEY".to_owned()
    } else if digits > 0 && core.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        "N".to_owned()
    } else {
        return word.to_owned();
    };
    word.replacen(core, &other, 1)
}

/// The commands and what they printed.
struct Hour<'a> {
    c: &'a Container,
    text: String,
}

impl Hour<'_> {
    fn run(&mut self, user: &str, command: &str, code: i32) -> String {
        let said = if user == "root" { self.c.run(command) } else { self.c.run_as(user, command) };
        assert_eq!(said.code, code, "{command}: {said:?}");
        let prompt = if user == "root" { '#' } else { '$' };
        self.text.push_str(&format!("{prompt} {command}\n{}{}\n", plain(&said.out), plain(&said.err)));
        said.out
    }
}

#[test]
fn a_newcomers_hour() {
    let Some(c) = Container::installed() else { return };
    let token = remote(&c);
    c.write("/root/token", &token);
    let mut hour = Hour { c: &c, text: String::new() };
    hour.run(
        "root",
        "flywheelctl setup --server http://127.0.0.1:9999 --user guest --token-stdin </root/token",
        0,
    );
    c.write(
        "/home/guest/job.nix",
        "derivation { name = \"hello\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo hello > $out\" ]; }",
    );
    hour.run("guest", "flywheelctl run --label first -- nix-build -o result job.nix", 0);
    hour.run("guest", "flywheelctl why result", 0);
    // The outage.
    c.ok("systemctl stop remote");
    let late = c.build_as("guest", "late", "echo late > $out");
    until("it is away", || (c.status()["cache"][0]["state"] == "offline").then_some(()));
    hour.run("guest", &format!("flywheelctl why {late}"), 0);
    hour.run("root", "flywheelctl doctor", 3);
    // The recovery.
    c.ok("systemctl reset-failed remote 2>/dev/null; systemd-run --quiet --unit=remote --property=Type=notify --property=DynamicUser=yes --property=StateDirectory=remote flywheeld --config /etc/remote.toml");
    until("it arrived", || c.serves(9999, &late).then_some(()));
    until("it is confirmed", || c.ok(&format!("flywheelctl why {late}")).contains(": pushed ").then_some(()));
    hour.run("guest", &format!("flywheelctl why {late}"), 0);
    hour.run("root", "flywheelctl doctor", 0);
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(EXPECTED);
    if std::env::var_os("FLYWHEEL_TEST_ACCEPT").is_some() {
        std::fs::write(&file, &hour.text).unwrap();
    }
    let expected = std::fs::read_to_string(&file).unwrap();
    assert_eq!(hour.text, expected, "read what is new; FLYWHEEL_TEST_ACCEPT=1 writes {EXPECTED}");
}
