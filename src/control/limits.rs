//! Limits of what a request may contain: the length of each string and the number
//! of paths. A request beyond them is refused before the daemon sees it, so that
//! what the daemon keeps for a caller is small. Must not know what a request does.

use super::messages::{CiJob, MAX_ASKED, MAX_FIELD, MAX_PATH, MAX_PATHS, MAX_VERIFIED, Request, VerifyScope};

/// Checks a request. The error says which field is too long, and the limit.
pub(super) fn check(request: &Request) -> Result<(), String> {
    match request {
        Request::SessionStart { label, cache, anchor_pid: _, strict: _, ci, log_paths: _ } => {
            optional("label", label)?;
            optional("cache", cache)?;
            ci.as_ref().map_or(Ok(()), ci_job)
        }
        Request::SessionEnd { session, ci_job, push, timeout_ms: _, wait: _, patient: _ } => {
            optional("session", session)?;
            optional("ci_job", ci_job)?;
            paths(push)
        }
        Request::SessionShow { session } => text("session", session),
        Request::Push { paths: list, cache, wait: _, timeout_ms: _ } => {
            optional("cache", cache)?;
            paths(list)
        }
        Request::Hook { derivation, outputs } => {
            derivation.iter().try_for_each(|path| one_path(path))?;
            paths(outputs)
        }
        Request::Why { paths: list } => {
            at_most(list.len() as u64, MAX_ASKED)?;
            paths(list)
        }
        Request::Verify { scope, cache, timeout_ms: _ } => {
            optional("cache", cache)?;
            match scope {
                VerifyScope::Paths(list) => {
                    at_most(list.len() as u64, MAX_VERIFIED)?;
                    paths(list)
                }
                VerifyScope::Session(session) => text("session", session),
                VerifyScope::Sample(count) => at_most(u64::from(*count), MAX_VERIFIED),
            }
        }
        Request::SessionList { all: _ }
        | Request::Flush { timeout_ms: _ }
        | Request::Status
        | Request::Metrics
        | Request::Reload
        | Request::Diagnose { push: _ }
        | Request::Client { check: _ } => Ok(()),
    }
}

fn ci_job(job: &CiJob) -> Result<(), String> {
    text("ci.system", &job.system)?;
    text("ci.id", &job.id)?;
    optional("ci.url", &job.url)?;
    optional("ci.project", &job.project)?;
    optional("ci.git_ref", &job.git_ref)
}

fn optional(name: &str, value: &Option<String>) -> Result<(), String> {
    value.as_deref().map_or(Ok(()), |value| text(name, value))
}

fn text(name: &str, value: &str) -> Result<(), String> {
    let most = MAX_FIELD as usize;
    if value.len() <= most {
        Ok(())
    } else {
        Err(format!("{name} has {} bytes, at most {most} are allowed", value.len()))
    }
}

fn paths(list: &[String]) -> Result<(), String> {
    let most = MAX_PATHS as usize;
    if list.len() > most {
        return Err(format!("{} paths in one request, at most {most} are allowed: name fewer", list.len()));
    }
    list.iter().try_for_each(|path| one_path(path))
}

fn at_most(count: u64, most: u32) -> Result<(), String> {
    if count <= u64::from(most) {
        Ok(())
    } else {
        Err(format!("{count} paths in one request, at most {most} are allowed: name fewer"))
    }
}

fn one_path(path: &str) -> Result<(), String> {
    let most = MAX_PATH as usize;
    if path.len() <= most {
        return Ok(());
    }
    let begin: String = path.chars().take(60).collect();
    Err(format!("the path {begin}… has {} bytes, at most {most} are allowed", path.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_string_has_a_limit_and_the_message_names_it() {
        let most = MAX_FIELD as usize;
        let start = |size: usize| Request::SessionStart {
            label: None,
            cache: None,
            anchor_pid: None,
            strict: false,
            ci: Some(CiJob {
                system: "s".into(),
                id: "i".into(),
                url: None,
                project: Some("x".repeat(size)),
                git_ref: None,
            }),
            log_paths: false,
        };
        assert_eq!(check(&start(most)), Ok(()));
        assert_eq!(
            check(&start(most + 1)),
            Err("ci.project has 2049 bytes, at most 2048 are allowed".into())
        );
        let push = |paths| Request::Push { paths, cache: None, wait: false, timeout_ms: 0 };
        assert_eq!(check(&push(vec!["p".into(); MAX_PATHS as usize])), Ok(()));
        let many = check(&push(vec!["p".into(); MAX_PATHS as usize + 1])).unwrap_err();
        assert_eq!(many, "10001 paths in one request, at most 10000 are allowed: name fewer");
        assert!(check(&push(vec!["é".repeat(300)])).unwrap_err().starts_with("the path éé"));
        let hook = Request::Hook { derivation: Some("d".repeat(600)), outputs: vec![] };
        assert!(check(&hook).unwrap_err().contains("has 600 bytes"));
        for request in [
            Request::SessionShow { session: "s".repeat(most + 1) },
            Request::SessionEnd {
                session: None,
                ci_job: Some("c".repeat(most + 1)),
                push: vec![],
                timeout_ms: 1,
                wait: true,
                patient: false,
            },
            Request::Why { paths: vec!["p".repeat(600)] },
        ] {
            assert!(check(&request).is_err(), "{request:?}");
        }
    }
}
