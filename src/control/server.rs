//! The listening side: accepts, checks limits, takes the caller's identity from
//! the kernel, and hands requests to the daemon one at a time per connection.
//! Must not know what a request means, nor who may ask for what.

use std::{io, os::unix::net::UnixListener as StdListener, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::types::Heartbeat;

pub use super::listen::{BindError, bind, passed};
pub use super::responder::{Answer, Responder};
use super::{
    bound::bounded,
    codec::{self, ClientHello, CodecError, MINIMUM, PROTOCOL, ServerHello},
    messages::{ErrorCode, Reply, Request},
    slots::{Slot, Slots},
};
use crate::observe::{detail, event};

/// How much the server takes on.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// Of those, by one user.
    pub per_uid: usize,
    /// Requests handed over and not yet taken by the daemon.
    pub queue: usize,
    /// For a client to say hello, or to finish a message.
    pub hello: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For a client to take a reply.
    pub write: Duration,
    /// For the daemon to take a request.
    pub hand_over: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            per_uid: 64,
            queue: 64,
            hello: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(10),
            hand_over: Duration::from_secs(5),
        }
    }
}

/// Who is asking, as the kernel knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Of the process that connected; none when it is outside our process namespace.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// A request for the daemon.
#[derive(Debug)]
pub struct Incoming {
    /// What is asked.
    pub request: Request,
    /// By whom.
    pub peer: Peer,
    /// The way back.
    pub responder: Responder,
}

/// Serves a listener until `shutdown`: then nothing more is accepted, pending
/// replies go out, and the task ends. The caller bounds how long it waits for that.
/// Must be called within a tokio runtime.
pub fn start(
    listener: StdListener,
    store_dir: &str,
    limits: Limits,
    shutdown: CancellationToken,
    beat: Heartbeat,
) -> io::Result<(mpsc::Receiver<Incoming>, JoinHandle<()>)> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (requests, incoming) = mpsc::channel(limits.queue);
    let shared = Arc::new(Shared { hello: ServerHello::ours(store_dir).frame(), limits, requests, shutdown });
    Ok((incoming, tokio::spawn(accept(listener, shared, beat))))
}

struct Shared {
    hello: Vec<u8>,
    limits: Limits,
    requests: mpsc::Sender<Incoming>,
    shutdown: CancellationToken,
}

async fn accept(listener: UnixListener, shared: Arc<Shared>, beat: Heartbeat) {
    let slots = Slots::new(shared.limits.connections, shared.limits.per_uid);
    let mut open = JoinSet::new();
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            () = beat.asked() => {}
            Some(ended) = open.join_next() => {
                if let Err(e) = ended {
                    event!(CONTROL_FAULT, error = %e, "a control connection failed");
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    pause = FIRST_PAUSE;
                    admit(stream, &slots, &shared, &mut open);
                }
                Err(e) => {
                    // EMFILE and the like: what is open must end first. Spinning would not help it.
                    event!(ACCEPT_FAILED, error = %e, "cannot accept a control connection; trying again in {pause:?}");
                    tokio::select! {
                        () = shared.shutdown.cancelled() => break,
                        () = sleep(pause) => pause = (pause * 2).min(Duration::from_secs(1)),
                    }
                }
            }
        }
    }
    drop(listener);
    while open.join_next().await.is_some() {}
}

const FIRST_PAUSE: Duration = Duration::from_millis(20);

fn admit(stream: UnixStream, slots: &Arc<Slots>, shared: &Arc<Shared>, open: &mut JoinSet<()>) {
    let peer = match stream.peer_cred() {
        Ok(c) => Peer { pid: c.pid(), uid: c.uid(), gid: c.gid() },
        Err(e) => return event!(CALLER_REFUSED, error = %e, "a caller without credentials"),
    };
    match slots.take(peer.uid) {
        Ok(slot) => {
            open.spawn(converse(stream, peer, slot, Arc::clone(shared)));
        }
        Err(message) => {
            event!(CALLER_REFUSED, uid = peer.uid, error = message, "a connection is refused");
            // No task for it: a fresh socket's buffer takes this at once, or it goes without.
            let reply = codec::encode(&Reply::Error { code: ErrorCode::Busy, message }).unwrap_or_default();
            let _ = stream.try_write(&[&shared.hello[..], &reply].concat());
        }
    }
}

