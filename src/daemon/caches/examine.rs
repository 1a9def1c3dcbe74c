//! What a cache answers to questions of `doctor`: each endpoint, the right to push, and
//! on request an upload that is read back. Must not know what is good or bad.

use futures_util::stream;

use super::{Cache, Netrc};
use crate::cache::{CacheClient, CacheError, TokenSource, UploadInfo};
use crate::control::messages as m;
use crate::store::TextPath;
use crate::types::StoreDir;

/// The path that is uploaded: a text, so that it is the same on every host, refers to
/// nothing and need not be in the store.
const NAME: &str = "flywheel-doctor";
const TEXT: &str = "`flywheelctl doctor --push` has uploaded this to see that the cache takes paths.\n";

/// A cache that is to be examined. Holds what is needed, so that the driver goes on.
pub(in crate::daemon) struct Examination {
    name: String,
    client: CacheClient,
    token: TokenSource,
    /// The program that gives the token, if one does.
    program: String,
    pull: TokenSource,
    store_dir: StoreDir,
    realisations: bool,
}

impl Examination {
    /// `realisations`: whether the cache keeps them.
    pub(in crate::daemon) fn of(
        cache: &Cache,
        netrc: Option<&Netrc>,
        store_dir: &StoreDir,
        realisations: bool,
    ) -> Self {
        Self {
            name: cache.name().to_owned(),
            client: cache.client().clone(),
            token: cache.login().token.clone(),
            program: cache
                .connection()
                .token_command()
                .and_then(|c| c.words.first())
                .cloned()
                .unwrap_or_default(),
            pull: netrc.map(|netrc| netrc.pull(cache.name())).unwrap_or_default(),
            store_dir: store_dir.clone(),
            realisations,
        }
    }

    /// Asks the cache; with `push`, also uploads the path and reads it back.
    pub(in crate::daemon) async fn run(self, push: bool) -> m::CacheDiagnosis {
        let token_source = match &self.token {
            TokenSource::File(file) => Some(file.display().to_string()),
            TokenSource::Env(variable) => Some(format!("${variable}")),
            TokenSource::Supplied(_) => Some(format!("token_command {}", self.program)),
            TokenSource::None => None,
        };
        let client = self.client.clone();
        let read = tokio::task::spawn_blocking(move || client.reload_token().err().map(|e| e.to_string()));
        let token_problem = read.await.unwrap_or_else(|error| Some(error.to_string()));
        let mut found = m::CacheDiagnosis {
            name: self.name.clone(),
            token_source,
            token_problem: token_problem.or_else(|| self.client.supplied()?.problem()),
            token_renews: self.client.supplied().is_some(),
            token_expires: self.client.token_expiry(),
            realisations: self.realisations,
            ..m::CacheDiagnosis::default()
        };
        let mut substituter = None;
        for examined in self.client.examine().await {
            let fault = match examined.config {
                Ok(config) => {
                    substituter = substituter.or(config.substituter_endpoint);
                    found.store_dir = found.store_dir.or(config.store_dir);
                    None
                }
                Err(error) => Some(fault(error)),
            };
            let (address, clock_ahead_s) = (examined.address, examined.clock_ahead_s);
            found.endpoints.push(m::EndpointDiagnosis { address, fault, clock_ahead_s });
        }
        let answers = found.endpoints.iter().any(|endpoint| endpoint.fault.is_none());
        let Some(path) = TextPath::new(&self.store_dir, NAME, TEXT).filter(|_| answers) else { return found };
        // A server answers this question to those only who may push.
        let asked = self.client.missing(vec![path.path.hash_part().to_owned()]).await;
        found.push_problem = asked.err().map(fault);
        if push && found.push_problem.is_none() {
            found.upload = Some(self.upload(path, substituter).await);
        }
        found
    }

    async fn upload(&self, path: TextPath, substituter: Option<String>) -> m::UploadDiagnosis {
        let full = self.store_dir.full(&path.path);
        let info = UploadInfo {
            cache: self.client.cache().clone(),
            store_path_hash: path.path.hash_part().to_owned(),
            store_path: full.clone(),
            references: Vec::new(),
            system: None,
            deriver: None,
            sigs: Vec::new(),
            ca: Some(path.ca),
            nar_hash: path.nar_hash.to_string(),
            nar_size: path.nar.len() as u64,
        };
        let mut found = m::UploadDiagnosis { path: full, ..m::UploadDiagnosis::default() };
        let nar = stream::once(std::future::ready(Ok(path.nar.into())));
        if let Err(error) = self.client.upload(&info, nar).await {
            found.upload_problem = Some(fault(error));
            return found;
        }
        found.read_problem = match substituter {
            Some(from) => self.client.read_back(&from, &self.pull, &info).await.err().map(fault),
            None => Some(m::Fault {
                class: "rejected".to_owned(),
                message: "the cache names no substituter, so that Nix cannot read it".to_owned(),
            }),
        };
        found
    }
}

fn fault(error: CacheError) -> m::Fault {
    m::Fault { class: error.class.as_str().to_owned(), message: error.message }
}
