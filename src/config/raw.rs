//! The content of a configuration file: every key is optional, unknown keys are
//! errors, and only the types of values are checked. Each value keeps its place, so
//! that later errors have a line, too.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};
use toml::Spanned;

use super::merge::Layer;
use crate::types::{ByteSize, Period};

/// The place of a value: the number of its file and the bytes in it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) file: usize,
    pub(super) span: Range<usize>,
}

/// A value and its place. The number of the file is not known while the file is
/// read; [`Layer::overlay`] sets it.
#[derive(Debug, Clone)]
pub(super) struct At<T> {
    pub(super) value: T,
    pub(super) spot: Spot,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for At<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<T>::deserialize(deserializer)?;
        let span = spanned.span();
        Ok(Self { value: spanned.into_inner(), spot: Spot { file: 0, span } })
    }
}

/// Declares a table with its keys. Unknown keys are refused, and a later file
/// replaces values key by key.
macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name { $(#[serde(default)] pub(super) $field: $type,)* }

        impl Layer for $name {
            fn overlay(&mut self, later: Self, file: usize) {
                $(self.$field.overlay(later.$field, file);)*
            }
        }
    };
}

table! {
    /// A file.
    Raw {
        socket: Option<At<String>>,
        state_dir: Option<At<String>>,
        default_cache: Option<At<String>>,
        admins: Option<At<String>>,
        nix: RawNix,
        caches: Named<RawCache>,
        embedded: RawEmbedded,
        metrics: RawMetrics,
        push: RawPush,
        client: RawClient,
        drain: RawDrain,
        history: RawHistory,
        route: Vec<At<RawRoute>>,
    }
}

table! {
    RawNix {
        root: Option<At<String>>,
        store_dir: Option<At<String>>,
        state_dir: Option<At<String>>,
        lower_state_dir: Option<At<String>>,
        gc_roots: Option<At<String>>,
        poll: Option<At<Period>>,
        netrc: Option<At<String>>,
        netrc_group: Option<At<String>>,
        netrc_include: Option<At<Vec<Spanned<String>>>>,
        protect_max: Option<At<ByteSize>>,
        min_free: Option<At<ByteSize>>,
    }
}

table! {
    RawCache {
        endpoints: Option<At<OneOrMany>>,
        cache: Option<At<String>>,
        token_file: Option<At<String>>,
        pull_token_file: Option<At<String>>,
        engine: Option<At<String>>,
        stall_timeout: Option<At<Period>>,
        trust_api_endpoint: Option<At<bool>>,
        upstream_check: Option<At<Vec<Spanned<String>>>>,
        ca_file: Option<At<String>>,
        client_cert: Option<At<String>>,
        client_key: Option<At<String>>,
        headers_file: Option<At<String>>,
        token_command: Option<At<Vec<Spanned<String>>>>,
        token_command_timeout: Option<At<Period>>,
        proxy: Option<At<String>>,
        proxy_file: Option<At<String>>,
        http2: Option<At<bool>>,
    }
}

table! {
    RawEmbedded {
        listen: Option<At<String>>,
        host_names: Option<At<Vec<Spanned<String>>>>,
        dir: Option<At<String>>,
        max_size: Option<At<ByteSize>>,
        max_nar_size: Option<At<ByteSize>>,
        public: Option<At<bool>>,
        priority: Option<At<i64>>,
    }
}

table! {
    RawPush {
        engine: Option<At<String>>,
        jobs: Option<At<RawJobs>>,
        existing: Option<At<RawExisting>>,
        recheck_after: Option<At<Period>>,
        filter: RawFilter,
        max_rate: Option<At<ByteSize>>,
    }
}

table! {
    RawFilter {
        origins: Option<At<Vec<Spanned<String>>>>,
        names: Option<At<Vec<Spanned<String>>>>,
        max_size: Option<At<ByteSize>>,
        substitutable_only: Option<At<bool>>,
    }
}

table! {
    RawClient {
        enable: Option<At<bool>>,
        installable: Option<At<String>>,
        timeout: Option<At<Period>>,
        memory: Option<At<ByteSize>>,
    }
}
table! { RawMetrics { listen: Option<At<String>>, allow_remote: Option<At<bool>>, } }
table! { RawDrain { timeout: Option<At<Period>>, } }
table! { RawHistory { keep: Option<At<Period>>, } }

table! {
    RawRoute {
        user: Option<At<String>>,
        group: Option<At<String>>,
        label: Option<At<String>>,
        maker: Option<At<String>>,
        cache: Option<At<String>>,
        allow: Option<At<Vec<Spanned<String>>>>,
        action: Option<At<String>>,
    }
}

/// Tables with names, `[caches.NAME]`, and the first place of each name.
#[derive(Debug, Default)]
pub(super) struct Named<T>(pub(super) BTreeMap<String, (Spot, T)>);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let tables = BTreeMap::<Spanned<String>, T>::deserialize(deserializer)?;
        let spotted = |(name, table): (Spanned<String>, T)| {
            let spot = Spot { file: 0, span: name.span() };
            (name.into_inner(), (spot, table))
        };
        Ok(Self(tables.into_iter().map(spotted).collect()))
    }
}

/// One string, or a list of them.
#[derive(Debug, Clone)]
pub(super) struct OneOrMany(pub(super) Vec<(Option<Range<usize>>, String)>);

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = OneOrMany;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of URLs, or \"embedded\"")
            }

            fn visit_str<E>(self, text: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany(vec![(None, text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMany, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element::<Spanned<String>>()? {
                    items.push((Some(item.span()), item.into_inner()));
                }
                Ok(OneOrMany(items))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// A number or a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RawJobs {
    Word(String),
    Number(i64),
}

impl<'de> Deserialize<'de> for RawJobs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = RawJobs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\" or a number from 1 to 256")
            }

            fn visit_str<E>(self, text: &str) -> Result<RawJobs, E> {
                Ok(RawJobs::Word(text.to_owned()))
            }

            fn visit_i64<E>(self, number: i64) -> Result<RawJobs, E> {
                Ok(RawJobs::Number(number))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// `true`, `false`, or a word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RawExisting {
    Bool(bool),
    Word(String),
}

impl<'de> Deserialize<'de> for RawExisting {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = RawExisting;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("true, false or \"since-boot\"")
            }

            fn visit_bool<E>(self, value: bool) -> Result<RawExisting, E> {
                Ok(RawExisting::Bool(value))
            }

            fn visit_str<E>(self, text: &str) -> Result<RawExisting, E> {
                Ok(RawExisting::Word(text.to_owned()))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}
