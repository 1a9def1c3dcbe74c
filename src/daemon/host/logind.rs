//! logind over D-Bus: while pushes are pending, the host delays its shutdown or
//! sleep for as long as logind allows (`InhibitDelayMaxSec` in logind.conf(5), 5 s
//! by default).
//!
//! There is no connection to the bus while nothing is pending. Without a bus or
//! without logind the daemon works as usual, tries again from time to time, and
//! logs it once. Must not know what is pushed.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use zbus::proxy::CacheProperties;

use crate::daemon::inbox::{HostEvent, Input};
use crate::observe::detail;

/// Pushes must be pending for this long before an inhibitor is taken.
const SETTLE: Duration = Duration::from_millis(500);
/// How long an inhibitor is kept after the last push: more may follow.
const LINGER: Duration = Duration::from_secs(2);
/// First delay between attempts to reach logind; it doubles with each attempt.
const RETRY_LEAST: Duration = Duration::from_secs(2);
/// Longest delay between attempts to reach logind.
const RETRY_MOST: Duration = Duration::from_secs(300);
/// How long logind may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The part of org.freedesktop.login1(5) that this file uses.
#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Manager {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<zbus::OwnedFd>;

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;

    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;

    #[zbus(signal)]
    fn prepare_for_sleep(&self, start: bool) -> zbus::Result<()>;
}

/// Holds an inhibitor while `pending` is true, and reports what logind announces.
/// Ends when the driver has ended.
pub(in crate::daemon) async fn inhibit_while_pending(
    mut pending: watch::Receiver<bool>,
    out: mpsc::Sender<Input>,
) {
    let mut retry = RETRY_LEAST;
    loop {
        if pending.wait_for(|pending| *pending).await.is_err() {
            return;
        }
        sleep(SETTLE).await;
        if !*pending.borrow() {
            continue;
        }
        let began = Instant::now();
        match inhibit(&mut pending, &out).await {
            Ok(true) => retry = RETRY_LEAST,
            Ok(false) => return,
            Err(error) => {
                // No announcement will end a sleep that logind announced before.
                if out.send(Input::Host(HostEvent::Running)).await.is_err() {
                    return;
                }
                if began.elapsed() > PATIENCE {
                    retry = RETRY_LEAST;
                }
                if retry == RETRY_LEAST {
                    detail!(error = %error, "logind cannot be reached: the host may shut down while pushes are pending");
                }
                sleep(retry).await;
                retry = (retry * 2).min(RETRY_MOST);
            }
        }
    }
}

/// Takes an inhibitor and keeps it. Returns true when nothing is pending any
/// more, and false when the driver has ended.
async fn inhibit(pending: &mut watch::Receiver<bool>, out: &mpsc::Sender<Input>) -> zbus::Result<bool> {
    let bus = zbus::connection::Builder::system().method_timeout(PATIENCE).build().await?;
    let logind = ManagerProxy::builder(&bus).cache_properties(CacheProperties::No).build().await?;
    let mut stops = logind.receive_prepare_for_shutdown().await?;
    let mut sleeps = logind.receive_prepare_for_sleep().await?;
    let take =
        || logind.inhibit("shutdown:sleep", "flywheel", "Store paths are being pushed to a cache", "delay");
    let mut lock = Some(take().await?);
    detail!("the host delays shutdown and sleep while pushes are pending");
    // When the lock is released even if pushes are still pending.
    let mut latest: Option<Instant> = None;
    loop {
        let nothing = !*pending.borrow_and_update();
        let idle = lock.is_some() && nothing;
        if idle && latest.is_some() {
            detail!("nothing is pending: the host need not delay any longer");
            lock = None;
        }
        let wake = match (&lock, latest) {
            (Some(_), Some(latest)) => Some(latest),
            (Some(_), None) => idle.then(|| Instant::now() + LINGER),
            // The lock was released; the announcement that the host runs again follows.
            (None, _) => None,
        };
        let far = Instant::now() + Duration::from_secs(3600);
        let announced = tokio::select! {
            changed = pending.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(false),
            },
            Some(signal) = stops.next() => (signal.args()?.start, HostEvent::ShuttingDown as fn(Duration) -> HostEvent),
            Some(signal) = sleeps.next() => (signal.args()?.start, HostEvent::Sleeping as fn(Duration) -> HostEvent),
            () = bus.closed() => return Err(zbus::Error::Failure("the connection to the bus is closed".to_owned())),
            () = sleep_until(wake.unwrap_or(far)), if wake.is_some() => {
                if latest.is_none() {
                    return Ok(true);
                }
                detail!("the host delays no longer");
                lock = None;
                continue;
            }
        };
        let host = match announced {
            (true, host) => {
                let most = Duration::from_micros(logind.inhibit_delay_max_usec().await?);
                // A fifth of the delay is for what happens after the release.
                latest = Some(Instant::now() + most - most / 5);
                host(most)
            }
            (false, _) => {
                latest = None;
                lock = Some(take().await?);
                HostEvent::Running
            }
        };
        if out.send(Input::Host(host)).await.is_err() {
            return Ok(false);
        }
    }
}
