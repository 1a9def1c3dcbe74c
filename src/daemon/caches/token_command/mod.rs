//! Keeps the token of a cache fresh by the program that the configuration names
//! (`token_command`): runs it before the token expires, after the server has refused the
//! token, and on a reload. One task for each cache, and one run at a time. Must not know
//! what the token is for.

mod run;

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::time::{Instant, sleep};

use super::Cache;
use crate::cache::{CacheClient, SuppliedToken};
use crate::config::TokenCommand as Command;
use crate::daemon::inbox::Input;
use crate::observe::event;
use crate::types::{CacheId, Wall};

/// The first wait after a run that gave no token, or a token that was refused.
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The longest sleep, because the wall clock may be set and the host may be suspended.
const SLEEP: Duration = Duration::from_secs(30);
/// A token is renewed before it expires by a fifth of its life, within these bounds, in seconds.
const MARGIN: (i64, i64) = (30, 3600);

/// The program of one cache.
#[derive(Clone)]
pub(in crate::daemon) struct TokenCommand {
    id: CacheId,
    name: String,
    client: CacheClient,
    supplied: SuppliedToken,
    command: Command,
}

/// What decides when the program runs next.
#[derive(Debug, Clone, Copy, Default)]
struct Past {
    /// When the latest run ended, in seconds since 1970. `None`: there was none.
    ended: Option<i64>,
    /// Runs in a row that gave no token, or were started because the server had refused the token.
    in_vain: u32,
    /// Whether the latest run gave no token.
    failed: bool,
    /// When the token in use expires, in seconds since 1970.
    expires: Option<i64>,
    /// Whether somebody asked for a new token.
    wanted: bool,
}

impl Past {
    /// Returns how long to wait before the next run at `now`; `None`: until somebody asks for a new token.
    fn wait(&self, now: i64) -> Option<Duration> {
        let Some(ended) = self.ended else { return Some(Duration::ZERO) };
        // A clock that was set back makes no wait longer than it can be.
        let since = Duration::from_secs(now.saturating_sub(ended).max(0).unsigned_abs());
        let rest = self.pause().saturating_sub(since);
        if self.wanted || self.failed {
            return Some(rest);
        }
        let life = self.expires?.saturating_sub(ended);
        let margin = (life / 5).clamp(MARGIN.0, MARGIN.1);
        let left = self.expires?.saturating_sub(margin).saturating_sub(now);
        // A token that is short-lived beyond reason does not make the program run without a pause.
        let least = FIRST_WAIT.saturating_sub(since);
        Some(Duration::from_secs(left.max(0).unsigned_abs()).max(rest).max(least))
    }

    /// Notes that somebody asks for a new token. Refusals that are long ago count no more.
    fn want(&mut self, now: i64) {
        let longest = i64::try_from(LONGEST_WAIT.as_secs()).unwrap_or(i64::MAX);
        if self.ended.is_some_and(|ended| now.saturating_sub(ended) > 2 * longest) {
            self.in_vain = 0;
        }
        self.wanted = true;
    }

    /// The pause between two runs.
    fn pause(&self) -> Duration {
        match self.in_vain {
            0 => Duration::ZERO,
            n => FIRST_WAIT.saturating_mul(1 << (n - 1).min(8)).min(LONGEST_WAIT),
        }
    }
}

impl TokenCommand {
    /// The program of this cache, if it has one.
    pub(in crate::daemon) fn of(cache: &Cache) -> Option<Self> {
        let (client, command) = (cache.client().clone(), cache.connection().token_command()?.clone());
        let supplied = client.supplied()?.clone();
        Some(Self { id: cache.id(), name: cache.name().to_owned(), client, supplied, command })
    }

