//! A line with latency, and with a bandwidth if one is given: a proxy on loopback that holds every
//! byte back.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

/// Bytes that may be on the line at a time, in each direction of a connection. A line of 1 Gbit/s and
/// 25 ms holds 3 MB.
const WINDOW: usize = 8 << 20;
const CHUNK: usize = 64 << 10;

/// Bytes per second of all connections in one direction, 0 for no limit, and when the last byte that
/// has entered is through.
type Bandwidth = Arc<Mutex<(u64, Option<Instant>)>>;

/// A proxy before one server. It ends with this value.
pub struct Delay {
    _runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    /// To the server, and back.
    bandwidth: [Bandwidth; 2],
}

impl Delay {
    /// `round_trip`: half of it is added in each direction, and all of it once
    /// more for the connection's setup.
    pub fn before(server: SocketAddr, round_trip: Duration) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let bandwidth: [Bandwidth; 2] = Default::default();
        let shared = bandwidth.clone();
        runtime.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(connection(client, server, round_trip, shared.clone()));
            }
        });
        Self { _runtime: runtime, address, bandwidth }
    }

    /// Limits the line to this many bytes per second in each direction.
    pub fn limited(self, per_second: u64) -> Self {
        for direction in &self.bandwidth {
            direction.lock().unwrap().0 = per_second;
        }
        self
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }
}

async fn connection(client: TcpStream, server: SocketAddr, round_trip: Duration, width: [Bandwidth; 2]) {
    tokio::time::sleep(round_trip).await;
    let Ok(server) = TcpStream::connect(server).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    let [up, down] = width;
    tokio::spawn(line(from_client, to_server, round_trip / 2, up));
    tokio::spawn(line(from_server, to_client, round_trip / 2, down));
}

/// When bytes that enter now are through the line's narrowest point.
fn through(bytes: usize, width: &Bandwidth) -> Instant {
    let mut width = width.lock().unwrap();
    let now = Instant::now();
    if width.0 == 0 {
        return now;
    }
    let at = width.1.map_or(now, |at| at.max(now)) + Duration::from_secs_f64(bytes as f64 / width.0 as f64);
    width.1 = Some(at);
    at
}

async fn line(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration, width: Bandwidth) {
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
        let Ok(1..) = from.read_buf(&mut bytes).await else { return };
        let at = through(bytes.len(), &width) + delay;
        if enter.send((at, bytes)).await.is_err() {
            return;
        }
    }
}
