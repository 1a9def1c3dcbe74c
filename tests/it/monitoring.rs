//! The metrics: what promtool and a real Prometheus make of them, the server's limits, and that the
//! files of packaging/monitoring ask for metrics that the daemon has.

use std::collections::BTreeSet;
use std::io::{Read as _, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::cache::get;
use crate::support::daemon::{Daemon, EMBEDDED, until, until_some};
use crate::support::nix::PrivateNix;

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
    let checked = daemon.ctl(&["verify", "--sample", "1"]);
    assert_eq!(checked.code, 0, "{checked:?}");
    let page = daemon.ctl(&["metrics"]);
    assert_eq!(page.code, 0, "{page:?}");
    let mut known = names(&page.out);
    known.extend(WITHOUT_VALUE.map(str::to_owned));
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring");
    let mut asked = BTreeSet::new();
    for file in ["alerts.yml", "alerts-test.yml", "grafana-dashboard.json", "README.md"] {
        asked.extend(names(&std::fs::read_to_string(dir.join(file)).unwrap()));
    }
    // A histogram's parts are named by their family.
    let family = |name: &str| {
        let parts = ["_bucket", "_sum", "_count"];
        parts.iter().find_map(|part| name.strip_suffix(part)).unwrap_or(name).to_owned()
    };
    let known: BTreeSet<String> = known.iter().map(|name| family(name)).collect();
    let asked: BTreeSet<String> = asked.iter().map(|name| family(name)).collect();
    let unknown: Vec<_> = asked.difference(&known).collect();
    assert!(unknown.is_empty() && asked.len() > 8, "{unknown:?} of {asked:?}");
    let dashboard = std::fs::read_to_string(dir.join("grafana-dashboard.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
}

/// A program of Debian's package `prometheus`: installed, or taken out of it by `tests/run.sh`.
fn tool(name: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("FLYWHEEL_TEST_CACHE").map(PathBuf::from);
    let cache =
        cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/flywheel-tests")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).chain(cache).map(|dir| dir.join(name)).find(|file| file.exists());
    if found.is_none() {
        eprintln!("skipped: {name} is not there; `tests/run.sh` fetches it");
    }
    found
}

/// A daemon that serves its metrics at a free port, and the address.
fn served() -> (Daemon, String) {
    let daemon =
        Daemon::start(PrivateNix::new(), &format!("{EMBEDDED}\n[metrics]\nlisten = \"127.0.0.1:0\"\n"));
    let address = until_some("the address of the metrics is logged", || {
        let log = daemon.log();
        let rest = log.split_once("metrics are served at http://")?.1;
        Some(rest.split_once("/metrics")?.0.to_owned())
    });
    (daemon, address)
}

#[test]
fn promtool_finds_the_page_clean() {
    let Some(promtool) = tool("promtool") else { return };
    let daemon = Daemon::embedded();
    daemon.nix.make("one");
    daemon.flush();
    let page = daemon.ctl(&["metrics"]).out;
    let mut check = Command::new(promtool);
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let out = check.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success() && said.is_empty(), "{said}");
}

/// Sends a request of this head; returns the statuses that may be the answer to it: a server that
/// closes the connection while it is still being sent to may not be heard.
fn statuses(address: &str, head: &str) -> Vec<u16> {
    let mut stream = TcpStream::connect(address).unwrap();
    let sent = stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes());
    let mut answer = String::new();
    let read = stream.read_to_string(&mut answer);
    if head.len() > 16 * 1024 && (sent.is_err() || read.is_err() || answer.is_empty()) {
        return vec![431, 414];
    }
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("{answer:?}"));
    // Too long a line or head has several names.
    if matches!(status, 414 | 400) { vec![status, 431] } else { vec![status] }
}

