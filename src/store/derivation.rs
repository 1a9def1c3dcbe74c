//! Reads the output paths from the text of a `.drv` file.
//!
//! Must not know: what the paths are used for.

/// Returns the full output paths that are in a derivation's text. Leaves out the
/// outputs whose paths are known only after the build. Returns none for a text
/// that is not a derivation. The text begins with
/// `Derive([("out","/nix/store/…","",""),…],` and paths contain no escapes (Nix,
/// `src/libstore/derivations.cc`, `Derivation::unparse`).
#[must_use]
pub fn outputs(text: &str) -> Vec<String> {
    let Some(mut rest) = text.strip_prefix("Derive([") else { return Vec::new() };
    let mut strings = Vec::new();
    // The list ends at the first bracket outside of a string.
    while let Some((between, after)) = rest.split_once('"') {
        if between.contains(']') {
            break;
        }
        let Some((string, after)) = after.split_once('"') else { break };
        strings.push(string);
        rest = after;
    }
    // Each output has four strings: name, path, kind of hash, hash.
    strings
        .chunks(4)
        .filter_map(|output| output.get(1))
        .filter(|p| !p.is_empty())
        .map(|p| (*p).to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::outputs;

    #[test]
    fn the_first_list_names_them() {
        let two = r#"Derive([("dev","/nix/store/a-dev","",""),("out","/nix/store/a","r:sha256","00")],[("/nix/store/b.drv",["out"])],[],"x86_64-linux","/bin/sh",[],[("out","/nix/store/a")])"#;
        assert_eq!(outputs(two), ["/nix/store/a-dev", "/nix/store/a"]);
        assert!(outputs(r#"Derive([("out","","r:sha256","")],[],[],"s","b",[],[])"#).is_empty());
        for other in ["", "Derive([", "Derive([(\"out", "DrvWithVersion(\"xp-dyn-drv\",[])"] {
            assert!(outputs(other).is_empty(), "{other}");
        }
    }
}
