//! Replies as text for people. Pure; must not print, nor know where the text goes.

mod history;
mod host;
mod outcomes;

use std::time::Duration;

pub(super) use crate::types::{printable, printable_json};
pub(super) use history::{session, sessions, state, stories};
pub(super) use host::{client_info, findings, nix_conf, plan, status};
pub(super) use outcomes::{
    COLLECTED, SKIPPED, bar, in_brackets, name, progress, settled, shortfall, summary, verification,
};

pub(super) fn duration(d: Duration) -> String {
    match d.as_millis() {
        ms @ 0..=999 => format!("{ms} ms"),
        1000..=59_999 => format!("{:.1} s", d.as_secs_f64()),
        _ => {
            let s = d.as_secs();
            match (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60) {
                (0, 0, m, s) => format!("{m} min {s} s"),
                (0, h, m, _) => format!("{h} h {m} min"),
                (d, h, _, _) => format!("{d} d {h} h"),
            }
        }
    }
}

pub(super) fn bytes(n: u64) -> String {
    #[allow(clippy::cast_precision_loss)] // one digit after the point is shown
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{n} B") } else { format!("{value:.1} {unit}") }
}

pub(super) fn paths(n: u64) -> String {
    if n == 1 { "1 path".to_owned() } else { format!("{n} paths") }
}

fn age(started_ms: i64, now_ms: i64) -> String {
    match u64::try_from((now_ms - started_ms) / 1000).unwrap_or_default() {
        seconds @ 0..=59 => format!("{seconds} s"),
        seconds => duration(Duration::from_secs(seconds)),
    }
}

/// Formats a table. Each column but the last is as wide as its widest cell.
fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let width = |i: usize| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        let line = cells.collect::<Vec<_>>().join("  ");
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}
