//! How fast large NARs go: under `max_rate`, over a line with latency and a bandwidth, and without
//! any limit. The server throws away what it receives.

use std::time::Duration;

use crate::delay::Delay;
use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::Daemon;
use crate::sink::Sink;

/// Builds NARs of this many bytes from sparse files; returns their names.
fn build(nix: &PrivateNix, tag: &str, count: u32, bytes: u64) -> Vec<String> {
    let one = |n| PrivateNix::shell(&format!("{tag}-{n}"), &format!("truncate -s {bytes} $out"));
    (0..count).flat_map(|n| nix.build(&one(n))).collect()
}

/// Pushes these paths; returns the rate at which the sink received them in bytes per second, and the
/// daemon's processor time in seconds.
fn push(nix: &PrivateNix, sink: &Sink, endpoint: &str, paths: &[String], extra: &str) -> (f64, f64) {
    sink.clear();
    let dir = tempfile::Builder::new().prefix("fwd").tempdir().unwrap();
    let daemon = Daemon::start(nix, dir.path(), (endpoint, sink.token_file()), extra);
    let before = daemon.usage().cpu_s;
    let args: Vec<&str> = ["push", "--wait"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let answer = daemon.json(&args);
    assert_eq!(answer["pushed"], paths.len(), "{answer}");
    let cpu = daemon.usage().cpu_s - before;
    let received = sink.received();
    let (first, last) = received.span.unwrap();
    (received.bytes as f64 / (last - first).as_secs_f64(), cpu)
}

/// `max_rate` from 1 MB/s to 1 GB/s: what is really sent, of what is allowed.
pub fn max_rate() {
    let nix = PrivateNix::new();
    let sink = Sink::start(nix.path());
    for megabytes in [1_u64, 10, 50, 100, 200, 400, 1_000] {
        let rate = megabytes * 1_000_000;
        // The first tenth of a second is allowed at once, so a longer run says more.
        let paths = build(&nix, &format!("rate-{megabytes}"), 1, rate * 5);
        let extra = format!("[push]\nmax_rate = {rate}");
        let (got, cpu) = push(&nix, &sink, &sink.endpoint(), &paths, &extra);
        let what = format!("max_rate = {megabytes} MB/s");
        let how = "bytes that a server receives of one NAR of 5 s, of what is allowed";
        figure(&what, "%", &[got / rate as f64 * 100.0], how);
        figure(&format!("{what}: processor time"), "s", &[cpu], "utime+stime of the daemon");
        nix.run("nix-store", &["--delete", &paths[0]]);
    }
}

/// 1 Gbit/s in bytes per second.
const LINE: u64 = 125_000_000;

/// Large NARs over 1 Gbit/s with a round trip of 50 ms, one and four at a time; and without a line.
pub fn line() {
    const MIB: u64 = 1 << 20;
    let nix = PrivateNix::new();
    let sink = Sink::start(nix.path());
    let delay = Delay::before(sink.address(), Duration::from_millis(50)).limited(LINE);
    let one = build(&nix, "one", 1, 512 * MIB);
    let four = build(&nix, "four", 4, 192 * MIB);
    for (what, paths) in [("one NAR of 512 MiB", &one), ("four NARs of 192 MiB", &four)] {
        let took: Vec<f64> =
            (0..3).map(|_| push(&nix, &sink, &delay.endpoint(), paths, "").0 / LINE as f64 * 100.0).collect();
        let how = "of 1 Gbit/s at a round trip of 50 ms, from the first to the last byte at the server";
        figure(&format!("{what} over a line"), "%", &took, how);
    }
    let big = build(&nix, "big", 1, 1024 * MIB);
    let runs: Vec<(f64, f64)> = (0..3).map(|_| push(&nix, &sink, &sink.endpoint(), &big, "")).collect();
    let (rates, cpu): (Vec<f64>, Vec<f64>) = runs.into_iter().unzip();
    let rates: Vec<f64> = rates.iter().map(|rate| rate / 1e6).collect();
    figure("one NAR of 1 GiB, no line: rate", "MB/s", &rates, "to a server that throws it away");
    figure("one NAR of 1 GiB, no line: processor time", "s", &cpu, "utime+stime of the daemon");
}
