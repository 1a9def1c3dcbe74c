//! What the log tells: each kind of event once, with an id that stays, its
//! level and the fields it may have. `event!` takes a kind by its name, so
//! nothing can be logged that is not here, nor with a field that is not
//! declared: both are errors of the compiler. `systemd/flywheel.catalog`
//! explains each id, `docs/journal.md` lists them; `tests/it/journal.rs`
//! compares the three.
//!
//! An id, once released, is never used for another kind of event.

use tracing::Level;

/// One kind of event.
#[derive(Debug)]
pub struct Kind {
    /// Its name in the documentation.
    pub name: &'static str,
    /// `MESSAGE_ID` in the journal: 128 random bits (sd-id128(3)).
    pub id: &'static str,
    /// How loud it is.
    pub level: Level,
    /// The fields it may have, without `FLYWHEEL_`, in lower case.
    pub fields: &'static [&'static str],
    /// When it is told.
    pub when: &'static str,
}

impl Kind {
    /// Whether it may have this field.
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
        /// All of them.
        pub const ALL: &[Kind] = &[$($name),*];
    };
}

kinds! {
    /// The daemon serves its socket and its ledger is open.
    READY = "0452280519a4436a9db317de8f477dda", INFO, [version, caches, socket, activated, ledger];
    /// The end has begun.
    STOPPING = "1d776a72b41f4edbaf7586ad9d114ceb", INFO, [uploading];
    /// The end, with nothing left under way.
    STOPPED = "4401a5e63a2d4f0b835c8be1ff5e008d", INFO, [];
    /// The end, at the deadline.
    STOPPED_EARLY = "5837a7de1f074d14a67e2a5ccf375eb4", WARN, [];
    /// A second signal cut the end short.
    SECOND_SIGNAL = "1aaa412e759b47aab922a3919a5abd64", WARN, [];
    /// The daemon could not start, or a part it cannot do without has failed.
    FAILED = "63b6b65ec53a45e98bec8f1d607bc725", ERROR, [];
    /// The configuration cannot be used.
    CONFIG_REFUSED = "71b7e9d7fa034bf48d1078783c235406", ERROR, [];
    /// Something in the configuration is allowed but probably not wanted.
    CONFIG_WARNING = "b408a51f5d384c81bdfaf48df828322b", WARN, [];
    /// `--check-config` found nothing wrong.
    CONFIG_GOOD = "53a64437c32e4dda861383af25a94230", INFO, [];
    /// `FLYWHEEL_LOG` is not understood.
    LOG_LEVEL_UNKNOWN = "df67c44332284866b515c8db59d6d290", WARN, [error];
    /// journald cannot be reached; lines go to standard error.
    JOURNALD_AWAY = "641ac5779d6f4f8b8cf7e53b99bbebb8", WARN, [error];
    /// There is no thread that could talk to systemd.
    SYSTEMD_NOT_TOLD = "15203b92e33b4ef69fe57dd5f3866667", WARN, [error];
    /// A part of the daemon stands still; the watchdog gets no ping.
    PART_STUCK = "91bcd5451a514392829ab9fea0ac5f84", WARN, [part];
    /// What stood still moves again.
    PART_MOVES = "765f8ec559f64965ad4a63c9c9f345ba", INFO, [part];
    /// A job opened a session.
    SESSION_STARTED = "9c2f5a11a0c247fdad260e2eb2eb3789", INFO, [session, label, cache, uid, anchor];
    /// A session is over, and what became of its paths.
    SESSION_SUMMARY = "a787bf8c63e74c8eb8106825c0c03dfe", INFO, [session, label, cache, pushed, already_cached, upstream, failed, skipped, collected, bytes, duration_ms];
    /// A session is over and its summary cannot be read.
    SESSION_UNREADABLE = "39d5b55fb7a14aad9838912b868eff2c", WARN, [session, label, error];
    /// The job of a session has gone without ending it.
    SESSION_ABANDONED = "48c19de8867841c090be6bd3d9d6945b", INFO, [session, label];
    /// The job of an abandoned session ends it after all.
    SESSION_REJOINED = "ffe7031e697a44ec82e248f88f820f46", INFO, [session, label];
    /// Sessions go on from before a restart.
    SESSIONS_RESUMED = "aed74377559547abb944d7a3777179ca", INFO, [sessions];
    /// A job named a path that is not valid.
    NAMED_INVALID = "dddcea798cc14e21b92107a160c0efe4", WARN, [session, label, store_path];
    /// A cache has confirmed an upload.
    PATH_PUSHED = "940c3370be334f448adbfe60961d525c", DEBUG, [session, label, cache, store_path, nar_size, duration_ms, attempt, deduplicated];
    /// A path was collected from the store before it was pushed.
    PATH_COLLECTED = "1938bd9eb0204ee0ac2c51ca450d209d", INFO, [cache, store_path];
    /// A try to push a path failed.
    UPLOAD_FAILED = "e7a952ef5ec1483990f333de1b6e9e7f", WARN, [session, label, cache, store_path, nar_size, attempt, duration_ms, error_class, error];
    /// A path cannot be pushed and is given up for now.
    PATH_GIVEN_UP = "d3cb334d4a104ec4a4a4b6759d7e4dfa", ERROR, [session, label, cache, store_path, attempt, error_class, error];
    /// The Nix database could not be read for an upload.
    PATH_UNREADABLE = "66073ef6fd4f4a439ee59be8d7840c76", WARN, [cache, store_path, attempt, error];
    /// Paths go on from before a restart.
    BACKLOG_RESUMED = "f5a8176542864e08baea3b61859e2620", INFO, [paths];
    /// A cache answers again.
    CACHE_ONLINE = "c54a696eb0a149d097d1bdebdbf09edb", INFO, [cache];
    /// A cache does not answer.
    CACHE_OFFLINE = "8d7b0493c1b44c47b3875b66aca695b9", WARN, [cache, error];
    /// A cache refuses the token.
    CACHE_REFUSES = "5d855e63172749ebb69f1ee4c1b5ad5a", WARN, [cache, error];
    /// A cache is for another store directory.
    CACHE_FOREIGN = "4d0e25e764d241d6ab2b3b2665476da4", WARN, [cache, theirs, ours];
    /// A cache is reached at this address from now on.
    ENDPOINT_CHOSEN = "b8333e22dc3d4651b622e51ccf158de7", INFO, [cache, endpoint];
    /// The address that a server names for its API fails.
    ENDPOINT_FALLBACK = "82dc94d463604a83a918026efbfa642f", WARN, [cache, endpoint, error];
    /// A cache has another token now.
    TOKEN_RENEWED = "3677b5e0b31f4a5cac6e1e6b9c037251", INFO, [cache];
    /// A token runs out soon.
    TOKEN_EXPIRES = "712ea8a58fa045dc91a4bfa5aa085347", WARN, [cache, expires];
    /// The built-in cache serves.
    BUILT_IN_SERVES = "0c136ca053874958a174e309ccef67f8", INFO, [cache, address, public_key];
    /// The built-in cache made room.
    BUILT_IN_EVICTED = "45c68fe3415f496098c0cc592c255017", DEBUG, [paths, bytes];
    /// The built-in cache misses files that it kept.
    BUILT_IN_LOST = "e79bcee1ffa04cbf9e63eeced9694b3e", WARN, [paths, file];
    /// The built-in cache cannot serve somebody.
    BUILT_IN_TROUBLE = "d2368e58e6404a66820bb27407e3037f", WARN, [connections, error];
    /// The built-in cache cannot read or write.
    BUILT_IN_FAILED = "c809694963684f8185f558fd393b1a51", ERROR, [error];
    /// What was built cannot be taken in for the moment.
    INTAKE_STUCK = "35bf62c756004101b60964d33706a00f", WARN, [error, duration_ms];
    /// What was built is taken in again.
    INTAKE_RESUMED = "ae6166075d884f9e81384e119bee7c34", INFO, [duration_ms];
    /// The intake has ended, and with it the daemon.
    INTAKE_ENDED = "20e8f16616d946a8bbf342126578f572", ERROR, [error];
    /// The Nix database is another one than before.
    DATABASE_REPLACED = "5cf97c08b3af4b098d73285d392b65b9", WARN, [was, now];
    /// A row of the Nix database is left out.
    DATABASE_ROW = "6097b7af7e8e44f9bab1ddff46733cd6", WARN, [row, error];
    /// The ledger was damaged and set aside.
    LEDGER_DAMAGED = "f381b16e25a249a9ad8cae5ef07f31b3", ERROR, [ledger, set_aside, error];
    /// The ledger is new on a host that had one.
    LEDGER_NEW = "10559b82e7e64084bd816cb4d526934d", WARN, [];
    /// The ledger cannot be written.
    LEDGER_UNWRITABLE = "e8dbe7cab6084f4aa77e8e4f83a24c2e", ERROR, [error, kept, lost];
    /// The ledger can be written again.
    LEDGER_WRITABLE = "a22c022cb2454a12b348467d3371701c", INFO, [since, lost];
    /// Something could not be recorded in the ledger.
    LEDGER_FAULT = "21bdf2de5a4b444a822efc24d5887ac3", ERROR, [error, note, item, state];
    /// The place where the daemon began cannot be written down.
    BEGIN_NOT_NOTED = "3d098d19049e42a98f71ba1ee88645bc", WARN, [error];
    /// Old history is forgotten.
    HISTORY_PRUNED = "6162aa27148c4d83835bf648adf064e9", DEBUG, [sessions, paths];
    /// Old history cannot be forgotten.
    HISTORY_FAILED = "2858bbc7c7c9442b81121bbeb907a272", WARN, [error];
    /// The store directory is not watched any more.
    WATCH_LOST = "d06e44832bb94d42912064f9bfd295bd", WARN, [error];
    /// The store directory is watched again.
    WATCH_RESUMED = "c401ac8740b246e5b4f452494224504e", INFO, [];
    /// Who makes a path cannot be seen.
    WITNESS_BLIND = "43faa15e5ec8481db2a6b014a9b27a1a", WARN, [error];
    /// The kernel dropped events of the store directory.
    EVENTS_DROPPED = "68324fe9b4ab4648b0db564909642b8c", WARN, [];
    /// What the doorbell calls has panicked.
    DOORBELL_FAULT = "751c95179b43454db349f9f1c2519526", ERROR, [];
    /// Pending paths are protected only while the daemon runs.
    ROOTS_PARTIAL = "e82c96023a7842eeb0504cdc98674c7a", INFO, [error];
    /// Pending paths are not protected from garbage collection as they should be.
    ROOTS_MISSING = "ee766ea9390b4f84be1d529bd9afcc28", WARN, [error];
    /// Temporary roots were lost and are made again.
    ROOTS_LOST = "793b7fdc769c4e04b4cb72461b2a46e7", WARN, [error];
    /// Pending paths have temporary roots again.
    ROOTS_RESUMED = "1c7a5860a8be4561954a1ed41d27bd04", INFO, [paths, duration_ms];
    /// Roots of an earlier run were removed.
    ROOTS_CLEARED = "1ae5703a141f4de383cf8731b3776eeb", INFO, [paths];
    /// A root cannot be made or removed.
    ROOTS_FAILED = "e484638c9df149bdaa5610ae59e47d2c", WARN, [error];
    /// Some callers did not take their answer before the end.
    CALLERS_LEFT = "8f45975c4f754e8d90655a10eca7c951", WARN, [];
    /// A caller cannot be served.
    CALLER_REFUSED = "0f921e447b0342579d0a1354bd936759", WARN, [uid, error];
    /// A connection cannot be accepted.
    ACCEPT_FAILED = "9ea5d0806490405b843d41c0ccc00008", WARN, [error];
    /// Serving a connection failed in an unforeseen way.
    CONTROL_FAULT = "6f707450bb424d4f8e8a405bdf96b062", WARN, [error];
    /// An attic client is kept ready from now on.
    CLIENT_KEPT = "ac0ff8bce88b4fb3b0683548e1d8c6a4", INFO, [phase, installable];
    /// The attic client's configuration is written.
    CLIENT_LOGGED_IN = "4498965d096542cf8955b5901c193d41", INFO, [dir];
    /// The attic client of before the restart answers.
    CLIENT_RESUMED = "6346f144b4cc430aa57f13d4efc4162d", INFO, [phase, client, version];
    /// There is an attic client, or a newer one.
    CLIENT_READY = "5f2838074c724e29a3205b12fadf00b0", INFO, [phase, client, version, duration_ms, waited_ms];
    /// No attic client is to be had without building it.
    CLIENT_MISSING = "d02e7622f65947e28b79d4b35800c118", INFO, [phase, error];
    /// The attic client that is to be had does not work.
    CLIENT_BROKEN = "cad6066bcdee4feea64b9ebd37668f02", WARN, [phase, error];
    /// The attic client of before the restart does not answer.
    CLIENT_STALE = "00cd3fc2c77244c790b4cab9d60864e7", WARN, [error];
    /// A newer attic client was not taken.
    CLIENT_NOT_REPLACED = "fd9ba3591faa4128b1b8c96d4e300d6f", WARN, [client, error];
    /// The attic client in use does not work any more.
    CLIENT_LOST = "18452987c11a483bb3bae27f94ca88bc", WARN, [error];
    /// A file for the attic client cannot be written.
    CLIENT_FAULT = "16009f805f364133aed7f7cde8f95158", WARN, [file, error];
    /// The attic client says that it has pushed a path.
    ATTIC_PUSHED = "fb0b6ea736a0456ebb85b9f0a51619a5", DEBUG, [cache, store_path, line];
    /// The attic client says why it could not push a path.
    ATTIC_FAILED = "eb4a94795aec4411ba0663d2e6cc35ca", WARN, [cache, store_path, error];
    /// The attic client gave up a run.
    ATTIC_GAVE_UP = "69ceb39feb7e48a7866a4e920e78acdf", WARN, [cache, error];
    /// The attic client could not be used for a path.
    UPLOAD_UNDONE = "04294c215138440daf4d7700101a9f91", WARN, [cache, store_path, attempt, error];
    /// The netrc file for Nix is written.
    NETRC_WRITTEN = "52223ccd4c7349bc8ee078997b072669", INFO, [file];
    /// The netrc file for Nix is not as it should be.
    NETRC_TROUBLE = "cadf9d6dd9644ae9806ba8b8f4345bf0", WARN, [file, error];
    /// The host goes down; logind waits a moment for what is pending.
    HOST_STOPS = "81014c486894400585bf601175531ab8", INFO, [pending, duration_ms];
    /// The host goes to sleep.
    HOST_SLEEPS = "cdb5ddcd75a24cf1bd2893aad381d90f", INFO, [pending, duration_ms];
    /// The host is awake again.
    HOST_AWAKE = "b3ca8df948c4437c852c06467124d7ad", INFO, [pending];
    /// A new configuration cannot be used and changes nothing.
    RELOAD_REFUSED = "87038767f33240388a5f6003035d9da2", ERROR, [error];
    /// Some new settings take effect at the next start only.
    RESTART_NEEDED = "debba728d2074355b30651b1b8b3b11a", WARN, [keys];
    /// Configuration and tokens were read again.
    RELOADED = "ded992d592eb46a28efad328b99a9bf6", INFO, [applied];
}

/// Tells of an event: `event!(KIND, field = value, field = %value, "text {}", argument)`.
/// Values as in `tracing`'s macros. In the journal the fields are
/// `FLYWHEEL_FIELD`; the kind's name is one of [`events`](self).
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

/// A detail for those who look for a fault, at level debug: `event!` without
/// an id. Fields get the same names.
macro_rules! detail {
    ($($rest:tt)+) => {
        $crate::observe::event!(@ DETAIL [] $($rest)+)
    };
}

pub(crate) use {detail, event};
