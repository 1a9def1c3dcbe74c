//! Watches the processes that sessions are anchored to, and reports their end to the
//! driver's inbox at once. Must not know what follows from that.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;

use crate::attribution::{Proc, ProcId};
use crate::daemon::inbox::Input;
use crate::ledger::{Ledger, LedgerError};
use crate::observe::detail;
use crate::types::SessionId;

/// Time between looks at a process that has no descriptor.
const LOOK: Duration = Duration::from_secs(1);
/// Descriptors that anchors may take; further anchors are looked at regularly. The
/// unit allows 4,096 descriptors in all, and uploads and callers need some.
static DESCRIPTORS: Semaphore = Semaphore::const_new(512);
/// The ledger's key for the boot that its process numbers belong to.
const BOOT: &str = "daemon.boot";

/// Whether the ledger's process numbers belong to this boot of the machine; those of
/// another boot mean nothing. Records the present boot.
pub(super) fn is_same_boot(ledger: &Ledger) -> Result<bool, LedgerError> {
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let same = ledger.meta(BOOT)?.is_none_or(|then| then == now.trim());
    ledger.set_meta(BOOT, now.trim())?;
    Ok(same)
}

/// The watch on an anchor. Dropping it ends it.
#[derive(Debug)]
pub(in crate::daemon) struct Watch(tokio::task::AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Watch {
    /// Reports to `out` when the process `anchor` of the session `row` has ended.
    pub(in crate::daemon) fn start(proc: Proc, row: SessionId, anchor: ProcId, out: Sender<Input>) -> Self {
        let task = tokio::spawn(async move {
            wait(&proc, anchor).await;
            let _ = out.send(Input::AnchorGone(row)).await;
        });
        Self(task.abort_handle())
    }
}

async fn wait(proc: &Proc, anchor: ProcId) {
    let one = DESCRIPTORS.try_acquire().ok();
    let pid = one.as_ref().and_then(|_| Pid::from_raw(anchor.pid));
    let opened = pid.map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK));
    // This look follows the opening, so the descriptor belongs to this process.
    if !proc.is_alive(anchor) {
        return;
    }
    if let Some(Ok(fd)) = opened
        && let Ok(fd) = readiness(fd)
    {
        if fd.readable().await.is_ok() {
            return;
        }
    } else {
        drop(one);
        detail!(pid = anchor.pid, "the daemon looks at this process every second");
    }
    while proc.is_alive(anchor) {
        tokio::time::sleep(LOOK).await;
    }
}

/// `AsyncFd::new` is deprecated for types that lie about their descriptor, which
/// `OwnedFd` cannot. What replaces it is unsafe.
#[allow(deprecated)]
fn readiness(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn descriptors() -> usize {
        let all = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(Result::ok);
        let links = all.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.filter(|to| to.to_string_lossy().contains("pidfd")).count()
    }

    /// The anchor has ended when the session is recorded.
    #[tokio::test]
    async fn the_end_of_an_anchor_before_it_is_watched_is_reported() {
        let mut job = tokio::process::Command::new("true").spawn().unwrap();
        let pid = i32::try_from(job.id().unwrap()).unwrap();
        job.wait().await.unwrap();
        let (out, mut inputs) = tokio::sync::mpsc::channel(1);
        let _watch = Watch::start(Proc::default(), 7, ProcId { pid, start: 1 }, out);
        assert!(matches!(inputs.recv().await, Some(Input::AnchorGone(7))));
    }

    #[tokio::test]
    async fn many_anchors_take_a_bounded_number_of_descriptors_and_every_end_is_reported() {
        const MANY: i64 = 700;
        let mut job = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(job.id().unwrap()).unwrap();
        let anchor = Proc::default().stat(pid).unwrap().id;
        let own = descriptors();
        let (out, mut inputs) = tokio::sync::mpsc::channel(1);
        let watches: Vec<_> =
            (0..MANY).map(|row| Watch::start(Proc::default(), row, anchor, out.clone())).collect();
        // On this one thread each watch has had a turn after this.
        for _ in 0..MANY {
            tokio::task::yield_now().await;
        }
        assert_eq!(descriptors() - own, 512);
        job.kill().await.unwrap();
        let mut reported = BTreeSet::new();
        while reported.len() < watches.len() {
            let Some(Input::AnchorGone(row)) = inputs.recv().await else {
                panic!("{} were reported", reported.len())
            };
            assert!(reported.insert(row), "{row} was reported twice");
        }
    }
}
