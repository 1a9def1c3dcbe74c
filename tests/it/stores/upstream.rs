//! `[caches.NAME] upstream_check`: paths that were imported without a signature, and that an
//! upstream cache has, are not pushed. The upstream is a binary cache that Nix made, served over
//! HTTP.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::attic::{FakeAttic, environment, until_client};
use crate::support::cache::{StandaloneCache, base};
use crate::support::daemon::{Daemon, EMBEDDED, until};
use crate::support::nix::PrivateNix;

/// A binary cache in a directory, and what it was asked for.
struct Upstream {
    address: SocketAddr,
    dir: PathBuf,
    served: Arc<Served>,
}

#[derive(Default)]
struct Served {
    asked: Mutex<Vec<String>>,
    is_down: AtomicBool,
}

impl Upstream {
    /// Serves the files of this directory. The threads end with the test's process.
    fn serve(dir: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let served = Arc::new(Served::default());
        let (files, state) = (dir.clone(), Arc::clone(&served));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (files, state) = (files.clone(), Arc::clone(&state));
                std::thread::spawn(move || state.answer(stream.unwrap(), &files));
            }
        });
        Self { address, dir, served }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn set_down(&self, is_down: bool) {
        self.served.is_down.store(is_down, Ordering::SeqCst);
    }

    /// How often it was asked for the narinfo of a path.
    fn asked(&self, path: &str) -> usize {
        let name = format!("/{}.narinfo", &base(path)[..32]);
        self.served.asked.lock().unwrap().iter().filter(|asked| **asked == name).count()
    }

    fn narinfo(&self, path: &str) -> PathBuf {
        self.dir.join(format!("{}.narinfo", &base(path)[..32]))
    }

    /// Replaces the field of a path's narinfo.
    fn change(&self, path: &str, field: &str, value: &str) {
        let text = std::fs::read_to_string(self.narinfo(path)).unwrap();
        let lines = text.lines().map(|line| match line.starts_with(field) {
            true => format!("{field} {value}\n"),
            false => format!("{line}\n"),
        });
        std::fs::write(self.narinfo(path), lines.collect::<String>()).unwrap();
    }
}

impl Served {
    fn answer(&self, mut stream: TcpStream, files: &Path) {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                _ => return,
            }
        }
        let head = String::from_utf8(head).unwrap();
        assert!(!head.to_lowercase().contains("authorization"), "no token goes to an upstream: {head}");
        let path = head.split(' ').nth(1).unwrap();
        self.asked.lock().unwrap().push(path.to_owned());
        if self.is_down.load(Ordering::SeqCst) {
            return;
        }
        let (status, body) = match std::fs::read(files.join(path.trim_start_matches('/'))) {
            Ok(body) => ("200 OK", body),
            Err(_) => ("404 Not Found", b"404".to_vec()),
        };
        let head =
            format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
    }
}

/// Paths that are in an export and not in the store.
struct Exported {
    nix: PrivateNix,
    file: PathBuf,
    upstream: Upstream,
    /// By their names.
    paths: BTreeMap<String, String>,
}

