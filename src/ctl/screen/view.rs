//! What the screen of `status --watch` shows for a status. Pure rendering: the same
//! values give the same screen. Must not know where they come from.

use std::time::Duration;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::Screen;
use crate::control::messages::{CacheState, CacheStatus, LogLine, SessionEntry, Status, UploadStatus};
use crate::ctl::text::{self, printable};

const DIM: Style = Style::new().fg(Color::DarkGray);
const HEAD: Style = Style::new().add_modifier(Modifier::BOLD);
const GOOD: Style = Style::new().fg(Color::Green);
const WARN: Style = Style::new().fg(Color::Yellow);
const BAD: Style = Style::new().fg(Color::Red);

/// Most lines for the reason why a cache takes no uploads.
const REASON: usize = 4;

/// A part of the screen: its title, and its lines.
struct Section {
    title: String,
    lines: Vec<Line<'static>>,
}

/// Draws the screen.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &Screen) {
    let area = frame.area();
    let width = usize::from(area.width);
    let Some(status) = &screen.status else {
        let text = screen.trouble.as_deref().unwrap_or("asking flywheeld");
        frame.render_widget(Paragraph::new(vec![Line::from(text.to_owned()), hint(width)]), area);
        return;
    };
    let mut top = vec![header(status, screen, width)];
    // Stale values look like present ones, so the reason stands above them.
    top.extend(screen.trouble.as_ref().map(|trouble| Line::styled(cut(trouble, width), BAD)));
    top.push(queue(status, screen, width));
    top.extend(
        status.warnings.iter().take(2).map(|text| Line::styled(cut(&format!("! {text}"), width), WARN)),
    );
    let sections = [
        caches(&status.cache, width),
        sessions(
            &status.sessions,
            status.session_counts.open + status.session_counts.draining,
            screen.now_ms,
            width,
        ),
        uploads(&status.uploads, status.queue.uploading, width),
        events(&status.events, width),
    ];
    let wanted = sections.each_ref().map(|section| section.lines.len() + 1);
    let rows = share(usize::from(area.height).saturating_sub(top.len()), wanted);
    let lengths = std::iter::once(top.len()).chain(rows);
    let areas = Layout::vertical(lengths.map(|n| Constraint::Length(u16::try_from(n).unwrap_or(u16::MAX))))
        .split(area);
    frame.render_widget(Paragraph::new(top), areas[0]);
    for ((section, area), rows) in sections.into_iter().zip(areas.iter().skip(1)).zip(rows) {
        section.draw(frame, *area, rows, width);
    }
}

impl Section {
    /// Draws as many lines as there are rows for; the title says how many are left out.
    fn draw(self, frame: &mut Frame<'_>, area: Rect, rows: usize, width: usize) {
        if rows == 0 {
            return;
        }
        let room = rows - 1;
        let hidden = self.lines.len().saturating_sub(room);
        let more = if hidden > 0 { format!(" ({hidden} more)") } else { String::new() };
        let mut lines = vec![Line::styled(cut(&format!("{}{more}", self.title), width), HEAD)];
        lines.extend(self.lines.into_iter().take(room));
        frame.render_widget(Paragraph::new(lines), area);
    }
}

/// Shares the rows among the sections. Each gets up to three first, in their order, so
/// that none is crowded out; then the earlier ones get what they want, and the last one,
/// the events, the rest.
fn share(rows: usize, wanted: [usize; 4]) -> [usize; 4] {
    let mut left = rows;
    let mut given = [0; 4];
    for most in [3, usize::MAX] {
        for (given, wanted) in given.iter_mut().zip(wanted) {
            let more = wanted.min(most).saturating_sub(*given).min(left);
            *given += more;
            left -= more;
        }
    }
    given
}

fn hint(width: usize) -> Line<'static> {
    Line::styled(cut("q quits", width), DIM)
}

fn header(status: &Status, screen: &Screen, width: usize) -> Line<'static> {
    let up = text::duration(Duration::from_millis(status.uptime_ms / 1000 * 1000));
    let state = if status.draining { ", stopping" } else { "" };
    let left = format!("flywheel {}, up {up}{state}", printable(&status.version));
    let right = format!("{}  q quits", clock(screen.now_ms));
    let gap = width.saturating_sub(left.chars().count() + right.chars().count());
    if gap < 2 {
        return Line::styled(cut(&left, width), HEAD);
    }
    Line::from(vec![Span::styled(left, HEAD), Span::raw(" ".repeat(gap)), Span::styled(right, DIM)])
}