    /// Keeps the token fresh, until the driver has ended.
    pub(in crate::daemon) async fn keep(self, out: Sender<Input>) {
        let mut past = Past {
            // After a reload the token in use is still good.
            ended: self.supplied.is_there().then(|| Wall::now().seconds()),
            expires: self.supplied.expiry(),
            // The task before may have been ended in the middle of a run.
            wanted: self.supplied.is_wanted(),
            ..Past::default()
        };
        while !out.is_closed() {
            let wait = past.wait(Wall::now().seconds());
            if wait.is_some_and(|wait| wait.is_zero()) {
                let refused = std::mem::take(&mut past.wanted);
                past.failed = !self.run(&out).await;
                self.supplied.ran();
                past.in_vain = if past.failed || refused { past.in_vain.saturating_add(1) } else { 0 };
                (past.ended, past.expires) = (Some(Wall::now().seconds()), self.supplied.expiry());
                continue;
            }
            tokio::select! {
                () = self.supplied.wanted(), if !past.wanted => past.want(Wall::now().seconds()),
                () = sleep(wait.unwrap_or(SLEEP).min(SLEEP)) => {}
            }
        }
    }

    /// Runs the program once. Returns whether it gave a token.
    async fn run(&self, out: &Sender<Input>) -> bool {
        let begun = Instant::now();
        let ended =
            run::run(&self.command, &self.name, &|text| self.supplied.scrub(&self.client.scrub(text))).await;
        let given = ended.and_then(|output| self.supplied.supply(&output));
        match given {
            Ok(changed) => {
                // Reads the token that was just supplied, from memory.
                let _ = self.client.reload_token();
                if changed {
                    event!(
                        TOKEN_RENEWED,
                        cache = self.name,
                        "cache {} has a new token from token_command after {} ms, which is used from now on",
                        self.name,
                        begun.elapsed().as_millis()
                    );
                }
                let _ = out.send(Input::TokenChanged(self.id)).await;
                true
            }
            Err(why) => {
                let kept = match (self.supplied.is_there(), self.supplied.expiry()) {
                    (false, _) => "the cache's paths wait".to_owned(),
                    (true, None) => "the present token stays in use".to_owned(),
                    (true, Some(at)) => {
                        format!("the present token stays in use; it expires at {at} (seconds since 1970)")
                    }
                };
                event!(
                    TOKEN_COMMAND_FAILED,
                    cache = self.name,
                    error = why,
                    "token_command of cache {} gave no token: {why}; {kept}, and the command is run again",
                    self.name
                );
                self.supplied.failed(why);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Option<Duration> = |seconds| Some(Duration::from_secs(seconds));

    #[test]
    fn a_token_is_renewed_before_it_expires() {
        let past = Past { ended: Some(1000), expires: Some(1900), ..Past::default() };
        assert_eq!(Past::default().wait(5), S(0), "the first run is at once");
        // A fifth of 900 s.
        assert_eq!((past.wait(1000), past.wait(1700), past.wait(1720)), (S(720), S(20), S(0)));
        let day = Past { expires: Some(1000 + 86_400), ..past };
        assert_eq!(day.wait(1000), S(86_400 - 3600));
        // Without a time of expiry only a refusal or a reload brings a new one.
        assert_eq!(Past { expires: None, ..past }.wait(1_000_000), None);
        assert_eq!(Past { expires: None, wanted: true, ..past }.wait(1001), S(0));
        // Expired already, or for a moment only: still a pause between two runs.
        assert_eq!(
            (Past { expires: Some(990), ..past }.wait(1000), Past { expires: Some(1001), ..past }.wait(1000)),
            (S(5), S(5))
        );
    }

    #[test]
    fn runs_in_vain_wait_longer_each_time() {
        let failed =
            |in_vain, now| Past { ended: Some(1000), in_vain, failed: true, ..Past::default() }.wait(now);
        assert_eq!((failed(1, 1000), failed(1, 1003), failed(1, 1005)), (S(5), S(2), S(0)));
        assert_eq!((failed(2, 1000), failed(4, 1000), failed(99, 1000)), (S(10), S(40), S(300)));
        // A refusal right after a run that followed a refusal.
        let refused = Past { ended: Some(1000), in_vain: 1, wanted: true, ..Past::default() };
        assert_eq!(refused.wait(1000), S(5));
        // The clock was set back by a day.
        assert_eq!(failed(3, 1000 - 86_400), S(20));
    }
}
