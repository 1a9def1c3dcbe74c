//! What `setup` will do, compared with what is there. Making a plan changes nothing.

use std::path::{Path, PathBuf};

use super::steps::{self, File};
use super::{GROUP, Host, Wanted};
use crate::ctl::exit::Failure;

/// One thing that is to be done.
#[derive(Debug)]
pub(in crate::ctl) enum Step {
    /// Writes a file.
    Write(File),
    /// Adds a user to the group.
    Join(String),
    /// Restarts the service.
    Restart,
}

impl Step {
    /// What the step does, in one sentence for people.
    pub(in crate::ctl) fn text(&self) -> String {
        match self {
            Self::Write(file) => file.text(),
            Self::Join(user) => {
                format!("add the user {user} to the group {GROUP}, whose members may use flywheeld")
            }
            Self::Restart => "restart flywheeld; running uploads end first".to_owned(),
        }
    }
}

/// What `setup` will do.
#[derive(Debug)]
pub(in crate::ctl) struct Plan {
    /// What is to be done, in this order.
    pub(in crate::ctl) steps: Vec<Step>,
    /// What is there already.
    pub(in crate::ctl) kept: Vec<String>,
    /// What follows when the daemon runs, for people.
    pub(in crate::ctl) later: Vec<String>,
}

impl Plan {
    /// Compares what is wanted with the host.
    pub(super) fn new(host: &Host, wanted: &Wanted) -> Result<Self, Failure> {
        let mut plan = Self { steps: Vec::new(), kept: Vec::new(), later: Vec::new() };
        if let Some((server, cache)) = &wanted.cache {
            let token = match (&wanted.token_command[..], &host.token_file) {
                ([], None) => steps::TokenSetting::Credential,
                ([], Some(file)) => steps::TokenSetting::File(file),
                (words, _) => steps::TokenSetting::Command(words),
            };
            let text = steps::configuration(server, cache, token);
            plan.file(host, File::new(steps::fragment(&host.config), text, 0o644))?;
        }
        if let Some(token) = &wanted.token {
            let file = host.token_file.clone().unwrap_or_else(|| PathBuf::from(steps::CREDENTIAL));
            // The service's user reads a file of the configuration itself; a credential
            // is read by systemd, for root.
            let owner = host.token_file.as_ref().map(|_| GROUP.to_owned());
            let text = format!("{}\n", token.as_str());
            plan.file(host, File { secret: true, owner, ..File::new(file, text, 0o600) })?;
        }
        for user in &wanted.users {
            if steps::is_member(host, user).map_err(Failure::Usage)? {
                plan.kept.push(format!("the user {user} is in the group {GROUP}"));
            } else {
                plan.steps.push(Step::Join(user.clone()));
            }
        }
        if plan.steps.iter().any(|step| matches!(step, Step::Write(_))) && host.is_running() {
            plan.steps.push(Step::Restart);
        }
        if host.is_running() && wanted.nix_conf {
            let include = Path::new(super::nix::INCLUDED).display();
            plan.later.push(format!(
                "when the cache has answered, write its address and key to {include} and restart nix-daemon, if they \
                 are not there"
            ));
        }
        if host.is_running() {
            plan.later.push("run `flywheelctl doctor`".to_owned());
        }
        Ok(plan)
    }

    fn file(&mut self, host: &Host, file: File) -> Result<(), Failure> {
        if file.is_there(host).map_err(Failure::Usage)? {
            self.kept.push(format!("{} is as it should be", file.path.display()));
        } else {
            self.steps.push(Step::Write(file));
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What was done, for people.
    pub(super) fn done(&self) -> Vec<String> {
        self.steps.iter().map(Step::text).collect()
    }

    /// Does it. A configuration that cannot be used is taken back.
    pub(super) fn carry_out(&self, host: &Host) -> Result<(), Failure> {
        for step in &self.steps {
            match step {
                Step::Write(file) => {
                    let before = file.write(host).map_err(Failure::Usage)?;
                    let is_config = file.path == steps::fragment(&host.config);
                    if let (true, Err(why)) = (is_config, steps::check_configuration(host)) {
                        file.restore(host, before.as_deref()).map_err(Failure::Usage)?;
                        let text = format!("the configuration cannot be used and was taken back: {why}");
                        return Err(Failure::Usage(text));
                    }
                }
                Step::Join(user) => steps::join(host, user).map_err(Failure::Usage)?,
                Step::Restart => steps::restart().map_err(Failure::Usage)?,
            }
        }
        Ok(())
    }
}
