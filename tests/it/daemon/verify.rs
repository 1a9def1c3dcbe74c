//! `flywheelctl verify` against a real cache that is broken on purpose: what it says of each fault,
//! what `--repair` mends, and who may ask.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use serde_json::Value;

use super::failures::signed;
use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{CommandResult, Daemon, until};
use crate::support::nix::PrivateNix;
use crate::support::terminal::OnTerminal;
use crate::support::users::{as_nobody, can_switch_user, open_to_all};

/// A daemon with two paths in its cache: `small`, whose NAR the cache has in its database, and
/// `large`, whose NAR is a file.
struct Bench {
    daemon: Daemon,
    cache: StandaloneCache,
    gate: UploadGate,
    session: String,
    small: String,
    large: String,
}

fn bench(public: bool) -> Bench {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |settings| settings.public = public);
    let gate = cache.gate();
    let daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let session = daemon.session(&["--label", "a"]);
    let small = daemon.nix.make("small");
    let script = "head -c 400000 /dev/urandom > $out";
    let large = daemon.nix.build(&PrivateNix::shell("large", script)).remove(0);
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["pushed"], 2, "{summary}");
    Bench { daemon, cache, gate, session, small, large }
}

impl Bench {
    fn dir(&self) -> PathBuf {
        self.cache.token_file().parent().unwrap().join("cache")
    }

    fn sql(&self, statement: &str) {
        let db = rusqlite::Connection::open(self.dir().join("cache.sqlite")).unwrap();
        db.busy_timeout(crate::support::daemon::MAX_WAIT).unwrap();
        db.execute_batch(statement).unwrap();
    }

    /// The file with the NAR of `large`.
    fn nar_file(&self) -> PathBuf {
        let mut dirs = vec![self.dir()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
                let is_nar = |p: &PathBuf| {
                    p.metadata().unwrap().len() > 300_000 && !p.to_str().unwrap().contains("sqlite")
                };
                match entry.is_dir() {
                    true => dirs.push(entry),
                    false if is_nar(&entry) => return entry,
                    false => {}
                }
            }
        }
        panic!("no file with a NAR");
    }

    /// From now on the cache serves other NARs, which `change` makes of the stored ones, in files that
    /// `file` makes of them, and says that they have this compression.
    fn serve(
        &self,
        compression: &'static str,
        change: impl Fn(&mut Vec<u8>) + Send + Sync + 'static,
        file: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static,
    ) {
        self.gate.rewrite(move |path, _, body| {
            if path.ends_with(".narinfo") {
                let text = String::from_utf8_lossy(body).replace("Compression: zstd\n", compression);
                *body = text.into_bytes();
            } else if path.ends_with(".nar") {
                let mut nar = zstd::decode_all(body.as_slice()).unwrap();
                change(&mut nar);
                *body = file(&nar);
            }
        });
    }

    fn verify(&self, args: &[&str]) -> (i32, Value) {
        let result = self.daemon.ctl(&[&["--json", "verify"], args].concat());
        (result.code, result.json())
    }

    /// Verifies `large`, which must have this problem; returns its detail.
    fn problem(&self, kind: &str) -> String {
        let (code, report) = self.verify(&[&self.large]);
        assert_eq!((code, &report["outcome"]), (3, &Value::from("bad")), "{report}");
        assert_eq!(report["problems"][0]["problem"], kind, "{report}");
        assert_eq!(report["problems"][0]["path"], self.large.as_str(), "{report}");
        report["problems"][0]["detail"].as_str().unwrap().to_owned()
    }
}

fn counts(report: &Value) -> [u64; 3] {
    ["verified", "good", "problems_total"].map(|key| report[key].as_u64().unwrap())
}

#[test]
fn what_is_as_it_should_be_is_good() {
    for public in [true, false] {
        let bench = bench(public);
        for args in
            [vec![&*bench.small, &*bench.large], vec!["--session", &bench.session], vec!["--sample", "9"]]
        {
            let (code, report) = bench.verify(&args);
            assert_eq!((code, counts(&report)), (0, [2, 2, 0]), "{args:?}: {report}");
            assert_eq!(report["outcome"], "good");
            assert!(report["bytes"].as_u64().unwrap() > 400_000, "{report}");
        }
        bench.daemon.assert_logged(3, "verified 2 paths of the cache main: all can be read");
        let metrics = bench.daemon.ctl(&["metrics"]).out;
        let line = "flywheel_verified_paths_total{cache=\"main\",result=\"good\"} 6";
        assert!(metrics.lines().any(|l| l == line), "{metrics}");
    }
}

