//! Shortens replies so that each fits into one frame, however large the daemon's
//! state is. Lists and free text are cut; totals stay true. Must not know any
//! other room but `types`.

use super::messages::{
    ClientInfo, ClientStatus, Diagnosis, ErrorCode, Failed, Fault, MAX_ASKED, MAX_ENTRIES, MAX_FAILED,
    MAX_PATH, MAX_PROBLEMS, MAX_SLOW, MAX_TEXT, MAX_UPLOADS, PathStory, Reply, SessionEntry, Status, Summary,
    UploadStatus, Verification,
};
use crate::types::shorten;

/// Shortens free text to [`MAX_TEXT`] bytes. Its end stays, which says what to do; a `…`
/// shows that something is missing.
fn text(s: &mut String) {
    shorten_to(s, MAX_TEXT);
}

fn shorten_to(s: &mut String, most: u32) {
    if s.len() > most as usize {
        *s = shorten(s, most as usize);
    }
}

/// Shortens a name or a path at its end.
fn cut(s: &mut String, most: u32) {
    let most = most as usize;
    if s.len() > most {
        let mut at = most - '…'.len_utf8();
        while !s.is_char_boundary(at) {
            at -= 1;
        }
        s.truncate(at);
        s.push('…');
    }
}

fn warnings(list: &mut Vec<String>) {
    list.truncate(100);
    list.iter_mut().for_each(text);
}

fn failures(list: &mut Vec<Failed>, most: u32) {
    list.truncate(most as usize);
    for failed in list {
        cut(&mut failed.path, MAX_PATH);
        text(&mut failed.error);
        failed.class.iter_mut().for_each(|c| cut(c, 32));
    }
}

fn entry(e: &mut SessionEntry) {
    cut(&mut e.session, 64);
    cut(&mut e.cache, 64);
    e.label.iter_mut().for_each(|l| cut(l, 128));
    if let Some(ci) = &mut e.ci {
        cut(&mut ci.system, 32);
        cut(&mut ci.id, 128);
        for field in [&mut ci.url, &mut ci.project, &mut ci.git_ref] {
            field.iter_mut().for_each(|s| cut(s, 128));
        }
    }
}

fn summary(s: &mut Summary, most: u32) {
    s.label.iter_mut().for_each(text);
    cut(&mut s.cache, 64);
    failures(&mut s.failed, most);
    warnings(&mut s.warnings);
    s.route.iter_mut().for_each(text);
}

fn client(c: &mut ClientStatus) {
    for field in [&mut c.path, &mut c.version, &mut c.installable, &mut c.error] {
        field.iter_mut().for_each(|s| cut(s, MAX_PATH));
    }
}

fn client_info(info: &mut ClientInfo) {
    client(&mut info.client);
    info.netrc.iter_mut().for_each(|s| cut(s, MAX_PATH));
    info.servers.truncate(100);
    for server in &mut info.servers {
        cut(&mut server.name, 64);
        cut(&mut server.cache, 64);
        // Part of an address or of a key is of no use, so they are left out as a whole.
        for field in [&mut server.endpoint, &mut server.substituter, &mut server.public_key] {
            field.take_if(|s| s.len() > 2 * MAX_PATH as usize);
        }
        server.problem.iter_mut().for_each(text);
    }
}

/// The longest page of metrics that fits into a frame, in bytes.
const MAX_PAGE: usize = (1 << 20) - 16;

/// The most paths whose stories are in one reply.
const MAX_STORIES: usize = MAX_ASKED as usize;

/// Shortens a story to `most` sessions and pushes.
fn story(story: &mut PathStory, most: usize) {
    cut(&mut story.path, MAX_PATH);
    text(&mut story.summary);
    story.sessions.truncate(most);
    for session in &mut story.sessions {
        cut(&mut session.session, 64);
        session.label.iter_mut().for_each(|l| cut(l, 128));
        cut(&mut session.evidence, 32);
        cut(&mut session.outcome, 32);
        cut(&mut session.cache, 64);
        session.route.iter_mut().for_each(text);
    }
    story.pushes.truncate(most);
    for push in &mut story.pushes {
        cut(&mut push.cache, 64);
        cut(&mut push.state, 32);
        push.error.iter_mut().for_each(text);
        push.class.iter_mut().for_each(|c| cut(c, 32));
        push.next.iter_mut().for_each(text);
        push.route.iter_mut().for_each(text);
    }
}

