//! The journal's entries of one job, and their explanations.

use serde_json::Value;

use crate::support::container::Container;
use crate::support::nix::PrivateNix;

#[test]
fn the_journal_of_a_job_has_fields_and_explanations() {
    let Some(c) = Container::installed() else { return };
    let expression = PrivateNix::shell("logged", "echo logged > $out");
    let script = format!(
        "id=$(flywheelctl session start --label nightly) && echo $id && \
         nix-build --no-out-link - <<'EOF' && flywheelctl --quiet session end $id\n{expression}\nEOF"
    );
    let said = c.ok_as("job", &script);
    let (session, path) = said.split_once('\n').unwrap();
    // The fields, as journalctl finds them.
    let lines = c.ok(&format!("journalctl --sync && journalctl -o json FLYWHEEL_SESSION={session}"));
    let story: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(story.len(), 2, "its start and its summary: {lines}");
    for entry in &story {
        assert_eq!(entry["FLYWHEEL_LABEL"], "nightly", "{entry}");
        assert_eq!(entry["_SYSTEMD_UNIT"], "flywheeld.service", "{entry}");
        assert_eq!(entry["PRIORITY"], "6", "info: {entry}");
        assert_eq!(entry["MESSAGE_ID"].as_str().unwrap().len(), 32, "{entry}");
    }
    assert_eq!((&story[1]["FLYWHEEL_PUSHED"], &story[1]["FLYWHEEL_CACHE"]), (&"1".into(), &"main".into()));
    // The package has installed the explanations into the system's catalog.
    let explained = c.ok(&format!("journalctl -x --no-pager FLYWHEEL_SESSION={session}"));
    assert_eq!(explained.matches("Defined-By: flywheel").count(), 2, "{explained}");
    let own = c.read("/usr/lib/systemd/catalog/flywheel.catalog");
    let ids: Vec<&str> = own.lines().filter_map(|l| l.strip_prefix("-- ")).collect();
    assert!(ids.contains(&story[0]["MESSAGE_ID"].as_str().unwrap()));
    let known = c.ok("journalctl --list-catalog --no-pager");
    assert!(ids.iter().all(|id| known.contains(id)), "{known}");
    // The job caused no warning.
    assert_eq!(c.run(&format!("journalctl -q -p warning FLYWHEEL_STORE_PATH={path}")).out, "");
}
