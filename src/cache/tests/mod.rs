//! Tests of the client on real sockets. Each test has its own servers on their own
//! ports, waits for outcomes and not for the clock, and leaves nothing behind.

mod calls;
mod celler;
mod connections;
mod discovery;
mod headers;
mod hostile;
mod http2;
mod network;
pub(crate) mod server;
mod throughput;
mod tokens;
mod vectors;

use crate::types::CacheName;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, stream};

use super::*;

/// Settings with timeouts so long that they do not affect a test unless it sets them.
fn settings(endpoints: &[&str]) -> ClientSettings {
    let endpoints = endpoints.iter().map(ToString::to_string).collect();
    ClientSettings::new(endpoints, CacheName::parse("main").unwrap(), TokenSource::None)
}

fn client(endpoint: &str) -> CacheClient {
    CacheClient::new(settings(&[endpoint])).unwrap()
}

/// Returns a client with a short stall timeout.
fn impatient(endpoint: &str) -> CacheClient {
    let (connect_timeout, stall_timeout) = (Duration::from_secs(1), Duration::from_millis(150));
    CacheClient::new(ClientSettings { connect_timeout, stall_timeout, ..settings(&[endpoint]) }).unwrap()
}

fn info(nar_size: u64) -> UploadInfo {
    let hash = "a64qcx6rx81vhi139l1w70ad26xwcxjz";
    UploadInfo {
        cache: CacheName::parse("main").unwrap(),
        store_path_hash: hash.to_owned(),
        store_path: format!("/nix/store/{hash}-x"),
        references: Vec::new(),
        system: None,
        deriver: None,
        sigs: Vec::new(),
        ca: None,
        nar_hash: format!("sha256:{}", "0".repeat(64)),
        nar_size,
    }
}

const CHUNK: usize = 64 * 1024;

/// `size` bytes in chunks that share one allocation.
fn nar(size: u64) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let chunk = Bytes::from(vec![b'n'; CHUNK]);
    stream::unfold(size, move |left| {
        let take = left.min(CHUNK as u64);
        let piece = chunk.slice(..usize::try_from(take).unwrap());
        async move { (take > 0).then_some((Ok(piece), left - take)) }
    })
}

fn hashes(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("{i:032}")).collect()
}
