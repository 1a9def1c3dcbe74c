//! Caches behind TLS with certificates of a private authority: nginx with certificates that the test
//! makes with openssl.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::proxy::own_address;
use super::{has, until};
use crate::networks::{HeadProxy, refusal};
use crate::support::cache::StandaloneCache;
use crate::support::daemon::Daemon;
use crate::support::nix::PrivateNix;

/// nginx with TLS before a cache, and the files of its authority.
struct TlsCache {
    dir: tempfile::TempDir,
    nginx: PathBuf,
    address: SocketAddr,
    cache: StandaloneCache,
    child: Option<Child>,
    /// Parameters of nginx's `listen`.
    listen: &'static str,
}

/// A name that only a proxy of the test knows.
const NAME: &str = "cache.flywheel.invalid";

impl TlsCache {
    /// `None`, with a line that says so, where nginx or openssl is not installed.
    fn start(nix: &PrivateNix, directives: &str) -> Option<Self> {
        Self::listening(nix, "ssl", directives)
    }

    fn listening(nix: &PrivateNix, listen: &'static str, directives: &str) -> Option<Self> {
        let (Some(nginx), Some(_)) = (has("nginx"), has("openssl")) else {
            eprintln!("skipped: nginx or openssl is not installed");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("fwt").tempdir().unwrap();
        let cache = StandaloneCache::start(nix, |s| s.host_names = vec![NAME.to_owned()]);
        let address = SocketAddr::from((own_address(), 8443));
        let mut this = Self { dir, nginx, address, cache, child: None, listen };
        this.authority();
        this.certificate("server");
        this.certificate("client");
        this.up(directives);
        Some(this)
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn openssl(&self, args: &str) {
        let out =
            Command::new("openssl").current_dir(self.dir.path()).args(args.split(' ')).output().unwrap();
        assert!(out.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&out.stderr));
    }

    /// Makes a new authority.
    fn authority(&self) {
        self.openssl("ecparam -name prime256v1 -genkey -noout -out ca.key");
        self.openssl("req -x509 -new -key ca.key -out ca.pem -days 2 -subj /CN=authority");
    }

    /// Makes a key and a certificate of the authority, for this address.
    fn certificate(&self, name: &str) {
        self.openssl(&format!("ecparam -name prime256v1 -genkey -noout -out {name}.ec"));
        self.openssl(&format!("pkcs8 -topk8 -nocrypt -in {name}.ec -out {name}.key"));
        self.openssl(&format!("req -new -key {name}.key -out {name}.csr -subj /CN={name}"));
        let extensions = format!("subjectAltName=IP:{},DNS:{NAME}\n", self.address.ip());
        std::fs::write(self.dir.path().join("extensions"), extensions).unwrap();
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out {name}.pem"
        ));
    }

    fn up(&mut self, directives: &str) {
        let (dir, address, behind) = (self.dir.path().display(), self.address, self.cache.url());
        let listen = self.listen;
        let user = if rustix::process::geteuid().is_root() { "user root root;" } else { "" };
        let temp: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .iter()
            .map(|what| format!("    {what}_temp_path {dir}/{what};\n"))
            .collect();
        let pass = format!(
            "proxy_pass {behind}; proxy_http_version 1.1; proxy_set_header Host $http_host; \
             proxy_set_header X-Forwarded-Proto https;"
        );
        let text = format!(
            "daemon off;\n{user}\nworker_processes 1;\npid {dir}/pid;\nerror_log {dir}/error.log warn;\n\
             events {{ worker_connections 256; }}\nhttp {{\n    access_log {dir}/access.log;\n{temp}    server {{\n        \
             listen {address} {listen};\n        ssl_certificate {dir}/server.pem;\n        \
             ssl_certificate_key {dir}/server.key;\n        {directives}\n        location / {{ {pass} }}\n    }}\n}}\n"
        );
        std::fs::write(self.dir.path().join("nginx.conf"), text).unwrap();
        let dir = self.dir.path();
        let mut command = Command::new(&self.nginx);
        command.arg("-p").arg(dir).arg("-c").arg(dir.join("nginx.conf")).arg("-e").arg(dir.join("error.log"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = self.child.insert(command.spawn().unwrap());
        until("nginx listens", || {
            let ended = child.try_wait().unwrap();
            let log = || std::fs::read_to_string(dir.join("error.log")).unwrap_or_default();
            assert!(ended.is_none(), "{}", log());
            TcpStream::connect(address).ok()
        });
    }

    fn down(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Not SIGKILL: nginx's worker would outlive it, and keep the port and its certificate.
            if let Ok(pid) = i32::try_from(child.id())
                && let Some(pid) = Pid::from_raw(pid)
            {
                let _ = kill_process(pid, Signal::TERM);
            }
            let _ = child.wait();
        }
    }

    /// The daemon's configuration, with further keys of the cache.
    fn config(&self, keys: &str) -> String {
        let url = format!("https://{}", self.address);
        format!("{}{keys}[client]\nenable = false\n", self.cache.caches(&url))
    }

    fn ca_file(&self) -> String {
        format!("ca_file = \"{}\"\n", self.file("ca.pem"))
    }
}