/// A connection from hello to end.
async fn converse(stream: UnixStream, peer: Peer, _slot: Slot, shared: Arc<Shared>) {
    let (read, write) = stream.into_split();
    let mut connection = Connection { read: BufReader::new(read), write, patience: shared.limits.write };
    if let Err(e) = connection.serve(peer, &shared).await {
        detail!(pid = peer.pid, uid = peer.uid, error = %e, "a control connection ended");
    }
}

struct Connection {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    patience: Duration,
}

impl Connection {
    async fn serve(&mut self, peer: Peer, shared: &Shared) -> Result<(), CodecError> {
        let greeting = async {
            let body =
                codec::read_body_async(&mut self.read, codec::MAX_HELLO).await?.ok_or(CodecError::Cut)?;
            ClientHello::parse(&body)
        };
        let hello = within(shared.limits.hello, greeting).await?;
        self.send(&shared.hello).await?;
        if hello.protocol < MINIMUM {
            let message = format!(
                "flywheelctl {} speaks protocol {}, this daemon ({}) {MINIMUM} to {PROTOCOL}: use the flywheelctl of the same version",
                hello.version,
                hello.protocol,
                env!("CARGO_PKG_VERSION")
            );
            return self.tell(Reply::Error { code: ErrorCode::Version, message }).await;
        }
        while !shared.shutdown.is_cancelled() {
            let next = within(shared.limits.idle, codec::read_async(&mut self.read));
            let request = tokio::select! {
                () = shared.shutdown.cancelled() => break,
                request = next => match request {
                    Ok(Some(request)) => request,
                    Ok(None) => break,
                    Err(e @ (CodecError::TooLarge { .. } | CodecError::Malformed(_))) => {
                        // Where the next message begins is unknown, so this ends the connection.
                        return self.tell(Reply::Error { code: ErrorCode::BadRequest, message: e.to_string() }).await;
                    }
                    Err(e) => return Err(e),
                },
            };
            self.answer(request, peer, shared).await?;
        }
        Ok(())
    }

    async fn answer(&mut self, request: Request, peer: Peer, shared: &Shared) -> Result<(), CodecError> {
        let (responder, mut answer) = Responder::pair();
        let incoming = Incoming { request, peer, responder };
        match shared.requests.send_timeout(incoming, shared.limits.hand_over).await {
            Ok(()) => {}
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                let message = "the daemon has too many requests waiting: try again later".to_owned();
                return self.tell(Reply::Error { code: ErrorCode::Busy, message }).await;
            }
            Err(mpsc::error::SendTimeoutError::Closed(_)) => {
                let message = "the daemon is stopping: try again when it is back".to_owned();
                return self.tell(Reply::Error { code: ErrorCode::Draining, message }).await;
            }
        }
        // A client that sends the next request early cannot be seen leaving; its write error says so later.
        let mut early = false;
        loop {
            tokio::select! {
                reply = answer.next() => {
                    let last = !matches!(reply, Reply::Progress(_));
                    self.tell(reply).await?;
                    if last {
                        return Ok(());
                    }
                }
                ended = has_ended(&mut self.read), if !early => {
                    if ended? {
                        return Err(CodecError::Cut); // drops `answer`, which tells the daemon
                    }
                    early = true;
                }
            }
        }
    }

    async fn tell(&mut self, reply: Reply) -> Result<(), CodecError> {
        let frame = match codec::encode(&bounded(reply)) {
            Ok(frame) => frame,
            Err(e) => codec::encode(&Reply::Error { code: ErrorCode::Internal, message: e.to_string() })?,
        };
        self.send(&frame).await
    }

    async fn send(&mut self, frame: &[u8]) -> Result<(), CodecError> {
        let write = &mut self.write;
        within(self.patience, async { Ok(write.write_all(frame).await?) }).await
    }
}

/// Waits until the client sends more, or ends. Takes nothing out.
async fn has_ended(read: &mut BufReader<OwnedReadHalf>) -> io::Result<bool> {
    Ok(read.fill_buf().await?.is_empty())
}

async fn within<T>(
    most: Duration,
    work: impl Future<Output = Result<T, CodecError>>,
) -> Result<T, CodecError> {
    timeout(most, work).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}
