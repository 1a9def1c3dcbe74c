//! GC roots in files, with real garbage collections.

use flywheel::store::{NixDb, RootFiles};

use crate::support::nix::PrivateNix;
use flywheel::types::StoreDir;

#[test]
fn a_rooted_path_survives_until_the_root_goes() {
    let nix = PrivateNix::new();
    let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
    let journal = NixDb::open(&nix.state_dir(), &dir).unwrap();
    let kept = dir.parse(&nix.build(&PrivateNix::shell("kept", "echo 1 > $out"))[0]).unwrap();
    let lost = dir.parse(&nix.build(&PrivateNix::shell("lost", "echo 2 > $out"))[0]).unwrap();
    let place = nix.state_dir().join("gcroots/flywheel");
    let roots = RootFiles::new(&place, &dir).unwrap();
    roots.add(&kept).unwrap();
    roots.add(&kept).unwrap();
    assert_eq!(roots.list().unwrap(), std::slice::from_ref(&kept));
    assert!(nix.run("nix-store", &["--gc"]).status.success());
    assert!(journal.info(&kept).unwrap().is_some());
    assert!(journal.info(&lost).unwrap().is_none());
    roots.remove(&kept).unwrap();
    roots.remove(&kept).unwrap();
    assert!(nix.run("nix-store", &["--gc"]).status.success());
    assert!(journal.info(&kept).unwrap().is_none());

    // A link to another target is corrected; roots that are not needed are removed, also those of
    // an earlier version. Files of others stay.
    std::os::unix::fs::symlink("/elsewhere", place.join(kept.base())).unwrap();
    std::os::unix::fs::symlink("/elsewhere", place.join(format!("{}~", kept.base()))).unwrap();
    roots.add(&kept).unwrap();
    assert!(place.join(kept.base()).symlink_metadata().unwrap().is_file());
    std::os::unix::fs::symlink(dir.full(&lost), place.join(lost.base())).unwrap();
    roots.add(&lost).unwrap();
    assert_eq!(std::fs::read_link(place.join(lost.base())).unwrap().to_str().unwrap(), dir.full(&lost));
    std::fs::write(place.join("README"), "ours").unwrap();
    assert_eq!(roots.clear_stale(|path| *path == kept).unwrap(), 1);
    assert_eq!(roots.list().unwrap(), [kept]);
    assert!(place.join("README").exists());
}

#[test]
fn more_roots_than_a_file_may_have_links() {
    let nix = PrivateNix::new();
    let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
    let place = nix.state_dir().join("gcroots/flywheel");
    let roots = RootFiles::new(&place, &dir).unwrap();
    let path = |n: usize| flywheel::types::StorePath::parse(&format!("{n:032}-p")).unwrap();
    // ext4 allows 65,000 links. On a file system that allows more, this test shows only that
    // so many roots can be added.
    for n in 0..65_010 {
        roots.add(&path(n)).unwrap();
    }
    assert_eq!(roots.list().unwrap().len(), 65_010);
    // The seed file is removed, as by an administrator who tidies up.
    std::fs::remove_file(place.join(".seed")).unwrap();
    roots.add(&path(65_010)).unwrap();
    assert_eq!(roots.clear_stale(|_| false).unwrap(), 65_011);
}
