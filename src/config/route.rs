//! Routes: whose paths go to which cache, and which caches a person may name.
//! Pure: the caller looks up users and groups. Knows nothing of sessions.

use std::fmt;
use std::ops::RangeInclusive;

use super::glob::Glob;
use super::settings::Settings;

/// A `[[route]]`: sends the paths of those it matches to a cache, or nowhere.
#[derive(Debug, Clone, PartialEq)]
pub struct Route {
    /// Whom it is for.
    pub subject: Subject,
    /// The cache, a key of [`Settings::caches`]; none: the paths are skipped.
    pub cache: Option<String>,
    /// Further caches, keys of [`Settings::caches`], that they may name.
    pub allow: Vec<String>,
}

/// Whom a route is for.
#[derive(Debug, Clone, PartialEq)]
pub enum Subject {
    /// A person, or the session of one. All that is set must match; at least one is.
    Person {
        /// A user's name or number, or a range of numbers such as `100000-165535`.
        user: Option<String>,
        /// A group's name or number, or a range of numbers.
        group: Option<String>,
        /// A pattern of the session's label, which CI detection fills in.
        label: Option<Glob>,
    },
    /// Paths of no session whose maker was not seen: `maker = "unknown"`.
    UnknownMaker,
}

/// Who asks for a route.
#[derive(Debug, Clone, Copy)]
pub struct Who<'a> {
    /// The caller's number, and name if it has one.
    pub user: (u32, Option<&'a str>),
    /// Further names of the caller: the name service may know a user by several, or by
    /// another spelling.
    pub aliases: &'a [String],
    /// The caller's groups, the same way.
    pub groups: &'a [(u32, Option<String>)],
    /// The session's label.
    pub label: &'a str,
    /// Whether the name and the groups are all that there are. False when the
    /// system's name service did not answer.
    pub complete: bool,
    /// Whether this is root or the service's own user. Routes confine neither of
    /// them, and a route that may or may not be for them is not.
    pub trusted: bool,
}

/// What decides where paths go that no route is for.
const DEFAULT: &str = "default_cache";

/// Where paths go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination<'a> {
    /// To this cache, a key of [`Settings::caches`].
    Cache(&'a str),
    /// Nowhere.
    Skip,
}

/// What happens to the paths of no session whose maker was not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownMaker<'a> {
    /// They go where a route, or the default, sends them.
    Goes(Destination<'a>),
    /// They wait until a session names them: routes confine somebody, and none
    /// of them says what may be done with the paths of an unknown maker.
    Waits,
}

/// Nobody knows yet whether a route is for somebody: it names a user or a group
/// that only the system's name service can tell, and that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "it is not known whether {route} is for you, because the system's name service does not report your name and \
     groups: try again when `id` answers"
)]
pub struct Undecided {
    /// The route, as [`Settings::describe_route`] writes it.
    pub route: String,
}

/// Why somebody may not use a cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// A route does not allow it.
    #[error(
        "cache {cache} is not open to you: {route} allows {allowed}; the administrator can add it to `allow` there"
    )]
    NotAllowed {
        /// The cache that was named.
        cache: String,
        /// The route, as [`Settings::describe_route`] writes it.
        route: String,
        /// The caches that the route does allow, in words.
        allowed: String,
    },
    /// Nobody knows which route is for them.
    #[error(transparent)]
    Undecided(#[from] Undecided),
}

impl Route {
    /// Whether this route is for `who`; none when that cannot be decided without a
    /// name or groups that are not known. A route for unknown makers is for nobody.
    fn matches(&self, who: &Who<'_>) -> Option<bool> {
        let Subject::Person { user, group, label } = &self.subject else { return Some(false) };
        if !label.as_ref().is_none_or(|glob| glob.matches(who.label)) {
            return Some(false);
        }
        let is = |wanted: &str, number: u32, name: Option<&str>| {
            name == Some(wanted) || numbers(wanted).is_some_and(|numbers| numbers.contains(&number))
        };
        let user = match user.as_deref() {
            None => Some(true),
            Some(wanted) if is(wanted, who.user.0, who.user.1) => Some(true),
            Some(wanted) if who.aliases.iter().any(|alias| alias == wanted) => Some(true),
            // Numbers, or a name that is compared with a name.
            Some(wanted) if who.complete || who.user.1.is_some() || numbers(wanted).is_some() => Some(false),
            Some(_) => None,
        };
        let group = match group.as_deref() {
            None => Some(true),
            Some(wanted) if who.groups.iter().any(|g| is(wanted, g.0, g.1.as_deref())) => Some(true),
            Some(_) => who.complete.then_some(false),
        };
        match (user, group) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            (None, _) | (_, None) => who.trusted.then_some(false),
        }
    }

    fn destination(&self) -> Destination<'_> {
        self.cache.as_deref().map_or(Destination::Skip, Destination::Cache)
    }

    /// Whether this route limits users or groups, and not only labels, which a
    /// job chooses itself.
    pub(super) fn confines(&self) -> bool {
        matches!(&self.subject, Subject::Person { user, group, .. } if user.is_some() || group.is_some())
    }

    /// Whether only the session's label decides whether this route matches.
    pub(super) fn is_by_label_alone(&self) -> bool {
        matches!(&self.subject, Subject::Person { user: None, group: None, .. })
    }
}

