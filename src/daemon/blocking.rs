//! Where work runs that waits for a disk, a lock or the name service: on tokio's threads
//! for such work, or in the simulation when that says so. Must not know what the work is.

use std::future::Future;

use tokio::sync::oneshot;

/// The work has panicked, or the runtime has ended before it began.
#[derive(Debug, thiserror::Error)]
#[error("a task has ended without a result: the journal has its reason")]
pub(in crate::daemon) struct Lost;

/// Runs work that may block. All blocking work of the driver and of what it calls goes
/// through this, so that the simulation decides when it is done. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct Blocking {
    #[cfg(test)]
    queue: Option<simulated::Queue>,
}

impl Blocking {
    /// Begins the work, which goes on whether or not somebody waits for it. Must be called
    /// within a tokio runtime.
    pub(in crate::daemon) fn start(&self, work: impl FnOnce() + Send + 'static) {
        #[cfg(test)]
        if let Some(queue) = &self.queue {
            return queue.push(Box::new(work));
        }
        drop(tokio::task::spawn_blocking(work));
    }

    /// Begins the work, as [`Self::start`] does, and returns a future of its result.
    pub(in crate::daemon) fn run<R, F>(
        &self,
        work: F,
    ) -> impl Future<Output = Result<R, Lost>> + Send + 'static + use<R, F>
    where
        R: Send + 'static,
        F: FnOnce() -> R + Send + 'static,
    {
        let (done, result) = oneshot::channel();
        self.start(move || drop(done.send(work())));
        async move { result.await.map_err(|_| Lost) }
    }
}

#[cfg(test)]
pub(in crate::daemon) use simulated::Queue;

/// Blocking work that waits until the simulation runs it.
#[cfg(test)]
mod simulated {
    use std::fmt;
    use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

    use super::Blocking;

    type Work = Box<dyn FnOnce() + Send>;

    /// The work that has begun, oldest first. Clones are the same.
    #[derive(Clone, Default)]
    pub(in crate::daemon) struct Queue(Arc<Mutex<Vec<Work>>>);

    impl Queue {
        pub(in crate::daemon) fn blocking(&self) -> Blocking {
            Blocking { queue: Some(self.clone()) }
        }

        pub(super) fn push(&self, work: Work) {
            self.work().push(work);
        }

        pub(in crate::daemon) fn len(&self) -> usize {
            self.work().len()
        }

        /// Does the piece of work with this place in the queue.
        pub(in crate::daemon) fn run(&self, n: usize) {
            let work = self.work().remove(n);
            work();
        }

        /// Drops what waits, as the end of the process does.
        pub(in crate::daemon) fn kill(&self) {
            let work = std::mem::take(&mut *self.work());
            drop(work);
        }

        fn work(&self) -> MutexGuard<'_, Vec<Work>> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    impl fmt::Debug for Queue {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Queue").finish_non_exhaustive()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A contract of both sides. `run`: has the work done that waits.
    async fn the_result_comes_back_and_a_panic_is_an_error(blocking: Blocking, run: impl Fn()) {
        let (seven, panics, eight) =
            (blocking.run(|| 7), blocking.run(|| -> u8 { panic!("on purpose") }), blocking.run(|| 8));
        run();
        assert_eq!((eight.await.unwrap(), seven.await.unwrap()), (8, 7));
        assert!(panics.await.is_err());
        let (done, is_done) = oneshot::channel();
        // Nobody waits for it.
        drop(blocking.run(move || done.send(()).unwrap()));
        run();
        is_done.await.unwrap();
    }

    #[tokio::test]
    async fn work_on_threads() {
        the_result_comes_back_and_a_panic_is_an_error(Blocking::default(), || ()).await;
    }

    #[tokio::test]
    async fn work_in_the_simulation() {
        let queue = Queue::default();
        let run = || {
            while queue.len() > 0 {
                // The simulation is broken off by a panic.
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.run(0)));
            }
        };
        the_result_comes_back_and_a_panic_is_an_error(queue.blocking(), run).await;
    }

    #[tokio::test]
    async fn in_the_simulation_work_waits_until_it_is_run() {
        let queue = Queue::default();
        let blocking = queue.blocking();
        let (first, second) = (blocking.run(|| 1), blocking.run(|| 2));
        assert_eq!(queue.len(), 2);
        queue.run(1);
        assert_eq!(second.await.unwrap(), 2);
        queue.kill();
        assert!(first.await.is_err());
    }
}