fn verification(v: &mut Verification) {
    v.problems.truncate(MAX_PROBLEMS as usize);
    for problem in &mut v.problems {
        cut(&mut problem.path, MAX_PATH);
        cut(&mut problem.cache, 64);
        cut(&mut problem.problem, 32);
        shorten_to(&mut problem.detail, 4 * MAX_TEXT);
    }
}

fn uploads(list: &mut Vec<UploadStatus>, most: u32) {
    list.truncate(most as usize);
    for upload in list {
        cut(&mut upload.path, MAX_PATH);
        cut(&mut upload.cache, 64);
    }
}

fn status(s: &mut Status) {
    client(&mut s.client);
    s.cache.truncate(100);
    for cache in &mut s.cache {
        text(&mut cache.name);
        cache.endpoint.iter_mut().for_each(text);
        cache.reason.iter_mut().for_each(text);
        while cache.verified.len() > 20 {
            cache.verified.pop_last();
        }
    }
    s.sessions.truncate(500);
    s.sessions.iter_mut().for_each(entry);
    failures(&mut s.failed, 200);
    warnings(&mut s.warnings);
    s.store.problem.iter_mut().for_each(text);
    s.store.files.iter_mut().for_each(text);
    s.ledger.detail.iter_mut().for_each(text);
    uploads(&mut s.uploads, MAX_UPLOADS);
    s.events.truncate(100);
    for event in &mut s.events {
        cut(&mut event.level, 8);
        text(&mut event.text);
    }
}

fn fault(fault: &mut Option<Fault>) {
    if let Some(fault) = fault {
        cut(&mut fault.class, 32);
        text(&mut fault.message);
    }
}

fn diagnosis(d: &mut Diagnosis) {
    d.caches.truncate(100);
    for cache in &mut d.caches {
        cut(&mut cache.name, 64);
        cache.endpoints.truncate(32);
        for endpoint in &mut cache.endpoints {
            text(&mut endpoint.address);
            fault(&mut endpoint.fault);
        }
        for field in [&mut cache.store_dir, &mut cache.token_source, &mut cache.token_problem] {
            field.iter_mut().for_each(text);
        }
        fault(&mut cache.push_problem);
        if let Some(upload) = &mut cache.upload {
            cut(&mut upload.path, MAX_PATH);
            fault(&mut upload.upload_problem);
            fault(&mut upload.read_problem);
        }
    }
    cut(&mut d.host.store_dir, MAX_PATH);
    d.host.space.truncate(8);
    d.host.space.iter_mut().for_each(|space| cut(&mut space.dir, MAX_PATH));
}

/// Returns the reply with lists and free text shortened to what one frame holds.
pub(super) fn truncated(mut reply: Reply) -> Reply {
    match &mut reply {
        Reply::Progress(p) => {
            p.note.iter_mut().for_each(text);
            p.session.iter_mut().for_each(text);
            uploads(&mut p.slow, MAX_SLOW);
        }
        Reply::Started { session, cache } => {
            text(session);
            text(cache);
        }
        Reply::Ended(s) | Reply::Pushed(s) => summary(s, MAX_FAILED),
        Reply::Sessions(list) => {
            list.truncate(MAX_ENTRIES as usize);
            list.iter_mut().for_each(entry);
        }
        Reply::Session(detail) => {
            entry(&mut detail.session);
            summary(&mut detail.summary, MAX_FAILED / 4);
            cut(&mut detail.host, 255);
            detail.user.iter_mut().for_each(|user| cut(user, 255));
            detail.paths.truncate(MAX_ENTRIES as usize);
            for p in &mut detail.paths {
                cut(&mut p.path, MAX_PATH);
                cut(&mut p.state, 32);
                cut(&mut p.evidence, 32);
            }
        }
        Reply::Status(s) => status(s),
        Reply::Client(info) => client_info(info),
        Reply::Why(stories) => {
            // A full story has some 30 KiB, a usual one less than one.
            let most = (MAX_STORIES / stories.len().max(1)).clamp(1, 20);
            stories.truncate(MAX_STORIES);
            stories.iter_mut().for_each(|s| story(s, most));
        }
        Reply::Diagnosis(d) => diagnosis(d),
        Reply::Verified(v) => verification(v),
        // Its length depends on the number of configured caches only. A part of a page would
        // be taken for the whole.
        Reply::Metrics(page) => {
            if page.len() > MAX_PAGE {
                let message =
                    "there are too many caches for one page of metrics: scrape [metrics] listen".into();
                reply = Reply::Error { code: ErrorCode::Internal, message };
            }
        }
        Reply::Done { message } | Reply::Error { message, .. } => shorten_to(message, 4 * MAX_TEXT),
    }
    reply
}
