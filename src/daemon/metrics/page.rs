//! The page of metrics: what was counted, and how things are at this moment.

use prometheus::{IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use super::Metrics;
use crate::control::messages::{CacheState, Status};

/// What the page has beyond the status.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Numbers {
    /// Bytes read for uploads since the daemon started, those of running uploads included.
    pub(in crate::daemon) sent_bytes: u64,
    /// Changes that the ledger has not written yet.
    pub(in crate::daemon) ledger_queued: u64,
    /// By cache, in the order of the status.
    pub(in crate::daemon) caches: Vec<CacheNumbers>,
}

/// What the page has of a cache beyond the status.
#[derive(Debug, Default)]
pub(in crate::daemon) struct CacheNumbers {
    /// Pushes that are neither settled nor failed.
    pub(in crate::daemon) pending: u64,
    /// How long the oldest of them waits, in seconds; 0 without any.
    pub(in crate::daemon) oldest_pending_s: u64,
    /// How many uploads may run at a time now.
    pub(in crate::daemon) upload_limit: u64,
}

impl Metrics {
    /// Returns the page in Prometheus' text format 0.0.4.
    pub(in crate::daemon) fn page(&self, status: &Status, numbers: &Numbers) -> String {
        let registry = Registry::new();
        // Names and helps are fixed, so registering them does not fail; a test reads them all.
        let mut families = self.0.registry.gather();
        if fill(&registry, status, numbers).is_ok() {
            families.extend(registry.gather());
        }
        families.sort_by(|a, b| a.name().cmp(b.name()));
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

fn fill(registry: &Registry, status: &Status, numbers: &Numbers) -> prometheus::Result<()> {
    let gauge = |name: &str, help: &str, value: u64| {
        let metric = IntGauge::new(name, help)?;
        metric.set(signed(value));
        registry.register(Box::new(metric))
    };
    let gauges = |name: &str, help: &str, labels: &[&str]| {
        let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(metric.clone()))?;
        Ok::<_, prometheus::Error>(metric)
    };
    let counters = |name: &str, help: &str, labels: &[&str]| {
        let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(metric.clone()))?;
        Ok::<_, prometheus::Error>(metric)
    };
    gauge("flywheel_uptime_seconds", "Seconds since flywheeld started.", status.uptime_ms / 1000)?;
    gauge("flywheel_draining", "1 while flywheeld is stopping.", u64::from(status.draining))?;
    gauge(
        "flywheel_store_cursor",
        "The last row of the Nix database that was read.",
        status.store.cursor.unsigned_abs(),
    )?;
    gauge(
        "flywheel_store_lag_rows",
        "Rows of the Nix database that are still to be read.",
        status.store.lag,
    )?;
    gauge(
        "flywheel_store_problem",
        "1 while newly valid paths cannot be followed.",
        u64::from(status.store.problem.is_some()),
    )?;
    gauge(
        "flywheel_ledger_degraded",
        "1 while the ledger cannot be written.",
        u64::from(status.ledger.state != "ok"),
    )?;
    gauge(
        "flywheel_ledger_queued_changes",
        "Changes that the ledger has not written yet.",
        numbers.ledger_queued,
    )?;
    gauge(
        "flywheel_client_ready",
        "1 while the attic client is ready.",
        u64::from(status.client.state == "ready"),
    )?;
    gauge(
        "flywheel_protected_bytes",
        "Size of the NARs of pending paths that are protected from garbage collection.",
        status.store.protected_bytes,
    )?;
    gauge(
        "flywheel_unprotected_paths",
        "Pending paths that are not protected from garbage collection because a limit is exceeded.",
        status.store.unprotected_paths,
    )?;
    counters(
        "flywheel_protection_lost_total",
        "Pending paths that lost their protection from garbage collection because a limit was exceeded.",
        &[],
    )?
    .with_label_values::<&str>(&[])
    .inc_by(status.store.let_go);
    counters(
        "flywheel_sent_bytes_total",
        "Bytes of NARs that were read for uploads, running ones included.",
        &[],
    )?
    .with_label_values::<&str>(&[])
    .inc_by(numbers.sent_bytes);

