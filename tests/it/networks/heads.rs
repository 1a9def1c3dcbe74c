//! A proxy that reads the head of each request, may refuse or change it, and forwards the rest. It
//! is a reverse proxy, a forward proxy and a tunnel (CONNECT), each on one connection for one
//! request.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// The first line and the headers of a request.
#[derive(Debug, Clone)]
pub struct Head {
    pub line: String,
    pub headers: Vec<(String, String)>,
}

impl Head {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    pub fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    pub fn remove(&mut self, name: &str) {
        self.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(name));
    }
}

/// Decides about a request: a status and headers that are answered instead of the cache's.
type Rule = Box<dyn FnMut(&mut Head) -> Option<String> + Send>;

/// The proxy. Its threads end with the test's process.
pub struct HeadProxy {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Head>>>,
    rule: Arc<Mutex<Rule>>,
}

impl HeadProxy {
    /// Starts a proxy that sends everything to `to`.
    pub fn before(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self {
            address: listener.local_addr().unwrap(),
            seen: Arc::default(),
            rule: Arc::new(Mutex::new(Box::new(|_| None))),
        };
        let (seen, rule) = (Arc::clone(&proxy.seen), Arc::clone(&proxy.rule));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, rule) = (Arc::clone(&seen), Arc::clone(&rule));
                // A connection that breaks is the other side's matter.
                std::thread::spawn(move || serve(stream, to, &seen, &rule));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Decides about requests from now on.
    pub fn rule(&self, rule: impl FnMut(&mut Head) -> Option<String> + Send + 'static) {
        *self.rule.lock().unwrap() = Box::new(rule);
    }

    /// All requests so far.
    pub fn seen(&self) -> Vec<Head> {
        self.seen.lock().unwrap().clone()
    }
}

/// An answer without a body.
pub fn refusal(status: &str, headers: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: 0\r\nconnection: close\r\n\r\n")
}

fn serve(mut from: TcpStream, to: SocketAddr, seen: &Mutex<Vec<Head>>, rule: &Mutex<Rule>) -> Option<()> {
    let mut ahead = Vec::new();
    let end = loop {
        if let Some(end) = ahead.windows(4).position(|w| w == b"\r\n\r\n") {
            break end + 4;
        }
        let mut some = [0; 4096];
        match from.read(&mut some).ok()? {
            0 => return None,
            n => ahead.extend_from_slice(&some[..n]),
        }
    };
    let text = String::from_utf8(ahead.drain(..end).collect()).ok()?;
    let mut lines = text.lines();
    let mut head = Head {
        line: lines.next()?.to_owned(),
        headers: lines
            .filter_map(|l| l.split_once(": "))
            .map(|(n, v)| (n.to_owned(), v.to_owned()))
            .collect(),
    };
    seen.lock().unwrap().push(head.clone());
    let refused = (rule.lock().unwrap())(&mut head);
    if let Some(answer) = refused {
        from.write_all(answer.as_bytes()).ok()?;
        // The rest of the body is read, so that the answer is not lost to a reset.
        let _ = from.shutdown(std::net::Shutdown::Write);
        std::io::copy(&mut from, &mut std::io::sink()).ok()?;
        return None;
    }
    let mut into = TcpStream::connect(to).ok()?;
    if head.line.starts_with("CONNECT ") {
        from.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").ok()?;
    } else {
        // A forward proxy gets the whole URL, and the server behind it the path alone.
        let line = match head.line.split_once(" http://") {
            Some((method, rest)) => format!("{method} /{}", rest.split_once('/')?.1),
            None => head.line.clone(),
        };
        head.remove("proxy-authorization");
        head.set("connection", "close");
        let headers: String = head.headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        into.write_all(format!("{line}\r\n{headers}\r\n").as_bytes()).ok()?;
    }
    into.write_all(&ahead).ok()?;
    let (mut back_from, mut back_to) = (into.try_clone().ok()?, from.try_clone().ok()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(std::net::Shutdown::Both);
    });
    let _ = std::io::copy(&mut from, &mut into);
    let _ = into.shutdown(std::net::Shutdown::Write);
    Some(())
}
