//! The report of a session as one HTML page without scripts, fonts or images. Pure;
//! must not know where the page goes.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    time::{Duration, UNIX_EPOCH},
};

use super::digest::{Digest, steps};
use crate::control::messages::{Failed, PathEntry, SessionDetail, Summary};
use crate::ctl::text;

/// Escapes text for use between tags or in a quoted attribute.
pub(in crate::ctl) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// Makes text from others printable and escapes it.
fn plain(value: &str) -> String {
    escape(&text::printable(value))
}

const STYLE: &str = "\
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--dim:#5d6570;--ok:#1a7f37;--bad:#cf222e;--wait:#8a5a00;--bar:#0969da}\
@media(prefers-color-scheme:dark){:root{--dim:#9aa4af;--ok:#3fb950;--bad:#f85149;--wait:#d29922;--bar:#58a6ff}}\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;overflow-wrap:break-word}\
h1{font-size:1.4rem;margin:0}h2{font-size:1.05rem;margin:1.6rem 0 .4rem}p{margin:.3rem 0}.dim{color:var(--dim)}\
.counts{display:flex;flex-wrap:wrap;gap:.6rem;margin:1.2rem 0;padding:0;list-style:none}\
.counts li{background:var(--soft);border-radius:.5rem;padding:.4rem .9rem;min-width:5.5rem}\
.counts b{display:block;font-size:1.4rem;font-variant-numeric:tabular-nums}\
ol,ul.list{margin:.3rem 0;padding-left:1.4rem}li{margin:.15rem 0}\
table{border-collapse:collapse;width:100%;margin-top:.4rem}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--dim);font-weight:600}.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
code{font:13px ui-monospace,monospace}code,span.failed,h1{overflow-wrap:anywhere}\
.pushed{color:var(--ok)}.failed,.bad{color:var(--bad)}.pending{color:var(--wait)}\
.when{font-size:13px;color:var(--dim)}\
.lane{position:relative;height:.45rem;background:var(--soft);border-radius:.2rem;margin-top:.25rem;min-width:8rem}\
.lane i{position:absolute;top:0;bottom:0;border-radius:.2rem;min-width:2px;background:var(--bar)}\
.lane i.wait{background:var(--line)}\
.lane u{position:absolute;top:-.15rem;bottom:-.15rem;width:1px;background:var(--dim)}\
@media(max-width:45rem){body{margin:1rem auto;padding:0 .7rem}thead{display:none}table,tbody,tr,td{display:block}\
tr{border-bottom:1px solid var(--line);padding:.4rem 0}td{border:0;padding:.1rem 0}.n{text-align:left}\
td[data-name]::before{content:attr(data-name) ' ';color:var(--dim)}td[data-name]:empty{display:none}}\
@media print{:root{color-scheme:light}body{margin:0;max-width:none;font-size:11px}code,.when{font-size:9px}\
tr,li{break-inside:avoid}.lane,.lane i,.counts li{print-color-adjust:exact;-webkit-print-color-adjust:exact}a{color:inherit}}";

/// Returns the page.
pub(super) fn page(d: &SessionDetail) -> String {
    let (entry, s) = (&d.session, &d.summary);
    let name = plain(entry.label.as_deref().unwrap_or(&entry.session));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>flywheel: {name}</title>\n\
         <style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n"
    );
    facts(&mut out, d);
    job(&mut out, d);
    match text::shortfall(s) {
        Some(shortfall) => {
            let _ = writeln!(out, "<p class=\"bad\"><b>{}</b></p>", plain(&shortfall));
        }
        None => out.push_str("<p class=\"pushed\"><b>Everything is in the cache.</b></p>\n"),
    }
    for warning in &s.warnings {
        let _ = writeln!(out, "<p class=\"pending\">{}</p>", plain(warning));
    }
    counts(&mut out, s);
    digest(&mut out, d);
    paths(&mut out, d);
    out.push_str("</body></html>\n");
    out
}

