//! Measures the cost of an upload for the client. The test asserts the memory, because
//! it must not grow with the NAR, and prints the processor time, because that depends
//! on the machine.

use super::server::Server;
use super::*;

/// Limit of memory in KiB: far below the NAR's size, far above what a client needs.
const MOST_MEMORY_KIB: u64 = 64 * 1024;

fn nar_size() -> u64 {
    let mib = std::env::var("FLYWHEEL_TEST_NAR_MIB").ok().and_then(|m| m.parse().ok()).unwrap_or(256);
    mib << 20
}

/// The client runs in a separate process, so that the figures include nothing else.
#[tokio::test]
#[allow(clippy::print_stderr)]
async fn memory_does_not_grow_with_the_nar() {
    const INNER: &str = "FLYWHEEL_TEST_UPLOAD_TO";
    if let Ok(endpoint) = std::env::var(INNER) {
        let size = nar_size();
        let begin = std::time::Instant::now();
        client(&endpoint).upload(&info(size), nar(size)).await.unwrap();
        let wall = begin.elapsed();
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let ticks: Vec<i64> =
            stat.rsplit(')').next().unwrap().split(' ').filter_map(|f| f.parse().ok()).collect();
        // After the name and the letter of the state: utime and stime are fields 14 and 15 of proc(5), in 1/100 s.
        let (user, system) = (ticks[10], ticks[11]);
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
        eprintln!("{} MiB: user {user}0 ms, system {system}0 ms, wall {wall:?}, peak {peak} KiB", size >> 20);
        assert!(peak < MOST_MEMORY_KIB, "{peak} KiB for one upload");
        return;
    }
    let server = Server::start(|request, mut conn| async move {
        conn.exactly(request.header("content-length").unwrap().parse().unwrap()).await;
        conn.answer("200 OK", "", r#"{"kind":"Uploaded","file_size":1}"#).await;
        Some(conn)
    })
    .await;
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "cache::tests::throughput::memory_does_not_grow_with_the_nar"])
        .env(INNER, &server.url)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .unwrap();
    assert!(status.success());
}
