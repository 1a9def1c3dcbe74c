//! The command `logs`: the journal of one session, or of the daemon, with journald's own
//! program. Must not know what the entries say.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::args::LogsArgs;
use super::exit::{Exit, Failure};
use super::session::find_session;
use super::{Context, variable};
use crate::control::messages::ErrorCode;

const UNIT: &str = "flywheeld.service";
/// Where journald keeps what it wrote, on the disk and in memory.
const JOURNALS: [&str; 2] = ["/var/log/journal", "/run/log/journal"];

/// Whose entries are printed.
#[derive(Debug, PartialEq, Eq)]
enum About {
    Session(String),
    Daemon,
}

pub(super) fn command(context: &Context, args: LogsArgs) -> Result<Exit, Failure> {
    let about = match args.session {
        Some(session) => About::Session(check(session)?),
        None if args.daemon => About::Daemon,
        // In a job its session is meant; at a prompt the daemon.
        None if variable("FLYWHEEL_SESSION").is_some() || super::in_ci() => {
            About::Session(find_session(context, None)?)
        }
        None => About::Daemon,
    };
    let journals = JOURNALS.map(PathBuf::from);
    if !rustix::process::geteuid().is_root() && !may_read(&journals) {
        let message = "you may not read the journal: it is open to root and the groups systemd-journal and adm; add the user \
                       (`usermod -aG systemd-journal USER`) and log in again. `flywheelctl session show` and `flywheelctl \
                       why PATH` need no such right"
            .to_owned();
        return Err(Failure::Refused { code: ErrorCode::Denied, message });
    }
    let mut command = Command::new("journalctl");
    command.args(arguments(&about, args.explain, args.follow, args.warnings, context.render.is_json()));
    if let Some(since) = args.since {
        command.arg(format!("--since={since}"));
    }
    // It takes this process's place: signals, the pager and the status are its own.
    let error = command.exec();
    let message =
        format!("journalctl cannot be run: {error}; without journald, flywheeld logs to standard error");
    Err(Failure::Refused { code: ErrorCode::Denied, message })
}

/// Takes what can be the id of a session: it becomes a match of journalctl.
fn check(session: String) -> Result<String, Failure> {
    let good = !session.is_empty() && session.len() <= 64;
    if good && session.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        Ok(session)
    } else {
        Err(Failure::Usage(format!(
            "{session:?} is not the id of a session; `flywheelctl session list --all` lists them"
        )))
    }
}

/// The arguments of journalctl.
fn arguments(about: &About, explain: bool, follow: bool, warnings: bool, json: bool) -> Vec<String> {
    let mut words = vec!["--quiet".to_owned(), "--no-hostname".to_owned()];
    words.push(if json { "--output=json" } else { "--output=short-iso" }.to_owned());
    words.extend(explain.then(|| "--catalog".to_owned()));
    words.extend(follow.then(|| "--follow".to_owned()));
    words.extend(warnings.then(|| "--priority=warning".to_owned()));
    match about {
        About::Session(session) => words.push(format!("FLYWHEEL_SESSION={session}")),
        About::Daemon => words.extend(["--unit".to_owned(), UNIT.to_owned()]),
    }
    words
}

/// Whether a journal of the system can be opened. Where there is none, journalctl says so.
fn may_read(journals: &[PathBuf]) -> bool {
    let below = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut all = journals.iter().flat_map(|dir| below(dir)).flat_map(|dir| {
        let file = dir.join("system.journal");
        std::fs::symlink_metadata(&file).is_ok().then_some(file)
    });
    let first = all.next();
    first.is_none_or(|file| {
        std::fs::File::open(&file).is_ok() || all.any(|file| std::fs::File::open(file).is_ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journalctl_is_asked_for_the_session_or_the_unit() {
        let session = arguments(&About::Session("abc".into()), true, false, true, false);
        assert_eq!(session[3..], ["--catalog", "--priority=warning", "FLYWHEEL_SESSION=abc"]);
        let daemon = arguments(&About::Daemon, false, true, false, true);
        assert_eq!(daemon[2..], ["--output=json", "--follow", "--unit", "flywheeld.service"]);
        assert!(check("r6mm67amzq4vnc1r".into()).is_ok());
        for bad in ["", "a b", "x=1", "a\n_UID=0", &"x".repeat(65)] {
            assert!(check(bad.to_owned()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_journal_that_cannot_be_opened_is_reported() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        assert!(may_read(&[dir.path().to_owned()]), "without a journal journalctl says what is the matter");
        let machine = dir.path().join("machine");
        std::fs::create_dir(&machine).unwrap();
        let file = machine.join("system.journal");
        std::fs::write(&file, "").unwrap();
        assert!(may_read(&[dir.path().to_owned()]));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o0)).unwrap();
        // Root may read everything.
        assert_eq!(may_read(&[dir.path().to_owned()]), rustix::process::geteuid().is_root());
    }
}