impl Exported {
    /// Builds a path of each name, and `top`, which refers to all of them. Makes an upstream
    /// cache that has all of them, signed, exports them, and empties the store.
    fn new(names: &[&str]) -> Self {
        let nix = PrivateNix::new();
        let name = |name: &&str| {
            format!(
                "(derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo {name} > $out\" ]; }})"
            )
        };
        let all: Vec<String> = names.iter().map(name).collect();
        let top = format!(
            "derivation {{ name = \"top\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \
             \"echo $all > $out\" ]; all = [ {} ]; }}",
            all.join(" ")
        );
        let mut built = nix.build(&format!("[ {} ({top}) ]", all.join(" ")));
        let file = nix.work_dir().join("export");
        let exported = nix.run(
            "nix-store",
            &[&["--export"], &built.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat(),
        );
        assert!(exported.status.success());
        std::fs::write(&file, exported.stdout).unwrap();
        let (secret, public) = (nix.work_dir().join("secret"), nix.work_dir().join("public"));
        let keys = [secret.to_str().unwrap(), public.to_str().unwrap()];
        assert!(
            nix.run("nix-store", &["--generate-binary-cache-key", "up-1", keys[0], keys[1]]).status.success()
        );
        let dir = nix.work_dir().join("upstream");
        let to = format!("file://{}?secret-key={}&compression=none", dir.display(), keys[0]);
        let copied = nix.run("nix", &["copy", "--to", &to, built.last().unwrap()]);
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        nix.wipe();
        let paths = built.drain(..).map(|path| (base(&path)[33..].to_owned(), path)).collect();
        Self { nix, file, upstream: Upstream::serve(dir), paths }
    }

    /// The line of `[caches.main]`.
    fn key(&self) -> String {
        format!("upstream_check = [\"{}\"]\n", self.upstream.url())
    }

    fn config(&self, more: &str) -> String {
        EMBEDDED.replacen('\n', &format!("\n{}", self.key()), 1) + more
    }

    fn start(self, more: &str) -> (Daemon, Upstream, PathBuf, BTreeMap<String, String>) {
        let config = self.config(more);
        (Daemon::start(self.nix, &config), self.upstream, self.file, self.paths)
    }
}

fn import(nix: &PrivateNix, file: &Path) {
    let mut import = nix.command("nix-store");
    import.arg("--import").stdin(std::fs::File::open(file).unwrap()).stdout(Stdio::null());
    assert!(import.status().unwrap().success());
}

#[test]
fn a_copied_path_that_an_upstream_offers_with_the_same_content_is_not_pushed() {
    let exported = Exported::new(&["same", "changed", "absent", "unsigned", "elsewhere"]);
    let upstream = &exported.upstream;
    upstream.change(&exported.paths["changed"], "NarHash:", &format!("sha256:{}", "1".repeat(52)));
    upstream.change(&exported.paths["unsigned"], "Sig:", "");
    upstream.change(&exported.paths["elsewhere"], "References:", base(&exported.paths["same"]));
    std::fs::remove_file(upstream.narinfo(&exported.paths["absent"])).unwrap();
    let (daemon, upstream, file, paths) = exported.start("");
    let session = daemon.session(&[]);
    import(&daemon.nix, &file);
    let own = daemon.nix.make("own");
    let summary = daemon.end(&session, &[]);
    let counts = |summary: &serde_json::Value| {
        (summary["outcome"].clone(), summary["upstream"].clone(), summary["pushed"].clone())
    };
    assert_eq!(counts(&summary), ("complete".into(), 2.into(), 5.into()), "{summary}");
    let cache = daemon.main();
    assert_eq!(cache.names(), ["absent", "changed", "elsewhere", "own", "unsigned"]);
    assert_eq!(upstream.asked(&own), 0, "no upstream learns of what is built here");
    assert_eq!(daemon.status()["cache"][0]["counts"]["upstream"], 2, "{}", daemon.status());

    // Why it is not pushed is known, also after a restart.
    let mut daemon = daemon;
    for _ in 0..2 {
        let why = daemon.ctl(&["why", &paths["same"]]);
        assert!(why.out.contains(&format!("the upstream cache {} has it", upstream.url())), "{why:?}");
        assert!(!why.out.contains("error"), "{why:?}");
        daemon.restart();
    }

    // The answers are forgotten with the restart, and count for some time after that.
    let before = upstream.asked(&paths["same"]);
    for _ in 0..3 {
        let summary = daemon.json(&["push", &paths["top"], "--wait"]);
        assert_eq!((&summary["upstream"], &summary["pushed"]), (&2.into(), &0.into()), "{summary}");
    }
    assert_eq!(upstream.asked(&paths["same"]), before + 1);
    daemon.assert_logged(0, "has deleted paths");
}

#[test]
fn an_upstream_that_fails_delays_nothing_and_is_named_once() {
    let exported = Exported::new(&["a", "b", "c"]);
    exported.upstream.set_down(true);
    let (mut daemon, upstream, file, paths) = exported.start("");
    let session = daemon.session(&[]);
    import(&daemon.nix, &file);
    let summary = daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &4.into()), "{summary}");
    // About one of them: then it is known to fail.
    assert!(paths.values().any(|path| upstream.asked(path) > 0), "it was asked");
    daemon.assert_logged(1, "cannot be asked whether it has paths");
    daemon.main().assert_closed();

    // What the cache has is not asked for again when the upstream is back.
    upstream.set_down(false);
    daemon.restart();
    let summary = daemon.json(&["push", &paths["top"], "--wait"]);
    assert_eq!((&summary["already_cached"], &summary["upstream"]), (&4.into(), &0.into()), "{summary}");
    daemon.assert_logged(0, "cannot be asked whether it has paths");
}

