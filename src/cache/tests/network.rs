//! Tests of the words for broken connections, on real sockets.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::server::{Server, dead};
use super::*;

/// The text of the error of a request to this address.
async fn words(settings: ClientSettings) -> String {
    CacheClient::new(settings).unwrap().discover().await.unwrap_err().message
}

/// Checks that the message names the address, has these words, and none of the libraries'.
#[track_caller]
fn says(message: &str, address: &str, words: &[&str]) {
    for word in words.iter().chain(&[address]) {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    for raw in ["client error", "os error", "error sending", "tcp connect", "dns error", "invalid peer"] {
        assert!(!message.contains(raw), "{raw:?} is in: {message}");
    }
}

#[tokio::test]
async fn a_connection_that_cannot_be_made() {
    let gone = dead().await;
    says(&words(settings(&[&gone])).await, &gone, &["was refused", "start the server"]);

    let unknown = "http://cache.invalid";
    let message = words(settings(&[unknown])).await;
    says(&message, unknown, &["name service"]);
    assert!(message.contains("knows no address") || message.contains("did not answer"), "{message}");

    // The queue of the listener is full, and the kernel drops further connections.
    let full =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None).unwrap();
    rustix::net::bind(&full, &SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let listener = TcpListener::from(full);
    let address = listener.local_addr().unwrap();
    let mut waiting = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(100)) {
        waiting.push(stream);
    }
    let url = format!("http://{address}");
    let short = ClientSettings { connect_timeout: Duration::from_millis(300), ..settings(&[&url]) };
    says(&words(short).await, &url, &["timed out", "firewall"]);
    drop(waiting);
}

#[tokio::test]
async fn a_connection_that_breaks() {
    let resetting = Server::bare(|_, conn| async move {
        conn.reset();
        None
    })
    .await;
    says(
        &words(settings(&[&resetting.url])).await,
        &resetting.url,
        &["reset the connection", "log of the server"],
    );

    let closing = Server::bare(|_, _| async move { None }).await;
    says(&words(settings(&[&closing.url])).await, &closing.url, &["closed the connection without an answer"]);

    let strange = Server::bare(|_, mut conn| async move {
        conn.raw("220 mail.example.com ESMTP\r\n").await;
        Some(conn)
    })
    .await;
    says(&words(settings(&[&strange.url])).await, &strange.url, &["does not speak HTTP", "port"]);

    // A server for plain HTTP under an https address.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let plain = async move {
        let (mut hello, _) = listener.accept().await.unwrap();
        hello.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        hello.read_u8().await.unwrap();
    };
    let (message, ()) = tokio::join!(words(trusting(&url, None)), plain);
    says(&message, &url, &["does not speak TLS", "http://"]);
}

fn trusting(url: &str, ca: Option<&Path>) -> ClientSettings {
    let tls = TlsFiles { ca: ca.map(Path::to_owned), ..TlsFiles::default() };
    let network = Network { tls, ..Network::default() };
    ClientSettings { network, ..settings(&[url]) }
}

/// Certificates in a directory, made by openssl: an authority, and servers' of its.
struct Certificates(tempfile::TempDir);

impl Certificates {
    /// `None`, with a line that says so, without openssl.
    #[allow(clippy::print_stderr)]
    fn new() -> Option<Self> {
        if Command::new("openssl").arg("version").output().is_err() {
            eprintln!("skipped: openssl is not installed");
            return None;
        }
        let this = Self(tempfile::tempdir().unwrap());
        this.openssl("ecparam -name prime256v1 -genkey -noout -out ca.key");
        this.openssl("req -x509 -new -key ca.key -out ca.pem -days 2 -subj /CN=authority");
        Some(this)
    }

    fn openssl(&self, arguments: &str) {
        let output =
            Command::new("openssl").current_dir(&self.0).args(arguments.split(' ')).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts a server with a new certificate for this name, valid for `days` from now on,
    /// that asks clients for certificates if `asks`.
    fn serve(&self, name: &str, days: i32, asks: bool) -> String {
        std::fs::write(self.0.path().join("extensions"), format!("subjectAltName={name}\n")).unwrap();
        self.openssl("ecparam -name prime256v1 -genkey -noout -out server.ec");
        self.openssl("pkcs8 -topk8 -nocrypt -in server.ec -out server.key");
        self.openssl("req -new -key server.key -out server.csr -subj /CN=server");
        self.openssl(&format!(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days {days} -extfile extensions \
             -out server.pem"
        ));
        let der = |file: &str| CertificateDer::from_pem_file(self.0.path().join(file)).unwrap();
        let key = PrivateKeyDer::from_pem_file(self.0.path().join("server.key")).unwrap();
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut roots = RootCertStore::empty();
        roots.add(der("ca.pem")).unwrap();
        let config = match asks {
            true => ServerConfig::builder()
                .with_client_cert_verifier(WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap()),
            false => ServerConfig::builder().with_no_client_auth(),
        };
        let config = Arc::new(config.with_single_cert(vec![der("server.pem")], key).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut tls = StreamOwned::new(connection, stream);
                // The handshake, and nothing after it.
                let _ = io::Read::read(&mut tls, &mut [0; 1]);
            }
        });
        url
    }
}

#[tokio::test]
async fn certificates_that_are_refused() {
    let Some(certificates) = Certificates::new() else { return };
    let ca = certificates.0.path().join("ca.pem");

    let url = certificates.serve("IP:127.0.0.1", 2, false);
    says(&words(trusting(&url, None)).await, &url, &["no authority that this host trusts", "`ca_file`"]);
    let message = words(trusting(&url, Some(&ca))).await;
    says(&message, &url, &["closed the connection"]);

    let url = certificates.serve("IP:127.0.0.1", -1, false);
    says(&words(trusting(&url, Some(&ca))).await, &url, &["certificate has expired", "renew it"]);

    let url = certificates.serve("IP:192.0.2.7", 2, false);
    says(&words(trusting(&url, Some(&ca))).await, &url, &["for another name", "`endpoints`"]);

    let url = certificates.serve("IP:127.0.0.1", 2, true);
    says(
        &words(trusting(&url, Some(&ca))).await,
        &url,
        &["wants a certificate of the client", "`client_cert`"],
    );
}
