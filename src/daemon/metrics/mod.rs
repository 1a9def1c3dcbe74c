//! The daemon's metrics: what is counted and timed while it runs, the page in
//! Prometheus' text format, and the server that a Prometheus scrapes. Must not know how
//! anything is decided.
//!
//! Names and units follow Prometheus' conventions: seconds, bytes, `_total` for counters,
//! which begin at 0 with the daemon. Labels have values from the configuration or from
//! a fixed list only, so that the number of series is bounded.

mod page;
mod serve;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

pub(in crate::daemon) use page::{CacheNumbers, Numbers};
pub(in crate::daemon) use serve::serve;

/// The upper bounds of the histograms, in seconds: from a small path to an hour's outage.
const BOUNDS: [f64; 15] =
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// What is counted and timed. Clones share it.
#[derive(Clone)]
pub(in crate::daemon) struct Metrics(Arc<Counted>);

struct Counted {
    registry: Registry,
    /// How long a confirmed upload took, by cache.
    upload: HistogramVec,
    /// The time from when a push was taken in to its outcome, by cache.
    queue_age: HistogramVec,
    /// How long the end of a session took.
    flush: Histogram,
    /// Uploads that went wrong, by cache and class of the error.
    failures: IntCounterVec,
    /// Uploads that were not the first of their push, by cache.
    retries: IntCounterVec,
    /// Why the page is not served, if it cannot be.
    trouble: Mutex<Option<String>>,
}

impl Metrics {
    /// Begins to count for these caches.
    pub(in crate::daemon) fn new<'a>(caches: impl Iterator<Item = &'a str>) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let histogram = |name: &str, help: &str| HistogramOpts::new(name, help).buckets(BOUNDS.to_vec());
        let upload = HistogramVec::new(
            histogram("flywheel_upload_duration_seconds", "How long uploads took that the cache confirmed."),
            &["cache"],
        )?;
        let queue_age = HistogramVec::new(
            histogram(
                "flywheel_queue_age_seconds",
                "How long pushes waited and were uploaded, from when flywheeld saw the path to its outcome.",
            ),
            &["cache"],
        )?;
        let flush = Histogram::with_opts(histogram(
            "flywheel_session_flush_duration_seconds",
            "How long it took from the end of a session's job until no path was pending.",
        ))?;
        let failures = IntCounterVec::new(
            Opts::new(
                "flywheel_upload_failures_total",
                "Uploads and questions that went wrong, retried or not, by class of the error.",
            ),
            &["cache", "class"],
        )?;
        let retries = IntCounterVec::new(
            Opts::new("flywheel_upload_retries_total", "Uploads that were not the first of their path."),
            &["cache"],
        )?;
        registry.register(Box::new(upload.clone()))?;
        registry.register(Box::new(queue_age.clone()))?;
        registry.register(Box::new(flush.clone()))?;
        registry.register(Box::new(failures.clone()))?;
        registry.register(Box::new(retries.clone()))?;
        let this = Self(Arc::new(Counted {
            registry,
            upload,
            queue_age,
            flush,
            failures,
            retries,
            trouble: Mutex::default(),
        }));
        // A series that is there from the beginning has a rate from the first event on.
        caches.for_each(|cache| this.know(cache));
        Ok(this)
    }

    /// Makes the series of a cache, at 0.
    pub(in crate::daemon) fn know(&self, cache: &str) {
        let counted = &self.0;
        counted.upload.with_label_values(&[cache]);
        counted.queue_age.with_label_values(&[cache]);
        counted.retries.with_label_values(&[cache]);
        counted.failures.with_label_values(&[cache, "transient"]);
    }

    /// Why the page is not served, if it should be and cannot be.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes why the page is not served.
    pub(in crate::daemon) fn set_trouble(&self, trouble: Option<String>) {
        *self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Counts an upload that the cache confirmed.
    pub(in crate::daemon) fn uploaded(&self, cache: &str, took: Duration) {
        self.0.upload.with_label_values(&[cache]).observe(took.as_secs_f64());
    }

    /// Counts an upload that begins.
    pub(in crate::daemon) fn begins(&self, cache: &str, attempt: u32) {
        if attempt > 1 {
            self.0.retries.with_label_values(&[cache]).inc();
        }
    }

    /// Counts an upload or question that went wrong. `class` is one of a fixed list.
    pub(in crate::daemon) fn failed(&self, cache: &str, class: &'static str) {
        self.0.failures.with_label_values(&[cache, class]).inc();
    }

    /// Counts a push that has its outcome.
    pub(in crate::daemon) fn settled(&self, cache: &str, age: Duration) {
        self.0.queue_age.with_label_values(&[cache]).observe(age.as_secs_f64());
    }

    /// Counts a session that has closed.
    pub(in crate::daemon) fn closed(&self, flush: Duration) {
        self.0.flush.observe(flush.as_secs_f64());
    }
}
