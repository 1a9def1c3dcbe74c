//! The command `metrics`: the daemon's status as OpenMetrics text, for a collector
//! that reads files or runs commands. Must not know how things are printed.
//!
//! Names and units follow the OpenMetrics specification and Prometheus' own
//! conventions: seconds, bytes, `_total` for counters, which begin at 0 with
//! the daemon.

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::control::messages::{CacheState, CacheStatus, Status};

/// Labels, in the order in which they are written.
type Labels = Vec<(&'static str, String)>;
type Gauges = Family<Labels, Gauge>;
type Counters = Family<Labels, Counter>;

/// Returns the page, which ends in `# EOF`.
pub(super) fn page(status: &Status) -> String {
    let mut registry = Registry::with_prefix("flywheel");
    let mut gauge = |name: &str, help: &str, value: u64| {
        let metric: Gauge = Gauge::default();
        metric.set(signed(value));
        registry.register(name, help, metric);
    };
    gauge("uptime_seconds", "Seconds since the daemon started", status.uptime_ms / 1000);
    gauge("draining", "1 while the daemon is stopping", u64::from(status.draining));
    gauge("store_cursor", "Last row of the Nix database that was read", status.store.cursor.unsigned_abs());
    gauge("store_lag_rows", "Rows of the Nix database that are still to be read", status.store.lag);
    gauge(
        "store_problem",
        "1 while newly valid paths cannot be followed",
        u64::from(status.store.problem.is_some()),
    );
    gauge(
        "protected_bytes",
        "Size of the NARs of pending paths that are protected from garbage collection",
        status.store.protected_bytes,
    );
    gauge(
        "unprotected_paths",
        "Pending paths that are not protected from garbage collection because a bound is passed",
        status.store.unprotected_paths,
    );
    gauge("ledger_degraded", "1 while the ledger cannot be written", u64::from(status.ledger.state != "ok"));
    gauge("client_ready", "1 when the attic client is ready", u64::from(status.client.state == "ready"));

    let build = gauges(&mut registry, "build_info", "The daemon's version");
    set(&build, [("version", status.version.as_str())], 1);
    let queue = gauges(&mut registry, "queue_paths", "Pushes that are not in the cache yet, by state");
    set(&queue, [("state", "pending")], status.queue.pending);
    set(&queue, [("state", "uploading")], status.queue.uploading);
    set(&queue, [("state", "failed")], status.queue.failed);
    let sessions = gauges(&mut registry, "sessions", "Sessions of CI jobs that are not closed, by state");
    let counts = status.session_counts;
    for (state, count) in [("open", counts.open), ("draining", counts.draining)] {
        set(&sessions, [("state", state)], count);
    }
    let let_go = counters(
        &mut registry,
        "protection_lost",
        "Pending paths that lost their protection from garbage collection because a bound was passed",
    );
    let_go.get_or_create(&Labels::new()).inc_by(status.store.let_go);
    caches(&mut registry, &status.cache);

    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = encode(&mut text, &registry);
    text
}

fn caches(registry: &mut Registry, all: &[CacheStatus]) {
    let up = gauges(registry, "cache_up", "1 when the cache takes uploads, by cache, engine and state");
    let expires = Gauges::default();
    registry.register_with_unit(
        "token_expiry_timestamp",
        "When the token of the cache expires, since 1970",
        Unit::Seconds,
        expires.clone(),
    );
    let paths = counters(registry, "paths", "Pushes that have an outcome, by cache and outcome");
    let verified = counters(
        registry,
        "verified_paths",
        "Paths that were fetched to verify the cache, by cache and result",
    );
    let failures = counters(registry, "upload_failures", "Uploads that went wrong, retried or not, by cache");
    let bytes = Counters::default();
    registry.register_with_unit(
        "uploaded",
        "Size of the uploaded NARs, before compression",
        Unit::Bytes,
        bytes.clone(),
    );
    for cache in all {
        let name = || ("cache", cache.name.clone());
        let state = cache.state.as_str().to_owned();
        let labels = vec![name(), ("engine", cache.engine.clone()), ("state", state)];
        up.get_or_create(&labels).set(i64::from(cache.state == CacheState::Online));
        if let Some(end) = cache.token_expires {
            expires.get_or_create(&vec![name()]).set(end);
        }
        let counts = &cache.counts;
        for (outcome, n) in [
            ("pushed", counts.pushed),
            ("already_cached", counts.already_cached),
            ("upstream", counts.upstream),
            ("collected", counts.collected),
            ("failed", counts.failed),
        ] {
            paths.get_or_create(&vec![name(), ("outcome", outcome.to_owned())]).inc_by(n);
        }
        for (result, n) in &cache.verified {
            verified.get_or_create(&vec![name(), ("result", result.clone())]).inc_by(*n);
        }
        failures.get_or_create(&vec![name()]).inc_by(counts.failures);
        bytes.get_or_create(&vec![name()]).inc_by(counts.bytes);
    }
}

fn gauges(registry: &mut Registry, name: &str, help: &str) -> Gauges {
    let family = Gauges::default();
    registry.register(name, help, family.clone());
    family
}

fn counters(registry: &mut Registry, name: &str, help: &str) -> Counters {
    let family = Counters::default();
    registry.register(name, help, family.clone());
    family
}

fn set<const N: usize>(family: &Gauges, labels: [(&'static str, &str); N], value: u64) {
    let labels = labels.map(|(name, text)| (name, text.to_owned())).to_vec();
    family.get_or_create(&labels).set(signed(value));
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::messages::PathCounts;

    #[test]
    fn a_page_of_openmetrics() {
        let counts = PathCounts { pushed: 47, failures: 2, bytes: 1024, ..PathCounts::default() };
        let cache = CacheStatus {
            name: "ma\"in".into(),
            state: CacheState::Online,
            engine: "native".into(),
            token_expires: Some(2_000_000_000),
            counts,
            ..CacheStatus::default()
        };
        let mut status = Status { version: "0.1.0".into(), uptime_ms: 61_234, ..Status::default() };
        status.cache.push(cache);
        status.queue.failed = 3;
        status.ledger.state = "degraded".into();
        let page = page(&status);
        for line in [
            "# TYPE flywheel_uptime_seconds gauge",
            "flywheel_uptime_seconds 61",
            "flywheel_ledger_degraded 1",
            "flywheel_build_info{version=\"0.1.0\"} 1",
            "flywheel_queue_paths{state=\"failed\"} 3",
            "flywheel_sessions{state=\"open\"} 0",
            "flywheel_cache_up{cache=\"ma\\\"in\",engine=\"native\",state=\"online\"} 1",
            "flywheel_token_expiry_timestamp_seconds{cache=\"ma\\\"in\"} 2000000000",
            "# TYPE flywheel_paths counter",
            "flywheel_paths_total{cache=\"ma\\\"in\",outcome=\"pushed\"} 47",
            "flywheel_upload_failures_total{cache=\"ma\\\"in\"} 2",
            "flywheel_uploaded_bytes_total{cache=\"ma\\\"in\"} 1024",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"), "{page}");
    }
}
