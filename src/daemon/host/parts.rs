//! Parts of the daemon that the watchdog observes. A part counts its turns; one
//! that has nothing to do takes a turn when it is asked to.

/// A part of the daemon that must keep taking turns.
pub(in crate::daemon) struct Part {
    pub(super) name: &'static str,
    /// Makes the part take a turn. Does not wait for it.
    ask: Box<dyn Fn() + Send>,
    /// The number of turns that the part has taken.
    count: Box<dyn Fn() -> u64 + Send>,
    /// The number of turns when the part was last asked.
    seen: u64,
}

impl Part {
    /// A part with this name. `ask` makes it take a turn and must not wait;
    /// `count` returns how many turns it has taken.
    pub(in crate::daemon) fn new(
        name: &'static str,
        ask: impl Fn() + Send + 'static,
        count: impl Fn() -> u64 + Send + 'static,
    ) -> Self {
        Self { name, ask: Box::new(ask), count: Box::new(count), seen: 0 }
    }

    /// Asks the part to take a turn.
    pub(super) fn ask(&mut self) {
        self.seen = (self.count)();
        (self.ask)();
    }

    /// Whether the part has taken a turn since it was last asked.
    pub(super) fn has_moved(&self) -> bool {
        (self.count)() != self.seen
    }
}

impl std::fmt::Debug for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
