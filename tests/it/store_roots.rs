//! GC roots against a real collection.

use flywheel::store::{Journal, Roots, StoreDir};

use crate::support::nix::PrivateNix;

#[test]
fn a_rooted_path_survives_until_the_root_goes() {
    let nix = PrivateNix::new();
    let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
    let journal = Journal::open(&nix.state_dir(), &dir).unwrap();
    let kept = dir.parse(&nix.build(&PrivateNix::shell("kept", "echo 1 > $out"))[0]).unwrap();
    let lost = dir.parse(&nix.build(&PrivateNix::shell("lost", "echo 2 > $out"))[0]).unwrap();
    let place = nix.state_dir().join("gcroots/flywheel");
    let roots = Roots::new(&place, &dir).unwrap();
    roots.add(&kept).unwrap();
    roots.add(&kept).unwrap();
    assert_eq!(roots.list().unwrap(), std::slice::from_ref(&kept));
    assert!(nix.run("nix-store", &["--gc"]).status.success());
    assert!(journal.is_valid(&kept).unwrap());
    assert!(!journal.is_valid(&lost).unwrap());
    roots.remove(&kept).unwrap();
    roots.remove(&kept).unwrap();
    assert!(nix.run("nix-store", &["--gc"]).status.success());
    assert!(!journal.is_valid(&kept).unwrap());

    // A link that leads elsewhere is put right; what is not wanted is cleared.
    std::os::unix::fs::symlink("/elsewhere", place.join(kept.base())).unwrap();
    std::os::unix::fs::symlink("/elsewhere", place.join(format!("{}~", kept.base()))).unwrap();
    roots.add(&kept).unwrap();
    assert_eq!(std::fs::read_link(place.join(kept.base())).unwrap().to_str().unwrap(), dir.full(&kept));
    roots.add(&lost).unwrap();
    assert_eq!(roots.clear_stale(|path| *path == kept).unwrap(), 1);
    assert_eq!(roots.list().unwrap(), [kept]);
}
