//! Durations as people write them: `240s`, `5m`, `1h30m`, `250ms`; a plain number is seconds.

use std::time::Duration;

/// Longest accepted: more is a typing error, and would overflow deadlines.
const MOST: Duration = Duration::from_secs(7 * 24 * 3600);

pub(super) fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration: write it like 240s, 5m or 1h30m");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let milliseconds: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "" if digits == text.trim().len() => 1000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let part = number.checked_mul(milliseconds).map(Duration::from_millis);
        sum = part.and_then(|p| sum.checked_add(p)).unwrap_or(Duration::MAX);
        rest = tail;
    }
    if sum > MOST { Err(format!("`{text}` is longer than a week")) } else { Ok(sum) }
}
