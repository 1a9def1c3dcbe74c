//! `PUT /_api/v1/upload-path`: receives, verifies and stores a path. Holds no lock
//! while it receives a body. Must not know how the cache stores paths.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::BodyDataStream;
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::sync::{Semaphore, mpsc};

use super::api::App;
use super::cache_store::{Content, NewPath, SMALL, Stored, compress_small};
use super::error::ApiError;
use super::wire::{PathRecord, UploadAnswer, UploadInfo};

const INFO: &str = "x-attic-nar-info";
const PREAMBLE: &str = "x-attic-nar-info-preamble-size";

/// Largest preamble in bytes, the same as Attic's default.
const LARGEST_PREAMBLE: usize = 1 << 20;

/// Number of chunks that may wait between the connection and the disk.
const CHUNKS_AHEAD: usize = 4;

pub(super) async fn upload_path(State(app): State<Arc<App>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut body = Body { stream: body.into_data_stream(), rest: Bytes::new(), stall: app.limits.stall };
    match receive(&app, &head.headers, &mut body).await {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => {
            linger(body.stream);
            error.into_response()
        }
    }
}

async fn receive(app: &Arc<App>, headers: &HeaderMap, body: &mut Body) -> Result<UploadAnswer, ApiError> {
    app.access.push(headers)?;
    // Uploads beyond the limit wait here before their body is read, so their clients wait too.
    let _turn = app.limits.uploads.acquire().await.map_err(|_| ApiError::Internal)?;
    let info = info(headers, body).await?;
    let cache = info.cache.as_str().to_owned();
    app.key(&info.cache).ok_or(ApiError::NoSuchCache)?;
    let (hash, size, limit) = (info.store_path_hash, info.nar_size, app.limits.max_nar_size);
    let record = info.check(&app.store_dir)?;
    if size > limit {
        return Err(ApiError::TooLarge { size, limit });
    }
    if size <= SMALL {
        return small(app, cache, record, body).await;
    }
    let asked = cache.clone();
    let present = app
        .blocking(move |app| {
            app.cache_store
                .reader
                .has_path(&asked, hash)
                .map_err(|e| ApiError::from_sql("looking a path up", &e))
        })
        .await?;
    large(app, cache, record, present, body).await
}

async fn info(headers: &HeaderMap, body: &mut Body) -> Result<UploadInfo, ApiError> {
    let json = if let Some(size) = headers.get(PREAMBLE) {
        let size = size.to_str().ok().and_then(|s| s.parse::<usize>().ok());
        let size = size.ok_or_else(|| ApiError::Request(format!("{PREAMBLE} is not a number")))?;
        if size > LARGEST_PREAMBLE {
            return Err(ApiError::Request("the upload info is too large".to_owned()));
        }
        body.exactly(size).await?.ok_or_else(|| ApiError::Request("the upload info is cut off".to_owned()))?
    } else if let Some(info) = headers.get(INFO) {
        Bytes::copy_from_slice(info.as_bytes())
    } else {
        return Err(ApiError::Request("X-Attic-Nar-Info must be set".to_owned()));
    };
    serde_json::from_slice(&json).map_err(|e| ApiError::Request(e.to_string()))
}

async fn small(
    app: &Arc<App>,
    cache: String,
    record: PathRecord,
    body: &mut Body,
) -> Result<UploadAnswer, ApiError> {
    let size = record.nar_size;
    let expected = usize::try_from(size).map_err(|_| ApiError::Internal)?;
    let nar = body.exactly(expected).await?.ok_or_else(ApiError::bad_nar)?;
    if body.next().await?.is_some() {
        return Err(ApiError::bad_nar());
    }
    let hash = record.nar_hash;
    let data = app.blocking(move |_| compress_small(&nar, &hash, size)).await?;
    let new = NewPath { cache, record, content: Content::Small(data) };
    answer(app.cache_store.writer.store(new).await?)
}

