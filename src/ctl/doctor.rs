//! The command `doctor`: checks everything that can keep paths out of the cache, or
//! Nix from reading them back, and says for each problem what to do. Must not know
//! how things are printed.

use serde::Serialize;

use super::attic_client::ask;
use super::connection::REPLY_TIMEOUT;
use super::exit::{Exit, Failure};
use super::nix_conf::{self, Knows};
use super::{Context, end::unexpected};
use crate::control::messages::{CacheState, ClientInfo, Reply, Request, Status};
use crate::types::Wall;

/// A token that expires sooner than this is a finding: a week, in seconds.
const SOON: i64 = 7 * 24 * 3600;

/// The result of one check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// What was checked.
    pub(super) what: String,
    /// Whether it is good.
    pub(super) good: bool,
    /// How it is, and what to do if it is not good.
    pub(super) text: String,
}

impl Finding {
    fn good(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { what: what.into(), good: true, text: text.into() }
    }

    fn bad(what: impl Into<String>, text: impl Into<String>) -> Self {
        Self { what: what.into(), good: false, text: text.into() }
    }

    /// Returns a bad finding if there is a problem, else a good one.
    fn unless(what: impl Into<String>, problem: Option<String>, otherwise: impl Into<String>) -> Self {
        match problem {
            Some(problem) => Self::bad(what, problem),
            None => Self::good(what, otherwise),
        }
    }
}

/// Runs all checks and prints the findings.
pub(super) fn command(context: &Context) -> Result<Exit, Failure> {
    let status = match context.connect()?.ask(&Request::Status, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Status(status) => status,
        other => return Err(unexpected(other)),
    };
    let info = ask(context, true)?;
    let conf = nix_conf::host();
    let mut findings = of_daemon(&status, Wall::now().0 / 1000);
    let knows = |conf: &String| {
        info.servers.iter().map(|s| nix_conf::knows(conf, s, info.netrc.as_deref())).collect::<Vec<_>>()
    };
    findings.extend(of_reading(&info, conf.as_ref().map(knows).map_err(Clone::clone)));
    let well = findings.iter().all(|finding| finding.good);
    context.render.findings(&findings);
    Ok(if well { Exit::Done } else { Exit::Failed })
}

/// Checks whether paths get into the caches.
fn of_daemon(status: &Status, now_s: i64) -> Vec<Finding> {
    let mut all = Vec::new();
    let own = env!("CARGO_PKG_VERSION");
    let other = (status.version != own).then(|| {
        format!("{}, and this command is {own}: restart flywheeld after an upgrade", status.version)
    });
    all.push(Finding::unless("daemon", other, format!("{own}, answers")));
    all.extend(status.cache.iter().map(|cache| {
        let reason = cache.reason.as_deref().unwrap_or("no reason is known");
        let problem = match cache.state {
            CacheState::Online => None,
            CacheState::Offline => Some(format!("does not answer: {reason}. Paths wait, nothing is lost")),
            CacheState::Unauthorized => {
                Some(format!("refuses the token: {reason}. Renew the token; paths wait"))
            }
        };
        let problem = problem.or_else(|| {
            let left = cache.token_expires? - now_s;
            (left < SOON).then(|| format!("its token expires in {} hours: renew it", left.max(0) / 3600))
        });
        let endpoint = cache.endpoint.as_deref().unwrap_or("no endpoint found");
        Finding::unless(format!("cache {}", cache.name), problem, format!("takes uploads, {endpoint}"))
    }));
    let store = &status.store;
    all.push(Finding::unless("store", store.problem.clone(), format!("followed, {} rows behind", store.lag)));
    let ledger = (status.ledger.state != "ok")
        .then(|| status.ledger.detail.clone().unwrap_or_else(|| status.ledger.state.clone()));
    all.push(Finding::unless("ledger", ledger, "written"));
    let failed = status.queue.failed;
    let problem = (failed > 0).then(|| {
        format!("{failed} failed: `flywheelctl status` says why; `flywheelctl reload` tries them again")
    });
    let queue = &status.queue;
    all.push(Finding::unless(
        "queue",
        problem,
        format!("{} pending, {} uploading, none failed", queue.pending, queue.uploading),
    ));
    let client = &status.client;
    let lacking = (status.cache.iter().any(|cache| cache.engine == "attic") && client.path.is_none())
        .then(|| format!("{}: {}", client.state, client.error.as_deref().unwrap_or("there is none yet")));
    all.push(Finding::unless("attic client", lacking, client.state.clone()));
    all.extend(status.warnings.iter().map(|text| Finding::bad("warning", text)));
    all
}

