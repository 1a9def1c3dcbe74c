//! A real atticd and a real attic client, for comparison. Nothing of theirs is in this repository: the
//! variables `ATTIC` and `ATTICD` name the programs.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};

use crate::nix::PrivateNix;
use crate::rig::usage;

const SECRET: &[u8] = b"of this benchmark only, and of no other server";
/// How long a step may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// The two programs.
pub struct Programs {
    pub attic: PathBuf,
    pub atticd: PathBuf,
}

impl Programs {
    /// From the environment. The error says what is missing.
    pub fn find() -> Result<Self, String> {
        let named = |name: &str| {
            let path = std::env::var_os(name).map(PathBuf::from).ok_or(format!("{name} names no program"))?;
            if path.is_file() { Ok(path) } else { Err(format!("{name}: there is no {}", path.display())) }
        };
        Ok(Self { attic: named("ATTIC")?, atticd: named("ATTICD")? })
    }
}

/// A server with an empty cache "main", on SQLite and local storage. Ends with this value.
pub struct Atticd {
    child: Child,
    address: SocketAddr,
    dir: PathBuf,
    pub token: PathBuf,
}

impl Atticd {
    pub fn start(programs: &Programs, nix: &PrivateNix, dir: &Path) -> Self {
        std::fs::create_dir_all(dir.join("storage")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).unwrap();
        let text = format!(
            "listen = \"{address}\"\nallowed-hosts = []\n[database]\nurl = \"sqlite://{}/server.db?mode=rwc\"\n\
             [storage]\ntype = \"local\"\npath = {:?}\n[chunking]\nnar-size-threshold = 65536\nmin-size = 16384\n\
             avg-size = 65536\nmax-size = 262144\n[compression]\ntype = \"zstd\"\n\
             [garbage-collection]\ninterval = \"0 s\"\n[jwt.signing]\ntoken-hs256-secret-base64 = \"{}\"\n",
            dir.display(),
            dir.join("storage"),
            STANDARD.encode(SECRET)
        );
        std::fs::write(dir.join("server.toml"), text).unwrap();
        let token = dir.join("token");
        std::fs::write(&token, jwt()).unwrap();
        let log = std::fs::File::create(dir.join("atticd.log")).unwrap();
        let child = Command::new(&programs.atticd)
            .args(["--mode", "monolithic", "--config"])
            .arg(dir.join("server.toml"))
            .env("HOME", dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, address, dir: dir.to_owned(), token };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < PATIENCE, "atticd does not listen: {}", server.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        for args in [&["login", "local", &server.endpoint(), &jwt()][..], &["cache", "create", "local:main"]]
        {
            let out = server.attic(programs, nix, &server.endpoint()).args(args).output().unwrap();
            assert!(out.status.success(), "{}\n{}", String::from_utf8_lossy(&out.stderr), server.log());
        }
        server
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("atticd.log")).unwrap_or_default()
    }

    /// Processor time of the server so far, in seconds.
    pub fn cpu_s(&self) -> f64 {
        usage(self.child.id()).cpu_s
    }

    /// The client, logged in at `endpoint`, which leads to this server.
    pub fn attic(&self, programs: &Programs, nix: &PrivateNix, endpoint: &str) -> Command {
        let home = self.dir.join(endpoint.rsplit(':').next().unwrap());
        std::fs::create_dir_all(home.join("attic")).unwrap();
        let text = format!(
            "default-server = \"local\"\n[servers.local]\nendpoint = \"{endpoint}/\"\ntoken = \"{}\"\n",
            jwt()
        );
        std::fs::write(home.join("attic/config.toml"), text).unwrap();
        let mut command = Command::new(&programs.attic);
        command.envs(nix.env()).env("XDG_CONFIG_HOME", &home).env("HOME", &home);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command
    }

    /// Whether the cache serves the narinfo of a path.
    fn serves(&self, path: &str) -> bool {
        let hash = &path.rsplit('/').next().unwrap()[..32];
        let Ok(mut line) = TcpStream::connect(self.address) else { return false };
        let host = self.address;
        let question = format!(
            "GET /main/{hash}.narinfo HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAuthorization: Bearer {}\r\n\r\n",
            jwt()
        );
        let mut answer = String::new();
        line.write_all(question.as_bytes()).is_ok()
            && line.read_to_string(&mut answer).is_ok()
            && answer.starts_with("HTTP/1.1 200")
    }

    /// Waits until the cache serves a path.
    pub fn wait_for(&self, path: &str) {
        let began = Instant::now();
        while !self.serves(path) {
            assert!(began.elapsed() < PATIENCE, "{path} does not come: {}", self.log());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Atticd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// A token for everything, valid until 2100 (RFC 7519, HS256).
fn jwt() -> String {
    let rights = "{\"r\":1,\"w\":1,\"d\":1,\"cc\":1,\"cr\":1,\"cq\":1,\"cd\":1}";
    let claims = format!(
        "{{\"sub\":\"bench\",\"exp\":4102444800,\"https://jwt.attic.rs/v1\":{{\"caches\":{{\"*\":{rights}}}}}}}"
    );
    let signed = format!(
        "{}.{}",
        URL_SAFE_NO_PAD.encode("{\"typ\":\"JWT\",\"alg\":\"HS256\"}"),
        URL_SAFE_NO_PAD.encode(claims)
    );
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(hmac(SECRET, signed.as_bytes())))
}

/// HMAC-SHA256 (RFC 2104) with a key of at most 64 bytes.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    let mut padded = [0_u8; 64];
    padded[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(padded.map(|b| b ^ 0x36)).chain_update(text).finalize();
    Sha256::new().chain_update(padded.map(|b| b ^ 0x5c)).chain_update(inner).finalize().to_vec()
}
