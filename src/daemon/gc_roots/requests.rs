//! Requests to the thread of the GC roots that it has not carried out yet. Must not know
//! how they are carried out.

use super::Bounds;
use crate::types::StorePath;

#[derive(Debug, Default)]
pub(super) struct Requests {
    pub(super) queue: Vec<Request>,
    /// Whether one of them does not wait for others.
    pub(super) prompt: bool,
    /// Whether the thread is to end after these.
    pub(super) stop: bool,
}

#[derive(Debug)]
pub(super) enum Request {
    /// Protect these paths, with the sizes of their NARs, for this cache.
    Keep(u16, Vec<(StorePath, u64)>),
    /// Take back one protection of this path for this cache.
    Release(u16, StorePath),
    /// The path's push failed: its protection lasts while it is among the latest failed
    /// ones.
    KeepFailed(u16, StorePath),
    /// The path's push is not a failed one any more.
    ForgetFailed(u16, StorePath),
    /// The configuration has other bounds.
    Bounds(Bounds),
    /// All paths of earlier runs are known: remove the other GC roots.
    Restored,
}

impl Request {
    /// Whether the request is carried out at once. The others only take protection back:
    /// they are collected for a moment, because there are two for each pushed path.
    pub(super) fn is_prompt(&self) -> bool {
        match self {
            Self::Keep(..) | Self::KeepFailed(..) | Self::Bounds(_) | Self::Restored => true,
            Self::Release(..) | Self::ForgetFailed(..) => false,
        }
    }
}
