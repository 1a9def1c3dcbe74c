//! The reply to one request, on its way from the daemon to the connection. Must
//! not know sockets.

use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::messages::{ErrorCode, Progress, Reply};

/// The daemon's side: it sends any number of progress reports and one reply.
///
/// A responder that is dropped without a reply answers [`ErrorCode::Internal`], so
/// that no caller waits for a forgotten request.
#[derive(Debug)]
pub struct Responder {
    progress: watch::Sender<Option<Progress>>,
    reply: oneshot::Sender<Reply>,
    gone: CancellationToken,
}

/// The connection's side: it receives the reports and the reply.
#[derive(Debug)]
pub struct Answer {
    progress: watch::Receiver<Option<Progress>>,
    reply: oneshot::Receiver<Reply>,
    _gone: DropGuard,
}

impl Responder {
    /// Makes both sides for one request.
    #[must_use]
    pub fn pair() -> (Self, Answer) {
        let (progress, progress_rx) = watch::channel(None);
        let (reply, reply_rx) = oneshot::channel();
        let gone = CancellationToken::new();
        let answer = Answer { progress: progress_rx, reply: reply_rx, _gone: gone.clone().drop_guard() };
        (Self { progress, reply, gone }, answer)
    }

    /// Reports progress. Does not wait: a slow caller receives only the latest report.
    pub fn progress(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }

    /// Sends the reply. It is dropped when the caller has closed the connection.
    pub fn reply(self, reply: Reply) {
        let _ = self.reply.send(reply);
    }

    /// Sends the reply. Returns false when the caller has closed the connection.
    #[must_use]
    pub fn deliver(self, reply: Reply) -> bool {
        self.reply.send(reply).is_ok()
    }

    /// Replies with an error.
    pub fn refuse(self, code: ErrorCode, message: impl Into<String>) {
        self.reply(Reply::Error { code, message: message.into() });
    }

    /// Returns whether the caller has closed the connection.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Waits until the caller closes the connection.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

impl Answer {
    /// Returns the reply if it has been sent, and otherwise the latest new report.
    #[cfg(test)]
    pub(crate) fn try_next(&mut self) -> Option<Reply> {
        match self.reply.try_recv() {
            Ok(reply) => Some(reply),
            Err(oneshot::error::TryRecvError::Closed) => {
                Some(Reply::Error { code: ErrorCode::Internal, message: "dropped".to_owned() })
            }
            Err(oneshot::error::TryRecvError::Empty) => {
                let news = self.progress.has_changed().unwrap_or(false);
                news.then(|| Reply::Progress(self.progress.borrow_and_update().clone().unwrap_or_default()))
            }
        }
    }

    /// Waits for the next report or the reply. Must not be called again after the
    /// final reply.
    pub async fn next(&mut self) -> Reply {
        tokio::select! {
            biased; // a report is useless once the final reply is there
            reply = &mut self.reply => reply.unwrap_or_else(|_| Reply::Error {
                code: ErrorCode::Internal,
                message: "the daemon dropped the request without an answer: see its log".to_owned(),
            }),
            Ok(()) = self.progress.changed() => {
                let latest = self.progress.borrow_and_update().clone();
                Reply::Progress(latest.unwrap_or_default())
            }
        }
    }
}
