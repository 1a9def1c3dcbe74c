//! The C library's calls to the system's name service: `getpwuid_r`, `getgrouplist`,
//! `getgrnam_r`. They know users of a directory too, and may block for as long as that
//! takes. Must not know who waits for them.

use std::ffi::CString;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::people::{LookUp, Person};
use crate::config::{Settings, Subject, numbers};

/// How long `--check-config` waits for the name service.
const CHECK: Duration = Duration::from_secs(10);

/// The look-up of people for the routes of these settings.
pub(in crate::daemon) fn look_up(settings: &Settings) -> LookUp {
    let of = |kind| names(settings).filter(|n| n.kind == kind).map(|n| n.name).collect();
    let (users, groups): (Vec<String>, Vec<String>) = (of(Kind::User), of(Kind::Group));
    Arc::new(move |uid, gid| person(uid, gid, &users, &groups).map_err(|errno| errno.desc().to_owned()))
}

/// Looks up a user and all its groups. `getgrouplist` leaves out the groups of a
/// directory that does not answer and returns no error, so each group of `wanted` is
/// looked up as well: that fails in this case.
///
/// A directory may take other spellings for the same name (`CI` for `ci`), and a user may
/// have two names: what `users` and `wanted` name is compared by its number, too.
fn person(uid: u32, gid: u32, users: &[String], wanted: &[String]) -> Result<Person, Errno> {
    let user = User::from_uid(Uid::from_raw(uid))?;
    let mut groups = vec![Gid::from_raw(gid)];
    if let Some(user) = &user {
        let name = CString::new(user.name.as_str()).map_err(|_| Errno::EINVAL)?;
        groups.extend(getgrouplist(&name, user.gid)?);
    }
    let mut aliases = Vec::new();
    for name in users.iter().filter(|name| numbers(name).is_none()) {
        let is_other = user.as_ref().is_none_or(|user| user.name != *name);
        if is_other && User::from_name(name)?.is_some_and(|found| found.uid.as_raw() == uid) {
            aliases.push(name.clone());
        }
    }
    let mut spelled = Vec::new();
    for name in wanted {
        let Some(group) = group_of(name)? else { continue };
        if user.as_ref().is_some_and(|user| group.mem.contains(&user.name)) {
            groups.push(group.gid);
        }
        spelled.push((group.gid, name));
    }
    groups.sort_unstable_by_key(|gid| gid.as_raw());
    groups.dedup();
    let named = |gid: Gid| Ok((gid.as_raw(), Group::from_gid(gid)?.map(|group| group.name)));
    let mut named = groups.iter().map(|gid| named(*gid)).collect::<Result<Vec<_>, Errno>>()?;
    let further = spelled.into_iter().filter(|(gid, _)| groups.contains(gid));
    for (gid, name) in further {
        let entry = (gid.as_raw(), Some(name.clone()));
        if !named.contains(&entry) {
            named.push(entry);
        }
    }
    Ok(Person { name: user.map(|user| user.name), aliases, groups: named, complete: true })
}

/// Looks up a group by its name, or by its number.
fn group_of(wanted: &str) -> Result<Option<Group>, Errno> {
    match wanted.parse() {
        Ok(number) if numbers(wanted).is_some() => Group::from_gid(Gid::from_raw(number)),
        _ => Group::from_name(wanted),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    User,
    Group,
}

/// A user's or group's name or number in the configuration.
struct Named {
    /// The setting, for messages.
    key: String,
    kind: Kind,
    name: String,
}

fn names(settings: &Settings) -> impl Iterator<Item = Named> {
    let routes = settings.routes.iter().enumerate().flat_map(|(position, route)| {
        let (user, group) = match &route.subject {
            Subject::Person { user, group, .. } => (user.as_ref(), group.as_ref()),
            Subject::UnknownMaker => (None, None),
        };
        let key = settings.describe_route(position);
        let named = move |kind| {
            let key = key.clone();
            move |name: &String| Named { key, kind, name: name.clone() }
        };
        user.map(named(Kind::User)).into_iter().chain(group.map(named(Kind::Group)))
    });
    let admins = settings.admins.iter();
    let admins = admins.map(|name| Named { key: "admins".to_owned(), kind: Kind::Group, name: name.clone() });
    routes.chain(admins)
}

/// Returns a warning for each user and group in the settings that the system does not
/// know. Numbers need no name. Waits up to 10 s for the name service.
pub fn unknown_names(settings: &Settings) -> Vec<String> {
    let names: Vec<Named> = names(settings).filter(|named| numbers(&named.name).is_none()).collect();
    if names.is_empty() {
        return Vec::new();
    }
    let (warning, warnings) = channel();
    // When it hangs, it ends with the process.
    std::thread::spawn(move || {
        for Named { key, kind, name } in names {
            let (what, exists) = match kind {
                Kind::User => ("user", User::from_name(&name).map(|user| user.is_some())),
                Kind::Group => ("group", Group::from_name(&name).map(|group| group.is_some())),
            };
            let _ = match exists {
                Ok(true) => Ok(()),
                Ok(false) => warning.send(format!("{key}: there is no {what} {name:?} on this system")),
                Err(errno) => warning.send(format!(
                    "{key}: the name service did not answer whether there is a {what} {name:?}: {}",
                    errno.desc()
                )),
            };
        }
    });
    let mut found = Vec::new();
    let until = std::time::Instant::now() + CHECK;
    loop {
        match warnings.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
            Ok(warning) => found.push(warning),
            Err(RecvTimeoutError::Disconnected) => return found,
            Err(RecvTimeoutError::Timeout) => {
                found.push(format!(
                    "users and groups could not be checked: the name service did not answer within {} s",
                    CHECK.as_secs()
                ));
                return found;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_its_name_and_groups() {
        let root =
            person(0, 0, &["root".to_owned(), "daemon".to_owned()], &["root".to_owned(), "0".to_owned()]);
        let root = root.unwrap();
        assert!(root.aliases.is_empty(), "{root:?}");
        assert_eq!(root.name.as_deref(), Some("root"));
        assert!(root.groups.contains(&(0, Some("root".to_owned()))) && root.complete);
    }

    #[test]
    fn a_number_without_a_name_stays_a_number() {
        let person = person(3_999_999_999, 3_999_999_998, &[], &["no-such-group".to_owned()]).unwrap();
        let expected =
            Person { name: None, aliases: Vec::new(), groups: vec![(3_999_999_998, None)], complete: true };
        assert_eq!(person, expected);
    }
}