/// Receives a large NAR: a thread hashes, compresses and writes it, and this task gives it the chunks.
async fn large(
    app: &Arc<App>,
    cache: String,
    record: PathRecord,
    present: bool,
    body: &mut Body,
) -> Result<UploadAnswer, ApiError> {
    let (chunks, mut inbox) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
    let (hash, size) = (record.nar_hash, record.nar_size);
    let receiving = app.blocking(move |app| {
        let mut incoming = app.cache_store.receive(hash, size, present)?;
        while let Some(chunk) = inbox.blocking_recv() {
            incoming.write(&chunk)?;
        }
        incoming.finish()
    });
    let feeding = async {
        // If the thread stops early, its error must not wait for the rest of a slow body.
        while let Some(chunk) = tokio::select! {
            chunk = body.next() => chunk?,
            () = chunks.closed() => None,
        } {
            let _ = chunks.send(chunk).await; // if it fails, the next turn sees the closed channel
        }
        drop(chunks); // tells the thread that the body is complete
        Ok(())
    };
    let (received, fed) = tokio::join!(receiving, feeding);
    let (content, pin) = match (received, fed) {
        (_, Err(e)) | (Err(e), _) => return Err(e),
        (Ok(received), Ok(())) => received,
    };
    let stored = app.cache_store.writer.store(NewPath { cache, record, content }).await?;
    drop(pin);
    answer(stored)
}

fn answer(stored: Stored) -> Result<UploadAnswer, ApiError> {
    let (kind, file_size) = match stored {
        Stored::Uploaded { file_size } | Stored::Present { same_nar: false, file_size } => {
            ("Uploaded", Some(file_size))
        }
        Stored::Deduplicated | Stored::Present { same_nar: true, .. } => ("Deduplicated", None),
        Stored::NarEvicted => return Err(ApiError::TryAgain),
        Stored::NoRoom => return Err(ApiError::DiskFull),
    };
    Ok(UploadAnswer { kind, file_size, frac_deduplicated: None })
}

struct Body {
    stream: BodyDataStream,
    rest: Bytes,
    stall: Duration,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        while self.rest.is_empty() {
            match tokio::time::timeout(self.stall, self.stream.next()).await {
                Err(_) => return Err(ApiError::Stalled),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(ApiError::bad_nar()), // the client has ended the connection
                Ok(Some(Ok(chunk))) => self.rest = chunk,
            }
        }
        Ok(Some(std::mem::take(&mut self.rest)))
    }

    /// Returns the next `size` bytes, or `None` if the body ends before. Memory grows with the bytes received, not
    /// with the announced size.
    async fn exactly(&mut self, size: usize) -> Result<Option<Bytes>, ApiError> {
        let mut all = BytesMut::new();
        while all.len() < size {
            let Some(mut chunk) = self.next().await? else { return Ok(None) };
            let taken = chunk.split_to(chunk.len().min(size - all.len()));
            self.rest = chunk;
            if all.is_empty() && taken.len() == size {
                return Ok(Some(taken));
            }
            all.extend_from_slice(&taken);
        }
        Ok(Some(all.freeze()))
    }
}

/// Reads and discards the rest of a body, up to a bound. Without this, an answer
/// before the end of the body would reset the connection while the client still
/// sends, and the client would see a broken pipe instead of the answer.
pub(super) fn linger(mut stream: BodyDataStream) {
    static AT_ONCE: Semaphore = Semaphore::const_new(32);
    const MOST: usize = 64 << 20;
    const LONGEST: Duration = Duration::from_secs(30);
    let Ok(turn) = AT_ONCE.try_acquire() else { return };
    tokio::spawn(async move {
        let _turn = turn;
        let drain = async {
            let mut thrown_away = 0;
            while thrown_away < MOST
                && let Some(Ok(chunk)) = stream.next().await
            {
                thrown_away += chunk.len();
            }
        };
        let _ = tokio::time::timeout(LONGEST, drain).await; // then the connection is closed in any case
    });
}
