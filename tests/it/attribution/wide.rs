//! Wide graphs: many builds are ready at once and wait for a slot. Nix takes and releases the lock
//! of each that waits whenever another one ends.

use std::process::{Command, Stdio};

use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;

/// More builds than the lock files that the daemon holds open at a time.
const BUILDS: usize = 300;

#[test]
fn each_of_many_ready_builds_is_seen_by_its_process() {
    let nix = PrivateNix::new();
    let daemon = Daemon::start(nix, EMBEDDED);
    // Another open session: a path whose maker is unknown may belong to either.
    let mut other = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    daemon.session(&["--anchor-pid", &other.id().to_string()]);
    let session = daemon.session(&[]);
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