    let build = gauges("flywheel_build_info", "The version of flywheeld, as a label.", &["version"])?;
    build.with_label_values(&[status.version.as_str()]).set(1);
    let queue = gauges(
        "flywheel_queue_paths",
        "Pushes that are pending, that are uploaded now, or that have failed.",
        &["state"],
    )?;
    let sessions = gauges(
        "flywheel_sessions",
        "Sessions of CI jobs that are open, or that have ended with pending paths.",
        &["state"],
    )?;
    for (family, state, value) in [
        (&queue, "pending", status.queue.pending),
        (&queue, "uploading", status.queue.uploading),
        (&queue, "failed", status.queue.failed),
        (&sessions, "open", status.session_counts.open),
        (&sessions, "draining", status.session_counts.draining),
    ] {
        family.with_label_values(&[state]).set(signed(value));
    }
    let info = gauges(
        "flywheel_cache_info",
        "The engine that uploads to the cache, as a label.",
        &["cache", "engine"],
    )?;
    let up = gauges("flywheel_cache_up", "1 while the cache takes uploads.", &["cache"])?;
    let state = gauges("flywheel_cache_state", "1 for the state that the cache is in.", &["cache", "state"])?;
    let pending =
        gauges("flywheel_cache_pending_paths", "Pushes to the cache without an outcome.", &["cache"])?;
    let oldest = gauges(
        "flywheel_oldest_pending_age_seconds",
        "How long the oldest push to the cache has had no outcome; 0 without any.",
        &["cache"],
    )?;
    let limit = gauges(
        "flywheel_cache_upload_limit",
        "Uploads to the cache that may run at a time now.",
        &["cache"],
    )?;
    let expires = gauges(
        "flywheel_token_expiry_timestamp_seconds",
        "When the push token of the cache expires, in seconds since 1970.",
        &["cache"],
    )?;
    let paths = counters("flywheel_paths_total", "Pushes that have an outcome.", &["cache", "outcome"])?;
    let bytes =
        counters("flywheel_uploaded_bytes_total", "Size of the NARs that the cache confirmed.", &["cache"])?;
    let verified = counters(
        "flywheel_verified_paths_total",
        "Paths that were fetched to verify the cache.",
        &["cache", "result"],
    )?;
    for (n, cache) in status.cache.iter().enumerate() {
        let name = cache.name.as_str();
        info.with_label_values(&[name, cache.engine.as_str()]).set(1);
        up.with_label_values(&[name]).set(i64::from(cache.state == CacheState::Online));
        for each in [CacheState::Online, CacheState::Offline, CacheState::Unauthorized] {
            state.with_label_values(&[name, each.as_str()]).set(i64::from(cache.state == each));
        }
        if let Some(end) = cache.token_expires {
            expires.with_label_values(&[name]).set(end);
        }
        if let Some(numbers) = numbers.caches.get(n) {
            pending.with_label_values(&[name]).set(signed(numbers.pending));
            oldest.with_label_values(&[name]).set(signed(numbers.oldest_pending_s));
            limit.with_label_values(&[name]).set(signed(numbers.upload_limit));
        }
        let counts = &cache.counts;
        for (outcome, n) in [
            ("pushed", counts.pushed),
            ("already_cached", counts.already_cached),
            ("upstream", counts.upstream),
            ("collected", counts.collected),
            ("failed", counts.failed),
        ] {
            paths.with_label_values(&[name, outcome]).inc_by(n);
        }
        bytes.with_label_values(&[name]).inc_by(counts.bytes);
        for (result, n) in &cache.verified {
            verified.with_label_values(&[name, result.as_str()]).inc_by(*n);
        }
    }
    Ok(())
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::messages::{CacheStatus, PathCounts};

    #[test]
    fn a_page() {
        let metrics = Metrics::new(["ma\"in"].into_iter()).unwrap();
        metrics.uploaded("ma\"in", Duration::from_millis(30));
        metrics.begins("ma\"in", 1);
        metrics.begins("ma\"in", 2);
        metrics.failed("ma\"in", "too-large");
        metrics.settled("ma\"in", Duration::from_secs(2));
        metrics.closed(Duration::from_secs(4000));
        let counts = PathCounts { pushed: 47, bytes: 1024, ..PathCounts::default() };
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
        status.store.protected_bytes = 7;
        status.ledger.state = "degraded".into();
        let caches = vec![CacheNumbers { pending: 2, oldest_pending_s: 77, upload_limit: 8 }];
        let numbers = Numbers { sent_bytes: 9, ledger_queued: 1, caches };
        let page = metrics.page(&status, &numbers);
        for line in [
            "# TYPE flywheel_uptime_seconds gauge",
            "# HELP flywheel_uptime_seconds Seconds since flywheeld started.",
            "flywheel_uptime_seconds 61",
            "flywheel_ledger_degraded 1",
            "flywheel_ledger_queued_changes 1",
            "flywheel_protected_bytes 7",
            "flywheel_sent_bytes_total 9",
            "flywheel_build_info{version=\"0.1.0\"} 1",
            "flywheel_queue_paths{state=\"failed\"} 3",
            "flywheel_sessions{state=\"open\"} 0",
            "flywheel_cache_up{cache=\"ma\\\"in\"} 1",
            "flywheel_cache_state{cache=\"ma\\\"in\",state=\"offline\"} 0",
            "flywheel_oldest_pending_age_seconds{cache=\"ma\\\"in\"} 77",
            "flywheel_token_expiry_timestamp_seconds{cache=\"ma\\\"in\"} 2000000000",
            "# TYPE flywheel_paths_total counter",
            "flywheel_paths_total{cache=\"ma\\\"in\",outcome=\"pushed\"} 47",
            "flywheel_upload_failures_total{cache=\"ma\\\"in\",class=\"too-large\"} 1",
            "flywheel_upload_retries_total{cache=\"ma\\\"in\"} 1",
            "flywheel_uploaded_bytes_total{cache=\"ma\\\"in\"} 1024",
            "# TYPE flywheel_upload_duration_seconds histogram",
            "flywheel_upload_duration_seconds_bucket{cache=\"ma\\\"in\",le=\"0.05\"} 1",
            "flywheel_upload_duration_seconds_bucket{cache=\"ma\\\"in\",le=\"0.025\"} 0",
            "flywheel_queue_age_seconds_count{cache=\"ma\\\"in\"} 1",
            "flywheel_session_flush_duration_seconds_bucket{le=\"3600\"} 0",
            "flywheel_session_flush_duration_seconds_bucket{le=\"+Inf\"} 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
        let named = |kind: &str| page.lines().filter(|l| l.starts_with(kind)).count();
        assert_eq!(named("# HELP "), named("# TYPE "), "{page}");
    }
}
