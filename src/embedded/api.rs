//! The Attic API's questions: a cache's configuration, and which paths it lacks.
//! Must not know how the cache stores paths.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::body::to_bytes;
use axum::extract::{Path, Request, State};
use axum::http::header::{ALLOW, CONTENT_TYPE, HOST};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{Html, IntoResponse, Response};

use super::cache_store::CacheStore;
use super::error::ApiError;
use super::host::HostNames;
use super::secrets::CacheKey;
use super::wire::{CacheConfig, MissingAnswer, MissingRequest};
use super::{Access, Limits};
use crate::types::{CacheName, PathHash};

/// Longest question in bytes: about 115,000 hashes.
const LARGEST_QUESTION: usize = 4 << 20;

/// The state that every request needs.
pub(super) struct App {
    pub(super) cache_store: CacheStore,
    pub(super) access: Access,
    pub(super) keys: Vec<(String, CacheKey)>,
    pub(super) store_dir: String,
    pub(super) priority: u32,
    pub(super) upstream_cache_key_names: Vec<String>,
    pub(super) addr: SocketAddr,
    pub(super) names: HostNames,
    pub(super) limits: Limits,
}

impl App {
    pub(super) fn key(&self, cache: &CacheName) -> Option<&CacheKey> {
        self.keys.iter().find(|(name, _)| name == cache.as_str()).map(|(_, key)| key)
    }

    /// Returns the cache's key if the caller may read the cache.
    pub(super) fn readable(&self, headers: &HeaderMap, cache: &CacheName) -> Result<&CacheKey, ApiError> {
        let key = self.key(cache);
        self.access.pull(headers, key.is_some())?;
        key.ok_or(ApiError::NoSuchCache)
    }

    /// Runs `work`, which waits for the disk, on a thread that may block.
    pub(super) async fn blocking<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<R, ApiError> + Send + 'static,
    ) -> Result<R, ApiError> {
        let app = Arc::clone(self);
        tokio::task::spawn_blocking(move || work(&app)).await.unwrap_or(Err(ApiError::Internal))
    }
}

pub(super) async fn root() -> Html<&'static str> {
    Html("<!doctype html>\n<title>flywheel</title>\n<p>A Nix binary cache. It speaks the Attic API.</p>\n")
}

pub(super) async fn unknown_url() -> ApiError {
    ApiError::NotFound
}

pub(super) async fn cache_config(
    State(app): State<Arc<App>>,
    Path(cache): Path<CacheName>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = app.readable(&headers, &cache)?;
    // The name by which the client reaches this server; `own_names` has checked it.
    let host = headers.get(HOST).and_then(|host| host.to_str().ok());
    let host = host.map_or_else(|| app.addr.to_string(), str::to_owned);
    let scheme = match headers.get("x-forwarded-proto") {
        Some(proto) if proto.as_bytes() == b"https" => "https",
        _ => "http",
    };
    let prefix = prefix(&headers);
    let config = CacheConfig {
        substituter_endpoint: format!("{scheme}://{host}{prefix}/{}", cache.as_str()),
        api_endpoint: format!("{scheme}://{host}{prefix}/"),
        public_key: key.public(),
        is_public: app.access.public,
        store_dir: &app.store_dir,
        priority: app.priority,
        upstream_cache_key_names: &app.upstream_cache_key_names,
        retention_period: "Global",
    };
    Ok(Json(config).into_response())
}

/// The path below which a proxy serves this server, if the proxy names one (`X-Forwarded-Prefix`): without a
/// slash at its end, and empty for one that no URL of a cache could have.
fn prefix(headers: &HeaderMap) -> &str {
    let prefix =
        headers.get("x-forwarded-prefix").and_then(|prefix| prefix.to_str().ok()).unwrap_or_default();
    let prefix = prefix.trim_end_matches('/');
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/".contains(&b);
    let good =
        prefix.len() <= 256 && prefix.starts_with('/') && !prefix.contains("//") && !prefix.contains("..");
    if good && prefix.bytes().all(plain) { prefix } else { "" }
}

/// Refuses to make, change or remove a cache over HTTP, as `attic cache create` asks.
pub(super) async fn fixed_caches() -> Response {
    ([(ALLOW, "GET,HEAD")], ApiError::FixedCaches).into_response()
}

/// Answers which paths are missing. This needs the right to push, because it shows
/// what is in the cache. The token is checked before the body is read, so that a
/// caller without one cannot make the server hold megabytes.
pub(super) async fn get_missing_paths(State(app): State<Arc<App>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    if let Err(refused) = app.access.push(&head.headers) {
        super::upload::linger(body.into_data_stream());
        return refused.into_response();
    }
    let json = head.headers.get(CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if !json {
        let text = "Expected request with `Content-Type: application/json`";
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, text).into_response();
    }
    let read = tokio::time::timeout(app.limits.stall, to_bytes(body, LARGEST_QUESTION)).await;
    let Ok(read) = read else { return ApiError::Stalled.into_response() };
    let Ok(bytes) = read else {
        return (StatusCode::PAYLOAD_TOO_LARGE, "Too many hashes in one question").into_response();
    };
    let asked: MissingRequest = match Json::from_bytes(&bytes) {
        Ok(Json(asked)) => asked,
        Err(malformed) => return malformed.into_response(), // 400 or 422, plain text
    };
    drop(bytes);
    match missing(&app, asked).await {
        Ok(answer) => answer,
        Err(e) => e.into_response(),
    }
}

async fn missing(app: &Arc<App>, asked: MissingRequest) -> Result<Response, ApiError> {
    if app.key(&asked.cache).is_none() {
        return Err(ApiError::NoSuchCache);
    }
    let (missing, stale) = app
        .blocking(move |app| {
            app.cache_store
                .reader
                .missing(asked.cache.as_str(), &asked.store_path_hashes)
                .map_err(|e| ApiError::from_sql("asking what is missing", &e))
        })
        .await?;
    app.cache_store.writer.touch(stale).await;
    let missing_paths = missing.iter().map(PathHash::as_str).collect();
    Ok(Json(MissingAnswer { missing_paths }).into_response())
}
