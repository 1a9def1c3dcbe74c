//! A proxy between a daemon and its cache. It does to each request what the test tells it: refuse,
//! reset, stall, slow down, answer in the cache's place, cut the answer or send it twice. It
//! records every request, and a test waits for what was recorded. It knows of a request only its
//! kind and path.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::support::daemon::MAX_WAIT;

/// What the proxy does to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Passes it on.
    Pass,
    /// Resets the connection after this number of bytes of the body.
    Reset(u64),
    /// Reads this number of bytes of the body, then none, until the client gives up.
    Stall(u64),
    /// Reads the body and sends no answer, until the client gives up.
    Mute,
    /// Passes the body on at this number of bytes per second.
    Slow(u64),
    /// Answers in the cache's place: status, and further header lines (each with its line end).
    Answer(u16, &'static str),
    /// Answers 400 in the words of an Attic server that found another hash than announced.
    BadHash,
    /// Passes the request on, sends this number of bytes of the answer, and closes the connection.
    Cut(usize),
    /// Passes the request on and discards the cache's answer: sends this status instead, or nothing
    /// until the client gives up.
    Stored(Option<u16>),
    /// Reads the body, passes nothing on, and answers with this status.
    Lost(u16),
    /// Reads the body and waits this long; then passes it on, if the client still waits.
    Late(Duration),
    /// Answers with this status, and with problem details (RFC 9457) that ask to wait this many
    /// seconds.
    Problem(u16, u32),
    /// Passes the request on and sends the answer twice.
    Double,
    /// Holds the request until the test calls [`Proxy::pass`], then passes it on.
    Hold,
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Config,
    Missing,
    Upload,
    Other,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Call {
    pub kind: Kind,
    /// Base name of the path that is uploaded.
    pub path: String,
    /// The number of earlier requests of this kind; for uploads, of this path.
    pub before: usize,
    pub fault: Fault,
    /// The status that the client received, when it received a whole answer.
    pub answered: Option<u16>,
    /// Whether the request has ended.
    pub over: bool,
}

/// All requests that the proxy has recorded.
#[derive(Debug, Default, Clone)]
pub struct Tally {
    pub connections: usize,
    pub calls: Vec<Call>,
    listening: bool,
}

impl Tally {
    pub fn faults(&self) -> usize {
        self.calls.iter().filter(|c| c.fault != Fault::Pass).count()
    }

    pub fn uploads(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(|c| c.kind == Kind::Upload)
    }

    /// The number of uploads that the client knows to have succeeded.
    pub fn done(&self) -> usize {
        self.uploads().filter(|c| c.answered == Some(200)).count()
    }
}

type Rule = Box<dyn FnMut(&Call) -> Fault + Send>;

struct Shared {
    to: SocketAddr,
    at: Mutex<SocketAddr>,
    rule: Mutex<Rule>,
    tally: Mutex<Tally>,
    changed: Condvar,
    up: watch::Sender<bool>,
    held: watch::Sender<bool>,
}

/// The proxy. Dropping it stops it.
pub struct Proxy {
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// A loopback address that only this process uses, so that a port stays free for the server that
/// listened on it before.
pub fn own_address() -> [u8; 4] {
    let [_, a, b, c] = std::process::id().to_be_bytes();
    [127, 64 + (a & 63), b, c]
}

impl Proxy {
    pub fn before(to: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shared = Arc::new(Shared {
            to,
            at: Mutex::new(SocketAddr::from((own_address(), 0))),
            rule: Mutex::new(Box::new(|_| Fault::Pass)),
            tally: Mutex::default(),
            changed: Condvar::new(),
            up: watch::Sender::new(true),
            held: watch::Sender::new(true),
        });
        runtime.spawn(listen(Arc::clone(&shared)));
        let proxy = Self { shared, runtime: Some(runtime) };
        proxy.until("it listens", |tally| tally.listening);
        proxy
    }

    pub fn address(&self) -> SocketAddr {
        *self.shared.at.lock().unwrap()
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// From now on each request meets the fault that `rule` returns. Held requests stay held until
    /// [`Self::pass`].
    pub fn rule(&self, rule: impl FnMut(&Call) -> Fault + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
        self.shared.held.send_replace(true);
    }

    /// From now on all requests pass, and so do the held ones.
    pub fn pass(&self) {
        self.rule(|_| Fault::Pass);
        self.shared.held.send_replace(false);
    }

    /// Stops listening and resets all connections.
    pub fn down(&self) {
        self.shared.up.send_replace(false);
        self.until("it is down", |tally| !tally.listening);
    }

    /// Listens again, on the same port.
    pub fn up(&self) {
        self.shared.up.send_replace(true);
        self.until("it is up", |tally| tally.listening);
    }

    /// Waits until the recorded requests satisfy the condition.
    pub fn until(&self, what: &str, wanted: impl Fn(&Tally) -> bool) -> Tally {
        let seen = self.until_or(MAX_WAIT, &wanted);
        assert!(wanted(&seen), "not seen: {what}; {}", describe(&seen));
        seen
    }

    /// Waits like [`Self::until`], but only for this time.
    pub fn until_or(&self, patience: Duration, wanted: impl Fn(&Tally) -> bool) -> Tally {
        let end = Instant::now() + patience;
        let mut tally = self.shared.tally();
        while !wanted(&tally) && Instant::now() < end {
            let left = end.saturating_duration_since(Instant::now());
            tally = self.shared.changed.wait_timeout(tally, left).unwrap().0;
        }
        tally.clone()
    }

    pub fn seen(&self) -> Tally {
        self.shared.tally().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if std::thread::panicking() {
            eprintln!("--- the proxy saw {}---", describe(&self.shared.tally()));
        }
    }
}

fn describe(tally: &Tally) -> String {
    let mut text = format!("{} connections, {} requests:\n", tally.connections, tally.calls.len());
    let most = 200;
    for call in tally.calls.iter().skip(tally.calls.len().saturating_sub(most)) {
        let Call { kind, path, before, fault, answered, over } = call;
        let _ =
            writeln!(text, "  {kind:?} {path} before {before} {fault:?} answered {answered:?} over {over}");
    }
    text
}

impl Shared {
    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn note(&self, change: impl FnOnce(&mut Tally)) {
        change(&mut self.tally());
        self.changed.notify_all();
    }
}

async fn listen(shared: Arc<Shared>) {
    let mut up = shared.up.subscribe();
    while up.wait_for(|up| *up).await.is_ok() {
        let at = *shared.at.lock().unwrap();
        let listener = bind(at).expect("the proxy's own address is free");
        *shared.at.lock().unwrap() = listener.local_addr().unwrap();
        shared.note(|tally| tally.listening = true);
        loop {
            tokio::select! {
                client = listener.accept() => {
                    let Ok((client, _)) = client else { continue };
                    shared.note(|tally| tally.connections += 1);
                    tokio::spawn(connection(Arc::clone(&shared), client));
                }
                _ = up.wait_for(|up| !*up) => break,
            }
        }
        drop(listener);
        shared.note(|tally| tally.listening = false);
    }
}

fn bind(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(1024)
}

/// What happens to a connection after a request.
enum Next {
    /// The next request follows.
    Request,
    /// The connection is closed after the client has sent everything.
    Close,
    /// The connection is reset.
    Reset,
}

async fn connection(shared: Arc<Shared>, mut client: TcpStream) {
    let mut up = shared.up.subscribe();
    let serving = async {
        let mut buffer = Vec::new();
        loop {
            match request(&shared, &mut client, &mut buffer).await {
                Ok(Next::Request) => {}
                Ok(Next::Close) => {
                    let _ = client.shutdown().await;
                    // Closing with unread bytes would reset the connection, and the answer could
                    // be lost.
                    let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
                    return false;
                }
                Ok(Next::Reset) => return true,
                Err(_) => return false,
            }
        }
    };
    let reset = tokio::select! {
        reset = serving => reset,
        _ = up.wait_for(|up| !*up) => true,
    };
    if reset {
        let _ = client.set_zero_linger();
    }
}

struct Head {
    text: String,
    length: u64,
}

impl Head {
    fn field(&self, name: &str) -> Option<&str> {
        let mut lines = self.text.lines().skip(1).filter_map(|l| l.split_once(':'));
        lines.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    }

    /// Sends the request on with `Connection: close`.
    fn closing(&self) -> String {
        let mut text = String::new();
        for line in self.text.lines().filter(|l| !l.to_ascii_lowercase().starts_with("connection:")) {
            if !line.is_empty() {
                let _ = write!(text, "{line}\r\n");
            }
        }
        text + "Connection: close\r\n\r\n"
    }
}

fn gone() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

async fn more(client: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    if client.read_buf(buffer).await? == 0 { Err(gone()) } else { Ok(()) }
}

async fn head(client: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Head> {
    let end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        more(client, buffer).await?;
    };
    let text = String::from_utf8_lossy(&buffer[..end]).into_owned();
    buffer.drain(..end);
    let mut head = Head { text, length: 0 };
    head.length = head.field("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    Ok(head)
}

/// Handles one request.
async fn request(shared: &Shared, client: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Next> {
    let head = head(client, buffer).await?;
    let target = head.text.split(' ').nth(1).unwrap_or_default();
    let kind = match target.split('?').next().unwrap_or_default() {
        t if t.ends_with("/upload-path") => Kind::Upload,
        t if t.ends_with("/get-missing-paths") => Kind::Missing,
        t if t.contains("/cache-config/") => Kind::Config,
        _ => Kind::Other,
    };
    let mut path = String::new();
    if kind == Kind::Upload {
        let preamble = head.field("x-attic-nar-info-preamble-size").and_then(|v| v.parse().ok()).unwrap_or(0);
        while buffer.len() < preamble {
            more(client, buffer).await?;
        }
        let info = head.field("x-attic-nar-info").map_or(&buffer[..preamble], str::as_bytes);
        let info: serde_json::Value = serde_json::from_slice(info).unwrap_or_default();
        path = crate::support::cache::base(info["store_path"].as_str().unwrap_or_default()).to_owned();
    }
    let mut call = Call { kind, path, before: 0, fault: Fault::Pass, answered: None, over: false };
    let index = {
        // Under the lock of the recorded requests, so that rules see requests in the recorded
        // order.
        let mut tally = shared.tally();
        call.before = tally.calls.iter().filter(|c| c.kind == kind && c.path == call.path).count();
        call.fault = (shared.rule.lock().unwrap())(&call);
        tally.calls.push(call.clone());
        tally.calls.len() - 1
    };
    shared.changed.notify_all();
    // Runs on drop as well, so that a request that is cut off is recorded as ended.
    let over = Over { shared, index, answered: None };
    deal(shared, client, buffer, &head, call.fault, over).await
}

/// Records how a request ended.
struct Over<'a> {
    shared: &'a Shared,
    index: usize,
    answered: Option<u16>,
}

impl Drop for Over<'_> {
    fn drop(&mut self) {
        let (index, answered) = (self.index, self.answered);
        self.shared.note(|tally| {
            if let Some(call) = tally.calls.get_mut(index) {
                (call.answered, call.over) = (answered, true);
            }
        });
    }
}

async fn deal(
    shared: &Shared,
    client: &mut TcpStream,
    buffer: &mut Vec<u8>,
    head: &Head,
    fault: Fault,
    mut over: Over<'_>,
) -> io::Result<Next> {
    match fault {
        Fault::Reset(after) => {
            take(client, buffer, after.min(head.length)).await?;
            return Ok(Next::Reset);
        }
        Fault::Stall(after) => {
            take(client, buffer, after.min(head.length)).await?;
            // The rest of the body is not read: it fills the socket's buffer. Whether the client
            // gave up is seen only when some bytes were still on their way; otherwise this waits
            // until the proxy ends.
            let _ = client.ready(tokio::io::Interest::ERROR).await;
            return Ok(Next::Reset);
        }
        Fault::Mute => {
            take(client, buffer, head.length).await?;
            while more(client, buffer).await.is_ok() {}
            return Ok(Next::Reset);
        }
        Fault::Answer(status, more) => return answer(client, status, more, "the laboratory", over).await,
        Fault::Problem(status, wait) => {
            let body = format!("{{\"title\":\"Error\",\"status\":{status},\"retry_after\":{wait}}}");
            return answer_with(client, status, "", "application/problem+json", &body, over).await;
        }
        Fault::Late(wait) => {
            while (buffer.len() as u64) < head.length {
                more(client, buffer).await?;
            }
            let mut byte = [0];
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = client.peek(&mut byte) => return Ok(Next::Reset),
            }
        }
        Fault::BadHash => {
            take(client, buffer, head.length).await?;
            return answer(client, 400, "", "General request error: Bad NAR Hash or Size", over).await;
        }
        Fault::Lost(status) => {
            take(client, buffer, head.length).await?;
            return answer(client, status, "", "the gateway waited in vain", over).await;
        }
        Fault::Hold => {
            let _ = shared.held.subscribe().wait_for(|held| !*held).await;
        }
        Fault::Pass | Fault::Slow(_) | Fault::Cut(_) | Fault::Double | Fault::Stored(_) => {}
    }
    let rate = if let Fault::Slow(rate) = fault { Some(rate) } else { None };
    let (answer, whole) = forward(shared.to, client, buffer, head, rate).await?;
    let status = answer.split(|b| *b == b' ').nth(1).and_then(|s| std::str::from_utf8(s).ok()?.parse().ok());
    match fault {
        Fault::Cut(most) => {
            client.write_all(&answer[..most.min(answer.len())]).await?;
            return Ok(Next::Close);
        }
        Fault::Stored(Some(status)) => {
            return self::answer(client, status, "", "the gateway waited in vain", over).await;
        }
        Fault::Stored(None) => {
            while more(client, buffer).await.is_ok() {}
            return Ok(Next::Reset);
        }
        Fault::Double => {
            client.write_all(&[&answer[..], &answer[..]].concat()).await?;
        }
        _ => client.write_all(&answer).await?,
    }
    over.answered = status;
    let last = head.field("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
    Ok(if whole && !last { Next::Request } else { Next::Close })
}

/// Reads this number of bytes of the body and discards them.
async fn take(client: &mut TcpStream, buffer: &mut Vec<u8>, mut count: u64) -> io::Result<()> {
    loop {
        let have = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        buffer.drain(..have);
        count -= have as u64;
        if count == 0 {
            return Ok(());
        }
        more(client, buffer).await?;
    }
}

async fn answer(
    client: &mut TcpStream,
    status: u16,
    more: &str,
    message: &str,
    over: Over<'_>,
) -> io::Result<Next> {
    let body = format!("{{\"code\":{status},\"error\":\"Fault\",\"message\":\"{message}\"}}");
    answer_with(client, status, more, "application/json", &body, over).await
}

async fn answer_with(
    client: &mut TcpStream,
    status: u16,
    more: &str,
    content_type: &str,
    body: &str,
    mut over: Over<'_>,
) -> io::Result<Next> {
    let text = format!(
        "HTTP/1.1 {status} Fault\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n{more}connection: close\r\n\r\n{body}",
        body.len()
    );
    client.write_all(text.as_bytes()).await?;
    over.answered = Some(status);
    Ok(Next::Close)
}

/// Sends a request on and reads the whole answer. The answer may come before the whole body was
/// sent; then the second value is false.
async fn forward(
    to: SocketAddr,
    client: &mut TcpStream,
    buffer: &mut Vec<u8>,
    head: &Head,
    rate: Option<u64>,
) -> io::Result<(Vec<u8>, bool)> {
    let mut cache = TcpStream::connect(to).await?;
    let (mut from, mut into) = cache.split();
    let mut answer = Vec::new();
    let mut left = head.length;
    let sending = async {
        let mut accepts = into.write_all(head.closing().as_bytes()).await.is_ok();
        while left > 0 {
            if buffer.is_empty() {
                more(client, buffer).await?;
            }
            let most = rate.map_or(64 << 10, |rate| (rate / 50).clamp(1, 64 << 10));
            let count = buffer.len().min(usize::try_from(left.min(most)).unwrap_or(usize::MAX));
            if let Some(rate) = rate {
                tokio::time::sleep(Duration::from_secs_f64(count as f64 / rate as f64)).await;
            }
            // A cache that stops reading has answered, and that answer counts.
            accepts = accepts && into.write_all(&buffer[..count]).await.is_ok();
            buffer.drain(..count);
            left -= count as u64;
            if !accepts {
                return std::future::pending().await;
            }
        }
        Ok::<_, io::Error>(())
    };
    tokio::pin!(sending);
    let mut sent = false;
    let mut chunk = vec![0; 16 << 10];
    loop {
        tokio::select! {
            result = &mut sending, if !sent => {
                result?;
                sent = true;
            }
            count = from.read(&mut chunk) => match count {
                Ok(count) if count > 0 => answer.extend_from_slice(&chunk[..count]),
                _ if answer.is_empty() => return Err(gone()),
                _ => break,
            },
        }
    }
    Ok((keep_alive(&answer), sent))
}

/// Removes the cache's `Connection: close` from the answer.
fn keep_alive(answer: &[u8]) -> Vec<u8> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    let mut kept = Vec::new();
    for line in answer[..end].split_inclusive(|b| *b == b'\n') {
        if !line.to_ascii_lowercase().starts_with(b"connection:") {
            kept.extend_from_slice(line);
        }
    }
    kept.extend_from_slice(&answer[end..]);
    kept
}
