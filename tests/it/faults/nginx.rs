//! nginx as a reverse proxy before the cache: its limits, its timeouts, its restarts. The daemon
//! talks to nginx, and nginx to the test's proxy.

use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::proxy::{Fault, Kind, Proxy, own_address};
use super::{Rig, has, met, set, until};

pub struct Nginx {
    program: PathBuf,
    dir: tempfile::TempDir,
    address: SocketAddr,
    behind: String,
    child: Option<Child>,
}

impl Nginx {
    /// Starts a daemon whose cache is behind an nginx with these directives. `None`, with a line
    /// that says so, where nginx is not installed.
    fn before_a_cache(directives: &str) -> Option<(Self, Rig)> {
        let Some(program) = has("nginx") else {
            eprintln!("skipped: nginx is not installed (Debian: apt-get install nginx-light)");
            return None;
        };
        let mut nginx = None;
        let start = |proxy: &Proxy| {
            let started = Self::start(program, proxy, directives);
            let url = format!("http://{}", started.address);
            nginx = Some(started);
            url
        };
        let rig = Rig::behind(start, "", "");
        Some((nginx?, rig))
    }

    fn start(program: PathBuf, proxy: &Proxy, directives: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("fwn").tempdir().unwrap();
        let address = SocketAddr::from((own_address(), 8080));
        let mut nginx = Self { program, dir, address, behind: proxy.url(), child: None };
        nginx.configure(directives);
        nginx.up();
        nginx
    }

    /// Starts an nginx whose server has these locations. `None`, with a line that says so, where
    /// nginx is not installed.
    pub fn with_locations(locations: &str) -> Option<Self> {
        let Some(program) = has("nginx") else {
            eprintln!("skipped: nginx is not installed (Debian: apt-get install nginx-light)");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("fwn").tempdir().unwrap();
        let address = SocketAddr::from((own_address(), 8080));
        let mut nginx = Self { program, dir, address, behind: String::new(), child: None };
        nginx.write(locations);
        nginx.up();
        Some(nginx)
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn configure(&self, directives: &str) {
        // The cache tells clients to use the host that they asked for.
        let pass =
            format!("proxy_pass {}; proxy_http_version 1.1; proxy_set_header Host $http_host;", self.behind);
        self.write(&format!("{directives}\n        location / {{ {pass} }}"));
    }

    fn write(&self, server: &str) {
        let (dir, address) = (self.dir.path().display(), self.address);
        // Workers of an nginx that root starts run as another user, who could not write here.
        let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("    {what}_temp_path {dir}/{what};\n"))
            .collect();
        let text = format!(
            "daemon off;\n{user}\nworker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log warn;\n\
             events {{ worker_connections 256; }}\nhttp {{\n    access_log off;\n{temp}    server {{\n        \
             listen {address};\n        {server}\n    }}\n}}\n"
        );
        std::fs::write(self.dir.path().join("nginx.conf"), text).unwrap();
    }

    fn up(&mut self) {
        let dir = self.dir.path();
        let mut command = Command::new(&self.program);
        command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.child.insert(command.spawn().unwrap());
        until("nginx listens", || {
            let ended = child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "{}",
                std::fs::read_to_string(dir.join("error.log")).unwrap_or_default()
            );
            TcpStream::connect(self.address).ok()
        });
    }

    /// Stops nginx with SIGTERM, which cuts the requests that are running.
    fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
            let _ = kill_process(pid, Signal::TERM);
            let _ = child.wait();
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.down();
    }
}

/// The client and server ends of connections to an address.
fn connected(to: SocketAddr) -> usize {
    let SocketAddr::V4(to) = to else { return 0 };
    let hex = format!(" {:08X}:{:04X} ", u32::from_le_bytes(to.ip().octets()), to.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    table.lines().filter(|l| l.contains(&hex) && l.split_whitespace().nth(3) == Some("01")).count()
}

#[test]
fn client_max_body_size_fails_what_is_too_large_and_nothing_else() {
    let Some((mut nginx, rig)) = Nginx::before_a_cache("client_max_body_size 30k;") else { return };
    rig.site.build(&set("big", 1, 1, 60_000));
    rig.site.build(&set("small", 2, 10, 20_000));
    let session = rig.daemon.session(&[]);
    let push = rig.daemon.json_of_failed(&["push", "--wait", &rig.site.named(|n| n == "big-0")[0]]);
    let reason = push["failed"][0]["error"].as_str().unwrap_or_default();
    assert!(reason.contains("413") && reason.contains("client_max_body_size"), "{push}");
    rig.daemon.end(&session, &[]);
    rig.whole(|name| (name == "big-0").then_some("too-large"));
    nginx.down();
    nginx.configure("client_max_body_size 0;");
    nginx.up();
    assert_eq!(rig.daemon.ctl(&["reload"]).code, 0);
    rig.whole(|_| None);
    rig.nothing_twice();
}

#[test]
fn proxy_read_timeout_504_is_tried_again() {
    let Some((_nginx, rig)) = Nginx::before_a_cache("proxy_read_timeout 300ms;") else { return };
    let mut left = 4;
    rig.proxy.rule(move |call| {
        let mute = call.kind == Kind::Upload && left > 0;
        left -= usize::from(mute);
        if mute { Fault::Mute } else { Fault::Pass }
    });
    rig.site.build(&set("slow", 2, 10, 20_000));
    rig.proxy.until("nginx gives up on the cache", met(4));
    rig.whole(|_| None);
    assert!(rig.daemon.log().contains("504"), "the daemon got the status: {}", rig.daemon.log());
}

#[test]
fn a_restart_of_nginx_in_the_middle_of_an_upload() {
    // Without buffering, a request that is running reaches the cache as well.
    let Some((mut nginx, rig)) = Nginx::before_a_cache("proxy_request_buffering off;") else { return };
    rig.proxy.rule(|call| if call.kind == Kind::Upload { Fault::Slow(50_000) } else { Fault::Pass });
    rig.site.build(&set("during", 2, 10, 100_000));
    rig.proxy.until("an upload is under way", met(1));
    nginx.down();
    rig.proxy.pass();
    rig.site.build(&set("away", 1, 5, 20_000));
    nginx.up();
    rig.site.build(&set("after", 1, 5, 20_000));
    rig.whole(|_| None);
}

#[test]
fn keep_alive_connections_closed_while_idle() {
    let Some((nginx, rig)) = Nginx::before_a_cache("keepalive_timeout 100ms;") else { return };
    for round in 0..4 {
        rig.site.build(&set(&format!("round{round}"), 1, 5, 20_000));
        rig.whole(|_| None);
        until("nginx has closed what was idle", || (connected(nginx.address) == 0).then_some(()));
    }
    rig.nothing_twice();
    let log = rig.daemon.log();
    assert!(!log.contains("an upload of ") && !log.contains("does not answer"), "{log}");
}
