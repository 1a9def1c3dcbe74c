//! All kinds of log entries, each with its id, level and fields. `event!` takes a
//! kind by its name. An entry of another kind, or with a field that is not declared,
//! does not compile. `systemd/flywheel.catalog` explains each id, and
//! `docs/journal.md` lists them; `tests/it/observe/catalog.rs` compares the three.
//!
//! An id that was released is never used for another kind.

use tracing::Level;

/// A kind of log entry.
#[derive(Debug)]
pub struct Kind {
    /// The name in the documentation.
    pub name: &'static str,
    /// `MESSAGE_ID` in the journal: 128 random bits (sd-id128(3)).
    pub id: &'static str,
    /// The level.
    pub level: Level,
    /// The fields that an entry may have, without `FLYWHEEL_`, in lower case.
    pub fields: &'static [&'static str],
    /// When it is logged.
    pub when: &'static str,
}

impl Kind {
    /// Returns whether an entry may have this field.
    #[must_use]
    pub const fn declares(&self, field: &str) -> bool {
        let mut n = 0;
        while n < self.fields.len() {
            if is_same(self.fields[n].as_bytes(), field.as_bytes()) {
                return true;
            }
            n += 1;
        }
        false
    }
}

const fn is_same(a: &[u8], b: &[u8]) -> bool {
    let mut n = 0;
    while n < a.len() && n < b.len() && a[n] == b[n] {
        n += 1;
    }
    n == a.len() && n == b.len()
}

