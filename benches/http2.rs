//! HTTP/2 against HTTP/1.1 through a proxy with TLS and a line with latency. Needs nginx and
//! openssl.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::delay::Delay;
use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::{Cache, Daemon};
use crate::trees;

/// Paths in each run.
const PATHS: usize = 1000;
/// Runs of each setting; the quickest counts, since the machine is shared.
const RUNS: usize = 3;
const ROUND_TRIP: Duration = Duration::from_millis(50);

/// nginx with TLS before a cache. Ends with this value.
struct Nginx(Child);

impl Drop for Nginx {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // Not SIGKILL: the worker would outlive it.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.0.wait();
    }
}

impl Nginx {
    fn before(cache: SocketAddr, dir: &Path) -> Option<(Self, SocketAddr)> {
        let sh = |script: &str| Command::new("sh").args(["-ec", script]).current_dir(dir).output();
        let made = sh("new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'\n\
             openssl req -x509 $new -keyout ca.key -out ca.pem -days 2 -subj /CN=authority\n\
             openssl req $new -keyout key.pem -out csr.pem -subj /CN=cache\n\
             echo subjectAltName=IP:127.0.0.1 >extensions\n\
             openssl x509 -req -in csr.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions \
             -out cert.pem\ncommand -v nginx");
        if !made.is_ok_and(|made| made.status.success()) {
            return None;
        }
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap();
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("{what}_temp_path {what}; "))
            .collect();
        let text = format!(
            "daemon off; worker_processes 1; pid pid; error_log error.log;\nevents {{ worker_connections 2048; }}\n\
             http {{ access_log off; {temp}upstream cache {{ server {cache}; keepalive 128; }}\n\
             server {{ listen {address} ssl http2; ssl_certificate cert.pem; ssl_certificate_key key.pem;\n\
             client_max_body_size 0; location / {{ proxy_pass http://cache; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_set_header Host $http_host;\n             proxy_set_header X-Forwarded-Proto https; }} }} }}\n"
        );
        std::fs::write(dir.join("nginx.conf"), text).unwrap();
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir).args(["-c", "nginx.conf", "-e", "error.log"]);
        let nginx = Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?);
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < Duration::from_secs(10), "nginx does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some((nginx, address))
    }
}

/// 1,000 small paths at a round trip of 50 ms, with `jobs` fixed and found.
pub fn http2() {
    let nix = PrivateNix::new();
    let paths = trees::build_many(&nix, "http2", PATHS);
    for jobs in ["16", "64", "\"auto\""] {
        for http2 in [false, true] {
            let once = |n: usize| {
                push(&nix, &paths, jobs, http2, &format!("h{http2}-{n}-{}", jobs.trim_matches('"')))
            };
            let took: Option<Vec<f64>> = (0..RUNS).map(once).collect();
            let Some(took) = took else { return eprintln!("nginx or openssl is not installed") };
            let version = if http2 { "HTTP/2" } else { "HTTP/1.1" };
            let what = format!("{PATHS} paths, 50 ms, TLS, jobs = {jobs}, {version}");
            figure(&what, "s", &[took.into_iter().fold(f64::MAX, f64::min)], "built-in cache behind nginx");
        }
    }
}

/// Seconds until all paths are pushed, into an empty cache.
fn push(nix: &PrivateNix, paths: &[String], jobs: &str, http2: bool, name: &str) -> Option<f64> {
    let dir = nix.path().join(name);
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let (nginx, address) = Nginx::before(cache.address(), &dir)?;
    let delay = Delay::before(address, ROUND_TRIP);
    let endpoint = delay.endpoint().replace("http://", "https://");
    let extra = format!("ca_file = {:?}\nhttp2 = {http2}\n[push]\njobs = {jobs}", dir.join("ca.pem"));
    // The daemon reaches its own host directly, also with TLS.
    let daemon = Daemon::start(nix, &dir, (&endpoint, cache.token_file()), &extra);
    let args: Vec<&str> = ["push", "--wait"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let began = Instant::now();
    let answer = daemon.json(&args);
    let took = began.elapsed().as_secs_f64();
    assert_eq!(answer["pushed"], PATHS, "{answer}");
    drop((daemon, delay, nginx, cache));
    let _ = std::fs::remove_dir_all(&dir);
    Some(took)
}
