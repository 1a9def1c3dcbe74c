//! Reads the text of a `.drv` file: its outputs, and whether they may be substituted.
//!
//! Must not know: what that is used for.

use std::io::Read as _;

use crate::types::{StoreDir, StorePath};

/// The most bytes of a derivation that are read.
const LONGEST: u64 = 4 << 20;

/// Reads a derivation's text, of which it returns the first 4 MiB.
pub(crate) fn read(store_dir: &StoreDir, derivation: &StorePath) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(store_dir.file(derivation))?.take(LONGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Returns whether a derivation's outputs may be taken from a substituter, as Nix's
/// `ParsedDerivation::substitutesAllowed` does. Returns true for a text that cannot be
/// parsed. Nix's setting `always-allow-substitutes` makes no difference.
pub(crate) fn allows_substitutes(text: &str) -> bool {
    let Some(environment) = argument(text, ENVIRONMENT) else { return true };
    let variable = |name: &str| {
        let mut pairs = environment.chunks_exact(2);
        pairs.find_map(|pair| (pair[0] == name).then(|| pair[1].as_str()))
    };
    match variable("__json").and_then(|json| serde_json::from_str::<serde_json::Value>(json).ok()) {
        Some(structured) => structured.get("allowSubstitutes") != Some(&serde_json::Value::Bool(false)),
        // Nix writes true as `1`, and false as an empty string.
        None => variable("allowSubstitutes").is_none_or(|value| value == "1"),
    }
}

/// The position of the environment among the arguments of `Derive`: outputs, input
/// derivations, input sources, system, builder, arguments, environment.
const ENVIRONMENT: usize = 6;

/// Returns the strings of one argument of `Derive`, in their order.
fn argument(text: &str, wanted: usize) -> Option<Vec<String>> {
    let mut rest = text.strip_prefix("Derive(")?.chars();
    let (mut depth, mut position, mut strings) = (0_u32, 0, Vec::new());
    loop {
        match rest.next()? {
            '"' => {
                let string = string(&mut rest)?;
                if position == wanted {
                    strings.push(string);
                }
            }
            '[' | '(' => depth += 1,
            ',' if depth == 0 && position < wanted => position += 1,
            ',' | ')' if depth == 0 => return (position == wanted).then_some(strings),
            ']' | ')' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
}

/// Reads a string behind its opening quote, to its closing one.
fn string(rest: &mut std::str::Chars<'_>) -> Option<String> {
    let mut string = String::new();
    loop {
        string.push(match rest.next()? {
            '"' => return Some(string),
            '\\' => match rest.next()? {
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                other => other,
            },
            other => other,
        });
    }
}

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
    use super::{allows_substitutes, outputs};

    #[test]
    fn substitutes_are_allowed_unless_the_environment_says_no() {
        let drv = |environment: &str| {
            format!(
                r#"Derive([("out","/nix/store/a","","")],[("/nix/store/b.drv",["out"])],["/nix/store/c"],"s","/bin/sh",["-c","allowSubstitutes"],[{environment}])"#
            )
        };
        for (environment, allowed) in [
            ("", true),
            (r#"("allowSubstitutes","")"#, false),
            (r#"("a","x\\\"),(\\"),("allowSubstitutes","")"#, false),
            (r#"("a","allowSubstitutes"),("b","")"#, true),
            (r#"("allowSubstitutes","1")"#, true),
            (r#"("__json","{\"allowSubstitutes\":false}")"#, false),
            (r#"("__json","{\"allowSubstitutes\":true}")"#, true),
            (r#"("__json","{\"a\":1}")"#, true),
        ] {
            assert_eq!(allows_substitutes(&drv(environment)), allowed, "{environment}");
        }
        for broken in
            ["", "Derive(", "Derive([)", &drv(r#"("allowSubstitutes",""#), "DrvWithVersion(\"x\",[])"]
        {
            assert!(allows_substitutes(broken), "{broken}");
        }
    }

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
