//! Nix's garbage collector runs again and again while Nix builds and the server is slow.

use super::proxy::{Fault, Kind};
use super::{COLLECTED, Rig, set, until};

const ROUNDS: usize = 8;

#[test]
fn collected_over_and_over_during_builds_with_a_slow_server() {
    let rig = Rig::new();
    rig.proxy.rule(|call| if call.kind == Kind::Upload { Fault::Slow(40_000) } else { Fault::Pass });
    let mut gone = 0;
    for round in 0..ROUNDS {
        std::thread::scope(|scope| {
            let site = rig.site.clone();
            let build = scope.spawn(move || site.build(&set(&format!("round{round}"), 2, 4, 20_000)));
            // A path that the daemon has taken in stays until it is in the cache, whatever the
            // collector had read before.
            until("something is pending", || {
                let pending = rig.unsettled();
                (!pending.is_empty() || build.is_finished()).then_some(())
            });
            let pending = rig.unsettled();
            let gc = rig.site.run("nix-collect-garbage", &[]);
            assert!(gc.status.success(), "{}", String::from_utf8_lossy(&gc.stderr));
            let items = rig.items();
            for path in pending {
                let item = &items[&path];
                assert_ne!(item.state, COLLECTED, "{path} was pending and is lost, round {round}");
                let there = rig.daemon.nix.store_dir().join(&path).exists();
                assert!(there || item.state >= 2, "{path} is gone and not in the cache: {item:?}");
            }
            build.join().unwrap();
        });
    }
    rig.proxy.pass();
    rig.daemon.flush();
    until("a ledger with nothing unsettled", || rig.unsettled().is_empty().then_some(()));
    let items = rig.items();
    for base in rig.site.built() {
        // A path that was collected between the end of its build and the daemon's next look is
        // reported as collected, and costs no other path.
        if items.get(&base).is_none_or(|item| item.state == COLLECTED) {
            assert!(!rig.daemon.nix.store_dir().join(&base).exists(), "{base} is there and was not taken in");
            rig.site.forget(&base);
            gone += 1;
        }
    }
    eprintln!("{gone} of {} were collected before they were seen", ROUNDS * 8);
    rig.whole(|_| None);
    rig.nothing_twice();
}
