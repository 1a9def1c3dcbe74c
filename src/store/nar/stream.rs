//! A NAR as a stream of chunks, read by a thread of its own with back-pressure.
//! Not one of the runtime's: those are counted, and a thread that waits for a
//! slow server would keep one from whoever must end that wait, such as a cache
//! in the same process.
//!
//! Must not know: who reads it. In memory are the chunk being filled, those in
//! the channel, and the one being read.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use super::CHUNK;
use super::encode::Encoder;

/// Chunks that wait for the reader: enough for the disk and the network to work
/// at the same time.
const WAITING: usize = 2;
/// The first chunk is smaller, since most store paths are.
const FIRST: usize = 16 * 1024;

/// The NAR of a path. Dropping it ends the thread.
#[derive(Debug)]
pub struct NarStream(State);

#[derive(Debug)]
enum State {
    /// Nothing was asked for: nothing runs.
    Idle(PathBuf),
    Running(Receiver<Message>),
    Ended,
}

#[derive(Debug)]
enum Message {
    Chunk(Vec<u8>),
    /// The last message. Its absence means that the thread died, which must not
    /// look like the end of the archive.
    End(io::Result<()>),
}

/// Streams the NAR of `path`. After an error the stream ends; an archive
/// without an error is whole.
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
            None => Some(Err(io::Error::other("the thread that reads the store path died"))),
        };
        self.0 = State::Ended;
        Poll::Ready(end)
    }
}

#[allow(clippy::needless_pass_by_value)] // The thread owns it.
fn run(path: PathBuf, sender: &Sender<Message>) {
    let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "nobody reads the archive any more");
    let mut emit = |chunk| {
        sender.blocking_send(Message::Chunk(chunk)).map_err(|_| gone())?;
        Ok(Vec::with_capacity(CHUNK))
    };
    let result = Encoder::new(Vec::with_capacity(FIRST), &mut emit).encode(&path);
    let _ = sender.blocking_send(Message::End(result.map_err(|e| io::Error::new(e.kind(), e))));
}
