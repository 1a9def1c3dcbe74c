//! The people behind user numbers. Must not know what they are asked for.

use std::process::Command;

/// A user, as routes name one.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Person {
    pub(in crate::daemon) name: Option<String>,
    pub(in crate::daemon) groups: Vec<(u32, Option<String>)>,
}

/// Looks a user number up. Runs `id`, which asks the name service and therefore also
/// knows users of a directory. A number without a name has no name. Blocks.
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
    fn root_has_its_name() {
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
}