/// What the session is: its id, state, cache, host, user and times.
fn facts(out: &mut String, d: &SessionDetail) {
    let (entry, s) = (&d.session, &d.summary);
    let _ = write!(out, "<p class=\"dim\">session {}, {}", plain(&entry.session), text::state(entry.state));
    if !entry.cache.is_empty() {
        let _ = write!(out, ", cache {}", plain(&entry.cache));
    }
    if !d.host.is_empty() {
        let _ = write!(out, ", host {}", plain(&d.host));
    }
    match &d.user {
        Some(user) => {
            let _ = write!(out, ", user {}", plain(user));
        }
        None => {
            let _ = write!(out, ", user number {}", entry.uid);
        }
    }
    // The page is read later, so it has the time and not the age.
    let started = Duration::from_millis(u64::try_from(entry.started_at).unwrap_or_default());
    if let Some(started) = UNIX_EPOCH.checked_add(started).filter(|_| entry.started_at > 0) {
        let _ = write!(out, ", started {}", httpdate::fmt_http_date(started));
    }
    let duration = |ms: u64| text::duration(Duration::from_millis(ms));
    let _ = writeln!(out, ", job {}, then {} of waiting</p>", duration(s.duration_ms), duration(s.flush_ms));
}

fn job(out: &mut String, d: &SessionDetail) {
    let Some(ci) = &d.session.ci else { return };
    let mut parts = vec![plain(&ci.key())];
    parts.extend([&ci.project, &ci.git_ref].into_iter().flatten().map(|v| plain(v)));
    if let Some(url) = &ci.url {
        let text = plain(url);
        // The job sets this text. Only a web address becomes a link; others could be scripts.
        let web = ["https://", "http://"].iter().any(|scheme| url.starts_with(scheme));
        parts.push(if web {
            format!("<a href=\"{text}\" rel=\"noreferrer noopener\">{text}</a>")
        } else {
            text
        });
    }
    let _ = writeln!(out, "<p class=\"dim\">job {}</p>", parts.join(", "));
}

fn counts(out: &mut String, s: &Summary) {
    out.push_str("<ul class=\"counts\">");
    let rows = [
        ("pushed", s.pushed, true),
        ("already cached", s.already_cached, true),
        ("in upstream", s.upstream, true),
        ("failed", s.failed_total, true),
        ("pending", s.pending, true),
        ("skipped", s.skipped, false),
        ("collected", s.collected, false),
    ];
    for (name, n, always) in rows {
        if always || n > 0 {
            let class = if n > 0 { name } else { "" };
            let _ = write!(out, "<li><b class=\"{class}\">{n}</b>{name}</li>");
        }
    }
    let _ = writeln!(out, "<li><b>{}</b>uploaded</li></ul>", text::bytes(s.bytes));
    for (name, n, why) in [("skipped", s.skipped, text::SKIPPED), ("collected", s.collected, text::COLLECTED)]
    {
        if n > 0 {
            let _ = writeln!(out, "<p class=\"dim\">{name}: {}</p>", plain(why));
        }
    }
}

/// What delayed the end, the largest paths, and what was in a cache before.
fn digest(out: &mut String, d: &SessionDetail) {
    let digest = Digest::of(d);
    if d.session.ended_at.is_some() {
        out.push_str("<h2>What delayed the end</h2>\n");
        if digest.late.is_empty() {
            out.push_str("<p>Nothing: every path had its outcome when the job ended.</p>\n");
        } else {
            let _ = writeln!(
                out,
                "<p class=\"dim\">{} had no outcome when the job ended. The last ones:</p>\n<ol>",
                text::paths(digest.late_total as u64)
            );
            for late in &digest.late {
                let when = late.after.map_or_else(
                    || "still pending".to_owned(),
                    |after| format!("{} after the job", text::duration(after)),
                );
                let _ = writeln!(
                    out,
                    "<li><code>{}</code> <span class=\"when\">{}, {when}</span></li>",
                    plain(&late.path.path),
                    text::bytes(late.path.bytes)
                );
            }
            out.push_str("</ol>\n");
        }
    }
    largest(out, "The largest paths", &digest.largest);
    let (count, bytes) = digest.there;
    if count > 0 {
        let title = format!("Already there: {}, {}", text::paths(count as u64), text::bytes(bytes));
        largest(out, &title, &digest.there_largest);
    }
}

fn largest(out: &mut String, title: &str, paths: &[&PathEntry]) {
    if paths.is_empty() {
        return;
    }
    let _ = writeln!(out, "<h2>{}</h2>\n<ol>", plain(title));
    for path in paths {
        let _ = writeln!(
            out,
            "<li><code>{}</code> <span class=\"when\">{}, {}</span></li>",
            plain(&path.path),
            text::bytes(path.bytes),
            plain(&path.state.replace('_', " "))
        );
    }
    out.push_str("</ol>\n");
}

/// The period that the bars of all paths are drawn on, in ms since 1970.
#[derive(Debug, Clone, Copy)]
struct Scale {
    begin: i64,
    end: i64,
    /// When the job ended.
    job_end: Option<i64>,
}

