//! The built-in cache in a process of its own, which can be killed or given a small disk.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use flywheel::embedded::start;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{base, client, info, noise, read, settings, upload};

const CHILD: &str = "FW_EMBEDDED_CHILD";

/// Not a test: the tests below run it as another process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let mut wanted = settings(&dir, &["main"], true);
    wanted.dir = dir.join("disk/cache");
    let running = start(wanted, None, CancellationToken::new()).await.unwrap();
    eprintln!("serving {}", running.addr);
    running.task.await.unwrap().unwrap();
}

struct OtherProcess(Child, String);

impl OtherProcess {
    /// `wrap`: a command line that runs its last arguments.
    fn start(dir: &Path, wrap: &[&str]) -> Self {
        let test = std::env::current_exe().unwrap();
        let test = [test.to_str().unwrap(), "--exact", "embedded::process::child", "--nocapture"];
        let all: Vec<&str> = wrap.iter().copied().chain(test).collect();
        let mut command = Command::new(all[0]);
        command
            .args(&all[1..])
            .env(CHILD, dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = Self(command.spawn().unwrap(), String::new());
        let mut heard = String::new();
        for line in BufReader::new(process.0.stderr.take().unwrap()).lines().map_while(Result::ok) {
            if let Some(addr) = line.strip_prefix("serving ") {
                process.1 = format!("http://{addr}");
                return process;
            }
            heard.push_str(&line);
        }
        panic!("the child did not start: {heard}");
    }

    fn kill(&mut self) {
        self.0.kill().unwrap(); // SIGKILL
        self.0.wait().unwrap();
    }
}

impl Drop for OtherProcess {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_serves_whole_nars_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let size = |n: usize| if n.is_multiple_of(2) { 300_000 } else { 3_000 };
    let mut confirmed = Vec::new();
    for round in 0..4 {
        let mut server = OtherProcess::start(dir.path(), &[]);
        let (client, token) = (client(), read(&dir.path().join("embedded-push-token")));
        let uploads: Vec<_> = (0..4)
            .map(|lane| {
                let (client, token, url) = (client.clone(), token.clone(), server.1.clone());
                tokio::spawn(async move {
                    let mut done = Vec::new();
                    for n in (0..).map(|i| round * 10_000 + lane * 1_000 + i) {
                        let nar = noise(n, size(n));
                        let call = client.put(format!("{url}/_api/v1/upload-path")).bearer_auth(&token);
                        let call =
                            call.header("X-Attic-Nar-Info", info(&base(n), &[], &nar).to_string()).body(nar);
                        match call.send().await {
                            Ok(answer) if answer.status() == 200 => done.push(n),
                            _ => return done,
                        }
                    }
                    done
                })
            })
            .collect();
        // The kill comes in the middle of an endless upload, each time after another number of
        // other uploads.
        let (stop_after, mut seen) = (1 + round * 7, 0);
        while seen < stop_after {
            let found =
                client.get(format!("{}/main/{}.narinfo", server.1, &base(round * 10_000 + seen)[..32]));
            let going_on = !uploads.iter().all(tokio::task::JoinHandle::is_finished);
            assert!(going_on, "uploads are refused");
            seen += usize::from(found.send().await.unwrap().status() == 200);
        }
        server.kill();
        for lane in uploads {
            confirmed.push(lane.await.unwrap());
        }
    }
    let confirmed: Vec<usize> = confirmed.into_iter().flatten().collect();
    let server = OtherProcess::start(dir.path(), &[]);
    let client = client();
    let nar_dir = dir.path().join("disk/cache/nar");
    let left: Vec<_> = std::fs::read_dir(nar_dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(
        left.iter().all(|f| !f.to_str().unwrap().starts_with('.')),
        "temporaries are removed at start: {left:?}"
    );
    let mut whole = 0;
    for n in (0..4).flat_map(|r| (0..4).flat_map(move |l| (0..200).map(move |i| r * 10_000 + l * 1_000 + i)))
    {
        let narinfo =
            client.get(format!("{}/main/{}.narinfo", server.1, &base(n)[..32])).send().await.unwrap();
        if narinfo.status() == 404 {
            assert!(!confirmed.contains(&n), "{n} was confirmed and is gone");
            continue;
        }
        let nar = client.get(format!("{}/main/nar/{}.nar", server.1, &base(n)[..32])).send().await.unwrap();
        assert_eq!(nar.status(), 200);
        let nar = zstd::decode_all(&nar.bytes().await.unwrap()[..]).unwrap();
        assert!(nar == noise(n, size(n)), "{n} is not whole");
        whole += 1;
    }
    assert!(whole >= 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_answers_507_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // The mount belongs to the process and ends with it; this works without root where user
    // namespaces do.
    let script = format!("mount -t tmpfs -o size=2m none '{}' && exec \"$@\"", disk.display());
    let namespace =
        std::process::Command::new("unshare").args(["-rm", "mount", "-t", "tmpfs", "none", "/mnt"]).output();
    if !namespace.is_ok_and(|out| out.status.success()) {
        return eprintln!("skipped: no tmpfs can be mounted here (needs user and mount namespaces)");
    }
    let server = OtherProcess::start(dir.path(), &["unshare", "-rm", "sh", "-c", &script, "sh"]);
    let (client, token) = (client(), read(&dir.path().join("embedded-push-token")));
    // The mount is visible from here through the process's root.
    let inside = PathBuf::from(format!("/proc/{}/root{}/cache/nar", server.0.id(), disk.display()));
    let files = || std::fs::read_dir(&inside).unwrap().count();
    let put = async |n: usize, len: usize| {
        let nar = noise(n, len);
        let answer = upload(&client, &server.1, &token, &info(&base(n), &[], &nar), nar).await;
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap()["error"].clone())
    };
    assert_eq!(put(1, 500_000).await.0, 200);
    let full = (507, Value::from("InsufficientStorage"));
    assert_eq!(put(2, 3_000_000).await, full);
    assert_eq!(files(), 1, "the first one only");
    assert_eq!(
        client.get(format!("{}/main/{}.narinfo", server.1, &base(2)[..32])).send().await.unwrap().status(),
        404
    );
    // What fits is still accepted, and small paths are refused the same way.
    assert_eq!(put(3, 300_000).await.0, 200);
    let mut n = 10;
    let last = loop {
        let answer = put(n, 100_000).await;
        n += 1;
        if answer.0 != 200 || n > 60 {
            break answer;
        }
    };
    assert_eq!(last, full);
    assert_eq!(files(), 2);
    let nar = client.get(format!("{}/main/nar/{}.nar", server.1, &base(1)[..32])).send().await.unwrap();
    assert!(zstd::decode_all(&nar.bytes().await.unwrap()[..]).unwrap() == noise(1, 500_000));
}