#[test]
fn a_path_that_the_cache_deleted_is_absent_and_pushed_again() {
    let bench = bench(true);
    bench.sql("delete from path where base like '%-large'");
    assert!(bench.problem("absent").contains("--repair"));
    let (code, report) = bench.verify(&["--session", &bench.session, "--repair"]);
    assert_eq!((code, counts(&report)), (0, [2, 2, 0]), "{report}");
    assert_eq!(report["repaired"], serde_json::json!([bench.large]), "{report}");
    assert!(bench.cache.main().has(&bench.large));
    assert_eq!(bench.verify(&[&bench.large]).0, 0);
    // The ledger has it as pushed once more.
    let story = bench.daemon.json(&["why", &bench.large]);
    assert_eq!(story["paths"][0]["pushes"][0]["state"], "pushed", "{story}");
    bench.daemon.assert_logged(2, "cannot be read from the cache main (absent)");
    let metrics = bench.daemon.ctl(&["metrics"]).out;
    assert!(
        metrics.contains("flywheel_verified_paths_total{cache=\"main\",result=\"absent\"} 2\n"),
        "{metrics}"
    );
}

/// The built-in cache notices that the file is missing, and does not claim to have the path.
#[test]
fn a_nar_whose_file_was_removed_from_the_built_in_cache_is_repaired() {
    let bench = bench(true);
    std::fs::remove_file(bench.nar_file()).unwrap();
    let (code, report) = bench.verify(&[&bench.large, "--repair"]);
    assert_eq!((code, &report["repaired"]), (0, &serde_json::json!([bench.large])), "{report}");
}

#[test]
fn what_is_not_in_the_store_any_more_cannot_be_repaired() {
    let bench = bench(true);
    bench.sql("delete from path where base like '%-large'");
    assert!(bench.daemon.nix.run("nix-collect-garbage", &[]).status.success());
    let (code, report) = bench.verify(&[&bench.large, "--repair"]);
    assert_eq!(code, 3, "{report}");
    assert!(report["repair_errors"][0].as_str().unwrap().contains("not in the store any more"), "{report}");
}

#[test]
fn a_nar_that_was_cut_says_so() {
    let bench = bench(true);
    let file = std::fs::File::options().write(true).open(bench.nar_file()).unwrap();
    file.set_len(200_000).unwrap();
    let detail = bench.problem("cut");
    assert!(detail.contains("Pushing again does not repair it"), "{detail}");
}

#[test]
fn a_byte_that_was_flipped_makes_another_hash() {
    let bench = bench(true);
    let file = bench.nar_file();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(&file, bytes).unwrap();
    bench.problem("other_hash");
}

/// Nothing but the hash shows it: narinfo, signature and size are right, and the file can be
/// decompressed.
#[test]
fn other_bytes_of_the_same_size_have_another_hash() {
    let bench = bench(true);
    let as_stored = |nar: &[u8]| zstd::encode_all(nar, 3).unwrap();
    bench.serve("Compression: zstd\n", |_| (), as_stored);
    assert_eq!(bench.verify(&[&bench.large]).0, 0, "as it was stored it is good");
    let flip = |nar: &mut Vec<u8>| {
        let middle = nar.len() / 2;
        nar[middle] ^= 1;
    };
    bench.serve("Compression: zstd\n", flip, as_stored);
    let detail = bench.problem("other_hash");
    assert!(detail.contains("the NAR has the hash"), "{detail}");
    // The same without a compression, whose decoder could notice something.
    bench.serve("Compression: none\n", flip, <[u8]>::to_vec);
    assert!(bench.problem("other_hash").contains("the NAR has the hash"));
}

