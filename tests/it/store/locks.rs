//! What the removal of a lock means, case by case: every removal wakes the reader, and the Nix
//! database says which rows there are.

use std::process::Output;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use flywheel::store::{NixDb, Origin, PathInfo, StoreWatch, WatchEvent};

use crate::support::nix::PrivateNix;
use flywheel::types::{StoreDir, StorePath};

/// A watch whose timer does not fire during the test.
struct House {
    nix: PrivateNix,
    dir: StoreDir,
    journal: NixDb,
    events: Receiver<WatchEvent>,
    _watch: StoreWatch,
}

impl House {
    fn new() -> Self {
        Self::around(PrivateNix::new())
    }

    fn around(nix: PrivateNix) -> Self {
        let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
        let (sender, events) = channel();
        let watch =
            StoreWatch::start(&dir, Duration::from_secs(3600), move |r| drop(sender.send(r))).unwrap();
        assert_eq!(events.recv().unwrap(), WatchEvent::Start);
        let journal = NixDb::open(&nix.state_dir(), &dir).unwrap();
        Self { nix, dir, journal, events, _watch: watch }
    }

    /// Waits for the removal of the lock of a path with this name; returns its base name.
    fn lock_removed(&self, name: &str) -> String {
        loop {
            match self
                .events
                .recv_timeout(Duration::from_secs(60))
                .unwrap_or_else(|_| panic!("no event for {name}"))
            {
                WatchEvent::LockRemoved(base) if base.get(33..) == Some(name) => return base,
                WatchEvent::LockRemoved(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn has_lock(&self, name: &str) -> bool {
        let files = std::fs::read_dir(self.nix.store_dir()).unwrap();
        let lock = format!("-{name}.lock");
        files.into_iter().any(|f| f.unwrap().file_name().to_str().unwrap().ends_with(&lock))
    }

    fn rows(&self, after: i64) -> Vec<PathInfo> {
        self.journal.rows(after, 1000).unwrap()
    }

    fn names(&self, after: i64) -> Vec<String> {
        let mut names: Vec<_> = self.rows(after).iter().map(|row| row.path.name().to_owned()).collect();
        names.sort();
        names
    }

    /// Returns after all wake-ups so far were seen; no other lock may be removed before.
    fn all_events(&self) -> Vec<WatchEvent> {
        let name = "0njnh3x9rb4hh40rpc0dwc3w75vjl545-last";
        let lock = self.nix.store_dir().join(format!("{name}.lock"));
        std::fs::write(&lock, "").unwrap();
        std::fs::remove_file(&lock).unwrap();
        let last = WatchEvent::LockRemoved(name.to_owned());
        self.events.iter().take_while(|event| *event != last).collect()
    }
}

fn succeeds(out: &Output) {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}

fn fixed(name: &str, hash: &str) -> String {
    format!(
        "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo hi > $out\" ]; outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; \
         outputHash = \"{hash}\"; }}"
    )
}

/// SHA-256 of "hi\n".
const HI: &str = "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4";
const NOT_HI: &str = "00ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4";

#[test]
fn a_build_that_succeeds_and_again() {
    let house = House::new();
    let expression = PrivateNix::shell("good", "echo hi > $out");
    let built = house.nix.build(&expression);
    let drv = house.lock_removed("good.drv");
    let base = house.lock_removed("good");
    let path = StorePath::parse(&base).unwrap();
    assert_eq!(house.dir.full(&path), built[0]);
    let rows = house.rows(0);
    assert_eq!(rows.iter().map(|r| r.path.base()).collect::<Vec<_>>(), [&drv, &base]);
    assert_eq!(rows.iter().map(PathInfo::origin).collect::<Vec<_>>(), [Origin::Derivation, Origin::Built]);

    // The path is valid already: there is no new row and no wake-up.
    house.all_events();
    house.nix.build(&expression);
    let events = house.all_events();
    assert!(!events.iter().any(|r| matches!(r, WatchEvent::LockRemoved(_))), "{events:?}");
    assert_eq!(house.rows(0), rows);
}

#[test]
fn a_failed_build_wakes_the_reader_when_collected() {
    let house = House::new();
    let expression = PrivateNix::shell("bad", "echo hi > $out; exit 1");
    assert!(!house.nix.run("nix-build", &["--no-out-link", "-E", &expression]).status.success());
    house.lock_removed("bad.drv");
    let events = house.all_events();
    assert!(house.has_lock("bad"), "Nix leaves the lock file of a failed build");
    assert!(
        !events.iter().any(|r| matches!(r, WatchEvent::LockRemoved(base) if base.ends_with("-bad"))),
        "{events:?}"
    );
    assert_eq!(house.names(0), ["bad.drv"]);
    succeeds(&house.nix.run("nix-store", &["--gc"]));
    let path = StorePath::parse(&house.lock_removed("bad")).unwrap();
    assert!(house.journal.info(&path).unwrap().is_none());
    assert_eq!(house.rows(0), []);
}

#[test]
fn a_floating_build_wakes_the_reader_under_a_scratch_name() {
    let house = House::new();
    let expression = "derivation { name = \"floating\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
                      args = [ \"-c\" \"echo hi > $out\" ]; __contentAddressed = true; \
                      outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; }";
    let built = house.nix.build(expression);
    let events = house.all_events();
    let gone: Vec<&str> = events
        .iter()
        .filter_map(|r| if let WatchEvent::LockRemoved(base) = r { Some(base.as_str()) } else { None })
        .collect();
    let path = house.dir.parse(&built[0]).unwrap();
    assert!(gone.contains(&path.base()), "{gone:?}");
    let output =
        gone.iter().find(|base| base.ends_with("-floating.drv.out")).unwrap_or_else(|| panic!("{gone:?}"));
    assert_eq!(
        StorePath::parse(output).unwrap().name(),
        "floating.drv.out",
        "the name of the lock file looks like a store path"
    );
    assert!(house.journal.info(&StorePath::parse(output).unwrap()).unwrap().is_none());
    let row = house.journal.info(&path).unwrap().unwrap();
    assert_eq!(row.origin(), Origin::Built);
    assert!(row.ca.as_ref().is_some_and(|ca| ca.starts_with("fixed:r:sha256:")) && row.deriver.is_some());
    assert_eq!(house.names(0), ["floating", "floating.drv"]);
}

#[test]
fn a_fixed_output_whose_hash_is_right_or_wrong() {
    let house = House::new();
    house.nix.build(&fixed("right", HI));
    let right = StorePath::parse(&house.lock_removed("right")).unwrap();
    let row = house.journal.info(&right).unwrap().unwrap();
    assert_eq!(row.origin(), Origin::Built);
    assert!(
        row.ultimate
            && row.deriver.is_some()
            && row.ca.as_ref().is_some_and(|ca| ca.starts_with("fixed:sha256:"))
    );

    let head = house.journal.head().unwrap();
    assert!(!house.nix.run("nix-build", &["--no-out-link", "-E", &fixed("wrong", NOT_HI)]).status.success());
    // The output is registered under its real hash, although the build failed.
    assert_eq!(house.names(head), ["wrong", "wrong.drv"]);
    let events = house.all_events();
    let row = house.rows(head).into_iter().find(|row| row.path.name() == "wrong").unwrap();
    assert!(events.contains(&WatchEvent::LockRemoved(row.path.base().to_owned())), "{events:?}");
    assert_eq!(row.origin(), Origin::Built);
}

#[test]
fn sources_strings_and_imports() {
    let house = House::new();
    std::fs::write(house.nix.work_dir().join("flake.lock"), "{}").unwrap();
    succeeds(&house.nix.run("nix-store", &["--add", "flake.lock"]));
    let source = StorePath::parse(&house.lock_removed("flake.lock")).unwrap();
    assert_eq!(house.journal.info(&source).unwrap().unwrap().origin(), Origin::Source);
    let eval = ["--eval", "--strict", "--read-write-mode", "-E", "builtins.toFile \"text\" \"hi\""];
    succeeds(&house.nix.run("nix-instantiate", &eval));
    let text = StorePath::parse(&house.lock_removed("text")).unwrap();
    assert_eq!(house.journal.info(&text).unwrap().unwrap().origin(), Origin::Source);

    let export = house.nix.run("nix-store", &["--export", &house.dir.full(&source), &house.dir.full(&text)]);
    succeeds(&export);
    succeeds(&house.nix.run("nix-store", &["--gc"]));
    assert_eq!(house.rows(0), []);
    let file = house.nix.work_dir().join("export");
    std::fs::write(&file, &export.stdout).unwrap();
    let mut import = house.nix.command("nix-store");
    succeeds(&import.arg("--import").stdin(std::fs::File::open(&file).unwrap()).output().unwrap());
    let events = house.all_events();
    for path in [&source, &text] {
        assert!(events.contains(&WatchEvent::LockRemoved(path.base().to_owned())), "{events:?}");
    }
    let rows = house.rows(0);
    assert_eq!(rows.iter().map(PathInfo::origin).collect::<Vec<_>>(), [Origin::Source; 2]);
    assert!(rows.iter().all(|row| row.ca.is_none() && !row.ultimate), "{rows:?}");
}

#[test]
fn substitution_from_a_signed_cache() {
    let nix = PrivateNix::new();
    let keys = ["--generate-binary-cache-key", "test-1", "sk", "pk"];
    succeeds(&nix.run("nix-store", &keys));
    let key = std::fs::read_to_string(nix.work_dir().join("pk")).unwrap();
    let cache = format!("file://{}/cache", nix.path().display());
    let house = House::around(nix);
    let built = house.nix.build(
        "derivation { name = \"far\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         text = builtins.toFile \"text\" \"hi\"; args = [ \"-c\" \"echo $text > $out\" ]; }",
    );
    let secret = house.nix.work_dir().join("sk");
    succeeds(&house.nix.run("nix", &["store", "sign", "-r", "-k", secret.to_str().unwrap(), &built[0]]));
    succeeds(&house.nix.run("nix", &["copy", "--to", &cache, &built[0]]));
    succeeds(&house.nix.run("nix-store", &["--gc"]));
    house.all_events();
    assert_eq!(house.rows(0), []);
    house.nix.configure(&format!(
        "substitute = true\nsubstituters = {cache}\ntrusted-public-keys = {}",
        key.trim()
    ));
    succeeds(&house.nix.run("nix-store", &["-r", &built[0]]));
    house.lock_removed("text");
    house.lock_removed("far");
    let rows = house.rows(0);
    // Nix registers references before their referrers.
    assert_eq!(rows.iter().map(|r| r.path.name()).collect::<Vec<_>>(), ["text", "far"]);
    assert!(rows.iter().all(|row| row.sigs.len() == 1 && row.sigs[0].starts_with("test-1:")), "{rows:?}");
    assert_eq!(rows.iter().map(PathInfo::origin).collect::<Vec<_>>(), [Origin::Source, Origin::Substituted]);
    assert!(!rows[1].ultimate && rows[1].deriver.is_some() && rows[1].ca.is_none());
}