#[test]
fn the_server_has_one_page_and_outlives_bad_callers() {
    let (daemon, address) = served();
    let session = daemon.session(&["--label", "secret-project"]);
    daemon.nix.make("secret-path");
    daemon.end(&session, &[]);
    let (status, page) = get(&address, "/metrics");
    assert_eq!(status, 200);
    assert_eq!(names(&page), names(&daemon.ctl(&["metrics"]).out), "the same page");
    assert!(page.contains("flywheel_queue_age_seconds_count{cache=\"main\"} 1\n"), "{page}");
    for secret in ["secret", session.as_str(), "root"] {
        assert!(!page.contains(secret), "{secret}: {page}");
    }
    assert_eq!(get(&address, "/").0, 404);
    for (request, status) in [
        // The name of a web page that resolves to this host.
        ("GET /metrics HTTP/1.1\r\nHost: evil.example".to_owned(), 421),
        ("GET http://evil.example/metrics HTTP/1.1\r\nHost: evil.example".to_owned(), 421),
        ("GET /metrics HTTP/1.1\r\nHost: localhost".to_owned(), 200),
        ("GET /metrics HTTP/1.0".to_owned(), 200),
        ("TRACE /metrics HTTP/1.1\r\nHost: localhost".to_owned(), 405),
        ("POST /metrics HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999".to_owned(), 405),
        ("GET /../../etc/passwd HTTP/1.1\r\nHost: localhost".to_owned(), 404),
        (format!("GET /{} HTTP/1.1\r\nHost: localhost", "a".repeat(100_000)), 431),
        (format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\nX: {}", "a".repeat(100_000)), 431),
        (format!("GET /metrics HTTP/1.1\r\nHost: localhost{}", "\r\nX: a".repeat(1000)), 431),
    ] {
        let begin: String = request.chars().take(60).collect();
        assert!(statuses(&address, &request).contains(&status), "{begin}");
    }
    // More callers than there are places, which say nothing: they lose their places after a while,
    // and the daemon works meanwhile.
    let silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(&address).unwrap()).collect();
    daemon.nix.make("two");
    assert_eq!(daemon.flush()["pending"], 0);
    drop(silent);
    until("the page is there again", || get(&address, "/metrics").0 == 200);
}

#[test]
fn a_port_that_is_taken_costs_the_metrics_only() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let config = format!("{EMBEDDED}\n[metrics]\nlisten = \"{address}\"\n");
    let daemon = Daemon::start(PrivateNix::new(), &config);
    until("the reason is reported", || {
        daemon.status()["warnings"].to_string().contains("choose another port, or end the process")
    });
    daemon.assert_logged(1, "metrics are not served");
    // A reload without the table ends the tries.
    daemon.configure(EMBEDDED);
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    daemon.configure(&format!("{EMBEDDED}\n[metrics]\nlisten = \"127.0.0.1:0\"\n"));
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    until("the page is served", || daemon.log().contains("metrics are served at"));
    until("the warning ends", || !daemon.status()["warnings"].to_string().contains("metrics are not served"));
}

/// A process that is killed when this is dropped.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_the_daemon() {
    let Some(prometheus) = tool("prometheus") else { return };
    let (daemon, address) = served();
    daemon.nix.make("one");
    daemon.flush();
    let dir = tempfile::tempdir().unwrap();
    let rules = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring/alerts.yml");
    let config = format!(
        "global: {{ scrape_interval: 1s, evaluation_interval: 1s }}\nrule_files: [ {} ]\nscrape_configs:\n  \
         - job_name: flywheel\n    static_configs: [ {{ targets: [ '{address}' ] }} ]\n",
        rules.display()
    );
    std::fs::write(dir.path().join("prometheus.yml"), config).unwrap();
    let free: SocketAddr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut command = Command::new(prometheus);
    command
        .arg(format!("--config.file={}", dir.path().join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address={free}"))
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(dir.path().join("log")).unwrap());
    let _server = Killed(command.spawn().unwrap());
    let query = |query: &str| {
        TcpStream::connect(free).ok()?;
        let (status, body) = get(&free.to_string(), &format!("/api/v1/query?query={query}"));
        let body: serde_json::Value = serde_json::from_str(&body).ok().filter(|_| status == 200)?;
        let value = body["data"]["result"][0]["value"][1].as_str()?;
        value.parse::<f64>().ok()
    };
    let ask = |metric: &str| until_some(metric, || query(metric));
    assert_eq!(ask("up"), 1.0);
    assert_eq!(ask("flywheel_cache_up"), 1.0);
    assert_eq!(ask("flywheel_paths_total%7Boutcome=%22pushed%22%7D"), 1.0);
    assert_eq!(ask("flywheel_upload_duration_seconds_count"), 1.0);
    let quantile = ask("histogram_quantile(0.5,sum%20by(le)(flywheel_queue_age_seconds_bucket))");
    assert!(quantile > 0.0, "{quantile}");
}
