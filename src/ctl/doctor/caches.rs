//! Whether paths get into each cache, from what the daemon found out just now. Must not
//! know Nix's settings.

use super::{Finding, SOON};
use crate::control::messages::{CacheDiagnosis, CacheState, CacheStatus, EndpointDiagnosis, Fault};

/// A clock that is further away than this is a finding, in seconds: tokens are valid
/// from one time to another, and each side reads its own clock.
const CLOCK: i64 = 60;

/// Checks one cache. `status` is the daemon's state of it, `ours` the store directory of
/// this host.
pub(super) fn of_cache(
    cache: &CacheDiagnosis,
    status: Option<&CacheStatus>,
    ours: &str,
    now_s: i64,
) -> Vec<Finding> {
    let what = format!("cache {}", cache.name);
    let mut all = vec![takes_uploads(&what, cache, status)];
    let answering = cache.endpoints.iter().any(|endpoint| endpoint.fault.is_none());
    if answering {
        // When none answers, that is one finding and not one for each.
        all.extend(cache.endpoints.iter().filter_map(|endpoint| {
            let fault = endpoint.fault.as_ref()?;
            let text = format!("an endpoint fails, and another one is used: {}", fault.message);
            Some(Finding::note(&what, text).run(curl(endpoint)))
        }));
    }
    all.extend(clock(&what, &cache.endpoints));
    if let Some(theirs) = cache.store_dir.as_deref().filter(|theirs| *theirs != ours) {
        let text = format!(
            "the cache is for the store directory {theirs}, and this host builds in {ours}: Nix cannot use what \
             is pushed from here"
        );
        let command =
            format!("attic cache create NAME --store-dir {ours}   # and name it in the configuration");
        all.push(Finding::bad(&what, text, command));
    }
    all.extend(token(cache, now_s));
    all
}

/// Says whether the cache takes uploads, and only says so when it has just answered.
fn takes_uploads(what: &str, cache: &CacheDiagnosis, status: Option<&CacheStatus>) -> Finding {
    let Some(answering) = cache.endpoints.iter().find(|endpoint| endpoint.fault.is_none()) else {
        return away(what, cache);
    };
    let address = &answering.address;
    if let Some(fault) = &cache.push_problem {
        return refused(what, cache, fault);
    }
    if let Some(upload) = &cache.upload {
        let path = &upload.path;
        return match (&upload.upload_problem, &upload.read_problem) {
            (Some(fault), _) => {
                let text = format!("answers, but accepted no upload of {path}: {}", fault.message);
                Finding::bad(what, text, super::LOG)
            }
            (None, Some(fault)) => {
                let text = format!("accepted {path}, which cannot be read back: {}", fault.message);
                Finding::bad(what, text, "flywheelctl nix-conf")
            }
            (None, None) => Finding::good(what, format!("accepted {path} and returned it, at {address}")),
        };
    }
    let reason = status.and_then(|status| status.reason.as_deref()).unwrap_or("the reason is not known");
    match status.map(|status| status.state) {
        // The question above may be allowed to a token that may not upload.
        Some(CacheState::Unauthorized) => {
            let class = "forbidden".to_owned();
            refused(what, cache, &Fault { class, message: reason.to_owned() })
        }
        Some(CacheState::Offline) => {
            let text =
                format!("answers at {address} now; flywheeld has not tried again since this error: {reason}");
            Finding::note(what, text).run("flywheelctl reload")
        }
        Some(CacheState::Online) | None => Finding::good(what, format!("takes uploads, at {address}")),
    }
}

