//! What all fault tests share: a daemon, its store, its cache and the proxy between. Built paths
//! are recorded with hash and size as Nix registered them, and at the end [`Rig::whole`] compares
//! the cache with that record, byte for byte. Knows no single test.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use rusqlite::{Connection, OpenFlags};
use sha2::{Digest, Sha256};

use super::proxy::{self, Proxy, Tally};
use crate::support::cache::{CacheView, StandaloneCache};
pub use crate::support::daemon::until_some as until;
use crate::support::daemon::{CommandResult, Daemon, MAX_WAIT};
use crate::support::nix::PrivateNix;

/// What Nix registered: `sha256:` with the hash in hex, and the NAR's size in bytes.
type Fact = (String, i64);

/// One push in the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub state: i64,
    pub class: Option<String>,
}

pub const COLLECTED: i64 = 7;
const FAILED: i64 = 5;

/// A store to build in. It can be used from any thread, also while the daemon is stopped.
#[derive(Clone)]
pub struct Site {
    env: Vec<(&'static str, PathBuf)>,
    work: PathBuf,
    db: PathBuf,
    /// All paths that were built, by base name.
    built: Arc<Mutex<BTreeMap<String, Fact>>>,
}

/// An expression that builds `derivations` derivations of `outputs` paths each, with `size` random
/// bytes in each path. In each derivation all other outputs refer to the first: `TAG-0`,
/// `TAG-0-o0`, `TAG-0-o1`, …, `TAG-1`, …
pub fn set(tag: &str, derivations: usize, outputs: usize, size: usize) -> String {
    format!(
        r#"let
  names = [ "out" ] ++ builtins.genList (n: "o${{toString n}}") {more};
  make = n: derivation {{
    name = "{tag}-${{toString n}}"; outputs = names;
    system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
    args = [ "-c" ''
      for output in $outputs; do
        eval "path=\$$output"
        {{ echo "{tag} $first"; head -c {size} /dev/urandom; }} > $path
        first=''${{first:-$path}}
      done
    '' ];
  }};
in builtins.genList make {derivations}"#,
        more = outputs - 1
    )
}

impl Site {
    pub fn of(nix: &PrivateNix) -> Self {
        Self {
            env: nix.env(),
            work: nix.work_dir(),
            db: nix.state_dir().join("db/db.sqlite"),
            built: Arc::default(),
        }
    }

    pub fn run(&self, program: &str, args: &[&str]) -> Output {
        let mut command = Command::new(program);
        command.current_dir(&self.work).envs(self.env.iter().map(|(k, v)| (k, v))).env_remove("NIX_PATH");
        command.args(args).output().unwrap()
    }

