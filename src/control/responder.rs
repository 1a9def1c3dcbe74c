//! One request's way back to its caller. Must not know sockets.

use tokio::sync::{oneshot, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::messages::{ErrorCode, Progress, Reply};

/// The daemon's side: any number of progress reports, one reply.
///
/// Dropping it without a reply answers [`ErrorCode::Internal`], so no caller
/// waits for something that was forgotten.
#[derive(Debug)]
pub struct Responder {
    progress: watch::Sender<Option<Progress>>,
    reply: oneshot::Sender<Reply>,
    gone: CancellationToken,
}

/// The caller's side.
#[derive(Debug)]
pub struct Answer {
    progress: watch::Receiver<Option<Progress>>,
    reply: oneshot::Receiver<Reply>,
    _gone: DropGuard,
}

impl Responder {
    /// Both sides.
    #[must_use]
    pub fn pair() -> (Self, Answer) {
        let (progress, progress_rx) = watch::channel(None);
        let (reply, reply_rx) = oneshot::channel();
        let gone = CancellationToken::new();
        let answer = Answer { progress: progress_rx, reply: reply_rx, _gone: gone.clone().drop_guard() };
        (Self { progress, reply, gone }, answer)
    }

    /// Tells how far it is. Never waits: a slow caller sees only the latest report.
    pub fn progress(&self, progress: Progress) {
        self.progress.send_replace(Some(progress));
    }

    /// The answer. A caller that went away does not hear it.
    pub fn reply(self, reply: Reply) {
        let _ = self.reply.send(reply);
    }

    /// [`Self::reply`] with an error.
    pub fn refuse(self, code: ErrorCode, message: impl Into<String>) {
        self.reply(Reply::Error { code, message: message.into() });
    }

    /// Whether nobody listens any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.gone.is_cancelled()
    }

    /// Returns when nobody listens any more.
    pub async fn gone(&self) {
        self.gone.cancelled().await;
    }
}

impl Answer {
    /// The next thing to tell the caller; after a final reply there is nothing more to ask for.
    pub async fn next(&mut self) -> Reply {
        tokio::select! {
            biased; // a report that the final reply has overtaken is of no use
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
