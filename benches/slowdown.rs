//! How much the daemon slows a build that runs beside it.

use std::path::Path;
use std::time::Instant;

use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::{Cache, Daemon, children_cpu_s};
use crate::trees;
use crate::watch::Watch;

/// Pairs of builds, one without and one with the daemon.
const PAIRS: usize = 10;

/// Builds the same work with and without the daemon in turns, so that other load slows both. The
/// cache and the measurement run in this process on the same processors, which costs more than on a
/// host whose cache is elsewhere.
pub fn slowdown() {
    let nix = PrivateNix::new();
    let dir = nix.path().join("slowdown");
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let mut without = Side::default();
    let mut with = Side::default();
    let mut daemon_cpu = Vec::new();
    for pair in 0..PAIRS {
        let alone = |side: &mut Side| {
            side.build(&nix, &format!("alone-{pair}"));
        };
        if pair % 2 == 0 {
            alone(&mut without);
        }
        daemon_cpu.push(beside(&nix, &dir, &cache, pair, &mut with));
        if pair % 2 == 1 {
            alone(&mut without);
        }
    }
    figure("build without the daemon", "s", &without.wall, &format!("nix-build of {}", trees::BUSY_IS));
    figure("build with the daemon", "s", &with.wall, "the same, while every path goes to the cache");
    let ratio: Vec<f64> =
        with.wall.iter().zip(&without.wall).map(|(with, without)| (with / without - 1.0) * 100.0).collect();
    figure("build slowed by the daemon", "%", &ratio, "wall time of each pair: with, over without, less 1");
    let share: Vec<f64> =
        daemon_cpu.iter().zip(&with.cpu).map(|(daemon, build)| daemon / build * 100.0).collect();
    figure(
        "build slowed by the daemon: processor time",
        "%",
        &share,
        "utime+stime of the daemon until all is in the cache, of that of Nix and its builders",
    );
}

#[derive(Default)]
struct Side {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Side {
    fn build(&mut self, nix: &PrivateNix, tag: &str) -> Vec<String> {
        let (before, began) = (children_cpu_s(), Instant::now());
        let paths = trees::build_busy(nix, tag);
        self.wall.push(began.elapsed().as_secs_f64());
        self.cpu.push(children_cpu_s() - before);
        paths
    }
}

/// One build beside a daemon; returns the processor time of the daemon.
fn beside(nix: &PrivateNix, dir: &Path, cache: &Cache, pair: usize, side: &mut Side) -> f64 {
    let own = dir.join(pair.to_string());
    let daemon = Daemon::start(nix, &own, (&cache.endpoint(), cache.token_file()), "");
    let watch = Watch::new(&nix.state_dir(), &cache.dir);
    let before = daemon.usage().cpu_s;
    let paths = side.build(nix, &format!("beside-{pair}"));
    watch.cached(&paths);
    daemon.usage().cpu_s - before
}
