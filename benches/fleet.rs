//! What hosts send that build the same at the same time.

use std::time::{Duration, Instant};

use crate::delay::Delay;
use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::Daemon;
use crate::sink::Sink;
use crate::trees;

const HOSTS: usize = 8;
const SMALL: usize = 300;
const LARGE: u64 = 200 << 20;
/// The line of each host, in bytes per second.
const LINE: u64 = 25_000_000;
const RUNS: u32 = 3;

/// Eight daemons, each with its own ledger and its own line, see the same 300 small paths and one of
/// 200 MiB become valid, the small ones one after the other: bytes sent, of the distinct bytes. They
/// share one Nix store, so each path becomes valid for all at the same moment, which is the worst
/// case; the lines have round trips of 2 to 30 ms.
pub fn fleet() {
    let nix = PrivateNix::new();
    let sink = Sink::start(nix.path());
    let line = |n| Delay::before(sink.address(), Duration::from_millis(2 + 4 * n)).limited(LINE);
    let lines: Vec<Delay> = (0..HOSTS as u64).map(line).collect();
    for (what, hosts) in [("8 hosts", HOSTS), ("a lone host", 1)] {
        let (mut sent, mut uploads, mut arrived) = (Vec::new(), Vec::new(), Vec::new());
        for run in 0..RUNS {
            sink.clear();
            let daemons: Vec<Daemon> = lines[..hosts]
                .iter()
                .enumerate()
                .map(|(n, line)| {
                    let dir = nix.path().join(format!("fleet-{hosts}-{run}-{n}"));
                    Daemon::start(&nix, &dir, (&line.endpoint(), sink.token_file()), "")
                })
                .collect();
            let tag = format!("fleet-{hosts}-{run}");
            let mut paths = nix.build(&trees::each(&tag, SMALL));
            let big = PrivateNix::shell(&format!("{tag}-big"), &format!("truncate -s {LARGE} $out"));
            let built = Instant::now();
            paths.extend(nix.build(&big));
            let valid = Instant::now();
            let hash = |path: &String| path.rsplit('/').next().unwrap()[..32].to_owned();
            let hashes: Vec<String> = paths.iter().map(hash).collect();
            let large = hashes.last().unwrap();
            while !sink.received().paths.contains(large) {
                assert!(built.elapsed() < Duration::from_secs(300));
                std::thread::sleep(Duration::from_millis(5));
            }
            arrived.push(valid.elapsed().as_secs_f64());
            daemons.iter().for_each(|daemon| drop(daemon.json(&["flush"])));
            let received = sink.received();
            let missing = hashes.iter().filter(|hash| !received.paths.contains(*hash)).count();
            assert_eq!(missing, 0, "all paths are there");
            uploads.push(received.uploads as f64);
            // The NARs of the small paths are next to nothing beside the large one.
            sent.push(received.bytes as f64 / LARGE as f64);
        }
        figure(&format!("{what}: bytes sent"), "", &sent, "of the bytes of one NAR of 200 MiB");
        figure(&format!("{what}: uploads"), "", &uploads, "that were completed, of 301 paths");
        let how = "from valid to in the cache; each host's line carries 25 MB/s";
        figure(&format!("{what}: the large path"), "s", &arrived, how);
    }
}
