//! The paths that wait to be read for an upload. A reader that has read one path takes the
//! next one, which costs less than a task on another thread for each. Must not know how a
//! path is read, nor where readers run.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::types::StorePath;

/// Upper bound of the readers at a time.
const READERS: usize = 8;
/// The paths that may wait for each reader before there is another one.
const EACH: usize = 8;
/// How long a reader may need for a path before a new path gets another reader: on a slow
/// disk the paths behind it do not wait.
const SLOW: Duration = Duration::from_millis(10);

/// A path, and who waits for what is read of it.
pub(super) struct Request<R> {
    pub(super) path: StorePath,
    pub(super) answer: oneshot::Sender<R>,
}

/// The queue. Clones are the same one.
pub(super) struct ReadQueue<R>(Arc<Mutex<State<R>>>);

struct State<R> {
    waiting: VecDeque<Request<R>>,
    readers: usize,
    /// When a reader last took a path.
    taken: Option<Instant>,
}

impl<R> Clone for ReadQueue<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> Default for ReadQueue<R> {
    fn default() -> Self {
        let state = State { waiting: VecDeque::new(), readers: 0, taken: None };
        Self(Arc::new(Mutex::new(state)))
    }
}

impl<R> ReadQueue<R> {
    fn state(&self) -> MutexGuard<'_, State<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request. Returns a reader when one is needed; the caller must run it.
    pub(super) fn add(&self, request: Request<R>) -> Option<Reader<R>> {
        let mut state = self.state();
        state.waiting.push_back(request);
        let slow = || state.taken.is_some_and(|at| at.elapsed() > SLOW);
        let starts = state.readers == 0
            || state.readers < READERS && (state.waiting.len() > EACH * state.readers || slow());
        state.readers += usize::from(starts);
        starts.then(|| Reader { queue: self.clone(), done: false })
    }
}

/// Takes paths from the queue until it is empty. When it is dropped before that, because
/// reading has panicked or it never ran, and no reader is left, everybody who waits learns
/// of it instead of waiting for ever.
pub(super) struct Reader<R> {
    queue: ReadQueue<R>,
    /// The queue was empty, and does not count this reader any more.
    done: bool,
}

impl<R> Reader<R> {
    /// The path that has waited longest.
    pub(super) fn next(&mut self) -> Option<Request<R>> {
        let mut state = self.queue.state();
        let next = state.waiting.pop_front();
        if next.is_some() {
            state.taken = Some(Instant::now());
        } else {
            state.readers -= 1;
            self.done = true;
        }
        next
    }
}

impl<R> Drop for Reader<R> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut state = self.queue.state();
        state.readers -= 1;
        if state.readers == 0 {
            state.waiting.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(name: &str) -> (Request<()>, oneshot::Receiver<()>) {
        let (answer, read) = oneshot::channel();
        let path = format!("{}-{name}", "0".repeat(32));
        (Request { path: StorePath::parse(&path).unwrap(), answer }, read)
    }

    #[tokio::test(start_paused = true)]
    async fn one_reader_reads_what_comes_meanwhile() {
        let queue = ReadQueue::default();
        let mut reader = queue.add(request("a").0).expect("the first needs a reader");
        assert!(reader.next().is_some());
        assert!(queue.add(request("b").0).is_none());
        assert!(reader.next().is_some());
        assert!(reader.next().is_none());
        drop(reader);
        assert!(queue.add(request("c").0).is_some(), "that reader has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn many_paths_get_more_readers_up_to_a_bound() {
        let queue = ReadQueue::default();
        let readers: Vec<_> = (0..1000).filter_map(|n| queue.add(request(&n.to_string()).0)).collect();
        assert_eq!(readers.len(), READERS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_is_slow_gets_another_one_beside_it() {
        let queue = ReadQueue::default();
        let mut reader = queue.add(request("a").0).unwrap();
        reader.next();
        assert!(queue.add(request("beside").0).is_none());
        tokio::time::advance(2 * SLOW).await;
        assert!(queue.add(request("b").0).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_panics_leaves_nobody_waiting() {
        let queue = ReadQueue::default();
        let mut reader = queue.add(request("a").0).unwrap();
        let (waits, mut read) = request("b");
        assert!(queue.add(waits).is_none());
        assert!(reader.next().is_some());
        drop(reader);
        assert_eq!(read.try_recv(), Err(oneshot::error::TryRecvError::Closed));
        assert!(queue.add(request("c").0).is_some(), "the next path gets a reader");
    }
}