impl Scale {
    fn of(d: &SessionDetail) -> Self {
        let begin = d.session.started_at;
        let last = d.paths.iter().filter_map(|path| path.settled_at).chain(d.session.ended_at).max();
        Self { begin, end: last.unwrap_or(begin).max(begin + 1), job_end: d.session.ended_at }
    }

    /// Where a time is, in percent of the whole.
    fn percent(self, at: i64) -> f64 {
        #[allow(clippy::cast_precision_loss)] // a position on the screen
        let (part, whole) = ((at - self.begin) as f64, (self.end - self.begin) as f64);
        (100.0 * part / whole).clamp(0.0, 100.0)
    }
}

/// When the steps of a path were, as text and as a lane.
fn timeline(path: &PathEntry, scale: Scale) -> String {
    let steps = steps(path);
    if steps.is_empty() {
        return String::new();
    }
    let words: Vec<String> = steps
        .iter()
        .map(|(what, at)| match u64::try_from(at - scale.begin) {
            Ok(ms) => format!("{what} {}", text::duration(Duration::from_millis(ms))),
            Err(_) => format!("{what} before the job"),
        })
        .collect();
    let mut lane = String::new();
    let mut bar = |class: &str, from: Option<i64>, to: Option<i64>| {
        if let (Some(from), Some(to)) = (from, to) {
            let (from, to) = (scale.percent(from), scale.percent(to));
            let width = (to - from).max(0.0);
            let _ = write!(lane, "<i class=\"{class}\" style=\"left:{from:.2}%;width:{width:.2}%\"></i>");
        }
    };
    bar("wait", path.seen_at.or(path.valid_at), path.begun_at.or(path.settled_at));
    bar("", path.begun_at, path.settled_at);
    if let Some(end) = scale.job_end {
        let _ = write!(lane, "<u title=\"the job's end\" style=\"left:{:.2}%\"></u>", scale.percent(end));
    }
    format!("<span class=\"when\">{}</span><div class=\"lane\">{lane}</div>", words.join(", "))
}

fn paths(out: &mut String, d: &SessionDetail) {
    let reason = |f: &Failed| format!("{}{}", f.error, text::in_brackets(f.class.as_deref()));
    let reasons: HashMap<&str, String> =
        d.summary.failed.iter().map(|f| (f.path.as_str(), reason(f))).collect();
    if d.paths.is_empty() && reasons.is_empty() {
        return;
    }
    out.push_str(
        "<h2>All paths</h2>\n<p class=\"dim\">Times count from the session's start; the line across a lane is the job's \
         end.</p>\n<table><thead><tr><th>path</th><th>state</th><th>evidence</th><th class=\"n\">size</th></tr></thead><tbody>\n",
    );
    let scale = Scale::of(d);
    // Failed paths come first, because readers look for them.
    let rank = |state: &str| match state {
        "failed" => 0,
        "pending" => 1,
        "skipped" | "collected" => 3,
        _ => 2,
    };
    let mut sorted: Vec<_> = d.paths.iter().collect();
    sorted.sort_by_key(|p| (rank(&p.state), p.seen_at));
    let mut row = |path: &str, state: &str, evidence: &str, size: &str, timeline: &str| {
        let reason = reasons.get(path).map(|r| format!("<br><span class=\"failed\">{}</span>", plain(r)));
        let _ = writeln!(
            out,
            "<tr><td><code>{}</code>{}{timeline}</td><td class=\"{}\">{}</td><td data-name=\"evidence\">{}</td>\
             <td class=\"n\" data-name=\"size\">{size}</td></tr>",
            plain(path),
            reason.unwrap_or_default(),
            plain(state),
            plain(&state.replace('_', " ")),
            plain(evidence),
        );
    };
    let listed: HashSet<&str> = d.paths.iter().map(|p| p.path.as_str()).collect();
    // The list of paths is limited; failures beyond the limit are still shown.
    for failed in d.summary.failed.iter().filter(|f| !listed.contains(f.path.as_str())) {
        row(&failed.path, "failed", "", "", "");
    }
    for p in sorted {
        let timeline = timeline(p, scale);
        let timeline = if timeline.is_empty() { timeline } else { format!("<br>{timeline}") };
        row(&p.path, &p.state, &p.evidence, &text::bytes(p.bytes), &timeline);
    }
    out.push_str("</tbody></table>\n");
    let listed = d.paths.len() as u64;
    if d.paths_total > listed {
        let _ =
            writeln!(out, "<p class=\"dim\">{} more, not listed</p>", text::paths(d.paths_total - listed));
    }
}
