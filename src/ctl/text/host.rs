//! The daemon and the host as text: status, findings of `doctor`, the steps of `setup`, the attic
//! client and the lines of nix.conf. Pure; must not print.

use std::fmt::Write as _;
use std::time::Duration;

use super::super::doctor::Finding;
use super::super::doctor::Level;
use super::super::nix_conf::Knows;
use super::super::nix_conf::Lines;
use super::super::setup::Plan;
use super::{age, duration, paths, printable, sessions};
use crate::control::messages::{ClientInfo, ClientServer, ClientStatus, Status};

pub(in crate::ctl) fn status(s: &Status, now_ms: i64) -> String {
    let mut out = String::new();
    let draining = if s.draining { ", stopping" } else { "" };
    let _ = writeln!(
        out,
        "flywheel {}, up {}{draining}",
        printable(&s.version),
        duration(Duration::from_millis(s.uptime_ms))
    );
    for c in &s.cache {
        let state = c.state.as_str();
        let endpoint = printable(c.endpoint.as_deref().unwrap_or("no endpoint found"));
        let _ =
            write!(out, "cache {}: {state}, {endpoint}, engine {}", printable(&c.name), printable(&c.engine));
        if let Some(reason) = &c.reason {
            let _ = write!(out, ": {}", printable(reason));
        }
        out.push('\n');
    }
    let q = &s.queue;
    let _ = writeln!(out, "queue: {} pending, {} uploading, {} failed", q.pending, q.uploading, q.failed);
    let _ = write!(out, "store: {} behind (cursor {})", paths(s.store.lag), s.store.cursor);
    if let Some(files) = &s.store.files {
        let _ = write!(out, ", in {}", printable(files));
    }
    if let Some(problem) = &s.store.problem {
        let _ = write!(out, ": {}", printable(problem));
    }
    let _ = write!(out, "\nledger: {}", printable(&s.ledger.state));
    if let Some(detail) = &s.ledger.detail {
        let _ = write!(out, ": {}", printable(detail));
    }
    let _ = writeln!(out, "\nclient: {}", client(&s.client, now_ms));
    if !s.sessions.is_empty() {
        out.push_str(&sessions(&s.sessions, now_ms));
    }
    for p in &s.failed {
        let _ = writeln!(out, "failed: {}: {}", printable(&p.path), printable(&p.error));
    }
    let listed = s.failed.len() as u64;
    if q.failed > listed && listed > 0 {
        let _ = writeln!(out, "failed: {} more, not listed", paths(q.failed - listed));
    }
    out
}

fn client(c: &ClientStatus, now_ms: i64) -> String {
    let mut out = printable(&c.state);
    if let Some(path) = &c.path {
        let _ = write!(out, ", {}", printable(path));
    }
    if let Some(version) = &c.version {
        let _ = write!(out, " ({})", printable(version));
    }
    if let Some(since) = c.since {
        let _ = write!(out, ", here for {}", age(since, now_ms));
    }
    if let Some(error) = &c.error {
        let _ = write!(out, ": {}", printable(error));
    }
    out
}

/// Formats the findings of `doctor`, bad ones first.
pub(in crate::ctl) fn findings(findings: &[Finding]) -> String {
    let mut out = String::new();
    for (level, word) in
        [(Level::Bad, "BAD"), (Level::Unchecked, "not checked"), (Level::Note, "note"), (Level::Good, "good")]
    {
        for f in findings.iter().filter(|f| f.level == level) {
            let _ = writeln!(out, "{word:<11}  {}: {}", printable(&f.what), printable(&f.text));
            if let Some(command) = &f.command {
                let _ = writeln!(out, "{:<11}  run: {}", "", printable(command));
            }
        }
    }
    out
}

