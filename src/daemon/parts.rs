//! Signs of life: what each part of the daemon shows while it moves, for the
//! watchdog. A part that waits for nothing to do moves when it is asked.

/// A part that must move.
pub(super) struct Part {
    pub(super) name: &'static str,
    /// Has it move, if it still can. Must not wait.
    ask: Box<dyn Fn() + Send>,
    count: Box<dyn Fn() -> u64 + Send>,
    /// The count when it was last asked.
    seen: u64,
}

impl Part {
    pub(super) fn new(
        name: &'static str,
        ask: impl Fn() + Send + 'static,
        count: impl Fn() -> u64 + Send + 'static,
    ) -> Self {
        Self { name, ask: Box::new(ask), count: Box::new(count), seen: 0 }
    }

    /// Asks it to move from here.
    pub(super) fn ask(&mut self) {
        self.seen = (self.count)();
        (self.ask)();
    }

    /// Whether it has moved since.
    pub(super) fn has_moved(&self) -> bool {
        (self.count)() != self.seen
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
