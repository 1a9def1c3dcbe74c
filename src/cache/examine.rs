//! Asks each endpoint of a cache, one by one, for `doctor`. It changes neither the
//! endpoint in use nor the token. Must not know what an answer means for people.

use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use reqwest::Url;
use reqwest::header::{DATE, HeaderMap, LOCATION};

use super::client::CacheClient;
use super::discover::LONGEST_CONFIG;
use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass};
use super::read::get;
use super::token::TokenSource;
use super::transport::Answer;
use super::wire::{CacheConfig, UploadInfo};
use crate::types::NarHash;

/// Time limit for an answer, beside that for the connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest narinfo that the client reads, in bytes.
const LONGEST_NARINFO: usize = 64 * 1024;
/// Longest NAR that the client reads back, in bytes.
const LONGEST_NAR: usize = 64 * 1024;

/// What one endpoint answered.
pub(crate) struct Examined {
    /// The configured address.
    pub(crate) address: String,
    /// The cache's configuration, as the server has it.
    pub(crate) config: Result<CacheConfig, CacheError>,
    /// How far the server's clock is ahead of this host's, in seconds.
    pub(crate) clock_ahead_s: Option<i64>,
}

impl CacheClient {
    /// Asks all configured endpoints at once. Takes at most the connect timeout and 5 s.
    pub(crate) async fn examine(&self) -> Vec<Examined> {
        join_all(self.inner().candidates.iter().map(|base| self.examine_one(base))).await
    }

    async fn examine_one(&self, base: &Endpoint) -> Examined {
        let inner = self.inner();
        let call = Endpoint::config_call(&inner.cache);
        let doing = format!("asking {base} for the cache {}", inner.cache);
        let request = || Ok(inner.transport.client(base)?.get(base.api(&call)?));
        let answer = inner.small(request, LONGEST_CONFIG, PATIENCE, &doing).await;
        let ahead = answer.as_ref().ok().and_then(|a| clock_ahead(&a.headers, SystemTime::now()));
        let config = match answer {
            Ok(answer) => match self.moved(base, &answer) {
                Some(next) => {
                    let request = || Ok(inner.transport.client(&next)?.get(next.api(&call)?));
                    let again = inner.small(request, LONGEST_CONFIG, PATIENCE, &doing).await;
                    again.and_then(|answer| answer.json::<CacheConfig>(&doing))
                }
                None => answer.json::<CacheConfig>(&doing),
            },
            Err(error) => Err(error),
        };
        let config = config.map(|config| config.checked(&inner.secrets())).map_err(|e| inner.scrubbed(e));
        Examined { address: base.to_string(), config, clock_ahead_s: ahead }
    }

    /// The address that an answer redirects to, where the client follows redirects.
    fn moved(&self, base: &Endpoint, answer: &Answer) -> Option<Endpoint> {
        let location = answer.headers.get(LOCATION).filter(|_| answer.status.is_redirection())?;
        base.redirected(location.to_str().ok()?, &self.inner().cache)
    }

    /// Reads a path as Nix would: its narinfo, whose hash must be that of `info`, and
    /// then its NAR. A redirect of the NAR to another server is not followed and counts
    /// as an answer.
    pub(crate) async fn read_back(
        &self,
        substituter: &str,
        pull: &TokenSource,
        info: &UploadInfo,
    ) -> Result<(), CacheError> {
        let base = Endpoint::parse(substituter)?;
        let root = format!("{}/", substituter.trim_end_matches('/'));
        let root = Url::parse(&root)
            .map_err(|e| CacheError::new(ErrorClass::Rejected, format!("{substituter}: {e}")))?;
        let at = |relative: &str| {
            let url = root.join(relative).ok().filter(|url| url.origin() == root.origin());
            url.ok_or_else(|| {
                let what = format!("{substituter} names {relative:?} as the place of a NAR");
                CacheError::new(ErrorClass::Rejected, what)
            })
        };
        let url = at(&format!("{}.narinfo", info.store_path_hash))?;
        let doing = format!("reading {url}");
        let answer = get(self.inner(), &base, url, pull, LONGEST_NARINFO, &doing).await?;
        if !answer.status.is_success() {
            return Err(answer.refusal(&doing));
        }
        let text = String::from_utf8_lossy(&answer.body);
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let wanted = NarHash::parse(&info.nar_hash).ok();
        let found = field("NarHash:").and_then(|hash| NarHash::parse(hash).ok());
        if found.is_none() || found != wanted {
            let what = format!("{doing}: that is not the narinfo of the path that was uploaded");
            return Err(CacheError::new(ErrorClass::Mismatch, what));
        }
        let url = at(field("URL:").unwrap_or_default())?;
        let doing = format!("reading {url}");
        let answer = get(self.inner(), &base, url, pull, LONGEST_NAR, &doing).await?;
        if answer.status.is_success() || answer.status.is_redirection() {
            Ok(())
        } else {
            Err(answer.refusal(&doing))
        }
    }
}

/// How far the server's clock is ahead of `now`. Its date has whole seconds, so a
/// difference of one second means nothing.
fn clock_ahead(headers: &HeaderMap, now: SystemTime) -> Option<i64> {
    let date = httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?).ok()?;
    let seconds = |gap: Duration| i64::try_from(gap.as_secs()).unwrap_or(i64::MAX);
    Some(match date.duration_since(now) {
        Ok(ahead) => seconds(ahead),
        Err(behind) => -seconds(behind.duration()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_of_an_answer_is_compared_with_this_clock() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        for (server, ahead) in [(1_000_000_u64, 0), (1_000_090, 90), (999_700, -300)] {
            let mut headers = HeaderMap::new();
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(server));
            headers.insert(DATE, date.parse().unwrap());
            assert_eq!(clock_ahead(&headers, now), Some(ahead));
        }
        assert_eq!(clock_ahead(&HeaderMap::new(), now), None);
    }
}
