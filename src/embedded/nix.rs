//! Nix's requests to a substituter: `nix-cache-info`, narinfo and NAR. Must not know how the cache stores paths.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use tokio_util::io::ReaderStream;

use super::api::App;
use super::cache_store::Nar;
use super::error::ApiError;
use super::narinfo;
use crate::types::{CacheName, PathHash};

const READ_AHEAD: usize = 64 * 1024;

pub(super) async fn cache_info(
    State(app): State<Arc<App>>,
    Path(cache): Path<CacheName>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.readable(&headers, &cache)?;
    let text = format!("WantMassQuery: 1\nStoreDir: {}\nPriority: {}\n", app.store_dir, app.priority);
    Ok(([(CONTENT_TYPE, "text/x-nix-cache-info")], text).into_response())
}

pub(super) async fn nar_info(
    State(app): State<Arc<App>>,
    Path((cache, file)): Path<(CacheName, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = app.readable(&headers, &cache)?;
    let hash = named(&file, ".narinfo")?;
    let name = cache.as_str().to_owned();
    let found = app
        .blocking(move |app| {
            app.cache_store.reader.path(&name, hash).map_err(|e| ApiError::from_sql("reading a path", &e))
        })
        .await?;
    let (record, stale) = found.ok_or(ApiError::NoSuchObject)?;
    app.cache_store.writer.touch(stale.into_iter().collect()).await;
    let text = narinfo::text(&app.store_dir, &record, key);
    Ok(([(CONTENT_TYPE, "text/x-nix-narinfo")], text).into_response())
}

pub(super) async fn nar(
    State(app): State<Arc<App>>,
    Path((cache, file)): Path<(CacheName, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.readable(&headers, &cache)?;
    let hash = named(&file, ".nar")?;
    let name = cache.as_str().to_owned();
    let found = app
        .blocking(move |app| {
            app.cache_store.reader.nar(&name, hash).map_err(|e| ApiError::from_sql("reading a NAR", &e))
        })
        .await?;
    let (nar, stale) = found.ok_or(ApiError::NoSuchObject)?;
    app.cache_store.writer.touch(stale.into_iter().collect()).await;
    let (size, body) = match nar {
        Nar::Small(data) => (data.len() as u64, Body::from(data)),
        Nar::File { hash, size } => {
            let path = app.cache_store.nar_file(&hash);
            let Ok(mut file) = tokio::fs::File::open(&path).await else {
                // The cache evicted the NAR after the lookup, or somebody removed its file. In the
                // second case the row must be removed too.
                crate::observe::event!(
                    BUILT_IN_LOST,
                    file = %path.display(),
                    "built-in cache: the file {} is missing; its paths are removed from the cache",
                    path.display()
                );
                app.cache_store.writer.lost(hash).await;
                return Err(ApiError::NoSuchObject);
            };
            file.set_max_buf_size(READ_AHEAD);
            (size, Body::from_stream(ReaderStream::with_capacity(file, READ_AHEAD)))
        }
    };
    Ok(([(CONTENT_TYPE, "application/x-nix-nar".to_owned()), (CONTENT_LENGTH, size.to_string())], body)
        .into_response())
}

/// Returns the hash in `HASH.suffix`; any other name gives "not found".
fn named(file: &str, suffix: &str) -> Result<PathHash, ApiError> {
    let hash = file.strip_suffix(suffix).ok_or(ApiError::NotFound)?;
    PathHash::parse(hash).map_err(|_| ApiError::NotFound)
}