impl Drop for TlsCache {
    fn drop(&mut self) {
        self.down();
    }
}

/// The state of the cache and its reason.
fn state(daemon: &Daemon) -> (String, String) {
    let status = daemon.status();
    let text = |key: &str| status["cache"][0][key].as_str().unwrap_or_default().to_owned();
    (text("state"), text("reason"))
}

fn until_state(daemon: &Daemon, wanted: &str, reason: &str) {
    until(wanted, || {
        let (state, why) = state(daemon);
        (state == wanted && why.contains(reason)).then_some(())
    });
}

/// Pushes a new path, which must arrive.
fn pushes(daemon: &Daemon, tls: &TlsCache, name: &str) {
    let path = daemon.nix.make(name);
    daemon.flush();
    assert!(tls.cache.main().has(&path), "{name}");
}

fn reload(daemon: &Daemon, config: &str) {
    daemon.configure(config);
    let result = daemon.ctl(&["reload"]);
    assert_eq!(result.code, 0, "{result:?}");
}

#[test]
fn a_private_authority_is_trusted_by_ca_file_and_by_nixs_variable() {
    let nix = PrivateNix::new();
    let Some(mut tls) = TlsCache::start(&nix, "") else { return };
    let mut daemon = Daemon::start(nix, &tls.config(""));
    daemon.nix.make("untrusted");
    until_state(&daemon, "offline", "certificate");
    reload(&daemon, &tls.config(&tls.ca_file()));
    until_state(&daemon, "online", "");
    pushes(&daemon, &tls, "trusted");
    // Server and authority get new certificates; the files are read again.
    tls.down();
    tls.authority();
    tls.certificate("server");
    tls.up("");
    reload(&daemon, &tls.config(&tls.ca_file()));
    pushes(&daemon, &tls, "renewed");
    // The variables that Nix reads too; its own comes first.
    daemon.stop();
    daemon.configure(&tls.config(""));
    daemon.env = vec![("SSL_CERT_FILE".to_owned(), tls.file("ca.pem"))];
    daemon.up();
    pushes(&daemon, &tls, "by-the-usual-variable");
    daemon.stop();
    daemon.env = vec![
        ("NIX_SSL_CERT_FILE".to_owned(), tls.file("ca.pem")),
        ("SSL_CERT_FILE".to_owned(), tls.file("server.key")),
    ];
    daemon.up();
    pushes(&daemon, &tls, "by-nixs-variable");
}

