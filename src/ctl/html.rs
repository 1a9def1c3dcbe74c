//! The report of a session as one HTML page without scripts, fonts or images. Pure;
//! must not know where the page goes.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write,
    time::{Duration, UNIX_EPOCH},
};

use super::text;
use crate::control::messages::{SessionDetail, Summary};

/// Escapes text for use between tags or in a quoted attribute.
pub(super) fn escape(text: &str) -> String {
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
:root{color-scheme:light dark;--line:#8884;--soft:#8881;--dim:#777}\
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem}\
h1{font-size:1.4rem;margin:0}p{margin:.3rem 0}.dim{color:var(--dim)}\
.counts{display:flex;flex-wrap:wrap;gap:.6rem;margin:1.2rem 0;padding:0;list-style:none}\
.counts li{background:var(--soft);border-radius:.5rem;padding:.5rem 1rem;min-width:6rem}\
.counts b{display:block;font-size:1.5rem;font-variant-numeric:tabular-nums}\
table{border-collapse:collapse;width:100%;margin-top:1rem}\
th,td{text-align:left;padding:.3rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}\
th{color:var(--dim);font-weight:600}.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}\
code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}\
.pushed{color:#1a7f37}.failed,.bad{color:#cf222e}.pending{color:#9a6700}\
@media(prefers-color-scheme:dark){.pushed{color:#3fb950}.failed,.bad{color:#f85149}.pending{color:#d29922}}";

/// Returns the page.
pub(super) fn page(d: &SessionDetail) -> String {
    let (entry, s) = (&d.session, &d.summary);
    let name = plain(entry.label.as_deref().unwrap_or(&entry.session));
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>flywheel: {name}</title>\n\
         <style>{STYLE}</style></head>\n<body>\n<h1>{name}</h1>\n<p class=\"dim\">session {}, {}",
        plain(&entry.session),
        text::state(entry.state),
    );
    if !entry.cache.is_empty() {
        let _ = write!(out, ", cache {}", plain(&entry.cache));
    }
    let duration = |ms: u64| text::duration(Duration::from_millis(ms));
    // The page is read later, so it has the time and not the age.
    let started = Duration::from_millis(u64::try_from(entry.started_at).unwrap_or_default());
    if let Some(started) = UNIX_EPOCH.checked_add(started).filter(|_| entry.started_at > 0) {
        let _ = write!(out, ", started {}", httpdate::fmt_http_date(started));
    }
    let _ = writeln!(
        out,
        ", took {}, of that {} after the job</p>",
        duration(s.duration_ms),
        duration(s.flush_ms)
    );
    job(&mut out, d);
    match text::shortfall(s) {
        Some(shortfall) => {
            let _ = writeln!(out, "<p class=\"bad\"><b>{}</b></p>", plain(&shortfall));
        }
        None => out.push_str("<p>Everything is in the cache.</p>\n"),
    }
    for warning in &s.warnings {
        let _ = writeln!(out, "<p class=\"pending\">{}</p>", plain(warning));
    }
    counts(&mut out, s);
    paths(&mut out, d);
    out.push_str("</body></html>\n");
    out
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
}

fn paths(out: &mut String, d: &SessionDetail) {
    let reasons: HashMap<&str, &str> =
        d.summary.failed.iter().map(|f| (f.path.as_str(), f.error.as_str())).collect();
    if d.paths.is_empty() && reasons.is_empty() {
        return;
    }
    out.push_str(
        "<table><thead><tr><th>path</th><th>state</th><th>evidence</th><th class=\"n\">size</th></tr></thead><tbody>\n",
    );
    // Failed paths come first, because readers look for them.
    let rank = |state: &str| match state {
        "failed" => 0,
        "pending" => 1,
        "skipped" | "collected" => 3,
        _ => 2,
    };
    let mut sorted: Vec<_> = d.paths.iter().collect();
    sorted.sort_by_key(|p| rank(&p.state));
    let mut row = |path: &str, state: &str, evidence: &str, size: &str| {
        let reason = reasons.get(path).map(|r| format!("<br><span class=\"failed\">{}</span>", plain(r)));
        let _ = writeln!(
            out,
            "<tr><td><code>{}</code>{}</td><td class=\"{}\">{}</td><td>{}</td><td class=\"n\">{size}</td></tr>",
            plain(path),
            reason.unwrap_or_default(),
            plain(state),
            plain(&state.replace('_', " ")),
            plain(evidence),
        );
    };
    let listed: HashSet<&str> = d.paths.iter().map(|p| p.path.as_str()).collect();
    // The list of paths is limited; failures beyond the limit are shown all the same.
    for failed in d.summary.failed.iter().filter(|f| !listed.contains(f.path.as_str())) {
        row(&failed.path, "failed", "", "");
    }
    for p in sorted {
        row(&p.path, &p.state, &p.evidence, &text::bytes(p.bytes));
    }
    out.push_str("</tbody></table>\n");
    let listed = d.paths.len() as u64;
    if d.paths_total > listed {
        let _ =
            writeln!(out, "<p class=\"dim\">{} more, not listed</p>", text::paths(d.paths_total - listed));
    }
}