/// The time of day in UTC, as the journal's `--utc` shows it.
fn clock(ms: i64) -> String {
    let seconds = ms.div_euclid(1000).rem_euclid(86_400);
    format!("{:02}:{:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

fn queue(status: &Status, screen: &Screen, width: usize) -> Line<'static> {
    let q = &status.queue;
    let mut parts = vec![
        Span::raw(format!("{} pending, {} uploading, ", q.pending, q.uploading)),
        Span::styled(format!("{} failed", q.failed), if q.failed > 0 { BAD } else { Style::new() }),
    ];
    if let Some(rate) = screen.rate {
        parts.push(Span::raw(format!(", {}/s", text::bytes(rate))));
    }
    if status.store.lag > 0 {
        parts.push(Span::styled(format!(", {} rows behind", status.store.lag), WARN));
    }
    if let Some(problem) = &status.store.problem {
        parts.push(Span::styled(format!(", {}", printable(problem)), BAD));
    }
    if status.ledger.state != "ok" {
        let detail = status.ledger.detail.as_deref().unwrap_or_default();
        parts.push(Span::styled(format!(", ledger {}: {}", status.ledger.state, printable(detail)), BAD));
    }
    clipped(parts, width)
}

fn caches(caches: &[CacheStatus], width: usize) -> Section {
    let name_width = caches.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).min(20);
    let mut lines = Vec::new();
    for c in caches {
        let style = match c.state {
            CacheState::Online => GOOD,
            CacheState::Offline => BAD,
            CacheState::Unauthorized => WARN,
        };
        let mut parts = vec![
            Span::raw(format!(" {} ", pad(&c.name, name_width))),
            Span::styled(format!("{:<12} ", c.state.as_str()), style),
        ];
        let Some(reason) = &c.reason else {
            let endpoint = c.endpoint.as_deref().unwrap_or("no endpoint was found yet");
            parts.push(Span::styled(printable(endpoint), DIM));
            lines.push(clipped(parts, width));
            continue;
        };
        let column: usize = parts.iter().map(|part| part.content.chars().count()).sum();
        for part in wrapped(&printable(reason), width.saturating_sub(column)) {
            parts.push(Span::styled(part, style));
            lines.push(clipped(std::mem::take(&mut parts), width));
            parts.push(Span::raw(" ".repeat(column)));
        }
    }
    Section { title: "Caches".to_owned(), lines }
}

fn sessions(list: &[SessionEntry], total: u64, now_ms: i64, width: usize) -> Section {
    let hidden = total.saturating_sub(list.len() as u64);
    let others = if hidden > 0 { format!(", {hidden} of other users") } else { String::new() };
    let title = format!("Sessions: {}{others}", list.len());
    // Those with work left come first.
    let mut list: Vec<&SessionEntry> = list.iter().collect();
    list.sort_by_key(|s| (std::cmp::Reverse(s.pending), std::cmp::Reverse(s.started_at)));
    let bar_width = (width / 6).clamp(4, 20);
    let name_width = (width / 3).clamp(8, 40);
    let lines = list.into_iter().map(|s| {
        let total = s.settled + s.pending + s.failed;
        let age = text::duration(Duration::from_secs(
            u64::try_from((now_ms - s.started_at) / 1000).unwrap_or_default(),
        ));
        let mut parts = vec![
            Span::raw(format!(" {} ", pad(s.label.as_deref().unwrap_or(&s.session), name_width))),
            Span::styled(bar(s.settled, total, bar_width), if s.pending > 0 { WARN } else { GOOD }),
            Span::raw(format!(" {}/{total} paths", s.settled)),
        ];
        if s.failed > 0 {
            parts.push(Span::styled(format!(", {} failed", s.failed), BAD));
        }
        parts.push(Span::styled(format!(", {}, {age}", text::state(s.state)), DIM));
        clipped(parts, width)
    });
    Section { title, lines: lines.collect() }
}