/// Old caches have it; it is also what Nix assumes of a narinfo that names no compression.
#[test]
fn nars_that_are_compressed_with_bzip2_are_read() {
    let bench = bench(true);
    let bzip2 = |nar: &[u8]| {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(nar).unwrap();
        encoder.finish().unwrap()
    };
    for compression in ["Compression: bzip2\n", ""] {
        bench.serve(compression, |_| (), bzip2);
        let (code, report) = bench.verify(&[&bench.small, &bench.large]);
        assert_eq!((code, counts(&report)), (0, [2, 2, 0]), "{compression:?}: {report}");
    }
    bench.serve("Compression: bzip2\n", |_| (), move |nar| bzip2(nar)[..200_000].to_vec());
    assert!(bench.problem("cut").contains("the compressed NAR ends too early"));
}

/// Nobody pushes it to this cache, and Nix takes it from the upstream cache: that is no problem.
#[test]
fn a_path_that_only_an_upstream_cache_has_is_no_problem() {
    let nix = PrivateNix::new();
    let (near, far) = signed(&nix);
    let cache = StandaloneCache::start(&nix, |s| s.upstream_cache_key_names = vec!["up-1".to_owned()]);
    let daemon = Daemon::start(nix, &format!("{}[push]\nexisting = true\n", cache.config()));
    daemon.flush();
    assert_eq!(cache.main().having(&[near.clone(), far.clone()]), [true, false]);
    let report = daemon.json(&["verify", &near, &far]);
    assert_eq!((counts(&report), &report["upstream"]), ([1, 1, 0], &Value::from(1)), "{report}");
    assert_eq!(report["outcome"], "good", "{report}");
}

#[test]
fn another_hash_than_in_the_store_is_seen() {
    let bench = bench(true);
    bench.sql(
        "update path set nar = (select nar from path where base like '%-small') where base like '%-large'",
    );
    assert!(bench.problem("other_hash").contains("the store one of"));
}

#[test]
fn references_that_differ_from_the_store_are_named() {
    let bench = bench(true);
    let other = bench.small.rsplit('/').next().unwrap();
    bench.sql(&format!("update path set refs = '{other}' where base like '%-large'"));
    assert!(bench.problem("references").contains(other));
}

#[test]
fn another_key_is_named() {
    let bench = bench(true);
    bench.gate.rewrite(|path, _, body| {
        if path.ends_with(".narinfo") {
            *body = String::from_utf8_lossy(body).replace("Sig: main", "Sig: mallory").into_bytes();
        }
    });
    assert!(bench.problem("wrong_key").contains("it is signed by mallory"));
    // The name alone is not enough.
    bench.gate.rewrite(|path, _, body| {
        if path.ends_with(".narinfo") {
            *body = String::from_utf8_lossy(body).replace("NarSize: ", "NarSize: 1").into_bytes();
        }
    });
    assert!(bench.problem("wrong_key").contains("does not match"));
}

#[test]
fn a_file_that_is_shorter_than_its_narinfo_says_is_cut() {
    let bench = bench(true);
    bench.gate.rewrite(|path, _, body| {
        if path.ends_with(".narinfo") {
            body.extend_from_slice(b"FileSize: 99999999\n");
        }
    });
    assert!(bench.problem("cut").contains("of 99999999 bytes"));
}

/// As Attic does after it lost its bucket: narinfo and `get-missing-paths` say that the path is there.
#[test]
fn a_server_that_claims_what_it_does_not_serve_is_named_with_advice_for_its_operator() {
    let bench = bench(true);
    for status in [404, 500] {
        bench.gate.rewrite(move |path, answer, _| {
            if path.ends_with(".nar") {
                *answer = status;
            }
        });
        let detail = bench.problem("not_served");
        for part in ["the server says that it has the path", "Its operator restores the storage"] {
            assert!(detail.contains(part), "{status}: {detail}");
        }
        // Pushing is not tried.
        let uploads = bench.gate.came().len();
        let (code, report) = bench.verify(&[&bench.large, "--repair"]);
        assert_eq!((code, &report["repaired"]), (3, &serde_json::json!([])), "{report}");
        assert_eq!(bench.gate.came().len(), uploads);
    }
    // The narinfo is missing too, and the server still claims the path.
    bench.gate.rewrite(|path, status, _| {
        if path.ends_with(".narinfo") {
            *status = 404;
        }
    });
    assert!(bench.problem("not_served").contains("its narinfo"));
}

