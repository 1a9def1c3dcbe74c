//! What the driver has said of paths and the gc_roots's thread has not done yet.
//! Must not know how it is done.

use crate::types::StorePath;

#[derive(Debug, Default)]
pub(super) struct Orders {
    pub(super) queue: Vec<Order>,
    pub(super) stop: bool,
}

#[derive(Debug)]
pub(super) enum Order {
    Keep(u16, Vec<StorePath>),
    Release(u16, StorePath),
    Park(u16, StorePath),
    Restored,
}
