//! Signs of life: what each part of the daemon shows while it moves, for the
//! watchdog. A part that waits for nothing to do moves when it is asked.

/// A part that must move.
pub(in crate::daemon) struct Part {
    pub(in crate::daemon) name: &'static str,
    /// Has it move, if it still can. Must not wait.
    ask: Box<dyn Fn() + Send>,
    count: Box<dyn Fn() -> u64 + Send>,
    /// The count when it was last asked.
    seen: u64,
}

impl Part {
    pub(in crate::daemon) fn new(
        name: &'static str,
        ask: impl Fn() + Send + 'static,
        count: impl Fn() -> u64 + Send + 'static,
    ) -> Self {
        Self { name, ask: Box::new(ask), count: Box::new(count), seen: 0 }
    }

    /// Asks it to move from here.
    pub(in crate::daemon) fn ask(&mut self) {
        self.seen = (self.count)();
        (self.ask)();
    }

    /// Whether it has moved since.
    pub(in crate::daemon) fn has_moved(&self) -> bool {
        (self.count)() != self.seen
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
