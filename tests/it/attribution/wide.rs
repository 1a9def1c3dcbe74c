//! Wide graphs: many builds are ready at once and wait for a slot. Nix takes and releases the lock
//! of each that waits whenever another one ends.

use std::process::{Child, Command, Stdio};

use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;

/// More locks of added sources than there may be reads of the lock table without a pause.
const SOURCES: usize = 1500;

/// More builds than the lock files that the daemon holds open at a time.
const BUILDS: usize = 300;

/// A daemon with a session, and the anchor of another one: a path whose maker is unknown may belong
/// to either.
fn two_sessions() -> (Daemon, String, Child) {
    let daemon = Daemon::start(PrivateNix::new(), EMBEDDED);
    let other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    daemon.session(&["--anchor-pid", &other.id().to_string()]);
    let session = daemon.session(&[]);
    (daemon, session, other)
}

#[test]
fn each_of_many_ready_builds_is_seen_by_its_process() {
    let (daemon, session, mut other) = two_sessions();
    let expression = format!(
        r#"builtins.genList (n: derivation {{
            name = "wide-${{toString n}}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
            args = [ "-c" "sleep 0.05; echo ${{toString n}} > $out" ];
        }}) {BUILDS}"#
    );
    let out = daemon.nix.run("nix-build", &["--no-out-link", "-j", "16", "-E", &expression]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let built: Vec<String> = String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(built.len(), BUILDS);
    daemon.json(&["session", "end", &session]);
    let detail = daemon.json(&["session", "show", &session]);
    let evidence = |path: &String| {
        let paths = detail["paths"].as_array().unwrap();
        paths.iter().find(|entry| entry["path"] == path.as_str()).map(|entry| entry["evidence"].clone())
    };
    let others: Vec<_> = built.iter().filter(|p| evidence(p) != Some("process".into())).collect();
    assert!(others.is_empty(), "{} of {BUILDS}: {:?}", others.len(), others.first().map(|p| evidence(p)));
    other.kill().unwrap();
    other.wait().unwrap();
}

/// The locks of sources and of `.drv` files are held for a moment each, and come before those of
/// the builds.
#[test]
fn builds_after_many_added_sources_are_seen_by_their_processes() {
    let (daemon, session, mut other) = two_sessions();
    let expression = format!(
        r#"let needs = toString (builtins.genList (n: builtins.toFile "source-${{toString n}}" "source ${{toString n}}") {SOURCES}); in
        builtins.genList (n: derivation {{
            name = "after-${{toString n}}"; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
            inherit needs; passAsFile = [ "needs" ]; args = [ "-c" "sleep 0.05; cat $needsPath > $out" ];
        }}) 3"#
    );
    let built = daemon.nix.build(&expression);
    assert_eq!(built.len(), 3);
    daemon.json(&["session", "end", &session]);
    let built: Vec<&str> = built.iter().map(String::as_str).collect();
    let why = daemon.json(&[&["why"], &built[..]].concat());
    for story in why["paths"].as_array().unwrap() {
        let of = story["sessions"].as_array().unwrap().iter().map(|of| (&of["session"], &of["evidence"]));
        assert_eq!(of.collect::<Vec<_>>(), [(&session.as_str().into(), &"process".into())], "{story}");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}