fn uploads(list: &[UploadStatus], total: u64, width: usize) -> Section {
    let hidden = total.saturating_sub(list.len() as u64);
    let others = if hidden > 0 { format!(", {hidden} not shown") } else { String::new() };
    let bar_width = (width / 6).clamp(4, 20);
    let name_width = (width / 3).clamp(8, 40);
    let lines = list.iter().map(|u| {
        let rate = u.sent.saturating_mul(1000).checked_div(u.running_ms).unwrap_or(0);
        let done = if !u.measured {
            let running = text::duration(Duration::from_millis(u.running_ms));
            format!("{} by the attic client, for {running}", text::bytes(u.nar_size))
        } else if u.nar_size > 0 && u.sent >= u.nar_size {
            "waits for the answer".to_owned()
        } else {
            format!("{} of {}, {}/s", text::bytes(u.sent), text::bytes(u.nar_size), text::bytes(rate))
        };
        let mut parts = vec![
            Span::raw(format!(" {} ", pad(&text::name(&u.path), name_width))),
            Span::styled(bar(u.sent, u.nar_size, bar_width), GOOD),
            Span::raw(format!(" {done}")),
        ];
        if u.attempt > 1 {
            parts.push(Span::styled(format!(", try {}", u.attempt), WARN));
        }
        parts.push(Span::styled(format!(", to {}", printable(&u.cache)), DIM));
        clipped(parts, width)
    });
    Section { title: format!("Uploads: {total}{others}"), lines: lines.collect() }
}

fn events(events: &[LogLine], width: usize) -> Section {
    // The newest first: what is cut off is the oldest.
    let lines = events.iter().rev().map(|event| {
        let style = match event.level.as_str() {
            "error" => BAD,
            "warn" => WARN,
            _ => Style::new(),
        };
        clipped(
            vec![
                Span::styled(format!(" {} ", &clock(event.at)[..8]), DIM),
                Span::styled(printable(&event.text), style),
            ],
            width,
        )
    });
    Section { title: "Last events".to_owned(), lines: lines.collect() }
}

/// `#####-----`, in `width` characters.
fn bar(part: u64, whole: u64, width: usize) -> String {
    let full = part.min(whole).saturating_mul(width as u64).checked_div(whole);
    let full = usize::try_from(full.unwrap_or_default()).unwrap_or_default();
    format!("{}{}", "#".repeat(full), "-".repeat(width - full))
}

/// A text of exactly `width` characters, made printable.
fn pad(text: &str, width: usize) -> String {
    format!("{:<width$}", cut(text, width))
}

