//! Watching the processes that sessions are anchored to: when one ends, the
//! driver is told at once. Must not know what follows from that.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;

use crate::attribution::{Proc, ProcId};
use crate::daemon::inbox::Input;
use crate::ledger::{Ledger, LedgerError, SessionRow};
use crate::observe::detail;

/// How often a process is looked at where the kernel cannot tell of its end.
const LOOK: Duration = Duration::from_secs(1);
/// Descriptors for anchors; the ends of more of them are looked for. The unit
/// allows 4,096 descriptors in all, and uploads and callers must have some.
static DESCRIPTORS: Semaphore = Semaphore::const_new(512);
/// Where the ledger keeps the boot that its process numbers are from.
const BOOT: &str = "daemon.boot";

/// Whether the ledger's process numbers are from this boot of the machine:
/// after another one they mean nothing. Notes down the present one.
pub(in crate::daemon) fn is_same_boot(ledger: &Ledger) -> Result<bool, LedgerError> {
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let same = ledger.meta(BOOT)?.is_none_or(|then| then == now.trim());
    ledger.set_meta(BOOT, now.trim())?;
    Ok(same)
}

/// A watch on an anchor; dropping it ends it.
#[derive(Debug)]
pub(in crate::daemon) struct Watch(tokio::task::AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the driver when `anchor` has ended.
pub(in crate::daemon) fn watch(row: SessionRow, anchor: ProcId, out: Sender<Input>) -> Watch {
    let push = tokio::spawn(async move {
        wait(anchor).await;
        let _ = out.send(Input::AnchorGone(row)).await;
    });
    Watch(push.abort_handle())
}

async fn wait(anchor: ProcId) {
    let proc = Proc::default();
    let one = DESCRIPTORS.try_acquire().ok();
    let pid = one.as_ref().and_then(|_| Pid::from_raw(anchor.pid));
    let opened = pid.map(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK));
    // Opened first, looked at then: so it is this process that the descriptor is for.
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
        detail!(pid = anchor.pid, "the end of this process is looked for every second");
    }
    while proc.is_alive(anchor) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Deprecated for types that lie about their descriptor, which this one cannot;
/// what replaces it is unsafe.
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

    #[tokio::test]
    async fn many_anchors_take_a_bounded_number_of_descriptors_and_every_end_is_told() {
        const MANY: i64 = 700;
        let mut job = tokio::process::Command::new("sleep").arg("600").kill_on_drop(true).spawn().unwrap();
        let pid = i32::try_from(job.id().unwrap()).unwrap();
        let anchor = Proc::default().stat(pid).unwrap().id;
        let own = descriptors();
        let (out, mut inputs) = tokio::sync::mpsc::channel(1);
        let watches: Vec<_> = (0..MANY).map(|row| watch(row, anchor, out.clone())).collect();
        // On this one thread each of them has had its turn then.
        for _ in 0..MANY {
            tokio::task::yield_now().await;
        }
        assert_eq!(descriptors() - own, 512);
        job.kill().await.unwrap();
        let mut told = BTreeSet::new();
        while told.len() < watches.len() {
            let Some(Input::AnchorGone(row)) = inputs.recv().await else {
                panic!("{} were told", told.len())
            };
            assert!(told.insert(row), "{row} was told twice");
        }
    }
}
