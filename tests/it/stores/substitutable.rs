//! `[push.filter] substitutable_only`: outputs that Nix builds on every host are left out.

use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;

fn derivation(name: &str, text: &str, more: &str) -> String {
    format!(
        "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \
         \"echo ${{{text}}} > $out\" ]; {more} }}"
    )
}

#[test]
fn outputs_that_nix_never_substitutes_are_left_out_unless_something_refers_to_them() {
    let config = format!("{EMBEDDED}[push.filter]\nsubstitutable_only = true\n");
    let daemon = Daemon::start(PrivateNix::new(), &config);
    let session = daemon.session(&[]);
    let make =
        |name: &str, more: &str| daemon.nix.build(&derivation(name, "builtins.toString 1", more)).remove(0);
    let local = make("local", "allowSubstitutes = false;");
    let explicit = make("explicit", "allowSubstitutes = true;");
    let plain = make("plain", "");
    let inner = derivation("inner", "builtins.toString 1", "allowSubstitutes = false;");
    let outer = daemon.nix.build(&derivation("outer", &inner, "")).remove(0);
    let structured =
        "derivation { name = \"structured\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \". ./.attrs.sh; echo 1 > \\${outputs[out]}\" ]; __structuredAttrs = true; \
         allowSubstitutes = false; outputs = [ \"out\" ]; }"
            .replace("/bin/sh", "/bin/bash");
    let structured = daemon.nix.build(&structured).remove(0);
    let summary = daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &4.into()), "{summary}");
    let cache = daemon.main();
    let names = cache.names();
    assert!(cache.has(&explicit) && cache.has(&plain) && cache.has(&outer), "{names:?}");
    assert!(!cache.has(&local) && !cache.has(&structured), "{names:?}");
    assert!(names.iter().any(|name| name == "inner"), "a closure is whole: {names:?}");
    for path in [&local, &structured] {
        let why = daemon.ctl(&["why", path]);
        assert!(why.out.contains("allowSubstitutes = false"), "{why:?}");
    }
    // Who names it gets it.
    assert_eq!(daemon.json(&["push", &local, "--wait"])["pushed"], 1);
    assert!(cache.has(&local));
}
