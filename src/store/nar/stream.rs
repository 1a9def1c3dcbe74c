//! A NAR as a stream of chunks. A thread of its own reads the files, and waits
//! when the reader of the stream is slow.
//!
//! The thread is not one of the runtime's blocking threads. Their number is
//! limited: streams that wait for a slow server could use all of them, and a
//! built-in cache in the same process, which needs one to go on, would then wait
//! for ever.
//!
//! Must not know: who reads the stream. In memory are the chunk that is being
//! filled, the chunks in the channel, and the chunk that is being read.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::CHUNK;
use super::encode::Encoder;

/// How many chunks the channel holds: enough for the disk and the network to work
/// at the same time.
const WAITING: usize = 2;
/// The size of the first chunk in bytes. It is smaller than the others, because
/// most store paths are small.
const FIRST: usize = 16 * 1024;

/// A stream of a path's NAR. The thread ends when it is dropped.
#[derive(Debug)]
pub struct NarStream(State);

#[derive(Debug)]
enum State {
    /// Nothing was read from the stream yet, and no thread runs.
    Idle(PathBuf),
    Running(Receiver<Message>),
    Ended,
}

#[derive(Debug)]
enum Message {
    Chunk(Vec<u8>),
    /// The last message. If the channel closes without it, the thread panicked: the
    /// archive is incomplete.
    End(io::Result<()>),
}

/// Streams the NAR of `path`. The stream ends after an error. If it ends without
/// one, the archive is complete.
pub fn stream(path: PathBuf) -> NarStream {
    NarStream(State::Idle(path))
}

impl Stream for NarStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let State::Idle(path) = &mut self.0 {
            let path = std::mem::take(path);
            let (sender, receiver) = channel(WAITING);
            let thread = std::thread::Builder::new().name("nar".to_owned());
            if let Err(error) = thread.spawn(move || run(path, &sender)) {
                self.0 = State::Ended;
                return Poll::Ready(Some(Err(error)));
            }
            self.0 = State::Running(receiver);
        }
        let State::Running(receiver) = &mut self.0 else { return Poll::Ready(None) };
        let Poll::Ready(message) = receiver.poll_recv(cx) else { return Poll::Pending };
        let end = match message {
            Some(Message::Chunk(chunk)) => return Poll::Ready(Some(Ok(Bytes::from(chunk)))),
            Some(Message::End(Ok(()))) => None,
            Some(Message::End(Err(error))) => Some(Err(error)),
            None => Some(Err(io::Error::other(
                "the thread that reads the store path ended too early; please report this as a bug",
            ))),
        };
        self.0 = State::Ended;
        Poll::Ready(end)
    }
}

#[allow(clippy::needless_pass_by_value)] // The thread owns it.
fn run(path: PathBuf, sender: &Sender<Message>) {
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the reader of the archive stopped early");
    let mut emit = |chunk| {
        sender.blocking_send(Message::Chunk(chunk)).map_err(|_| gone())?;
        Ok(Vec::with_capacity(CHUNK))
    };
    let result = Encoder::new(Vec::with_capacity(FIRST), &mut emit).encode(&path);
    let _ = sender.blocking_send(Message::End(result.map_err(|e| io::Error::new(e.kind(), e))));
}