/// Checks whether this host's Nix reads the caches.
fn of_reading(info: &ClientInfo, known: Result<Vec<Knows>, String>) -> Vec<Finding> {
    let known = match known {
        Ok(known) => known,
        Err(why) => return vec![Finding::bad("nix", format!("cannot be asked for its settings: {why}"))],
    };
    let finding = |(server, knows): (&crate::control::messages::ClientServer, &Knows)| {
        let add = "add what `flywheelctl nix-conf` prints to nix.conf";
        let problem = if server.substituter.is_none() {
            Some("cannot be checked: the cache has not answered since the daemon started".to_owned())
        } else if !knows.substituter {
            Some(format!("is no substituter of this host's Nix: {add}"))
        } else if !knows.public_key {
            Some(format!("its key is not trusted by this host's Nix: {add}"))
        } else if knows.netrc == Some(false) {
            Some(format!("is private, and Nix does not use the daemon's netrc file: {add}"))
        } else if server.readable == Some(false) {
            Some(server.problem.clone().unwrap_or_else(|| "cannot be read".to_owned()))
        } else {
            None
        };
        let url = server.substituter.as_deref().unwrap_or_default();
        Finding::unless(format!("reading {}", server.name), problem, format!("set up, {url}"))
    };
    info.servers.iter().zip(&known).map(finding).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::messages::{CacheStatus, ClientServer};

    fn sound() -> Status {
        let mut status = Status { version: env!("CARGO_PKG_VERSION").into(), ..Status::default() };
        status.ledger.state = "ok".into();
        status.cache.push(CacheStatus {
            name: "main".into(),
            state: CacheState::Online,
            engine: "native".into(),
            token_expires: Some(SOON + 1000),
            ..CacheStatus::default()
        });
        status
    }

    #[test]
    fn each_trouble_is_one_finding_that_says_what_to_do() {
        assert!(of_daemon(&sound(), 1000).iter().all(|f| f.good), "{:?}", of_daemon(&sound(), 1000));
        type Harm = fn(&mut Status);
        for (what, word, harm) in [
            ("daemon", "restart", (|s| s.version = "0.0.1".into()) as Harm),
            ("cache main", "nothing is lost", |s| s.cache[0].state = CacheState::Offline),
            ("cache main", "Renew", |s| s.cache[0].state = CacheState::Unauthorized),
            ("cache main", "expires in 1 hours", |s| s.cache[0].token_expires = Some(1000 + 5400)),
            ("store", "away", |s| s.store.problem = Some("away".into())),
            ("ledger", "no room", |s| {
                s.ledger.state = "degraded".into();
                s.ledger.detail = Some("no room".into());
            }),
            ("queue", "reload", |s| s.queue.failed = 2),
            ("attic client", "absent", |s| {
                s.cache[0].engine = "attic".into();
                s.client.state = "absent".into();
            }),
            ("warning", "roots", |s| s.warnings.push("no roots".into())),
        ] {
            let mut status = sound();
            harm(&mut status);
            let bad: Vec<_> = of_daemon(&status, 1000).into_iter().filter(|f| !f.good).collect();
            assert!(matches!(&bad[..], [f] if f.what == what && f.text.contains(word)), "{what}: {bad:?}");
        }
    }

    #[test]
    fn what_keeps_nix_from_reading() {
        let mut info = ClientInfo::default();
        let substituter = Some("https://cache".into());
        info.servers.push(ClientServer { name: "main".into(), substituter, ..ClientServer::default() });
        let knows = |substituter, public_key, netrc| Knows { substituter, public_key, netrc };
        for (known, readable, word) in [
            (knows(true, true, None), Some(true), None),
            (knows(false, true, None), Some(true), Some("no substituter")),
            (knows(true, false, None), Some(true), Some("not trusted")),
            (knows(true, true, Some(false)), Some(true), Some("netrc")),
            (knows(true, true, Some(true)), Some(false), Some("cannot be read")),
        ] {
            info.servers[0].readable = readable;
            let found = of_reading(&info, Ok(vec![known]));
            assert_eq!(found[0].good, word.is_none(), "{found:?}");
            assert!(word.is_none_or(|word| found[0].text.contains(word)), "{found:?}");
        }
        // A cache that has not answered yet says nothing about nix.conf.
        info.servers[0].substituter = None;
        let found = of_reading(&info, Ok(vec![knows(false, false, None)]));
        assert!(!found[0].good && found[0].text.contains("has not answered"), "{found:?}");
        assert!(!of_reading(&info, Err("nix cannot be run".into()))[0].good);
    }
}
