//! Watching the processes that sessions are anchored to: when one ends, the
//! driver is told at once. Must not know what follows from that.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::Sender;

use super::input::Input;
use crate::attribution::{Proc, ProcId};
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
pub(super) fn is_same_boot(ledger: &Ledger) -> Result<bool, LedgerError> {
    let now = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let same = ledger.meta(BOOT)?.is_none_or(|then| then == now.trim());
    ledger.set_meta(BOOT, now.trim())?;
    Ok(same)
}

/// A watch on an anchor; dropping it ends it.
#[derive(Debug)]
pub(super) struct Watch(tokio::task::AbortHandle);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the driver when `anchor` has ended.
pub(super) fn watch(row: SessionRow, anchor: ProcId, out: Sender<Input>) -> Watch {
    let task = tokio::spawn(async move {
        wait(anchor).await;
        let _ = out.send(Input::AnchorGone(row)).await;
    });
    Watch(task.abort_handle())
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