/// Formats what `setup` will do.
pub(in crate::ctl) fn plan(plan: &Plan, dry_run: bool) -> String {
    let mut out = String::new();
    for kept in &plan.kept {
        let _ = writeln!(out, "  ok  {}", printable(kept));
    }
    if plan.steps.is_empty() {
        out.push_str("There is nothing to change.\n");
    } else {
        out.push_str(if dry_run { "This would be done:\n" } else { "This will be done:\n" });
    }
    for step in &plan.steps {
        let text: Vec<String> = step.text().lines().map(printable).collect();
        let _ = writeln!(out, "  -   {}", text.join("\n"));
    }
    for later in &plan.later {
        let _ = writeln!(out, "  -   then {}", printable(later));
    }
    out
}

pub(in crate::ctl) fn client_info(info: &ClientInfo, known: &[Option<Knows>], now_ms: i64) -> String {
    let c = &info.client;
    let mut out = format!("client: {}\n", client(c, now_ms));
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            let _ = writeln!(out, "  {name:<12} {value}");
        }
    };
    line("from:", c.installable.as_deref().map(printable));
    line("fetched in:", c.took_ms.map(|ms| duration(Duration::from_millis(ms))));
    line("waited:", c.waited_ms.map(|ms| duration(Duration::from_millis(ms))));
    for (server, knows) in info.servers.iter().zip(known) {
        reading(&mut out, server, knows.as_ref(), info.netrc.as_deref());
    }
    out
}

/// Formats whether Nix on this host reads a cache, and what to do if it does not.
fn reading(out: &mut String, server: &ClientServer, knows: Option<&Knows>, netrc: Option<&str>) {
    let url = server.substituter.as_deref().unwrap_or("its substituter is not known yet");
    let _ = writeln!(out, "cache {}: {}", printable(&server.name), printable(url));
    let mut line = |name: &str, good: bool, otherwise: &str| {
        let _ = writeln!(out, "  {name:<22} {}", if good { "yes" } else { otherwise });
    };
    if let Some(knows) = knows.filter(|_| server.substituter.is_some()) {
        let hint = "no: add what `flywheelctl nix-conf` prints to nix.conf";
        line("a substituter of Nix:", knows.substituter, hint);
        line("its key is trusted:", knows.public_key, hint);
        match (knows.netrc, netrc) {
            (None, _) => {}
            (Some(good), Some(_)) => line("Nix uses its netrc:", good, hint),
            (Some(good), None) => {
                line(
                    "Nix uses its netrc:",
                    good,
                    "no: it is private; set [nix] netrc and its pull_token_file",
                );
            }
        }
    }
    let problem = printable(server.problem.as_deref().unwrap_or("the reason is not known"));
    match server.readable {
        Some(good) => line("can be read:", good, &format!("no: {problem}")),
        None => line("can be read:", false, "not known: the cache has not answered yet"),
    }
}

/// Formats lines for nix.conf.
pub(in crate::ctl) fn nix_conf(lines: &Lines) -> String {
    let mut out = String::new();
    for (key, values) in [
        ("extra-substituters", &lines.substituters),
        ("extra-trusted-public-keys", &lines.trusted_public_keys),
    ] {
        if !values.is_empty() {
            let _ = writeln!(out, "{key} = {}", printable(&values.join(" ")));
        }
    }
    if let Some(file) = &lines.netrc_file {
        let _ = writeln!(out, "netrc-file = {}", printable(file));
    }
    if lines.client_certificates {
        out.push_str("# Nix 2.34 and newer send the certificate that a substituter's address names.\n");
    }
    for file in &lines.ca_files {
        let file = printable(file);
        let _ = write!(
            out,
            "# The authority of a server is private. Nix reads one file for all substituters: make one with the\n\
             # system's certificates and those in {file}, and name it here:\n# ssl-cert-file = /etc/ssl/nix-authorities.pem\n"
        );
    }
    if lines.fallback {
        out.push_str(
            "# Builds continue while a cache cannot be reached. Restart the nix-daemon to make it read nix.conf.\n",
        );
        out.push_str("fallback = true\n");
    }
    if let Some(seconds) = lines.connect_timeout {
        let _ = writeln!(out, "connect-timeout = {seconds}");
    }
    out
}
