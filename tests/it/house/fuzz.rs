//! The fuzz targets are built with the dependencies that the tests have compiled, which takes
//! minutes less: both have the same versions, features and profile.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use toml::{Table, Value};

fn read(file: &str) -> Table {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(file).unwrap().parse().unwrap()
}

/// The packages of a lock file, other than those of this project.
fn locked(file: &str) -> BTreeSet<(String, String)> {
    let packages = read(file)["package"].as_array().unwrap().clone();
    let text = |package: &Value, key: &str| package[key].as_str().unwrap().to_owned();
    let all = packages.iter().map(|package| (text(package, "name"), text(package, "version")));
    all.filter(|(name, _)| !name.starts_with("flywheel")).collect()
}

#[test]
fn the_fuzz_targets_use_what_the_tests_have_compiled() {
    let (main, fuzz) = (read("Cargo.toml"), read("fuzz/Cargo.toml"));
    for (name, wanted) in main["dev-dependencies"].as_table().unwrap() {
        assert_eq!(fuzz["dependencies"].get(name), Some(wanted), "{name} in fuzz/Cargo.toml");
    }
    let mut profile = fuzz["profile"]["dev"].clone();
    // Its own code has coverage counters, so it must not be the same.
    let own = profile["package"].as_table_mut().unwrap().remove("flywheel");
    assert!(own.is_some());
    assert_eq!(profile, main["profile"]["dev"]);
    let (main, fuzz) = (locked("Cargo.lock"), locked("fuzz/Cargo.lock"));
    let only_there: Vec<_> = fuzz.difference(&main).map(|(name, _)| name.as_str()).collect();
    assert_eq!(only_there, ["arbitrary", "libfuzzer-sys"], "versions differ: {:?}", fuzz.difference(&main));
}
