//! The source of the client as the configuration names it: a flake reference, a
//! store path, or a program that the administrator installs. Pure.

use std::path::{Path, PathBuf};

/// Where the client comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Installable {
    /// A flake reference, as `nix build` takes it.
    Flake(String),
    /// A store path, and the program in it.
    Store {
        /// The store path itself.
        path: PathBuf,
        /// The program, relative to the store path.
        program: PathBuf,
    },
    /// A program that the administrator installs and protects from the garbage collector, as in a profile.
    Program(PathBuf),
}

impl std::fmt::Display for Installable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Flake(reference) => f.write_str(reference),
            Self::Store { path, program } => write!(f, "{}", path.join(program).display()),
            Self::Program(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The program's path, relative to its package.
const PROGRAM: &str = "bin/attic";

impl Installable {
    /// Parses the setting. An absolute path without `#` is a store path if it is below
    /// `store_dir`, else a program. Any other text is a flake reference.
    pub fn parse(text: &str, store_dir: &Path) -> Self {
        let path = Path::new(text);
        if !path.is_absolute() || text.contains('#') {
            return Self::Flake(text.to_owned());
        }
        let Ok(rest) = path.strip_prefix(store_dir) else { return Self::Program(path.to_owned()) };
        let mut parts = rest.components();
        let Some(base) = parts.next() else { return Self::Program(path.to_owned()) };
        let inner = parts.as_path();
        let program = if inner.as_os_str().is_empty() { PROGRAM.into() } else { inner.to_owned() };
        Self::Store { path: store_dir.join(base), program }
    }

    /// Returns the program's path in the package at `root`.
    pub fn program_in(&self, root: &Path) -> PathBuf {
        match self {
            Self::Flake(_) => root.join(PROGRAM),
            Self::Store { program, .. } => root.join(program),
            Self::Program(path) if path.is_dir() => path.join(PROGRAM),
            Self::Program(path) => path.clone(),
        }
    }

    /// Returns whether this names one client for ever: a store path, or a flake reference with a revision or a
    /// hash. There is no newer one to look for then.
    pub fn is_fixed(&self) -> bool {
        match self {
            Self::Flake(reference) => {
                let reference = reference.split('#').next().unwrap_or_default();
                let (path, query) = reference.split_once('?').unwrap_or((reference, ""));
                let is_revision =
                    |text: &str| text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
                let fixes =
                    |(key, value): (&str, &str)| key == "narHash" || (key == "rev" && is_revision(value));
                // The third part of `github:OWNER/REPOSITORY/REVISION`.
                let of_forge =
                    ["github:", "gitlab:", "sourcehut:"].iter().any(|forge| path.starts_with(forge));
                query.split('&').filter_map(|pair| pair.split_once('=')).any(fixes)
                    || (of_forge && path.split('/').nth(2).is_some_and(is_revision))
            }
            Self::Store { .. } => true,
            Self::Program(_) => false,
        }
    }

    /// Returns whether a store path with this base name (`HASH-attic-0.1.0`) may be the
    /// client. It is a hint and no proof: a flake's attribute and its package can have
    /// different names.
    pub fn may_be(&self, base: &str) -> bool {
        let name = base.get(33..).unwrap_or_default();
        if name.ends_with(".drv") || name.ends_with("-source") {
            return false;
        }
        let is = |wanted: &str| {
            let rest = name.strip_prefix(wanted).unwrap_or("?");
            rest.is_empty() || rest.starts_with('-')
        };
        match self {
            Self::Flake(reference) => is(attribute(reference)) || is("attic"),
            Self::Store { path, .. } => path.file_name().is_some_and(|own| own == base),
            Self::Program(_) => false,
        }
    }
}

/// Returns the last part of a flake's attribute, or a text that no name can match.
fn attribute(reference: &str) -> &str {
    let path = reference.split_once('#').map_or("", |(_, path)| path);
    let path = path.split('^').next().unwrap_or_default();
    let last = path.rsplit('.').next().unwrap_or_default().trim_matches('"');
    if last.is_empty() { "attic" } else { last }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c";

    #[test]
    fn flakes_store_paths_and_programs() {
        let store = Path::new("/nix/store");
        let stored = |program: &str| Installable::Store {
            path: format!("/nix/store/{BASE}-attic").into(),
            program: program.into(),
        };
        for (text, expected) in [
            (
                "github:zhaofengli/attic#attic-client".to_owned(),
                Installable::Flake("github:zhaofengli/attic#attic-client".into()),
            ),
            ("/home/ci/flake#attic".to_owned(), Installable::Flake("/home/ci/flake#attic".into())),
            ("nixpkgs#attic-client".to_owned(), Installable::Flake("nixpkgs#attic-client".into())),
            (format!("/nix/store/{BASE}-attic"), stored("bin/attic")),
            (format!("/nix/store/{BASE}-attic/sbin/a"), stored("sbin/a")),
            ("/usr/bin/attic".to_owned(), Installable::Program("/usr/bin/attic".into())),
        ] {
            assert_eq!(Installable::parse(&text, store), expected, "{text}");
        }
        let root = Path::new("/r");
        assert_eq!(Installable::Flake("a#b".into()).program_in(root), Path::new("/r/bin/attic"));
        assert_eq!(stored("sbin/a").program_in(root), Path::new("/r/sbin/a"));
        assert_eq!(
            Installable::Program("/usr/bin/attic".into()).program_in(root),
            Path::new("/usr/bin/attic")
        );
    }

    #[test]
    fn what_names_one_client_for_ever() {
        let rev = "b7c905657cb81b8ec9c26b0d9f53aa2e4f231810";
        for (text, fixed) in [
            (format!("github:a/b/{rev}#c"), true),
            (format!("git+https://example.com/a?rev={rev}#c"), true),
            ("https://example.com/a.tar.gz?narHash=sha256-x#c".to_owned(), true),
            (format!("/nix/store/{BASE}-attic"), true),
            ("github:a/b#c".to_owned(), false),
            ("github:a/b/main#c".to_owned(), false),
            ("git+https://example.com/a?ref=main#c".to_owned(), false),
            ("/usr/bin/attic".to_owned(), false),
        ] {
            assert_eq!(Installable::parse(&text, Path::new("/nix/store")).is_fixed(), fixed, "{text}");
        }
    }

    #[test]
    fn names_that_are_worth_a_look() {
        let flake = Installable::Flake("github:x/y#packages.x86_64-linux.my-client^out".into());
        for (name, yes) in [
            ("attic", true),
            ("attic-0.1.0", true),
            ("attic-client-0.1.0", true),
            ("my-client-2", true),
            ("my-clients", false),
            ("atticd", false),
            ("attic-0.1.0.drv", false),
            ("attic-source", false),
            ("hello", false),
        ] {
            assert_eq!(flake.may_be(&format!("{BASE}-{name}")), yes, "{name}");
        }
        let store = Installable::parse(&format!("/nix/store/{BASE}-attic"), Path::new("/nix/store"));
        assert!(store.may_be(&format!("{BASE}-attic")) && !store.may_be(&format!("{BASE}-attic-2")));
        assert!(!Installable::Program("/a".into()).may_be(&format!("{BASE}-attic")));
        assert!(!flake.may_be("short"));
    }
}