impl fmt::Display for Subject {
    /// Writes the keys as they stand in the configuration.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (user, group, label) = match self {
            Self::UnknownMaker => return f.write_str("maker = \"unknown\""),
            Self::Person { user, group, label } => (user.as_deref(), group.as_deref(), label.as_ref()),
        };
        let keys = [("user", user), ("group", group), ("label", label.map(Glob::as_str))];
        let set = keys.iter().filter_map(|(key, value)| value.map(|value| format!("{key} = {value:?}")));
        f.write_str(&set.collect::<Vec<_>>().join(", "))
    }
}

impl Settings {
    /// Returns the first route that is for `who`, with its position.
    fn route_of(&self, who: &Who<'_>) -> Result<Option<(usize, &Route)>, Undecided> {
        for (position, route) in self.routes.iter().enumerate() {
            match route.matches(who) {
                Some(true) => return Ok(Some((position, route))),
                Some(false) => {}
                None => return Err(Undecided { route: self.describe_route(position) }),
            }
        }
        Ok(None)
    }

    /// Returns where the paths of a session of `who` go when it names no cache,
    /// and where the paths go that `who` makes outside of any session. An error
    /// when nobody knows which route is for `who`.
    pub fn route(&self, who: &Who<'_>) -> Result<Destination<'_>, Undecided> {
        let route = self.route_of(who)?;
        Ok(route.map_or(Destination::Cache(&self.default_cache), |(_, route)| route.destination()))
    }

    /// Names what decides where the paths of `who` go: a route, or `default_cache`.
    pub fn rule(&self, who: &Who<'_>) -> Result<String, Undecided> {
        let route = self.route_of(who)?;
        Ok(route.map_or_else(|| DEFAULT.to_owned(), |(position, _)| self.describe_route(position)))
    }

    /// Names what decides about the paths of no session whose maker was not seen.
    pub fn rule_for_unknown_makers(&self) -> String {
        let route = self.routes.iter().position(|route| route.subject == Subject::UnknownMaker);
        route.map_or_else(|| DEFAULT.to_owned(), |position| self.describe_route(position))
    }

    /// Checks that `who` may push to `cache`, a key of [`Settings::caches`]: the
    /// first route that is for `who` allows the cache it leads to and those in its
    /// `allow`. Somebody whom no route matches may use every cache, and so may
    /// root and the service's own user.
    pub fn may_use(&self, who: &Who<'_>, cache: &str) -> Result<(), Forbidden> {
        if who.trusted {
            return Ok(());
        }
        let Some((position, route)) = self.route_of(who)? else { return Ok(()) };
        let allowed: Vec<&str> = route.cache.iter().chain(&route.allow).map(String::as_str).collect();
        if allowed.contains(&cache) {
            return Ok(());
        }
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        let route = self.describe_route(position);
        Err(Forbidden::NotAllowed { cache: cache.to_owned(), route, allowed })
    }

    /// Returns what happens to the paths of no session whose maker was not seen.
    pub fn unknown_maker(&self) -> UnknownMaker<'_> {
        match self.routes.iter().find(|route| route.subject == Subject::UnknownMaker) {
            Some(route) => UnknownMaker::Goes(route.destination()),
            None if self.routes.iter().any(Route::confines) => UnknownMaker::Waits,
            None => UnknownMaker::Goes(Destination::Cache(&self.default_cache)),
        }
    }

    /// Describes the route at this position of [`Settings::routes`] for messages:
    /// `[[route]] 2 (user = "ci")`, counted from 1.
    pub fn describe_route(&self, position: usize) -> String {
        let subject = self.routes.get(position).map(|route| route.subject.to_string()).unwrap_or_default();
        format!("[[route]] {} ({subject})", position + 1)
    }
}

/// The numbers that a user or group in a route stands for, if it is a number or a range
/// such as `100000-165535`; none for a name. The users of a container or of a user
/// namespace have a range of the host's numbers (subuid(5)).
pub(crate) fn numbers(text: &str) -> Option<RangeInclusive<u32>> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits)
    };
    match text.split_once('-') {
        Some((first, last)) => Some(number(first)?..=number(last)?),
        None => number(text).map(|number| number..=number),
    }
}