#[test]
fn an_answer_of_an_upstream_counts_for_a_time_only() {
    let exported = Exported::new(&["a"]);
    let (daemon, upstream, file, paths) = exported.start("[push]\nrecheck_after = \"5s\"\n");
    let session = daemon.session(&[]);
    import(&daemon.nix, &file);
    let settled = || daemon.status()["cache"][0]["counts"]["upstream"] == 2;
    until("both are in the upstream", settled);
    // It deletes a path that nobody else has.
    std::fs::remove_file(upstream.narinfo(&paths["a"])).unwrap();
    until("it is asked again", || {
        daemon.json(&["push", &paths["a"], "--wait"]);
        daemon.main().has(&paths["a"])
    });
    let summary = daemon.end(&session, &[]);
    assert_eq!((&summary["upstream"], &summary["pushed"]), (&1.into(), &1.into()), "{summary}");
    assert!(!daemon.main().has(&paths["top"]));
    daemon.assert_logged(0, "has deleted paths");
}

/// The upstream is asked again at the end, although its last answer would count for long. The
/// answers in memory end with a restart, so that no time has to pass.
#[test]
fn a_session_end_asks_the_upstream_again_about_what_it_had() {
    let exported = Exported::new(&["kept", "deleted"]);
    let (mut daemon, upstream, file, paths) = exported.start("[push]\nrecheck_after = \"1d\"\n");
    let session = daemon.session(&[]);
    import(&daemon.nix, &file);
    until("all are in the upstream", || daemon.status()["cache"][0]["counts"]["upstream"] == 3);
    daemon.stop();
    std::fs::remove_file(upstream.narinfo(&paths["deleted"])).unwrap();
    let before = ["kept", "deleted"].map(|name| upstream.asked(&paths[name]));
    daemon.up();
    let summary = daemon.end(&session, &[]);
    let counts = ["upstream", "pushed", "pending"].map(|key| summary[key].as_u64());
    assert_eq!(counts, [Some(2), Some(1), Some(0)], "{summary}");
    assert_eq!(daemon.main().names(), ["deleted"]);
    let after = ["kept", "deleted"].map(|name| upstream.asked(&paths[name]));
    assert_eq!(after, before.map(|asked| asked + 1));
}

/// The attic client asks nobody: the daemon leaves out what an upstream has before it runs it.
#[test]
fn the_attic_client_is_not_given_what_an_upstream_has() {
    let exported = Exported::new(&["same", "changed"]);
    exported.upstream.change(&exported.paths["changed"], "NarHash:", &format!("sha256:{}", "1".repeat(52)));
    let cache = StandaloneCache::start(&exported.nix, |_| {});
    let gate = cache.gate();
    let fake = FakeAttic::new(&exported.nix);
    let config =
        format!("{}engine = \"attic\"\n{}{}", cache.caches(&gate.url()), exported.key(), fake.config());
    let Exported { nix, file, upstream, paths } = exported;
    let mut daemon = Daemon::prepare(nix, &config);
    daemon.env = environment(&daemon.nix);
    daemon.up();
    fake.built(&daemon.nix);
    until_client(&daemon, "ready");
    daemon.flush();
    let client = gate.came().len();
    let session = daemon.session(&[]);
    import(&daemon.nix, &file);
    let summary = daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["engine"]), (&"complete".into(), &"attic".into()), "{summary}");
    let counts = ["upstream", "pushed"].map(|key| summary[key].as_u64());
    assert_eq!(counts, [Some(2), Some(1)], "{summary}");
    assert_eq!(gate.came()[client..], [base(&paths["changed"])]);
    assert!(!cache.main().has(&paths["same"]) && !cache.main().has(&paths["top"]));
    assert!(upstream.asked(&paths["same"]) > 0 && upstream.asked(&paths["top"]) > 0);
}
