//! The files of packaging/monitoring ask for metrics that the daemon has.

use std::collections::BTreeSet;
use std::path::Path;

use crate::support::daemon::Daemon;

/// Metrics that a fresh daemon with the built-in cache has no value for.
const WITHOUT_VALUE: [&str; 1] = ["flywheel_token_expiry_timestamp_seconds"];

fn names(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_name(c)).filter(|w| w.starts_with("flywheel_"));
    words.map(str::to_owned).collect()
}

#[test]
fn every_metric_that_is_asked_for_exists() {
    let daemon = Daemon::embedded();
    daemon.nix.make("one");
    daemon.flush();
    let page = daemon.ctl(&["metrics"]);
    assert_eq!(page.code, 0, "{page:?}");
    let mut known = names(&page.out);
    known.extend(WITHOUT_VALUE.map(str::to_owned));
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring");
    let mut asked = BTreeSet::new();
    for file in ["alerts.yml", "alerts-test.yml", "grafana-dashboard.json", "README.md"] {
        asked.extend(names(&std::fs::read_to_string(dir.join(file)).unwrap()));
    }
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty() && asked.len() > 8, "{unknown:?} of {asked:?}");
    let dashboard = std::fs::read_to_string(dir.join("grafana-dashboard.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
}
