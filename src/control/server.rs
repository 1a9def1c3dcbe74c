//! The server of the control socket: accepts connections, enforces limits, reads
//! the caller's identity from the kernel and hands requests to the daemon, one at a
//! time for each connection. Must not know what a request means, nor who may ask
//! for what.

use std::{
    io,
    os::unix::net::UnixListener as StdListener,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream, unix::OwnedReadHalf, unix::OwnedWriteHalf},
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::types::{Heartbeat, StoreDir};

pub use super::listen::{BindError, Passed, bind, passed};
pub use super::responder::{Answer, Responder};
use super::{
    codec::{self, ClientHello, CodecError, MINIMUM, PROTOCOL, ServerHello},
    connection_limit::{ConnectionLimit, Permit, Refusals},
    known_users::KnownUsers,
    limits,
    messages::{ErrorCode, Reply, Request},
    truncate::truncated,
};
use crate::observe::{detail, event};

/// Limits of the server.
#[derive(Debug, Clone)]
pub struct Limits {
    /// The most connections at a time.
    pub connections: usize,
    /// The most connections of one user at a time.
    pub per_uid: usize,
    /// The connections that are kept for root and the daemon's own user.
    pub reserved: usize,
    /// The most requests that wait for the daemon to take them.
    pub queue: usize,
    /// How long the server waits for a caller's hello.
    pub hello: Duration,
    /// How long the server waits for the next request, from its first to its last byte.
    pub idle: Duration,
    /// How long the server waits for a caller to read a reply.
    pub write: Duration,
    /// How long the server waits for the daemon to take a request.
    pub hand_over: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            per_uid: 64,
            reserved: 16,
            queue: 64,
            hello: Duration::from_secs(5),
            idle: Duration::from_secs(60),
            write: Duration::from_secs(10),
            hand_over: Duration::from_secs(5),
        }
    }
}

/// The caller's identity, as the kernel reports it for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The process that connected; none when it is in a pid namespace that the
    /// daemon does not see.
    pub pid: Option<i32>,
    /// The user of that process.
    pub uid: u32,
    /// The group of that process.
    pub gid: u32,
}

/// A request and where its reply goes.
#[derive(Debug)]
pub struct Incoming {
    /// The request.
    pub request: Request,
    /// The caller.
    pub peer: Peer,
    /// Takes the reply.
    pub responder: Responder,
}

/// Serves a listener until `shutdown`. Then it accepts nothing more, sends the
/// replies that are still to come, and the task ends; the caller decides how long
/// it waits for that. Must be called within a tokio runtime.
pub fn start(
    listener: StdListener,
    store_dir: &StoreDir,
    limits: Limits,
    shutdown: CancellationToken,
    beat: Heartbeat,
) -> io::Result<(mpsc::Receiver<Incoming>, JoinHandle<()>)> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let (requests, incoming) = mpsc::channel(limits.queue);
    let (hello, users) = (ServerHello::ours(store_dir).frame(), KnownUsers::here());
    let shared = Arc::new(Shared { hello, users, limits, requests, shutdown });
    Ok((incoming, tokio::spawn(accept(listener, shared, beat))))
}

struct Shared {
    hello: Vec<u8>,
    users: KnownUsers,
    limits: Limits,
    requests: mpsc::Sender<Incoming>,
    shutdown: CancellationToken,
}

