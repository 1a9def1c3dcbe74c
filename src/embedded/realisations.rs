//! Realisations of content-addressed derivations, as Nix reads them from a substituter
//! (Nix's `BinaryCacheStore::queryRealisation` and `Realisation::fingerprint`). Without
//! them Nix builds again what the cache has, because it does not know the paths.
//!
//! They come from the process that this cache is a part of, which reads them from the Nix
//! database, and not over HTTP. A cache serves those whose paths it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::api::App;
use super::cache_store::Publisher;
use super::error::ApiError;
use super::secrets::CacheKey;
use crate::types::{CacheName, DrvOutput, Realisation, StorePath};

/// Takes realisations for the built-in cache. It does not keep the cache open.
#[derive(Debug, Clone)]
pub struct Realisations(Publisher);

impl Realisations {
    pub(super) fn new(publisher: Publisher) -> Self {
        Self(publisher)
    }

    /// Stores realisations, and replaces those of the same outputs. Returns false when
    /// they could not be written, or the cache has ended. Blocks until they are on the
    /// disk.
    #[must_use]
    pub fn publish(&self, realisations: Vec<Realisation>) -> bool {
        self.0.publish(realisations)
    }
}

/// Returns what identifies an output in the cache's database: its address below the
/// cache's, without the suffix.
pub(super) fn key(output: &DrvOutput) -> String {
    match output {
        DrvOutput::Hashed(id) => format!("realisations/{id}"),
        DrvOutput::Named(derivation, output) => format!("build-trace-v2/{derivation}/{output}"),
    }
}

/// Nix up to 2.34: `realisations/sha256:…!out.doi`.
pub(super) async fn hashed(
    State(app): State<Arc<App>>,
    Path((cache, file)): Path<(CacheName, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let id = file.strip_suffix(".doi").ok_or(ApiError::NotFound)?;
    serve(&app, cache, DrvOutput::Hashed(id.to_owned()), &headers).await
}

/// Nix from 2.35 on: `build-trace-v2/…-name.drv/out.doi`.
pub(super) async fn named(
    State(app): State<Arc<App>>,
    Path((cache, derivation, file)): Path<(CacheName, String, String)>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let output = file.strip_suffix(".doi").ok_or(ApiError::NotFound)?;
    let derivation = StorePath::parse(&derivation).map_err(|_| ApiError::NotFound)?;
    serve(&app, cache, DrvOutput::Named(derivation, output.to_owned()), &headers).await
}

async fn serve(
    app: &Arc<App>,
    cache: CacheName,
    output: DrvOutput,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let key = app.readable(headers, &cache)?;
    let name = cache.as_str().to_owned();
    let found = app
        .blocking(move |app| {
            app.cache_store
                .reader
                .realisation(&name, output)
                .map_err(|e| ApiError::from_sql("reading a realisation", &e))
        })
        .await?;
    let text = text(&found.ok_or(ApiError::NoSuchObject)?, key);
    Ok(([(CONTENT_TYPE, "application/json")], text).into_response())
}

/// Writes a realisation as Nix reads it, signed with the cache's key. Keys are in the
/// order of the alphabet, as in Nix: a signature covers this text.
pub(super) fn text(realisation: &Realisation, key: &CacheKey) -> String {
    let path = realisation.path.base();
    let mut sigs: Vec<String> = realisation.sigs.clone();
    let mut answer = match &realisation.output {
        DrvOutput::Hashed(id) => {
            let of = |dependencies: &BTreeMap<&str, &str>| json!({ "dependentRealisations": dependencies, "id": id, "outPath": path });
            let pairs = realisation.dependencies.iter();
            let dependencies = pairs.map(|(id, path)| (id.as_str(), path.base())).collect();
            let whole = of(&dependencies);
            sigs.push(key.sign(&whole.to_string()));
            // Nix 2.34 reads no dependencies and leaves them out of what it verifies.
            if !dependencies.is_empty() {
                sigs.push(key.sign(&of(&BTreeMap::new()).to_string()));
            }
            whole
        }
        DrvOutput::Named(derivation, output) => {
            let value = json!({ "outPath": path });
            let signed = json!({
                "key": { "drvPath": derivation.base(), "outputName": output },
                "value": value,
            });
            sigs.push(key.sign(&signed.to_string()));
            value
        }
    };
    answer["signatures"] = json!(sigs);
    answer.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(name: &str) -> StorePath {
        StorePath::parse(&format!("{:032}-{name}", 0)).unwrap()
    }

    /// The form is that of files that `nix copy --to file://` wrote (Nix 2.26).
    #[test]
    fn nix_reads_this_form_up_to_2_34() {
        let key = CacheKey::for_tests();
        let mut realisation = Realisation {
            output: DrvOutput::Hashed("sha256:79de!out".to_owned()),
            path: path("ca-1"),
            dependencies: vec![("sha256:5e86!out".to_owned(), path("ca-0"))],
            sigs: vec![],
        };
        let whole = format!(
            r#"{{"dependentRealisations":{{"sha256:5e86!out":"{}"}},"id":"sha256:79de!out","outPath":"{}"#,
            path("ca-0"),
            path("ca-1")
        );
        let signature = key.sign(&format!("{whole}\"}}"));
        let answer = text(&realisation, &key);
        assert!(answer.starts_with(&format!("{whole}\",\"signatures\":[\"{signature}\",")), "{answer}");
        realisation.dependencies.clear();
        let alone =
            format!(r#"{{"dependentRealisations":{{}},"id":"sha256:79de!out","outPath":"{}"#, path("ca-1"));
        let second = key.sign(&format!("{alone}\"}}"));
        assert!(answer.contains(&second), "what Nix 2.34 verifies: {answer}");
        assert_eq!(text(&realisation, &key), format!("{alone}\",\"signatures\":[\"{second}\"]}}"));
    }

    /// As in the source of Nix 2.35 (`UnkeyedRealisation::fingerprint`).
    #[test]
    fn nix_reads_this_form_from_2_35() {
        let key = CacheKey::for_tests();
        let output = DrvOutput::Named(path("ca-1.drv"), "out".to_owned());
        let realisation = Realisation { output, path: path("ca-1"), dependencies: vec![], sigs: vec![] };
        let signed = format!(
            r#"{{"key":{{"drvPath":"{}","outputName":"out"}},"value":{{"outPath":"{}"}}}}"#,
            path("ca-1.drv"),
            path("ca-1")
        );
        let expected = format!(r#"{{"outPath":"{}","signatures":["{}"]}}"#, path("ca-1"), key.sign(&signed));
        assert_eq!(text(&realisation, &key), expected);
    }
}
