//! A line with latency: a proxy on loopback that holds every byte back.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

/// Bytes that may be on the line at a time, in each direction of a connection.
const WINDOW: usize = 4 << 20;
const CHUNK: usize = 64 << 10;

/// A proxy before one server. It ends with this value.
pub struct Delay {
    _runtime: tokio::runtime::Runtime,
    address: SocketAddr,
}

impl Delay {
    /// `round_trip`: half of it is added in each direction, and all of it once
    /// more for the connection's setup.
    pub fn before(server: SocketAddr, round_trip: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, server, round_trip));
            }
        });
        Self { _runtime: runtime, address }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn connection(client: TcpStream, server: SocketAddr, round_trip: Duration) {
    tokio::time::sleep(round_trip).await;
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::spawn(line(from_client, to_server, round_trip / 2));
    tokio::spawn(line(from_server, to_client, round_trip / 2));
}

async fn line(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (enter, mut leave) = tokio::sync::mpsc::channel::<(Instant, Vec<u8>)>(WINDOW / CHUNK);
    tokio::spawn(async move {
        while let Some((at, bytes)) = leave.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        match from.read_buf(&mut bytes).await {
            Ok(1..) if enter.send((Instant::now() + delay, bytes)).await.is_ok() => {}
            _ => return,
        }
    }
}
