//! Names: of new sessions, and of the people behind user numbers.

use crate::types::Wall;
use std::process::Command;

/// A new session's id: 80 random bits in the alphabet of store paths, which
/// has nothing that a shell or a file name minds.
pub(in crate::daemon) fn new_id() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut bytes = [0_u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // No entropy source: still unique on this host.
        let now = Wall::now().0.to_be_bytes();
        bytes[..8].copy_from_slice(&now);
        bytes[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    }
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(b % 32)])).collect()
}

/// A user as routes see one.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Person {
    pub(in crate::daemon) name: Option<String>,
    pub(in crate::daemon) groups: Vec<(u32, Option<String>)>,
}

/// Who a user number is. `id` asks the name service, so that users of a
/// directory are known too; a number without a name stays a number.
pub(in crate::daemon) fn who_is(uid: u32, gid: u32) -> Person {
    let id = |flags: &str| {
        let output = Command::new("id").args([flags, "--", &uid.to_string()]).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let numbers = id("-G").unwrap_or_default();
    let names = id("-Gn").unwrap_or_default();
    let mut groups: Vec<(u32, Option<String>)> = numbers
        .split_whitespace()
        .zip(names.split_whitespace())
        .filter_map(|(n, name)| Some((n.parse().ok()?, Some(name.to_owned()))))
        .collect();
    if groups.iter().all(|(n, _)| *n != gid) {
        groups.push((gid, None));
    }
    Person { name: id("-un"), groups }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_root() {
        let person = who_is(0, 0);
        assert_eq!(person.name.as_deref(), Some("root"));
        assert!(person.groups.contains(&(0, Some("root".to_owned()))));
    }

    #[test]
    fn a_number_without_a_name_stays_a_number() {
        let person = who_is(3_999_999_999, 3_999_999_998);
        assert_eq!(person.name, None);
        assert_eq!(person.groups, [(3_999_999_998, None)]);
    }

    #[test]
    fn ids_differ_and_are_plain() {
        let (a, b) = (new_id(), new_id());
        assert_ne!(a, b);
        assert!(a.len() == 16 && a.bytes().all(|c| c.is_ascii_alphanumeric()));
    }
}