#[test]
fn a_server_that_is_away_or_busy_is_unreachable() {
    let mut bench = bench(true);
    bench.gate.rewrite(|path, status, _| {
        if path.ends_with(".nar") {
            *status = 503;
        }
    });
    bench.problem("unreachable");
    bench.cache.stop();
    bench.problem("unreachable");
    let (code, report) = bench.verify(&["--session", &bench.session]);
    assert_eq!((code, counts(&report)), (3, [2, 0, 2]), "{report}");
}

#[test]
fn a_refused_token_is_named() {
    let bench = bench(false);
    bench.gate.rewrite(|path, status, _| {
        if path.ends_with(".narinfo") {
            *status = 401;
        }
    });
    assert!(bench.problem("refused").contains("pull_token_file"));
}

#[test]
fn the_deadline_leaves_paths_unchecked() {
    let bench = bench(true);
    let (code, report) = bench.verify(&["--session", &bench.session, "--timeout", "0s"]);
    assert_eq!((code, &report["outcome"]), (4, &Value::from("pending")), "{report}");
    assert_eq!(report["unchecked"], 2, "{report}");
}

#[test]
fn bad_questions_are_refused_with_a_reason() {
    let bench = bench(true);
    let said = |args: &[&str]| -> CommandResult { bench.daemon.ctl(&[&["verify"], args].concat()) };
    assert_eq!(said(&[]).code, 2);
    assert_eq!(said(&["--sample", "2", &bench.small]).code, 2);
    assert_eq!(said(&["--sample", "2001"]).code, 2);
    let unknown = said(&["--session", "nope"]);
    assert!(unknown.code == 2 && unknown.err.contains("there is no session"), "{unknown:?}");
    let cache = said(&["--cache", "nope", &bench.small]);
    assert!(cache.code == 2 && cache.err.contains("there is no cache"), "{cache:?}");
    // A path that no cache has confirmed is looked for in the default cache.
    let never = format!("{}/{}-never", bench.daemon.nix.store_dir().display(), "0".repeat(32));
    assert!(said(&[&never]).out.starts_with("absent: "));
}

#[test]
fn another_user_verifies_what_it_names_and_neither_sessions_nor_samples() {
    if !can_switch_user() {
        return;
    }
    let bench = bench(true);
    open_to_all(&bench.daemon);
    let named = as_nobody(&bench.daemon, &["verify", &bench.small]);
    assert_eq!(named.code, 0, "{named:?}");
    for args in [["verify", "--session", &bench.session], ["verify", "--sample", "5"]] {
        let refused = as_nobody(&bench.daemon, &args);
        assert_eq!(refused.code, 5, "{refused:?}");
        assert!(!refused.out.contains("/nix"), "{refused:?}");
    }
}

/// The bar is drawn again while a large path is read, and is gone when the result is there.
#[test]
fn the_progress_is_a_bar_on_a_terminal() {
    let bench = bench(true);
    let held = Arc::new((Mutex::new(true), Condvar::new()));
    let at_gate = Arc::clone(&held);
    bench.gate.rewrite(move |path, _, _| {
        if path.ends_with(".nar") {
            let (is_held, opened) = &*at_gate;
            let _open = opened.wait_while(is_held.lock().unwrap(), |held| *held).unwrap();
        }
    });
    let verify = bench.daemon.client(&["verify", &bench.small, &bench.large]);
    let mut terminal = OnTerminal::start(verify, 24, 40);
    let drawn = || String::from_utf8_lossy(&terminal.raw.lock().unwrap()).matches("/2 paths").count();
    until("it was drawn three times", || drawn() >= 3);
    let bars = terminal.text().lines().filter(|line| line.contains("[---")).count();
    assert_eq!(bars, 1, "{}", terminal.text());
    *held.0.lock().unwrap() = false;
    held.1.notify_all();
    assert!(terminal.ended().success());
    terminal.until_shown("verified 2 paths: 2 good");
    assert!(!terminal.text().contains("[---"), "{}", terminal.text());
    // Elsewhere only a line every ten seconds, so none in a wait this short.
    let piped = bench.daemon.ctl(&["verify", &bench.small]);
    assert_eq!((piped.code, piped.err.as_str()), (0, ""), "{piped:?}");
}