/// No endpoint has described the cache.
fn away(what: &str, cache: &CacheDiagnosis) -> Finding {
    let faults = cache.endpoints.iter().filter_map(|endpoint| Some((endpoint, endpoint.fault.as_ref()?)));
    let faults: Vec<(&EndpointDiagnosis, &Fault)> = faults.collect();
    // What a server answered tells more than that another one did not.
    let (endpoint, fault) = match faults.iter().find(|(_, fault)| fault.class != "unreachable") {
        Some(answered) => *answered,
        None => match faults.first() {
            Some(first) => *first,
            None => return Finding::unchecked(what, "it has no endpoint that could be asked"),
        },
    };
    if matches!(fault.class.as_str(), "unauthorized" | "forbidden") {
        return refused(what, cache, fault);
    }
    if fault.class == "no-such-cache" {
        let text = format!("the server has no cache of this name, and paths wait: {}", fault.message);
        return Finding::bad(what, text, format!("attic cache create {}", cache.name));
    }
    let number = cache.endpoints.len();
    let of =
        if number > 1 { format!("none of its {number} endpoints answers") } else { "does not answer".into() };
    Finding::bad(what, format!("{of}, and paths wait: {}", fault.message), curl(endpoint))
}

/// The server answers and does not let this token push.
fn refused(what: &str, cache: &CacheDiagnosis, fault: &Fault) -> Finding {
    let message = &fault.message;
    match fault.class.as_str() {
        "unauthorized" | "forbidden" => {
            let source = cache.token_source.as_deref().unwrap_or("no token is configured");
            let text = format!("refuses the token ({source}), and paths wait until it is renewed: {message}");
            Finding::bad(what, text, renew(cache))
        }
        "unreachable" | "transient" => {
            let text = format!("answers, but not when asked which paths it lacks, and paths wait: {message}");
            Finding::bad(what, text, super::LOG)
        }
        _ => Finding::bad(what, format!("takes no uploads: {message}"), "flywheelctl status"),
    }
}

fn clock(what: &str, endpoints: &[EndpointDiagnosis]) -> Option<Finding> {
    let ahead = endpoints.iter().filter_map(|e| Some((e, e.clock_ahead_s?)));
    let (endpoint, ahead) = ahead.max_by_key(|(_, ahead)| ahead.abs())?;
    if ahead.abs() <= CLOCK {
        return None;
    }
    let word = if ahead > 0 { "behind" } else { "ahead of" };
    let text = format!(
        "this host's clock is {} s {word} that of {}: tokens seem expired or not yet valid",
        ahead.abs(),
        endpoint.address
    );
    Some(Finding::bad(what, text, "timedatectl status"))
}

fn token(cache: &CacheDiagnosis, now_s: i64) -> Option<Finding> {
    let what = format!("token of {}", cache.name);
    let renew = renew(cache);
    if let Some(problem) = &cache.token_problem {
        return Some(Finding::bad(what, format!("cannot be read: {problem}"), renew));
    }
    let source = cache.token_source.as_deref()?;
    let Some(expires) = cache.token_expires else {
        return Some(Finding::good(what, format!("from {source}, never expires")));
    };
    let left = expires - now_s;
    if cache.token_renews && left > 0 {
        let text =
            format!("from {source}, expires in {} and is renewed before that", units(left / 60, "minute"));
        return Some(Finding::good(what, text));
    }
    let hours = left.max(0) / 3600;
    let text = match left {
        ..=0 => format!("from {source}, has expired: renew it"),
        1..SOON => format!("from {source}, expires in {}: renew it", units(hours, "hour")),
        _ => {
            let days = units(hours / 24, "day");
            return Some(Finding::good(what, format!("from {source}, expires in {days}")));
        }
    };
    Some(Finding::bad(what, text, renew))
}

/// A number of units of time, in words.
fn units(number: i64, unit: &str) -> String {
    format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

/// The command that replaces the token where it comes from.
fn renew(cache: &CacheDiagnosis) -> String {
    match cache.token_source.as_deref() {
        Some(source) if source.starts_with("token_command ") => super::LOG.to_owned(),
        Some(source) if source.starts_with('$') => "systemctl edit flywheeld".to_owned(),
        Some(file) if !file.starts_with("/run/credentials/") => {
            format!("install -m 0600 -o flywheel /dev/stdin '{file}' <TOKEN")
        }
        _ => "flywheelctl setup --token-stdin <TOKEN".to_owned(),
    }
}

fn curl(endpoint: &EndpointDiagnosis) -> String {
    format!("curl --silent --show-error --head '{}'", endpoint.address.replace('\'', "%27"))
}