async fn accept(listener: UnixListener, shared: Arc<Shared>, beat: Heartbeat) {
    let limit =
        ConnectionLimit::new(shared.limits.connections, shared.limits.per_uid, shared.limits.reserved);
    let mut open = JoinSet::new();
    let mut refusals = Refusals::default();
    let mut pause = FIRST_PAUSE;
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => break,
            () = beat.asked() => {}
            Some(ended) = open.join_next() => {
                if let Err(e) = ended {
                    event!(CONTROL_FAULT, error = %e, "a connection to the control socket failed: {e}");
                }
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    pause = FIRST_PAUSE;
                    admit(stream, &limit, &shared, &mut open, &mut refusals);
                }
                Err(e) => {
                    // After EMFILE and the like a file must be closed first, so the loop pauses.
                    event!(ACCEPT_FAILED, error = %e, "a connection to the control socket cannot be accepted ({e}); the next try is in {} ms", pause.as_millis());
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

fn admit(
    stream: UnixStream,
    limit: &Arc<ConnectionLimit>,
    shared: &Arc<Shared>,
    open: &mut JoinSet<()>,
    refusals: &mut Refusals,
) {
    let peer = match stream.peer_cred() {
        Ok(c) => Peer { pid: c.pid(), uid: c.uid(), gid: c.gid() },
        Err(e) => {
            return event!(CALLER_REFUSED, error = %e, "a connection was closed, because the kernel does not report who the caller is: {e}");
        }
    };
    let admitted = if shared.users.are_told_apart_by(peer.uid) {
        limit.take(peer.uid).map_err(|message| (ErrorCode::Busy, message))
    } else {
        let message =
            "the daemon cannot tell who you are, because its user namespace has no number for you: run it \
                       without a user namespace of its own, or map the host's users into it"
                .to_owned();
        Err((ErrorCode::Denied, message))
    };
    match admitted {
        Ok(permit) => {
            open.spawn(converse(stream, peer, permit, Arc::clone(shared)));
        }
        Err((code, message)) => {
            if let Some(count) = refusals.due(peer.uid, Instant::now()) {
                let connections =
                    if count == 1 { "a connection".to_owned() } else { format!("{count} connections") };
                let verb = if count == 1 { "is" } else { "were" };
                event!(
                    CALLER_REFUSED,
                    uid = peer.uid,
                    error = message,
                    "{connections} of user {} {verb} refused: {message}",
                    peer.uid
                );
            }
            // The buffer of a fresh socket takes this at once, so no task is needed. A
            // caller whose buffer does not take it gets no reason.
            let reply = codec::encode(&Reply::Error { code, message }).unwrap_or_default();
            let _ = stream.try_write(&[&shared.hello[..], &reply].concat());
        }
    }
}

/// Serves one connection from its hello to its end.
async fn converse(stream: UnixStream, peer: Peer, _permit: Permit, shared: Arc<Shared>) {
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
            let body = codec::read_body_async(&mut self.read, codec::MAX_HELLO)
                .await?
                .ok_or(CodecError::Truncated)?;
            ClientHello::parse(&body)
        };
        let hello = within(shared.limits.hello, greeting).await?;
        self.send(&shared.hello).await?;
        if hello.protocol < MINIMUM {
            let message = format!(
                "flywheelctl {} speaks protocol {}, this daemon ({}) speaks {MINIMUM} to {PROTOCOL}: use the flywheelctl of the daemon's version",
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
                        // It is unknown where the next message begins, so the connection ends.
                        return self.tell(Reply::Error { code: ErrorCode::BadRequest, message: e.to_string() }).await;
                    }
                    Err(e) => return Err(e),
                },
            };
            match limits::check(&request) {
                Ok(()) => self.answer(request, peer, shared).await?,
                Err(message) => self.tell(Reply::Error { code: ErrorCode::BadRequest, message }).await?,
            }
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
                let message = "the daemon is stopping: try again when it runs again".to_owned();
                return self.tell(Reply::Error { code: ErrorCode::Draining, message }).await;
            }
        }
        // When the caller has sent its next request already, the end of the connection
        // cannot be seen; writing the reply fails then.
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
                        return Err(CodecError::Truncated); // dropping `answer` informs the daemon
                    }
                    early = true;
                }
            }
        }
    }

    async fn tell(&mut self, reply: Reply) -> Result<(), CodecError> {
        let frame = match codec::encode(&truncated(reply)) {
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

/// Waits until the caller sends more (false) or closes the connection (true).
/// Consumes nothing.
async fn has_ended(read: &mut BufReader<OwnedReadHalf>) -> io::Result<bool> {
    Ok(read.fill_buf().await?.is_empty())
}

async fn within<T>(
    most: Duration,
    work: impl Future<Output = Result<T, CodecError>>,
) -> Result<T, CodecError> {
    timeout(most, work).await.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}
