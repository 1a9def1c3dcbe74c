//! What can be checked without a daemon: why it does not run, as systemd and the
//! configuration tell. Must not know what the daemon does when it runs.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use super::Finding;

const UNIT: &str = "flywheeld.service";

/// The exit status of a daemon whose configuration cannot be used.
const BAD_CONFIG: &str = "2";

/// Says how the service is, in systemd's words, and whether the configuration is good.
pub(super) fn of_service() -> Vec<Finding> {
    vec![service(properties().as_ref()), configuration()]
}

/// What systemd says of the unit; an error says why it was not asked.
fn properties() -> Result<BTreeMap<String, String>, String> {
    let names = "LoadState,ActiveState,SubState,Result,ExecMainStatus,UnitFileState";
    let output = Command::new("systemctl").args(["show", "-p", names, UNIT]).output();
    let output = output.map_err(|e| format!("systemctl cannot be run: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let all: BTreeMap<String, String> = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .collect();
    if all.is_empty() {
        return Err(String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or("no answer").to_owned());
    }
    Ok(all)
}

fn service(properties: Result<&BTreeMap<String, String>, &String>) -> Finding {
    let what = "service";
    let all = match properties {
        Ok(all) => all,
        Err(why) => return Finding::unchecked(what, format!("systemd was not asked: {why}")),
    };
    let of = |name: &str| all.get(name).map_or("", String::as_str);
    match (of("LoadState"), of("ActiveState")) {
        ("not-found", _) => Finding::bad(what, format!("{UNIT} is not installed"), "flywheeld --version"),
        (_, "active") => {
            Finding::note(what, format!("{UNIT} runs; its socket is another one, or you may not use it"))
                .run("systemctl status flywheeld")
        }
        (_, "failed") if of("ExecMainStatus") == BAD_CONFIG => Finding::bad(
            what,
            format!(
                "{UNIT} does not start: its configuration cannot be used, and it waits until that is corrected"
            ),
            "flywheeld --check-config && systemctl restart flywheeld.socket flywheeld",
        ),
        (_, "failed") => Finding::bad(
            what,
            format!("{UNIT} has failed ({}, exit status {})", of("Result"), of("ExecMainStatus")),
            "journalctl -u flywheeld -n 20",
        ),
        (_, state) => Finding::bad(what, format!("{UNIT} is {state}"), "systemctl enable --now flywheeld"),
    }
}

/// Lets `flywheeld` check its configuration.
fn configuration() -> Finding {
    let what = "configuration";
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("flywheeld")));
    let program = beside.filter(|file| file.is_file()).unwrap_or_else(|| PathBuf::from("flywheeld"));
    match Command::new(&program).arg("--check-config").output() {
        Ok(output) if output.status.success() => Finding::good(what, "can be used"),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let line = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
            Finding::bad(what, format!("cannot be used: {line}"), "flywheeld --check-config")
        }
        Err(error) => Finding::unchecked(what, format!("{} cannot be run: {error}", program.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::doctor::Level;

    #[test]
    fn each_state_of_the_unit_has_its_own_command() {
        for (state, level, command) in [
            ("LoadState=not-found", Level::Bad, "flywheeld --version"),
            ("ActiveState=active", Level::Note, "systemctl status"),
            ("ActiveState=failed ExecMainStatus=2", Level::Bad, "--check-config"),
            ("ActiveState=failed ExecMainStatus=1 Result=exit-code", Level::Bad, "journalctl"),
            ("ActiveState=inactive", Level::Bad, "enable --now"),
        ] {
            let all = state.split(' ').filter_map(|pair| pair.split_once('='));
            let all = all.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            let found = service(Ok(&all));
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.command.as_ref().is_some_and(|c| c.contains(command)), "{found:?}");
        }
        assert_eq!(service(Err(&"no systemd".to_owned())).level, Level::Unchecked);
    }
}