macro_rules! kinds {
    ($(#[doc = $when:literal] $name:ident = $id:literal, $level:ident, [$($field:ident),*];)*) => {
        $(
            #[doc = $when]
            pub const $name: Kind = Kind {
                name: stringify!($name),
                id: $id,
                level: Level::$level,
                fields: &[$(stringify!($field)),*],
                when: $when,
            };
        )*
        /// All kinds.
        pub const ALL: &[Kind] = &[$($name),*];
    };
}

kinds! {
    /// The daemon serves its socket and its ledger is open.
    READY = "0452280519a4436a9db317de8f477dda", INFO, [version, caches, socket, activated, ledger];
    /// The daemon begins to stop.
    STOPPING = "1d776a72b41f4edbaf7586ad9d114ceb", INFO, [uploading];
    /// The daemon has stopped; no upload was interrupted.
    STOPPED = "4401a5e63a2d4f0b835c8be1ff5e008d", INFO, [];
    /// The daemon has stopped at the deadline, with uploads in progress.
    STOPPED_EARLY = "5837a7de1f074d14a67e2a5ccf375eb4", WARN, [];
    /// A second signal ended the daemon at once.
    SECOND_SIGNAL = "1aaa412e759b47aab922a3919a5abd64", WARN, [];
    /// The daemon could not start, or a part it cannot do without has failed.
    FAILED = "63b6b65ec53a45e98bec8f1d607bc725", ERROR, [];
    /// The configuration cannot be used.
    CONFIG_REFUSED = "71b7e9d7fa034bf48d1078783c235406", ERROR, [];
    /// A setting is allowed but probably not intended.
    CONFIG_WARNING = "b408a51f5d384c81bdfaf48df828322b", WARN, [];
    /// `--check-config` found no error.
    CONFIG_GOOD = "53a64437c32e4dda861383af25a94230", INFO, [];
    /// `FLYWHEEL_LOG` cannot be read.
    LOG_LEVEL_UNKNOWN = "df67c44332284866b515c8db59d6d290", WARN, [error];
    /// journald cannot be reached; lines go to standard error.
    JOURNALD_AWAY = "641ac5779d6f4f8b8cf7e53b99bbebb8", WARN, [error];
    /// No thread could be started for messages to systemd.
    SYSTEMD_NOT_TOLD = "15203b92e33b4ef69fe57dd5f3866667", WARN, [error];
    /// A part of the daemon makes no progress; the watchdog gets no ping.
    PART_STUCK = "91bcd5451a514392829ab9fea0ac5f84", WARN, [part];
    /// The part of the daemon makes progress again.
    PART_MOVES = "765f8ec559f64965ad4a63c9c9f345ba", INFO, [part];
    /// A job opened a session.
    SESSION_STARTED = "9c2f5a11a0c247fdad260e2eb2eb3789", INFO, [session, label, cache, uid, anchor];
    /// A session has closed; the entry has its summary.
    SESSION_SUMMARY = "a787bf8c63e74c8eb8106825c0c03dfe", INFO, [session, label, cache, pushed, already_cached, upstream, failed, skipped, collected, bytes, duration_ms];
    /// A session has closed and its summary cannot be read.
    SESSION_UNREADABLE = "39d5b55fb7a14aad9838912b868eff2c", WARN, [session, label, error];
    /// The job of a session ended without ending the session.
    SESSION_ABANDONED = "48c19de8867841c090be6bd3d9d6945b", INFO, [session, label];
    /// The routes do not allow the cache of an open session any more.
    SESSION_CONFINED = "9ebff7564907465e843630739de104b3", WARN, [session, label, reason];
    /// The job of an abandoned session ends the session.
    SESSION_REJOINED = "ffe7031e697a44ec82e248f88f820f46", INFO, [session, label];
    /// Sessions continue after a restart.
    SESSIONS_RESUMED = "aed74377559547abb944d7a3777179ca", INFO, [sessions];
    /// A job named paths that are not valid.
    NAMED_INVALID = "dddcea798cc14e21b92107a160c0efe4", WARN, [session, label, store_path];
    /// A cache has confirmed an upload.
    PATH_PUSHED = "940c3370be334f448adbfe60961d525c", DEBUG, [session, label, cache, store_path, nar_size, duration_ms, attempt, deduplicated];
    /// A cache has confirmed an upload of a session that was started with `--log-paths`.
    PATH_LOGGED = "58ff577fdb6e5ce8d4d9222232b6e748", INFO, [session, label, cache, store_path, nar_size, queued_ms, duration_ms, attempt, deduplicated];
    /// A path was collected from the store before it was pushed.
    PATH_COLLECTED = "1938bd9eb0204ee0ac2c51ca450d209d", INFO, [session, label, cache, store_path, paths];
    /// An upload went wrong; it is retried, or the path has failed.
    UPLOAD_FAILED = "e7a952ef5ec1483990f333de1b6e9e7f", WARN, [session, label, cache, store_path, paths, nar_size, attempt, duration_ms, error_class, error];
    /// A push has failed; it is tried again after a reload or when somebody asks.
    PATH_FAILED = "d3cb334d4a104ec4a4a4b6759d7e4dfa", ERROR, [session, label, cache, store_path, paths, attempt, error_class, error];
    /// The Nix database could not be read for an upload.
    PATH_UNREADABLE = "66073ef6fd4f4a439ee59be8d7840c76", WARN, [session, label, cache, store_path, paths, attempt, error];
    /// Pending pushes continue after a restart.
    BACKLOG_RESUMED = "f5a8176542864e08baea3b61859e2620", INFO, [paths];
    /// A cache answers again.
    CACHE_ONLINE = "c54a696eb0a149d097d1bdebdbf09edb", INFO, [cache];
    /// A cache does not answer.
    CACHE_OFFLINE = "8d7b0493c1b44c47b3875b66aca695b9", WARN, [cache, error];
    /// A cache refuses the token.
    CACHE_REFUSES = "5d855e63172749ebb69f1ee4c1b5ad5a", WARN, [cache, error];
    /// A cache has deleted paths that it had.
    CACHE_DELETED = "7dc224930b474b019667d926e0fa11f4", WARN, [cache];
    /// A cache is for another store directory.
    CACHE_FOREIGN = "4d0e25e764d241d6ab2b3b2665476da4", WARN, [cache, theirs, ours];
    /// A cache is reached at this endpoint from now on.
    ENDPOINT_CHOSEN = "b8333e22dc3d4651b622e51ccf158de7", INFO, [cache, endpoint];
    /// The API endpoint that a server names does not answer.
    ENDPOINT_FALLBACK = "82dc94d463604a83a918026efbfa642f", WARN, [cache, endpoint, error];
    /// A cache has a new token or new headers.
    TOKEN_RENEWED = "3677b5e0b31f4a5cac6e1e6b9c037251", INFO, [cache];
    /// The program that gives a cache's token gave none.
    TOKEN_COMMAND_FAILED = "eabad460739543198fcf189cb4b10f0d", WARN, [cache, error];
    /// An upstream cache cannot be asked whether it has paths.
    UPSTREAM_CHECK_FAILED = "0d6527b3437f4c8e818c9ae217459363", WARN, [cache, upstream, error];
    /// A token expires soon.
    TOKEN_EXPIRES = "712ea8a58fa045dc91a4bfa5aa085347", WARN, [cache, expires];
    /// The built-in cache serves requests.
    BUILT_IN_SERVES = "0c136ca053874958a174e309ccef67f8", INFO, [cache, address, public_key];
    /// The built-in cache cannot listen on its address yet.
    BUILT_IN_WAITS = "ac252cb8899a0a9ff8768d418dac08d7", WARN, [address, error];
    /// The built-in cache evicted paths to make room.
    BUILT_IN_EVICTED = "45c68fe3415f496098c0cc592c255017", DEBUG, [paths, bytes];
    /// Files of the built-in cache are missing.
    BUILT_IN_LOST = "e79bcee1ffa04cbf9e63eeced9694b3e", WARN, [paths, file];
    /// The built-in cache cannot serve a connection.
    BUILT_IN_TROUBLE = "d2368e58e6404a66820bb27407e3037f", WARN, [connections, error];
    /// The built-in cache cannot read or write its files.
    BUILT_IN_FAILED = "c809694963684f8185f558fd393b1a51", ERROR, [error];
    /// New rows of the Nix database cannot be taken in at the moment.
    INTAKE_STUCK = "35bf62c756004101b60964d33706a00f", WARN, [error, duration_ms];
    /// New rows of the Nix database are taken in again.
    INTAKE_RESUMED = "ae6166075d884f9e81384e119bee7c34", INFO, [duration_ms];
    /// Named paths are in the lower store only, and no nix-daemon takes them over.
    LOWER_STORE_UNREACHED = "f4916625b8114445a439440ad119f111", WARN, [paths, error];
    /// The intake has ended; the daemon ends with it.
    INTAKE_ENDED = "20e8f16616d946a8bbf342126578f572", ERROR, [error];
    /// The Nix database is not the one that was read before.
    DATABASE_REPLACED = "5cf97c08b3af4b098d73285d392b65b9", WARN, [was, now];
    /// Paths of no session go nowhere until it is known which route is for them.
    PATHS_WITHOUT_ROUTE = "d0ceb485f1434774a16cea512190502c", WARN, [paths, reason];
    /// A row of the Nix database is skipped because it cannot be read.
    DATABASE_ROW = "6097b7af7e8e44f9bab1ddff46733cd6", WARN, [row, error];
    /// Nix writes its database without a write-ahead log; each read is checked.
    DATABASE_WITHOUT_WAL = "84861488984d49068f0b1b017aa6ae91", INFO, [path];
    /// The ledger was damaged and set aside.
    LEDGER_DAMAGED = "f381b16e25a249a9ad8cae5ef07f31b3", ERROR, [ledger, set_aside, error];
    /// The ledger is new on a host that had one.
    LEDGER_NEW = "10559b82e7e64084bd816cb4d526934d", WARN, [];
    /// The ledger cannot be written.
    LEDGER_UNWRITABLE = "e8dbe7cab6084f4aa77e8e4f83a24c2e", ERROR, [error, kept, lost];
    /// The ledger can be written again.
    LEDGER_WRITABLE = "a22c022cb2454a12b348467d3371701c", INFO, [since, lost];
    /// A change could not be recorded in the ledger.
    LEDGER_FAULT = "21bdf2de5a4b444a822efc24d5887ac3", ERROR, [error, note, item, state];
    /// The first row that the daemon read cannot be written down.
    BEGIN_NOT_NOTED = "3d098d19049e42a98f71ba1ee88645bc", WARN, [error];
    /// Old history was deleted from the ledger.
    HISTORY_PRUNED = "6162aa27148c4d83835bf648adf064e9", DEBUG, [sessions, paths];
    /// Old history cannot be deleted from the ledger.
    HISTORY_FAILED = "2858bbc7c7c9442b81121bbeb907a272", WARN, [error];
    /// The store directory is no longer watched.
    WATCH_LOST = "d06e44832bb94d42912064f9bfd295bd", WARN, [error];
    /// The store directory is watched again.
    WATCH_RESUMED = "c401ac8740b246e5b4f452494224504e", INFO, [];
    /// Nix's locks cannot be watched, so the maker of a path is unknown.
    LOCK_WATCHER_BLIND = "43faa15e5ec8481db2a6b014a9b27a1a", WARN, [error];
    /// The store's locks are matched by the device that stat says.
    LOCKS_BY_STAT = "16d59983c2c74f008172011af11188d6", WARN, [path];
    /// The kernel dropped events of the store directory.
    EVENTS_DROPPED = "68324fe9b4ab4648b0db564909642b8c", WARN, [];
    /// The code that events of the store directory wake has panicked.
    WAKE_UP_FAULT = "751c95179b43454db349f9f1c2519526", ERROR, [];
    /// Pending paths are protected from garbage collection only while the daemon runs.
    ROOTS_PARTIAL = "e82c96023a7842eeb0504cdc98674c7a", INFO, [error];
    /// Pending paths are not protected from garbage collection.
    ROOTS_MISSING = "ee766ea9390b4f84be1d529bd9afcc28", WARN, [error];
    /// Temporary roots were lost and are made again.
    ROOTS_LOST = "793b7fdc769c4e04b4cb72461b2a46e7", WARN, [error];
    /// Pending paths have temporary roots again.
    ROOTS_RESUMED = "1c7a5860a8be4561954a1ed41d27bd04", INFO, [paths, duration_ms];
    /// GC roots of an earlier run were removed.
    ROOTS_CLEARED = "1ae5703a141f4de383cf8731b3776eeb", INFO, [paths];
    /// A GC root cannot be made or removed.
    ROOTS_FAILED = "e484638c9df149bdaa5610ae59e47d2c", WARN, [error];
    /// A bound of the protection from garbage collection is passed: the oldest pending paths lose it.
    PROTECTION_LIMITED = "51de44b4a22f32805d8aa836483a89a1", WARN, [limit, paths, protected_bytes, free_bytes];
    /// All pending paths are protected from garbage collection again.
    PROTECTION_WHOLE = "20d4188880a3181f8d46d8fd9bfe9fb3", INFO, [paths, bytes];
    /// A verification found a path that cannot be read from its cache as it should.
    PATH_NOT_READABLE = "2e7a58716b01051a028eee2cd74bf6c8", WARN, [cache, store_path, problem, error];
    /// A verification has read all its paths from the cache.
    CACHE_VERIFIED = "01d9e14cfb7e1c59a26c09122bfe3de5", INFO, [cache, paths, bytes, duration_ms];
    /// A verification found paths that cannot be read from the cache as they should.
    CACHE_FAULTY = "16d256974ce62c4ef514e51cdc88cdc2", WARN, [cache, paths, problems, bytes, duration_ms];
    /// Some callers did not read their reply before the daemon stopped.
    CALLERS_LEFT = "8f45975c4f754e8d90655a10eca7c951", WARN, [];
    /// A connection is refused.
    CALLER_REFUSED = "0f921e447b0342579d0a1354bd936759", WARN, [uid, error];
    /// A connection cannot be accepted.
    ACCEPT_FAILED = "9ea5d0806490405b843d41c0ccc00008", WARN, [error];
    /// The code that serves a connection has panicked.
    CONTROL_FAULT = "6f707450bb424d4f8e8a405bdf96b062", WARN, [error];
    /// The daemon keeps an attic client ready from now on.
    CLIENT_KEPT = "ac0ff8bce88b4fb3b0683548e1d8c6a4", INFO, [phase, installable];
    /// The attic client's configuration is written.
    CLIENT_LOGGED_IN = "4498965d096542cf8955b5901c193d41", INFO, [dir];
    /// The attic client from before the restart works.
    CLIENT_RESUMED = "6346f144b4cc430aa57f13d4efc4162d", INFO, [phase, client, version];
    /// There is an attic client, or a newer one.
    CLIENT_READY = "5f2838074c724e29a3205b12fadf00b0", INFO, [phase, client, version, duration_ms, waited_ms];
    /// No attic client can be fetched without building it.
    CLIENT_MISSING = "d02e7622f65947e28b79d4b35800c118", INFO, [phase, error];
    /// The attic client that was fetched does not work.
    CLIENT_BROKEN = "cad6066bcdee4feea64b9ebd37668f02", WARN, [phase, error];
    /// The attic client from before the restart does not work.
    CLIENT_STALE = "00cd3fc2c77244c790b4cab9d60864e7", WARN, [error];
    /// A newer attic client was not taken.
    CLIENT_NOT_REPLACED = "fd9ba3591faa4128b1b8c96d4e300d6f", WARN, [client, error];
    /// The attic client in use no longer works.
    CLIENT_LOST = "18452987c11a483bb3bae27f94ca88bc", WARN, [error];
    /// A file for the attic client cannot be written.
    CLIENT_FAULT = "16009f805f364133aed7f7cde8f95158", WARN, [file, error];
    /// The attic client reports that it has pushed a path.
    ATTIC_PUSHED = "fb0b6ea736a0456ebb85b9f0a51619a5", DEBUG, [cache, store_path, line];
    /// The attic client reports why it could not push a path.
    ATTIC_FAILED = "eb4a94795aec4411ba0663d2e6cc35ca", DEBUG, [cache, store_path, error];
    /// The attic client ended a run with an error.
    ATTIC_STOPPED = "69ceb39feb7e48a7866a4e920e78acdf", WARN, [cache, error];
    /// The attic client could not be used for a path.
    UPLOAD_UNDONE = "04294c215138440daf4d7700101a9f91", WARN, [session, label, cache, store_path, paths, attempt, error];
    /// The netrc file for Nix was written.
    NETRC_WRITTEN = "52223ccd4c7349bc8ee078997b072669", INFO, [file];
    /// The netrc file for Nix cannot be written or read as it should be.
    NETRC_TROUBLE = "cadf9d6dd9644ae9806ba8b8f4345bf0", WARN, [file, error];
    /// Metrics are served over HTTP.
    METRICS_SERVED = "e6e97f89f9948dc2a2bafb0ef7c6cb06", INFO, [address];
    /// The address for metrics cannot be used; it is tried again.
    METRICS_REFUSED = "ad259e6b2a62dc7cb95c17a2dfaf6a96", WARN, [address, error];
    /// The host shuts down; logind waits a moment for pending pushes.
    HOST_STOPS = "81014c486894400585bf601175531ab8", INFO, [pending, duration_ms];
    /// The host goes to sleep.
    HOST_SLEEPS = "cdb5ddcd75a24cf1bd2893aad381d90f", INFO, [pending, duration_ms];
    /// The host is awake again.
    HOST_AWAKE = "b3ca8df948c4437c852c06467124d7ad", INFO, [pending];
    /// A new configuration cannot be used and changes nothing.
    RELOAD_REFUSED = "87038767f33240388a5f6003035d9da2", ERROR, [error];
    /// Some new settings take effect only at the next start.
    RESTART_NEEDED = "debba728d2074355b30651b1b8b3b11a", WARN, [keys];
    /// Configuration and tokens were read again.
    RELOADED = "ded992d592eb46a28efad328b99a9bf6", INFO, [applied];
}

/// Logs an entry: `event!(KIND, field = value, field = %value, "text {}", argument)`.
/// Values are written as in `tracing`'s macros. `KIND` is a constant of this module.
/// In the journal a field is `FLYWHEEL_FIELD`.
macro_rules! event {
    (@ $kind:ident [$($out:tt)*] $field:ident = %$value:expr, $($rest:tt)+) => {
        $crate::observe::event!(@ $kind [$($out)* ($field %$value)] $($rest)+)
    };
    (@ $kind:ident [$($out:tt)*] $field:ident = ?$value:expr, $($rest:tt)+) => {
        $crate::observe::event!(@ $kind [$($out)* ($field ?$value)] $($rest)+)
    };
    (@ $kind:ident [$($out:tt)*] $field:ident = $value:expr, $($rest:tt)+) => {
        $crate::observe::event!(@ $kind [$($out)* ($field $value)] $($rest)+)
    };
    (@ DETAIL [$(($field:ident $($value:tt)+))*] $text:literal $($arguments:tt)*) => {
        ::tracing::event!(
            ::tracing::Level::DEBUG,
            { $({ concat!("FLYWHEEL_", stringify!($field)) } = $($value)+,)* },
            $text $($arguments)*
        )
    };
    (@ $kind:ident [$(($field:ident $($value:tt)+))*] $text:literal $($arguments:tt)*) => {{
        $(const { assert!($crate::observe::events::$kind.declares(stringify!($field))) };)*
        ::tracing::event!(
            $crate::observe::events::$kind.level,
            {
                MESSAGE_ID = $crate::observe::events::$kind.id,
                $({ concat!("FLYWHEEL_", stringify!($field)) } = $($value)+,)*
            },
            $text $($arguments)*
        )
    }};
    ($kind:ident, $($rest:tt)+) => {
        $crate::observe::event!(@ $kind [] $($rest)+)
    };
}

/// Logs an entry without an id at level debug, with fields as in `event!`.
macro_rules! detail {
    ($($rest:tt)+) => {
        $crate::observe::event!(@ DETAIL [] $($rest)+)
    };
}

pub(crate) use {detail, event};
