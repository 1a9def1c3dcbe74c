//! Routes: whose paths go to which cache, and which caches a person may name.
//! Pure: the caller looks up users and groups. Knows nothing of sessions.

use std::fmt;

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
        /// A user's name, or number.
        user: Option<String>,
        /// A group's name, or number.
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
    /// The caller's groups, the same way.
    pub groups: &'a [(u32, Option<String>)],
    /// The session's label.
    pub label: &'a str,
}

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

/// A cache that a route does not let its people use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "cache {cache} is not open to you: {route} allows {allowed}; the administrator can add it to `allow` there"
)]
pub struct Forbidden {
    /// The cache that was named.
    pub cache: String,
    /// The route, as [`Settings::describe_route`] writes it.
    pub route: String,
    /// The caches that the route does allow, in words.
    pub allowed: String,
}

impl Route {
    /// Whether this route is for `who`. A route for unknown makers is for nobody.
    pub fn matches(&self, who: &Who<'_>) -> bool {
        let Subject::Person { user, group, label } = &self.subject else { return false };
        let is = |wanted: &str, number: u32, name: Option<&str>| {
            name == Some(wanted) || wanted == number.to_string()
        };
        user.as_deref().is_none_or(|wanted| is(wanted, who.user.0, who.user.1))
            && group
                .as_deref()
                .is_none_or(|wanted| who.groups.iter().any(|g| is(wanted, g.0, g.1.as_deref())))
            && label.as_ref().is_none_or(|glob| glob.matches(who.label))
    }

    fn destination(&self) -> Destination<'_> {
        self.cache.as_deref().map_or(Destination::Skip, Destination::Cache)
    }

    /// Whether this route limits users or groups, and not only labels, which a
    /// job chooses itself.
    fn confines(&self) -> bool {
        matches!(&self.subject, Subject::Person { user, group, .. } if user.is_some() || group.is_some())
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
    /// Returns where the paths of a session of `who` go when it names no cache,
    /// and where the paths go that `who` makes outside of any session.
    pub fn route(&self, who: &Who<'_>) -> Destination<'_> {
        let route = self.routes.iter().find(|route| route.matches(who));
        route.map_or(Destination::Cache(&self.default_cache), Route::destination)
    }

    /// Checks that `who` may push to `cache`, a key of [`Settings::caches`]: the
    /// first route that matches allows the cache it leads to and those in its
    /// `allow`. Whoever no route matches may use every cache.
    pub fn may_use(&self, who: &Who<'_>, cache: &str) -> Result<(), Forbidden> {
        let Some((number, route)) = self.routes.iter().enumerate().find(|(_, route)| route.matches(who))
        else {
            return Ok(());
        };
        let allowed: Vec<&str> = route.cache.iter().chain(&route.allow).map(String::as_str).collect();
        if allowed.contains(&cache) {
            return Ok(());
        }
        let allowed = if allowed.is_empty() { "none".to_owned() } else { allowed.join(", ") };
        Err(Forbidden { cache: cache.to_owned(), route: self.describe_route(number), allowed })
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
