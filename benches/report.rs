//! A figure as a line of JSON. Does not know what was measured.

use serde_json::{Value, json};

/// Up to this number of values are printed one by one; of more, only the quantiles.
const PRINTED: usize = 50;

/// Prints one figure. `how`: what was measured, from where to where.
pub fn figure(name: &str, unit: &str, values: &[f64], how: &str) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |share: f64| -> Value {
        // The nearest rank, which is a value that was measured.
        let rank = ((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len().max(1));
        sorted.get(rank - 1).map_or(Value::Null, |v| json!(round(*v)))
    };
    let printed: Vec<f64> =
        if values.len() <= PRINTED { values.iter().map(|v| round(*v)).collect() } else { Vec::new() };
    println!(
        "{}",
        json!({
            "name": name, "unit": unit, "n": values.len(), "values": printed,
            "min": at(0.0), "median": at(0.5), "p99": at(0.99), "max": at(1.0),
            "how": how, "machine": machine(),
        })
    );
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn machine() -> Value {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    json!({
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "load": load.split_whitespace().next().unwrap_or("?"),
    })
}

/// The median, a value that was measured.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len().saturating_sub(1) / 2]
}