/// A text of at most `width` characters, made printable; a `…` shows that it was cut.
fn cut(text: &str, width: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= width {
        return text;
    }
    let mut cut: String = text.chars().take(width.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// The lines of a text, each of at most `width` characters if its words are not longer.
/// There are at most [`REASON`]; a longer text has more words in the last one.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let full = lines.len() == REASON;
        let last = lines.last_mut().map_or(0, |line| line.chars().count());
        if last > 0 && last + 1 + word.chars().count() > width && !full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines
}

/// A line of at most `width` characters; a `…` shows that it was cut.
fn clipped(parts: Vec<Span<'static>>, width: usize) -> Line<'static> {
    let mut left = width;
    let mut shown = Vec::new();
    for part in parts {
        let length = part.content.chars().count();
        if length > left {
            shown.push(Span::styled(cut(&part.content, left), part.style));
            return Line::from(shown);
        }
        left -= length;
        shown.push(part);
    }
    Line::from(shown)
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::control::messages::{LedgerStatus, QueueStatus, SessionCounts, SessionState};

    fn shown(screen: &Screen, width: u16, height: u16) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, screen)).unwrap();
        let buffer = terminal.backend().buffer();
        let rows = buffer.content().chunks(usize::from(width));
        rows.map(|row| {
            row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
        })
        .collect()
    }

    fn cache(name: &str, state: CacheState, reason: Option<&str>) -> CacheStatus {
        CacheStatus {
            name: name.into(),
            state,
            engine: "native".into(),
            endpoint: Some("https://attic.example.com".into()),
            reason: reason.map(str::to_owned),
            ..CacheStatus::default()
        }
    }

    fn screen() -> Screen {
        let session = |label: &str, settled, pending, failed| SessionEntry {
            session: "s".into(),
            label: Some(label.into()),
            state: SessionState::Open,
            started_at: 1_700_000_000_000,
            settled,
            pending,
            failed,
            ..SessionEntry::default()
        };
        let upload = |name: &str, nar_size, sent, attempt| UploadStatus {
            path: format!("/nix/store/{:032}-{name}", 1),
            cache: "main".into(),
            nar_size,
            sent,
            running_ms: 2000,
            attempt,
            measured: name != "by-attic",
        };
        let event = |at: i64, level: &str, text: &str| LogLine {
            at: 1_700_000_000_000 + at * 1000,
            level: level.into(),
            text: text.into(),
        };
        let status = Status {
            version: "0.1.0".into(),
            uptime_ms: 7_265_432,
            cache: vec![
                cache("main", CacheState::Online, None),
                cache("other", CacheState::Offline, Some("no connection: refused")),
            ],
            queue: QueueStatus { pending: 12, uploading: 2, failed: 1 },
            sessions: vec![session("group/project build #42", 7, 3, 1), session("quick", 2, 0, 0)],
            session_counts: SessionCounts { open: 3, draining: 0 },
            ledger: LedgerStatus { state: "ok".into(), detail: None },
            uploads: vec![upload("glibc-2.40", 40 << 20, 10 << 20, 1), upload("hello", 1 << 10, 1 << 10, 2)],
            events: vec![
                event(1, "info", "session s started"),
                event(2, "warn", "cache other does not answer\u{1b}[2J"),
            ],
            ..Status::default()
        };
        Screen { status: Some(status), trouble: None, rate: Some(5 << 20), now_ms: 1_700_000_065_000 }
    }

    #[test]
    fn eighty_by_twenty_four() {
        let rows = shown(&screen(), 80, 24);
        let expected = [
            "flywheel 0.1.0, up 2 h 1 min                               22:14:25 UTC  q quits",
            "12 pending, 2 uploading, 1 failed, 5.0 MiB/s",
            "Caches",
            " main  online       https://attic.example.com",
            " other offline      no connection: refused",
            "Sessions: 2, 1 of other users",
            " group/project build #42    ########----- 7/11 paths, 1 failed, open, 1 min 5 s",
            " quick                      ############# 2/2 paths, open, 1 min 5 s",
            "Uploads: 2",
            " glibc-2.40                 ###---------- 10.0 MiB of 40.0 MiB, 5.0 MiB/s, to m…",
            " hello                      ############# waits for the answer, try 2, to main",
            "Last events",
            " 22:13:22 cache other does not answer [2J",
            " 22:13:21 session s started",
        ];
        assert_eq!(&rows[..expected.len()], expected, "{rows:#?}");
        assert!(rows[expected.len()..].iter().all(String::is_empty));
    }

    #[test]
    fn any_size_is_drawn_and_every_section_has_a_place() {
        for width in [1, 2, 10, 30, 40, 200] {
            for height in [1, 2, 5, 12, 60] {
                let rows = shown(&screen(), width, height);
                assert_eq!(rows.len(), usize::from(height));
            }
        }
        let rows = shown(&screen(), 40, 14);
        for part in ["Caches", "Sessions", "Uploads", "Last events"] {
            assert!(rows.iter().any(|row| row.starts_with(part)), "{part}: {rows:#?}");
        }
        assert!(rows.iter().any(|row| row.ends_with('…')), "{rows:#?}");
        // A hundred sessions leave room for the rest.
        let mut many = screen();
        let status = many.status.as_mut().unwrap();
        status.sessions = vec![status.sessions[0].clone(); 100];
        let rows = shown(&many, 80, 24);
        for part in ["Uploads: 2", " glibc-2.40", "Last events"] {
            assert!(rows.iter().any(|row| row.starts_with(part)), "{part}: {rows:#?}");
        }
        assert!(
            rows.iter().any(|row| row.starts_with("Sessions: 100") && row.contains("more)")),
            "{rows:#?}"
        );
    }

    #[test]
    fn the_reason_of_an_outage_is_shown_as_a_whole_where_there_is_room() {
        let reason = "asking https://attic.example.com for the cache other: the connection was refused, because \
                      nothing listens at this address; start the server, or correct `endpoints`";
        let mut offline = screen();
        offline.status.as_mut().unwrap().cache[1].reason = Some(reason.into());
        let rows = shown(&offline, 80, 24);
        let words: Vec<&str> = rows[4..7].iter().flat_map(|row| row.split_whitespace()).collect();
        assert!(words.join(" ").contains(reason), "{rows:#?}");
        assert!(rows[7].starts_with("Sessions"), "{rows:#?}");
        let narrow = shown(&offline, 40, 60);
        assert!(narrow[7].ends_with('…') && narrow[8].starts_with("Sessions"), "{narrow:#?}");
        assert_eq!(wrapped("", 5), [""]);
    }

    #[test]
    fn stale_values_are_marked() {
        let mut lost = screen();
        lost.trouble = Some("flywheeld does not answer; these values are 7 s old".into());
        let rows = shown(&lost, 80, 24);
        assert!(rows[1].starts_with("flywheeld does not answer"), "{rows:#?}");
        let none = Screen { status: None, ..lost };
        assert!(shown(&none, 80, 24)[0].starts_with("flywheeld does not answer"));
    }
}