    /// Builds an expression and records the paths.
    pub fn build(&self, expression: &str) {
        let out = self.run("nix-build", &["--no-out-link", "-E", expression]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        self.note();
    }

    fn nix_db(&self) -> Connection {
        let db = Connection::open_with_flags(&self.db, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        db.busy_timeout(MAX_WAIT).unwrap();
        db
    }

    /// Records all paths that are valid now and were built here.
    pub fn note(&self) {
        let db = self.nix_db();
        let mut find = db
            .prepare(
                "select path, hash, narSize from ValidPaths where ultimate = 1 and path not like '%.drv'",
            )
            .unwrap();
        let rows = find.query_map([], |r| Ok((r.get::<_, String>(0)?, (r.get(1)?, r.get(2)?)))).unwrap();
        let mut built = self.built.lock().unwrap();
        for row in rows {
            let (path, fact) = row.unwrap();
            built.insert(crate::support::cache::base(&path).to_owned(), fact);
        }
    }

    /// Base names of all recorded paths.
    pub fn built(&self) -> Vec<String> {
        self.built.lock().unwrap().keys().cloned().collect()
    }

    /// Full paths of the recorded paths whose name (after the hash) satisfies the condition.
    pub fn named(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let store = self.env.iter().find(|(k, _)| *k == "NIX_STORE_DIR").unwrap().1.display();
        self.built().iter().filter(|b| wanted(&b[33..])).map(|b| format!("{store}/{b}")).collect()
    }

    /// Removes a path from the record.
    pub fn forget(&self, base: &str) {
        self.built.lock().unwrap().remove(base);
    }
}

/// Everything that a fault test needs.
pub struct Rig {
    pub site: Site,
    pub daemon: Daemon,
    pub proxy: Proxy,
    pub cache: StandaloneCache,
}

impl Rig {
    pub fn new() -> Self {
        Self::with("", "")
    }

    /// `keys`: further keys of `[caches.main]`; `tables`: further tables of the configuration.
    pub fn with(keys: &str, tables: &str) -> Self {
        Self::behind(Proxy::url, keys, tables)
    }

    /// As [`Self::with`]; `url` gives the address under which the daemon reaches the cache.
    pub fn behind(url: impl FnOnce(&Proxy) -> String, keys: &str, tables: &str) -> Self {
        let nix = PrivateNix::new();
        let cache = StandaloneCache::start(&nix, |_| {});
        let proxy = Proxy::before(cache.address());
        let config = cache.config_at(&url(&proxy));
        let config = config.replacen("[caches.main]\n", &format!("[caches.main]\n{keys}\n"), 1);
        let site = Site::of(&nix);
        let daemon = Daemon::start(nix, &format!("{config}{tables}\n"));
        Self { site, daemon, proxy, cache }
    }

    /// The pushes in the ledger, as they are on disk.
    pub fn items(&self) -> BTreeMap<String, Item> {
        let ledger = self.daemon.state_dir().join("ledger.sqlite");
        let db = Connection::open_with_flags(ledger, OpenFlags::SQLITE_OPEN_READ_WRITE).unwrap();
        db.busy_timeout(MAX_WAIT).unwrap();
        let mut find = db
            .prepare("select path, state, class from item left join reason on reason.id = item.reason")
            .unwrap();
        let rows =
            find.query_map([], |r| Ok((r.get(0)?, Item { state: r.get(1)?, class: r.get(2)? }))).unwrap();
        rows.collect::<Result<_, _>>().unwrap()
    }

    /// The paths of the ledger that are pending or uploading.
    pub fn unsettled(&self) -> Vec<String> {
        self.items().into_iter().filter(|(_, item)| item.state < 2).map(|(path, _)| path).collect()
    }

    /// Waits until the daemon has at least this number of pushes pending or uploading.
    pub fn until_queued(&self, count: u64) {
        until(&format!("{count} queued"), || {
            let queue = &self.daemon.status()["queue"];
            (queue["pending"].as_u64()? + queue["uploading"].as_u64()? >= count).then_some(())
        });
    }

    /// Asserts that each recorded path is in the cache as Nix registered it, or has failed with the
    /// class that `fails` returns for its name; that the cache holds all references of what it has;
    /// and that neither the daemon nor the ledger has anything pending.
    pub fn whole(&self, fails: impl Fn(&str) -> Option<&'static str>) {
        self.daemon.flush();
        let status = self.daemon.status();
        assert_eq!(status["queue"]["pending"], 0, "{status}");
        assert_eq!(status["queue"]["uploading"], 0, "{status}");
        // The ledger is written a moment after the answer.
        until("a ledger with nothing unsettled", || self.unsettled().is_empty().then_some(()));
        let (view, items) = (self.cache.main(), self.items());
        let built = self.site.built.lock().unwrap().clone();
        for (base, fact) in &built {
            let item = items.get(base).unwrap_or_else(|| panic!("the ledger knows nothing of {base}"));
            match fails(&base[33..]) {
                None => {
                    assert_eq!(
                        held(&view, base).as_ref(),
                        Some(fact),
                        "{base} in the cache; ledger: {item:?}"
                    );
                    assert!((2..=3).contains(&item.state), "{base}: {item:?}");
                }
                Some(class) => {
                    assert_eq!((item.state, item.class.as_deref()), (FAILED, Some(class)), "{base}");
                    assert!(!view.has(base), "{base} has failed and is there");
                }
            }
        }
        view.assert_closed();
    }

    /// Asserts that no path was uploaded again after the daemon had received a success for it, and
    /// that no path was uploaded twice at the same time. A path whose answer was cut may be sent
    /// again, because the daemon cannot know what the answer was.
    pub fn nothing_twice(&self) {
        let seen = self.proxy.seen();
        let mut known: BTreeMap<&str, &proxy::Call> = BTreeMap::new();
        for call in seen.uploads() {
            if let Some(last) = known.insert(&call.path, call) {
                assert_ne!(last.answered, Some(200), "{} was uploaded again", call.path);
                // The proxy does not see that the client gave up while nothing is read.
                let over = last.over || matches!(last.fault, proxy::Fault::Stall(_));
                assert!(over, "{} was uploaded while it was being uploaded", call.path);
            }
        }
    }
}

/// Hash and size of the NAR that the cache serves for this path; the NAR is read completely.
fn held(view: &CacheView, base: &str) -> Option<Fact> {
    let info = view.narinfo(base)?;
    let field = |name: &str| {
        let value =
            info.lines().find_map(|l| l.strip_prefix(name)).unwrap_or_else(|| panic!("{name} {info}"));
        value.trim().to_owned()
    };
    let nar = fetch(view.address(), &format!("{}/{}", view.url(), field("URL:")));
    let nar = match field("Compression:").as_str() {
        "zstd" => zstd::decode_all(&nar[..]).unwrap(),
        "none" => nar,
        other => panic!("compressed with {other}"),
    };
    let hash: String = Sha256::digest(&nar).iter().map(|b| format!("{b:02x}")).collect();
    let fact = (format!("sha256:{hash}"), i64::try_from(nar.len()).unwrap());
    assert_eq!((field("NarHash:"), field("NarSize:")), (fact.0.clone(), fact.1.to_string()), "{base}");
    Some(fact)
}

/// Fetches a body. Over HTTP/1.0 it ends with the connection and is never chunked.
fn fetch(address: &str, url: &str) -> Vec<u8> {
    let path = url.strip_prefix(&format!("http://{address}")).unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("a head") + 4;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    assert!(head.contains(" 200 "), "{path}: {head}");
    answer.split_off(end)
}

/// SplitMix64 (Steele, Lea and Flood 2014), seeded from `FLYWHEEL_TEST_SEED` or the clock. The seed
/// is printed, so that a failing run can be repeated.
pub struct Dice(u64);

impl Dice {
    pub fn new() -> Self {
        let given = std::env::var("FLYWHEEL_TEST_SEED").ok().and_then(|s| s.parse().ok());
        let clock = || {
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
            now.as_secs() ^ u64::from(now.subsec_nanos()) << 20
        };
        let seed = given.unwrap_or_else(clock);
        eprintln!("FLYWHEEL_TEST_SEED={seed}");
        Self(seed)
    }

    /// Another generator that depends on the same seed.
    pub fn like(dice: &Self, salt: u64) -> Self {
        Self(dice.0 ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// Runs `flywheelctl` on a socket, for callers without a [`Daemon`].
pub fn client(socket: &Path, args: &[&str]) -> CommandResult {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flywheelctl"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("FLYWHEEL_SOCKET", socket).args(args).stdin(std::process::Stdio::null());
    CommandResult::of(&command.output().unwrap())
}

/// A number from an environment variable.
pub fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(otherwise, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text:?}")))
}

/// Whether a request is the upload of a path whose name satisfies the condition.
pub fn upload_of(call: &proxy::Call, wanted: impl Fn(&str) -> bool) -> bool {
    call.kind == proxy::Kind::Upload && call.path.get(33..).is_some_and(wanted)
}

/// A condition: at least this number of faults was met.
pub fn met(count: usize) -> impl Fn(&Tally) -> bool {
    move |tally| tally.faults() >= count
}

/// The full path of a command, when it is installed.
pub fn has(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain([Path::new("/usr/sbin").to_owned()]);
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}
