//! One run of a `token_command`: without a shell, as the service's user, in a process
//! group of its own that ends at the time limit and with the daemon. Must not know what
//! the output means.

use std::ffi::OsString;
use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command as Process;
use zeroize::Zeroizing;

use crate::attic::CALLED_AS;
use crate::config::TokenCommand as Command;
use crate::types::{printable, shorten};

/// Most bytes of output; a token has at most 16 KiB.
const OUTPUT: u64 = 64 * 1024;
/// Most bytes of standard error that a message is made of.
const ERRORS: u64 = 16 * 1024;
/// Longest text of standard error in a message, in characters.
const QUOTE: usize = 400;
/// Shortest word of the output that is removed from standard error.
const WORD: usize = 8;

/// Variables of the daemon that the program does not get: the token that another cache may use, and what is
/// between the daemon and systemd.
const WITHHELD: [&str; 9] = [
    "ATTIC_TOKEN",
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "MAINPID",
    "FLYWHEEL_SESSION",
];

/// Kills a program and everything that it started.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs the program and returns its output, or why it gave none, which is without secrets and names what the
/// program wrote to standard error.
pub(super) async fn run(
    command: &Command,
    cache: &str,
    scrub: &(dyn Fn(&str) -> String + Sync),
) -> Result<Zeroizing<String>, String> {
    let program = command.words.first().map(String::as_str).unwrap_or_default();
    let env: Vec<(OsString, OsString)> =
        std::env::vars_os().filter(|(name, _)| !WITHHELD.iter().any(|held| name == held)).collect();
    // The supervisor ends the program, with everything that it started, when the daemon has ended.
    let mut child = Process::new("/proc/self/exe");
    child.arg(CALLED_AS).arg("0").args(&command.words).env_clear().envs(env).env("FLYWHEEL_CACHE", cache);
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = child.spawn().map_err(|e| format!("{program} could not be started: {e}"))?;
    let _group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (Some(mut lifeline), Some(out), Some(err)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(format!("{program} has no standard streams"));
    };
    let all = async {
        // The program's own input is empty.
        let _ = lifeline.write_all(b"\n").await;
        let (out, err) = tokio::join!(read(out, OUTPUT), read(err, ERRORS));
        (out, err, child.wait().await)
    };
    let limit = command.limit.as_secs_f32();
    let Ok((out, err, status)) = tokio::time::timeout(command.limit, all).await else {
        return Err(format!(
            "{program} did not finish within {limit} s (token_command_timeout) and was ended"
        ));
    };
    let output = Zeroizing::new(String::from_utf8_lossy(&out).into_owned());
    let status = status.map_err(|e| format!("{program} could not be waited for: {e}"))?;
    if !status.success() {
        let errors = said(&String::from_utf8_lossy(&err), &output, scrub);
        let errors = if errors.is_empty() { "it wrote nothing to standard error".to_owned() } else { errors };
        return Err(format!("{program} ended with {}: {errors}", ended(status.code().unwrap_or(1))));
    }
    if out.len() as u64 >= OUTPUT {
        return Err(format!("{program} wrote more than {OUTPUT} bytes"));
    }
    Ok(output)
}

fn ended(status: i32) -> String {
    match status {
        signal @ 129..=192 => format!("signal {}", signal - 128),
        126 => "status 126 (it is not executable)".to_owned(),
        127 => "status 127 (it was not found)".to_owned(),
        status => format!("status {status}"),
    }
}

/// Standard error as one line, without the secrets that are known and without words of the output.
fn said(errors: &str, output: &str, scrub: &dyn Fn(&str) -> String) -> String {
    let mut text = scrub(errors);
    let is_part = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | ',' | '{' | '}');
    for word in output.split(|c| !is_part(c)).filter(|word| word.len() >= WORD) {
        text = text.replace(word, "[token]");
    }
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shorten(&printable(&line), QUOTE)
}

/// Reads at most `limit` bytes, and drops the rest so that the writer is not held up.
async fn read(mut from: impl AsyncRead + Unpin, limit: u64) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::new());
    let _ = (&mut from).take(limit).read_to_end(&mut bytes).await;
    let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_error_has_no_secret() {
        let scrub = |text: &str| text.replace("old-secret", "[token]");
        let errors = "vault: denied\n\tgot {\"token\":\"tok-5ecret-1\"}\x1b[0m and old-secret\n";
        let line = said(errors, "{\"token\":\"tok-5ecret-1\"}", &scrub);
        assert!(line.starts_with("vault: denied got") && line.contains("[token]"), "{line}");
        assert!(!line.contains("5ecret") && !line.contains("old-secret") && !line.contains('\x1b'), "{line}");
    }
}
