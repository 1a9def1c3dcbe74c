//! NARs have the same bytes as `nix-store --dump` writes, also as a stream.

use std::ffi::OsString;
use std::io::{Read as _, Write};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use flywheel::store::nar;
use futures_util::StreamExt as _;
use proptest::collection::{btree_map, vec};
use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};

#[derive(Debug, Clone)]
enum Tree {
    File(Vec<u8>, bool),
    Link(Vec<u8>),
    Dir(std::collections::BTreeMap<Vec<u8>, Tree>),
}

impl Tree {
    fn make(&self, at: &Path) {
        match self {
            Tree::File(content, executable) => {
                std::fs::write(at, content).unwrap();
                let mode = if *executable { 0o555 } else { 0o644 };
                std::fs::set_permissions(at, std::fs::Permissions::from_mode(mode)).unwrap();
            }
            Tree::Link(target) => std::os::unix::fs::symlink(OsString::from_vec(target.clone()), at).unwrap(),
            Tree::Dir(entries) => {
                std::fs::create_dir(at).unwrap();
                for (name, child) in entries {
                    child.make(&at.join(OsString::from_vec(name.clone())));
                }
            }
        }
    }
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_filter("not in names", |b| *b != 0 && *b != b'/');
    // Names may end in the suffix that Nix uses on file systems that ignore case; here it is part
    // of the name.
    let name = prop_oneof![4 => vec(byte, 1..20), 1 => Just(b"x~nix~case~hack~1".to_vec())];
    name.prop_filter("dots", |n| n != b"." && n != b"..")
}

fn tree() -> impl Strategy<Value = Tree> {
    let content =
        prop_oneof![8 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), nar::CHUNK - 300..nar::CHUNK + 300)];
    let leaf = prop_oneof![
        (content, any::<bool>()).prop_map(|(content, executable)| Tree::File(content, executable)),
        vec(1u8..=255, 1..60).prop_map(Tree::Link),
        Just(Tree::Dir(std::collections::BTreeMap::new())),
    ];
    leaf.prop_recursive(6, 40, 6, |inner| btree_map(name(), inner, 0..6).prop_map(Tree::Dir))
}

fn dumped(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    assert_eq!(nar::dump(path, &mut bytes).unwrap(), bytes.len() as u64);
    bytes
}

fn by_nix(path: &Path) -> Vec<u8> {
    let out =
        Command::new("nix-store").arg("--dump").arg(path).env("NIX_REMOTE", "dummy://").output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

fn streamed(path: &Path) -> std::io::Result<Vec<u8>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut stream = nar::stream(path.to_owned());
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            assert!(chunk.len() <= nar::CHUNK);
            bytes.extend_from_slice(&chunk);
        }
        assert!(stream.next().await.is_none());
        Ok(bytes)
    })
}

/// Compares without `assert_eq`, which would print megabytes.
fn same(path: &Path) {
    let nix = by_nix(path);
    assert!(dumped(path) == nix, "dump differs");
    assert!(streamed(path).unwrap() == nix, "stream differs");
    assert!(nar::whole(path, nix.len()).unwrap().unwrap() == nix, "whole differs");
    for less in [1, nix.len() / 2, nix.len()] {
        assert!(nar::whole(path, nix.len() - less).unwrap().is_none(), "{less} bytes too long");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_tree_gives_the_bytes_of_nix(tree in tree()) {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("tree");
        tree.make(&at);
        same(&at);
    }
}

#[test]
fn a_hundred_thousand_entries() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("tree");
    std::fs::create_dir(&at).unwrap();
    let first = at.join("first");
    std::fs::write(&first, "x").unwrap();
    let mut last = first.clone();
    for i in 1..100_000 {
        let next = at.join(format!("{i}"));
        // Hard links are quick to make, but a file can have only a limited number of them.
        if i % 20_000 == 0 || std::fs::hard_link(&last, &next).is_err() {
            std::fs::write(&next, "y").unwrap();
            last = next;
        }
    }
    same(&at);
}

