//! logind, over D-Bus: the host does not go down or to sleep while something
//! is to be pushed, for as long as logind allows a delay (`InhibitDelayMaxSec`
//! in logind.conf(5), 5 s by default).
//!
//! Nothing is connected while nothing is pending. Without a bus, without logind
//! and while either is away the daemon works as ever: it tries again now and
//! then, and says so once. Must not know what is pushed.

use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use zbus::proxy::CacheProperties;

use crate::daemon::inbox::Input;
use crate::observe::detail;

/// Work that is over sooner is not worth a word to anybody.
const SETTLE: Duration = Duration::from_millis(500);
/// How long an inhibitor is kept without anything pending: more may come.
const LINGER: Duration = Duration::from_secs(2);
/// Between tries while there is no logind: from this, doubled each time,
const AGAIN_LEAST: Duration = Duration::from_secs(2);
/// to this.
const AGAIN_MOST: Duration = Duration::from_secs(300);
/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What logind says of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Host {
    /// It goes down; so long it waits for us.
    Stops(Duration),
    /// It goes to sleep; so long it waits for us.
    Sleeps(Duration),
    /// It is awake again, or stays up.
    Stays,
}

/// The part of org.freedesktop.login1(5) that is needed.
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

/// Holds the host up while `pending` says so. Ends with the driver.
pub(in crate::daemon) async fn mind(mut pending: watch::Receiver<bool>, out: mpsc::Sender<Input>) {
    let mut again = AGAIN_LEAST;
    loop {
        if pending.wait_for(|pending| *pending).await.is_err() {
            return;
        }
        sleep(SETTLE).await;
        if !*pending.borrow() {
            continue;
        }
        let began = Instant::now();
        match guard(&mut pending, &out).await {
            Ok(true) => again = AGAIN_LEAST,
            Ok(false) => return,
            Err(error) => {
                // What was held back for a sleep that nobody will end goes on.
                if out.send(Input::Host(Host::Stays)).await.is_err() {
                    return;
                }
                if began.elapsed() > PATIENCE {
                    again = AGAIN_LEAST;
                }
                if again == AGAIN_LEAST {
                    detail!(error = %error, "no logind: the host may go down while something is pending");
                }
                sleep(again).await;
                again = (again * 2).min(AGAIN_MOST);
            }
        }
    }
}

/// Takes an inhibitor and keeps it. True: nothing is pending any more; false:
/// the driver has ended.
async fn guard(pending: &mut watch::Receiver<bool>, out: &mpsc::Sender<Input>) -> zbus::Result<bool> {
    let bus = zbus::connection::Builder::system().method_timeout(PATIENCE).build().await?;
    let logind = ManagerProxy::builder(&bus).cache_properties(CacheProperties::No).build().await?;
    let mut stops = logind.receive_prepare_for_shutdown().await?;
    let mut sleeps = logind.receive_prepare_for_sleep().await?;
    let take =
        || logind.inhibit("shutdown:sleep", "flywheel", "Store paths are being pushed to a cache", "delay");
    let mut lock = Some(take().await?);
    detail!("the host waits for what is pending before it goes down");
    // When the lock is let go of whatever is pending.
    let mut latest: Option<Instant> = None;
    loop {
        let nothing = !*pending.borrow_and_update();
        let idle = lock.is_some() && nothing;
        if idle && latest.is_some() {
            detail!("nothing is pending: the host need not wait any longer");
            lock = None;
        }
        let wake = match (&lock, latest) {
            (Some(_), Some(latest)) => Some(latest),
            (Some(_), None) => idle.then(|| Instant::now() + LINGER),
            // The word that it is awake again is waited for.
            (None, _) => None,
        };
        let far = Instant::now() + Duration::from_secs(3600);
        let word = tokio::select! {
            changed = pending.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return Ok(false),
            },
            Some(signal) = stops.next() => (signal.args()?.start, Host::Stops as fn(Duration) -> Host),
            Some(signal) = sleeps.next() => (signal.args()?.start, Host::Sleeps as fn(Duration) -> Host),
            () = bus.closed() => return Err(zbus::Error::Failure("the bus is gone".to_owned())),
            () = sleep_until(wake.unwrap_or(far)), if wake.is_some() => {
                if latest.is_none() {
                    return Ok(true);
                }
                detail!("the host does not wait any longer");
                lock = None;
                continue;
            }
        };
        let host = match word {
            (true, host) => {
                let most = Duration::from_micros(logind.inhibit_delay_max_usec().await?);
                // Some of it is for what happens after that.
                latest = Some(Instant::now() + most - most / 5);
                host(most)
            }
            (false, _) => {
                latest = None;
                lock = Some(take().await?);
                Host::Stays
            }
        };
        if out.send(Input::Host(host)).await.is_err() {
            return Ok(false);
        }
    }
}
