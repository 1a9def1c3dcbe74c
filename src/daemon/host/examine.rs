//! The limits and the free space of the host, for `doctor`, as this process sees them.
//! Must not know what is good or bad.

use std::path::{Path, PathBuf};

use crate::control::messages::{HostDiagnosis, SpaceDiagnosis, Usage};

/// Reads the limits, and the free space of each directory with its purpose. Blocks.
pub(in crate::daemon) fn examine(store_dir: &str, dirs: &[(&str, PathBuf)]) -> HostDiagnosis {
    let limit = |name: &str| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/fs/inotify").join(name)).ok()?;
        text.trim().parse().ok()
    };
    HostDiagnosis {
        uid: rustix::process::geteuid().as_raw(),
        store_dir: store_dir.to_owned(),
        space: dirs.iter().filter_map(|(purpose, dir)| space(purpose, dir)).collect(),
        open_files: open_files(),
        inotify_watches: limit("max_user_watches"),
        inotify_instances: limit("max_user_instances"),
        // With hidepid= on /proc, or ProtectProc= of the unit, the first process of
        // another user cannot be read.
        processes_hidden: std::fs::read("/proc/1/status").is_err(),
    }
}

fn space(purpose: &str, dir: &Path) -> Option<SpaceDiagnosis> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    Some(SpaceDiagnosis {
        purpose: purpose.to_owned(),
        dir: dir.display().to_string(),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        free_files: (stat.f_files > 0).then_some(stat.f_favail),
    })
}

fn open_files() -> Option<Usage> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current?;
    let used = std::fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(Usage { used, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        let dirs = [("store", dir.path().to_owned()), ("built-in cache", absent)];
        let host = examine("/nix/store", &dirs);
        assert_eq!(host.space.len(), 1, "what is not there has no free space: {host:?}");
        assert!(host.space[0].free > 0 && host.inotify_watches > Some(0), "{host:?}");
        assert!(host.open_files.is_some_and(|files| 0 < files.used && files.used < files.limit));
    }
}
