//! `kill -9` at random moments while Nix builds, with a restart each time. Nothing is lost, and the
//! session that was open all the time reports every path.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Dice, Rig, number, set};

#[test]
fn killed_at_random_moments_of_a_build() {
    let kills = number("FLYWHEEL_TEST_KILLS", 200);
    let mut dice = Dice::new();
    let mut rig = Rig::new();
    let session = rig.daemon.session(&["--label", "through all of it"]);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let site = rig.site.clone();
        let ended = &stop;
        let busy = scope.spawn(move || {
            let mut turn = 0;
            while !ended.load(Ordering::Acquire) {
                site.build(&set(&format!("turn{turn}"), 2, 4, 5_000));
                turn += 1;
            }
            turn
        });
        for _ in 0..kills {
            // The kill comes after this number of requests, or after this time: the first meets
            // the daemon at work, the second also while it starts.
            let calls = rig.proxy.seen().calls.len();
            let (more, most) = (dice.below(12) as usize, Duration::from_millis(5 + dice.below(400)));
            rig.proxy.until_or(most, |tally| tally.calls.len() >= calls + more);
            rig.daemon.kill();
            rig.daemon.spawn();
        }
        stop.store(true, Ordering::Release);
        let turns = busy.join().unwrap();
        eprintln!("{kills} kills during {turns} builds");
    });
    rig.daemon.until_notified(|line| line == "READY=1");
    rig.site.build(&set("last", 1, 4, 5_000));
    rig.whole(|_| None);
    let summary = rig.daemon.end(&session, &[]);
    let count = |key: &str| summary[key].as_u64().unwrap();
    assert_eq!(summary["outcome"], "complete", "{summary}");
    assert_eq!(count("pushed") + count("already_cached"), rig.site.built().len() as u64, "{summary}");
}