/// Deeper than some implementations allow. Nix stores trees of this depth, up to
/// version 2.33: newer ones refuse more than 64 levels, so there is nothing to compare with.
#[test]
fn three_hundred_levels() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("tree");
    let deep = (0..300).fold(at.clone(), |path, _| path.join("d"));
    std::fs::create_dir_all(&deep).unwrap();
    std::fs::write(deep.join("f"), "x").unwrap();
    let mut dump = Command::new("nix-store");
    let dump = dump.arg("--dump").arg(&at).env("NIX_REMOTE", "dummy://").output().unwrap();
    if String::from_utf8_lossy(&dump.stderr).contains("exceeds maximum NAR directory depth") {
        return eprintln!("skipped: this Nix archives no tree of 300 levels");
    }
    same(&at);
}

struct Counting {
    bytes: u64,
    largest: usize,
    start: Vec<u8>,
}

impl Write for Counting {
    fn write(&mut self, chunk: &[u8]) -> std::io::Result<usize> {
        self.bytes += chunk.len() as u64;
        self.largest = self.largest.max(chunk.len());
        if self.start.len() < 4096 {
            self.start.extend_from_slice(&chunk[..chunk.len().min(4096)]);
        }
        Ok(chunk.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_sparse_file_of_eight_gib_in_bounded_memory() {
    // Larger than 32 bits hold, and with a size that needs padding.
    const SIZE: u64 = (8 << 30) + 5;
    // Far more memory than the encoder takes, far less than the file.
    const MOST_KIB: u64 = 512 << 10;
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("large");
    let file = std::fs::File::create(&at).unwrap();
    file.set_len(SIZE).unwrap();
    let mut sink = Counting { bytes: 0, largest: 0, start: Vec::new() };
    let length = nar::dump(&at, &mut sink).unwrap();
    // Magic, "(", "type", "regular", "contents", the length, ")".
    let frame = 24 + 16 + 16 + 16 + 16 + 8 + 16;
    assert_eq!((length, sink.bytes), (SIZE + 3 + frame, SIZE + 3 + frame));
    assert_eq!(sink.largest, nar::CHUNK);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < MOST_KIB, "{peak} KiB at the most");
    let mut nix = Command::new("nix-store")
        .arg("--dump")
        .arg(&at)
        .env("NIX_REMOTE", "dummy://")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut start = vec![0; 4096];
    nix.stdout.take().unwrap().read_exact(&mut start).unwrap();
    nix.kill().unwrap();
    nix.wait().unwrap();
    assert!(sink.start[..4096] == start);
}

/// Whether this process has the file open.
fn is_open(file: &Path) -> bool {
    std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .any(|fd| fd.is_ok_and(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to == file)))
}

#[test]
fn a_dropped_stream_ends_its_thread() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("large");
    std::fs::File::create(&at).unwrap().set_len(1 << 40).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let mut stream = nar::stream(at.clone());
        assert!(stream.next().await.unwrap().is_ok());
        assert!(is_open(&at));
    });
    // If the thread read on to a terabyte, or waited for a reader that was dropped, this would not
    // end.
    while is_open(&at) {
        std::thread::yield_now();
    }
}

#[test]
fn what_cannot_be_archived() {
    let dir = tempfile::tempdir().unwrap();
    let missing = streamed(&dir.path().join("missing")).unwrap_err();
    assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    assert!(missing.to_string().contains("missing"), "{missing}");
    let socket = dir.path().join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    assert!(matches!(nar::dump(dir.path(), &mut Vec::new()), Err(nar::NarError::FileType(p)) if p == socket));
    assert!(streamed(dir.path()).is_err());
}

/// A file of /proc has more bytes than its size says (0): nothing beyond the declared length is
/// read.
#[test]
fn not_more_than_the_declared_length() {
    assert_eq!(dumped(Path::new("/proc/self/stat")).len(), 24 + 16 + 16 + 16 + 16 + 8 + 16);
}

#[test]
fn an_archive_that_is_read_concurrently_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let at = Arc::new(dir.path().join("file"));
    std::fs::write(&*at, vec![7; 5 * nar::CHUNK + 3]).unwrap();
    let expected = dumped(&at);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(streamed(&at).unwrap() == expected));
        }
    });
}