#[test]
fn a_proxy_tunnels_to_a_server_with_tls() {
    let nix = PrivateNix::new();
    let Some(tls) = TlsCache::start(&nix, "") else { return };
    let proxy = HeadProxy::before(tls.address);
    let keys = format!("{}proxy = \"http://me:hunter-two@{}\"\n", tls.ca_file(), proxy.host());
    let url = format!("https://{NAME}");
    let config = format!("{}{keys}[client]\nenable = false\n", tls.cache.caches(&url));
    proxy.rule(|head| {
        (head.header("proxy-authorization") != Some("Basic bWU6aHVudGVyLXR3bw=="))
            .then(|| refusal("407 Proxy Authentication Required", ""))
    });
    let daemon = Daemon::start(nix, &config);
    pushes(&daemon, &tls, "by-tunnel");
    let seen = proxy.seen();
    assert!(seen.iter().all(|head| head.line == format!("CONNECT {NAME}:443 HTTP/1.1")), "{seen:?}");
    assert!(seen.iter().all(|head| head.header("authorization").is_none()), "{seen:?}");
    // A login that the proxy refuses is named, and not shown.
    reload(&daemon, &config.replace("hunter-two", "hunter-three"));
    daemon.nix.make("refused");
    until_state(&daemon, "offline", "proxy");
    assert!(!format!("{}{:?}", daemon.logs(), daemon.status()).contains("hunter-"));
}

#[test]
fn http2_where_the_server_offers_it_and_the_configuration_allows_it() {
    let nix = PrivateNix::new();
    let Some(tls) = TlsCache::listening(&nix, "ssl http2", "client_max_body_size 200k;") else { return };
    let versions = || {
        let log = std::fs::read_to_string(tls.file("access.log")).unwrap();
        let uploads = log.lines().filter(|l| l.contains("/_api/v1/upload-path"));
        let count = |version: &str| uploads.clone().filter(|l| l.contains(version)).count();
        (count("HTTP/1.1"), count("HTTP/2.0"))
    };
    let daemon = Daemon::start(nix, &tls.config(&tls.ca_file()));
    pushes(&daemon, &tls, "one");
    assert_eq!(versions(), (1, 0), "off by default");
    reload(&daemon, &tls.config(&format!("{}http2 = true\n", tls.ca_file())));
    pushes(&daemon, &tls, "two");
    assert_eq!(versions(), (1, 1));
    // A limit of the proxy costs the path alone, with its reason.
    let big = daemon.nix.build(&PrivateNix::shell("big", "head -c 1000000 /dev/urandom > $out")).remove(0);
    let push = daemon.json_of_failed(&["push", "--wait", &big]);
    let reason = push["failed"][0]["error"].as_str().unwrap_or_default();
    assert!(reason.contains("413") && reason.contains("client_max_body_size"), "{reason}");
    pushes_still(&daemon, &tls, "three");
}

/// Pushes a new path beside one that has failed.
fn pushes_still(daemon: &Daemon, tls: &TlsCache, name: &str) {
    let path = daemon.nix.make(name);
    until(name, || tls.cache.main().has(&path).then_some(()));
}

#[test]
fn a_client_certificate_is_sent_where_the_server_asks_for_one() {
    let nix = PrivateNix::new();
    let directives = "ssl_client_certificate ca.pem; ssl_verify_client on;";
    let Some(tls) = TlsCache::start(&nix, directives) else { return };
    let daemon = Daemon::start(nix, &tls.config(&tls.ca_file()));
    daemon.nix.make("anonymous");
    until("the server refuses", || {
        let said = format!("{}{}", daemon.log(), state(&daemon).1);
        said.contains("No required SSL certificate").then_some(())
    });
    let keys = |cert: &str, key: &str| {
        format!("{}client_cert = \"{cert}\"\nclient_key = \"{key}\"\n", tls.ca_file())
    };
    reload(&daemon, &tls.config(&keys(&tls.file("client.pem"), &tls.file("client.key"))));
    pushes(&daemon, &tls, "known");
    // A file that is missing is named.
    reload(&daemon, &tls.config(&keys(&tls.file("gone.pem"), &tls.file("client.key"))));
    daemon.nix.make("without");
    until_state(&daemon, "offline", "gone.pem");
    assert!(!Path::new(&tls.file("gone.pem")).exists());
}
