//! A server that sends exactly the bytes that a test specifies, on a real socket. It
//! parses just enough HTTP/1.1 to find the end of a request.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};

#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: HashMap<String, String>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    fn is_config(&self) -> bool {
        self.path.contains("/_api/v1/cache-config/")
    }
}

pub(crate) struct Conn {
    pub(crate) stream: TcpStream,
    ahead: Vec<u8>,
}

impl Conn {
    async fn head(&mut self) -> Option<Request> {
        let end = loop {
            if let Some(end) = self.ahead.windows(4).position(|w| w == b"\r\n\r\n") {
                break end + 4;
            }
            if self.stream.read_buf(&mut self.ahead).await.ok()? == 0 {
                return None;
            }
        };
        let head: Vec<u8> = self.ahead.drain(..end).collect();
        let head = String::from_utf8(head).unwrap();
        let mut lines = head.lines();
        let mut first = lines.next()?.split(' ');
        let headers =
            lines.filter_map(|l| l.split_once(": ")).map(|(k, v)| (k.to_lowercase(), v.to_owned())).collect();
        Some(Request { method: first.next()?.to_owned(), path: first.next()?.to_owned(), headers })
    }

    /// Reads the whole body, which must have a length.
    pub(crate) async fn body(&mut self, request: &Request) -> Vec<u8> {
        let length: usize = request.header("content-length").map_or(0, |l| l.parse().unwrap());
        while self.ahead.len() < length {
            if self.stream.read_buf(&mut self.ahead).await.unwrap_or(0) == 0 {
                break;
            }
        }
        let length = length.min(self.ahead.len());
        self.ahead.drain(..length).collect()
    }

    /// Reads and discards this number of bytes of a body.
    pub(crate) async fn exactly(&mut self, length: usize) {
        let ahead = length.min(self.ahead.len());
        self.ahead.drain(..ahead);
        let mut left = length - ahead;
        let mut sink = vec![0; 256 * 1024];
        while left > 0 {
            let most = left.min(sink.len());
            match self.stream.read(&mut sink[..most]).await {
                Ok(n) if n > 0 => left -= n,
                _ => break,
            }
        }
    }

    pub(crate) async fn answer(&mut self, status: &str, headers: &str, body: &str) {
        let text = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
        self.raw(&text).await;
    }

    pub(crate) async fn raw(&mut self, text: &str) {
        // The client may have closed the connection already; the test has to notice that.
        let _ = self.stream.write_all(text.as_bytes()).await;
    }

    /// Reads and discards everything until the client closes the connection.
    pub(crate) async fn drain(&mut self) {
        let mut sink = vec![0; 64 * 1024];
        while self.stream.read(&mut sink).await.unwrap_or(0) > 0 {}
    }

    /// Closes the connection with a reset.
    pub(crate) fn reset(self) {
        #[allow(deprecated)]
        self.stream.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

type Served = Pin<Box<dyn Future<Output = Option<Conn>> + Send>>;

#[derive(Default)]
struct Log {
    requests: Vec<Request>,
    connections: usize,
}

/// Stops the server when it is dropped.
pub(crate) struct Server {
    pub(crate) url: String,
    log: Arc<Mutex<Log>>,
    task: AbortHandle,
}

pub(crate) const CONFIG: &str = r#"{"is_public":true,"store_dir":"/nix/store"}"#;

impl Server {
    /// Starts a server that calls `on` with each request; `None` ends the connection. The server itself answers
    /// requests for the cache's configuration.
    pub(crate) async fn start<F, R>(on: F) -> Self
    where
        F: Fn(Request, Conn) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Conn>> + Send + 'static,
    {
        Self::listen(Some(CONFIG.to_owned()), on).await
    }

    /// Starts a server that answers nothing by itself.
    pub(crate) async fn bare<F, R>(on: F) -> Self
    where
        F: Fn(Request, Conn) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Conn>> + Send + 'static,
    {
        Self::listen(None, on).await
    }

    pub(crate) async fn with_config(config: &str) -> Self {
        Self::listen(Some(config.to_owned()), |_, _| async { None }).await
    }

    async fn listen<F, R>(config: Option<String>, on: F) -> Self
    where
        F: Fn(Request, Conn) -> R + Send + Sync + 'static,
        R: Future<Output = Option<Conn>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let log = Arc::new(Mutex::new(Log::default()));
        let on: Arc<dyn Fn(Request, Conn) -> Served + Send + Sync> = Arc::new(move |r, c| Box::pin(on(r, c)));
        let seen = Arc::clone(&log);
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                seen.lock().unwrap().connections += 1;
                let (seen, on, config) = (Arc::clone(&seen), Arc::clone(&on), config.clone());
                connections.spawn(async move {
                    let mut conn = Conn { stream, ahead: Vec::new() };
                    while let Some(request) = conn.head().await {
                        seen.lock().unwrap().requests.push(request.clone());
                        match &config {
                            Some(config) if request.is_config() => {
                                conn.answer("200 OK", "content-type: application/json\r\n", config).await;
                            }
                            _ => match on(request, conn).await {
                                Some(same) => conn = same,
                                None => break,
                            },
                        }
                    }
                });
            }
        });
        Self { url, log, task: task.abort_handle() }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().requests.clone()
    }

    /// Returns the requests other than those for the configuration.
    pub(crate) fn calls(&self) -> Vec<Request> {
        self.requests().into_iter().filter(|r| !r.is_config()).collect()
    }

    pub(crate) fn connections(&self) -> usize {
        self.log.lock().unwrap().connections
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Returns an address where nobody listens: the listener is closed, and the kernel does
/// not soon assign a port again that was just released.
pub(crate) async fn dead() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
