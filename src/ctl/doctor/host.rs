//! What of the host keeps the daemon from its work: space, limits, rights. Must not know
//! the caches.

use super::Finding;
use crate::control::messages::{HostDiagnosis, SpaceDiagnosis};
use crate::ctl::text::bytes;

/// Below this the next build or the next write may fail.
const LEAST_STORE: u64 = 1 << 30;
const LEAST_STATE: u64 = 256 << 20;
const LEAST_FILES: u64 = 1000;
/// The daemon watches a few directories, by one or two instances.
const LEAST_WATCHES: u64 = 1024;
const LEAST_INSTANCES: u64 = 16;
/// Uploads need a connection and a file each.
const LEAST_OPEN_FILES: u64 = 512;

/// Checks the limits and the free space.
pub(super) fn of_host(host: &HostDiagnosis) -> Vec<Finding> {
    let mut all: Vec<Finding> = host.space.iter().map(of_space).collect();
    all.push(limits(host));
    let what = "processes";
    all.push(if host.processes_hidden {
        let text = "flywheeld cannot see those of other users, so it does not know who builds: /proc is mounted with \
                    hidepid, or the unit has ProtectProc";
        Finding::bad(what, text, "findmnt -o OPTIONS /proc && systemctl show -p ProtectProc flywheeld")
    } else {
        Finding::good(what, "flywheeld sees those of all users")
    });
    all
}

fn of_space(space: &SpaceDiagnosis) -> Finding {
    let what = format!("space of {}", space.purpose);
    let dir = &space.dir;
    let is_store = space.purpose == "store";
    let least = if is_store { LEAST_STORE } else { LEAST_STATE };
    let command = if is_store { "nix-collect-garbage".to_owned() } else { format!("df -h {dir}") };
    let free = bytes(space.free);
    if space.free < least {
        return Finding::bad(what, format!("{dir} has {free} left: builds or the ledger will fail"), command);
    }
    match space.free_files {
        Some(files) if files < LEAST_FILES => {
            Finding::bad(what, format!("{dir} has room for only {files} more files"), format!("df -i {dir}"))
        }
        _ => Finding::good(what, format!("{dir} has {free} left")),
    }
}

fn limits(host: &HostDiagnosis) -> Finding {
    let what = "limits";
    if let Some(few) = host.inotify_watches.filter(|n| *n < LEAST_WATCHES) {
        let text =
            format!("a user may watch only {few} directories (inotify): new paths can be noticed late");
        return Finding::bad(what, text, "sysctl -w fs.inotify.max_user_watches=65536");
    }
    if let Some(few) = host.inotify_instances.filter(|n| *n < LEAST_INSTANCES) {
        let text = format!("a user may have only {few} inotify instances: new paths can be noticed late");
        return Finding::bad(what, text, "sysctl -w fs.inotify.max_user_instances=128");
    }
    match host.open_files {
        Some(files) if files.limit < LEAST_OPEN_FILES || files.used * 10 > files.limit * 9 => {
            let text =
                format!("flywheeld has {} of {} files open: uploads will fail", files.used, files.limit);
            Finding::bad(what, text, "systemctl edit flywheeld   # [Service] LimitNOFILE=4096")
        }
        Some(files) => {
            Finding::good(what, format!("{} of {} files open, inotify suffices", files.used, files.limit))
        }
        None => Finding::unchecked(what, "flywheeld could not read its limit of open files"),
    }
}
