//! The commands `session start`, `list` and `show`. Must not know how things are
//! printed.

use std::time::{Duration, Instant};

use super::{
    Context, anchor,
    args::StartArgs,
    ci,
    connection::{Connection, REPLY_TIMEOUT},
    end::unexpected,
    exit::{Exit, Failure},
    variable,
};
use crate::control::messages::{CiJob, ErrorCode, MAX_FIELD, Reply, Request, SessionEntry, SessionState};
use crate::types::Wall;

/// How long `session start` repeats a request that the daemon has no room for.
const BUSY: Duration = Duration::from_secs(3);
/// The time between two of these requests.
const PAUSE: Duration = Duration::from_millis(50);

/// How long a session that has ended is listed without `--all`.
const RECENT: Duration = Duration::from_secs(3600);

/// The options of a new session.
pub(super) struct StartRequest {
    pub(super) label: Option<String>,
    pub(super) cache: Option<String>,
    pub(super) anchor_pid: Option<u32>,
    pub(super) log_paths: bool,
}

pub(super) fn start(context: &Context, args: StartArgs) -> Result<Exit, Failure> {
    let detected = ci::detect(variable);
    let system = detected.as_ref().map(|d| d.job.system.as_str());
    let anchor_pid = args.anchor_pid.or_else(|| anchor::find(system));
    let opening =
        StartRequest { label: args.label, cache: args.cache, anchor_pid, log_paths: args.log_paths };
    let (session, cache) = open(context, &opening)?;
    context.render.started(&session, &cache);
    Ok(Exit::Done)
}

/// Shortens text that a CI system or a caller gives to what a request may contain.
fn shorten(text: &mut String) {
    let mut end = text.len().min(MAX_FIELD as usize);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

/// Opens a session and returns its id and cache.
pub(super) fn open(context: &Context, opening: &StartRequest) -> Result<(String, String), Failure> {
    let mut connection = context.connect()?;
    let detected = ci::detect(variable);
    let (default, mut ci) = detected.map(|d| (d.label, d.job)).unzip();
    if let Some(job) = &mut ci {
        let optional = [&mut job.url, &mut job.project, &mut job.git_ref].into_iter().flatten();
        [&mut job.system, &mut job.id].into_iter().chain(optional).for_each(shorten);
    }
    let mut label = opening.label.clone().or(default);
    label.iter_mut().for_each(shorten);
    let request = Request::SessionStart {
        label,
        cache: opening.cache.clone(),
        anchor_pid: opening.anchor_pid,
        strict: context.strict,
        ci,
        log_paths: opening.log_paths,
    };
    let until = Instant::now() + BUSY;
    loop {
        match connection.ask(&request, REPLY_TIMEOUT, &mut |_| ())? {
            Reply::Started { session, cache } => return Ok((session, cache)),
            // Many jobs ask at once; the daemon has room again in a moment.
            Reply::Error { code: ErrorCode::Busy, .. } if Instant::now() < until => {
                std::thread::sleep(PAUSE);
                connection = context.connect()?;
            }
            other => return Err(unexpected(other)),
        }
    }
}

/// Lists sessions. For people, those that ended within the last hour are listed as well;
/// in JSON only with `all`, since scripts count the open ones.
pub(super) fn list(context: &Context, all: bool) -> Result<Exit, Failure> {
    let mut connection: Connection = context.connect()?;
    let mut list = listed(&mut connection, all || !context.render.is_json())?;
    if !all {
        let since = Wall::now().0 - RECENT.as_millis().try_into().unwrap_or(i64::MAX);
        list.retain(|session| session.ended_at.is_none_or(|ended| ended >= since));
    }
    context.render.sessions(&list);
    Ok(Exit::Done)
}

fn listed(connection: &mut Connection, all: bool) -> Result<Vec<SessionEntry>, Failure> {
    match connection.ask(&Request::SessionList { all }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Sessions(list) => Ok(list),
        other => Err(unexpected(other)),
    }
}

/// Returns the id of the session that is meant, as `session end` finds it: the one that
/// is named, `$FLYWHEEL_SESSION`, the session of this CI job, or the caller's only open
/// one.
pub(super) fn find_session(context: &Context, named: Option<String>) -> Result<String, Failure> {
    if let Some(id) = named.or_else(|| variable("FLYWHEEL_SESSION")) {
        return Ok(id);
    }
    let own = rustix::process::geteuid().as_raw();
    let mut list = listed(&mut context.connect()?, true)?;
    list.retain(|session| session.uid == own);
    let job = ci::detect(variable).map(|detected| detected.job.key());
    meant(&list, job.as_deref()).map_err(Failure::Usage)
}

/// Chooses among the caller's sessions, newest first.
fn meant(list: &[SessionEntry], job: Option<&str>) -> Result<String, String> {
    let of_job =
        |session: &&SessionEntry| job.is_some() && session.ci.as_ref().map(CiJob::key).as_deref() == job;
    let is_open = |session: &&SessionEntry| session.state == SessionState::Open;
    let found = list.iter().filter(of_job).find(is_open).or_else(|| list.iter().find(of_job));
    if let Some(session) = found {
        return Ok(session.session.clone());
    }
    let open: Vec<&SessionEntry> = list.iter().filter(is_open).collect();
    match &open[..] {
        [only] => Ok(only.session.clone()),
        [] => {
            Err("no session of yours is open: name one (`flywheelctl session list --all` lists them)"
                .to_owned())
        }
        several => {
            let ids: Vec<&str> = several.iter().take(5).map(|session| session.session.as_str()).collect();
            Err(format!("{} sessions of yours are open: name one of {}", several.len(), ids.join(", ")))
        }
    }
}

pub(super) fn show(context: &Context, session: Option<String>, paths: bool) -> Result<Exit, Failure> {
    let session = find_session(context, session)?;
    let mut connection = context.connect()?;
    match connection.ask(&Request::SessionShow { session }, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Session(detail) => context.render.session(&detail, paths),
        other => return Err(unexpected(other)),
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_that_is_meant() {
        let entry = |id: &str, state, job: Option<&str>| SessionEntry {
            session: id.into(),
            state,
            ci: job.map(|id| CiJob {
                system: "gitlab".into(),
                id: id.into(),
                url: None,
                project: None,
                git_ref: None,
            }),
            ..SessionEntry::default()
        };
        let (open, closed) = (SessionState::Open, SessionState::Closed);
        let list = [entry("a", open, None), entry("b", open, Some("7")), entry("c", closed, Some("8"))];
        assert_eq!(meant(&list, Some("gitlab:7")).as_deref(), Ok("b"));
        assert_eq!(meant(&list, Some("gitlab:8")).as_deref(), Ok("c"), "also when it has ended");
        assert!(meant(&list, None).unwrap_err().contains("a, b"));
        assert_eq!(meant(&list[..1], Some("gitlab:9")).as_deref(), Ok("a"));
        assert!(meant(&list[2..], None).unwrap_err().contains("no session of yours is open"));
    }
}
