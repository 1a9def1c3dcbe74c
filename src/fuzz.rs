//! One entry for each group of decoders that read what others write. Each takes any
//! bytes, must return, and checks what holds for everything that a decoder accepts.
//! The targets of `fuzz/` and the property tests below call them; nothing else is
//! compiled with this module.

/// The control socket: hellos, frames, requests and replies.
pub fn control(bytes: &[u8]) {
    crate::control::fuzz::decode(bytes);
}

/// Store paths, hashes, cache names, sizes and durations.
pub fn names(bytes: &[u8]) {
    crate::types::fuzz::decode(bytes);
}

/// Derivations, and the nix-daemon's part of its protocol.
pub fn store(bytes: &[u8]) {
    crate::store::fuzz::decode(bytes);
}

/// Files of `/proc`.
pub fn proc(bytes: &[u8]) {
    crate::attribution::fuzz::decode(bytes);
}

/// Lines of the attic client.
pub fn attic(bytes: &[u8]) {
    crate::attic::fuzz::decode(bytes);
}

/// Requests to the built-in cache, and the narinfo that it makes of an upload.
pub fn embedded(bytes: &[u8]) {
    crate::embedded::fuzz::decode(bytes);
}

/// Answers of a cache's server.
pub fn answers(bytes: &[u8]) {
    crate::cache::fuzz::decode(bytes);
}

/// The netrc file.
pub fn netrc(bytes: &[u8]) {
    crate::daemon::fuzz_netrc(bytes);
}

/// The configuration.
pub fn config(bytes: &[u8]) {
    crate::config::fuzz::decode(bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    type Entry = (&'static str, fn(&[u8]));

    /// The entries by the names of their targets and seeds.
    const ENTRIES: [Entry; 9] = [
        ("control", super::control),
        ("names", super::names),
        ("store", super::store),
        ("proc", super::proc),
        ("attic", super::attic),
        ("embedded", super::embedded),
        ("answers", super::answers),
        ("netrc", super::netrc),
        ("config", super::config),
    ];

    /// The seeds of a corpus.
    fn seeds(name: &str) -> Vec<Vec<u8>> {
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
        let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
    }

    /// A change of some bytes in the middle: what is inserted, and how many are removed.
    type Edit = (Index, Vec<u8>, usize);

    fn edit() -> impl Strategy<Value = Edit> {
        let byte =
            prop_oneof![any::<u8>(), proptest::sample::select(b"\0\n\r\t \"\\/:;.-=()[]{}0129eo".to_vec())];
        (any::<Index>(), proptest::collection::vec(byte, 0..6), 0..6_usize)
    }

    fn edited(seed: &[u8], edits: &[Edit]) -> Vec<u8> {
        let mut bytes = seed.to_vec();
        for (at, insert, remove) in edits {
            let at = at.index(bytes.len() + 1);
            let end = (at + remove).min(bytes.len());
            bytes.splice(at..end, insert.iter().copied());
        }
        bytes
    }

    #[test]
    fn every_entry_has_a_target_and_seeds() {
        let targets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        let manifest = std::fs::read_to_string(targets.join("../Cargo.toml")).unwrap();
        assert_eq!(std::fs::read_dir(&targets).unwrap().count(), ENTRIES.len());
        for (name, entry) in ENTRIES {
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
            let target = std::fs::read_to_string(targets.join(format!("{name}.rs"))).unwrap();
            assert!(target.contains(&format!("flywheel::fuzz::{name}(")), "{target}");
            let seeds = seeds(name);
            assert!(!seeds.is_empty(), "{name}");
            seeds.iter().for_each(|seed| entry(seed));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn decoders_take_changed_seeds(which in any::<Index>(), seed in any::<Index>(),
                                       edits in proptest::collection::vec(edit(), 0..6)) {
            let (name, entry) = ENTRIES[which.index(ENTRIES.len())];
            let seeds = seeds(name);
            entry(&edited(&seeds[seed.index(seeds.len())], &edits));
        }

        #[test]
        fn decoders_take_anything(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in ".{0,200}") {
            for (_, entry) in ENTRIES {
                entry(&bytes);
                entry(text.as_bytes());
            }
        }
    }
}
