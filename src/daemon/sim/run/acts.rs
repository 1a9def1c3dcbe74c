//! Which act of the world comes next. Each seed has its own weights: some concentrate on
//! one or several kinds of faults, which then meet each other and what the daemon is doing.

use super::super::trace::Rng;
use super::scenes::Kind;
use super::world::Faults;

/// What the world does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Build,
    /// Some builds at once, so that the intake reads them together.
    Builds,
    Start,
    End,
    /// Two jobs end within a moment: what the cache is asked for one, the other wants to know, too.
    EndTwo,
    /// A scene begins, see [`super::scenes`].
    Scene(Kind),
    /// The scene goes on.
    GoOn,
    Push,
    Flush,
    Status,
    /// An anchor ends.
    Die,
    /// A caller ends its connection.
    Leave,
    Outage,
    Delete,
    Collect,
    /// The Nix database is backed up or goes back.
    GoBack,
    /// The Nix database is absent for a while.
    Away,
    Hang,
    /// The intake hangs, and somebody asks who does not wait long, or starts a job.
    AskInVain,
    Crash,
    /// A crash after some commits of the ledger.
    CrashSoon,
    Stop,
    Reload,
    DiskFull,
    CutPower,
    OtherHost,
    Nothing,
}

/// What a seed concentrates on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Emphasis {
    /// The Nix database goes back while much is running.
    pub(super) rollbacks: bool,
    /// Caches delete paths, also just after they were put there, and do not take some of
    /// them any more.
    pub(super) deletions: bool,
    /// The daemon is killed between any two turns.
    pub(super) crashes: bool,
    /// Parts of the daemon hang, and callers have short deadlines.
    pub(super) deadlines: bool,
    /// Other hosts push the same paths at the same time.
    pub(super) others: bool,
}

impl Emphasis {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let mut some = || rng.one_in(4);
        Self { rollbacks: some(), deletions: some(), crashes: some(), deadlines: some(), others: some() }
    }

    /// The faults of a seed with this emphasis, of which these were drawn.
    pub(super) fn with(self, drawn: Faults) -> Faults {
        Faults {
            rollbacks: drawn.rollbacks || self.rollbacks,
            deletions: drawn.deletions || self.deletions,
            crashes: drawn.crashes || self.crashes,
            slow_ledger: drawn.slow_ledger || self.deadlines,
            other_hosts: drawn.other_hosts || self.others,
            ..drawn
        }
    }

    /// How long answers of a cache take at most, in milliseconds.
    pub(super) fn slow(self, rng: &mut Rng) -> u64 {
        let much_under_way = self.rollbacks || self.deletions || self.others;
        let choice: &[u64] = if much_under_way { &[20, 400, 400, 3_000] } else { &[0, 20, 400, 3_000] };
        *rng.pick(choice).unwrap()
    }

    /// How long a caller waits, of these times.
    pub(super) fn timeout(self, of: &[u64], rng: &mut Rng) -> u64 {
        if self.deadlines && rng.one_in(2) {
            *rng.pick(&[500, 2_000, 5_000]).unwrap()
        } else {
            *rng.pick(of).unwrap()
        }
    }
}

impl Act {
    /// The acts of a seed, each with how often it comes.
    pub(super) fn weights(faults: Faults, emphasis: Emphasis) -> Vec<(Self, u64)> {
        let when = |is: bool, weight: u64| if is { weight } else { 0 };
        let Emphasis { rollbacks, deletions, crashes, deadlines, others } = emphasis;
        vec![
            (Self::Build, 13),
            (Self::Builds, 1 + when(rollbacks, 5)),
            (Self::Start, 3 + when(rollbacks || crashes, 3)),
            (Self::End, 4 + when(deadlines || deletions || others, 3)),
            (Self::EndTwo, 2),
            (Self::Scene(Kind::Elsewhere), when(others, 6)),
            (Self::Scene(Kind::Refused), when(deletions, 4)),
            (Self::Scene(Kind::RefusedBefore), when(deletions, 4)),
            (Self::Scene(Kind::NoUploads), when(deletions, 3)),
            (Self::Scene(Kind::Lost), when(deletions, 5)),
            (Self::Scene(Kind::LostReference), when(deletions, 3)),
            (Self::Scene(Kind::ReadAgain), when(rollbacks, 4)),
            (Self::Scene(Kind::OldRows), when(rollbacks, 7)),
            (Self::Scene(Kind::AnotherRound), when(deadlines, 5)),
            (Self::Push, 2 + when(deletions, 2)),
            (Self::Flush, 1 + when(deadlines, 2)),
            (Self::Status, 1),
            (Self::Die, when(faults.anchors_end, 1)),
            (Self::Leave, when(faults.callers_leave, 1)),
            (Self::Outage, when(faults.outages, 2)),
            (Self::Delete, when(faults.deletions, 2) + when(deletions, 3)),
            (Self::Collect, when(faults.collections, 2)),
            (Self::GoBack, when(faults.rollbacks, 1) + when(rollbacks, 3)),
            (Self::Away, when(faults.no_database, 1)),
            (Self::Hang, when(faults.slow_ledger, 2) + when(deadlines, 2)),
            (Self::AskInVain, when(deadlines, 6)),
            (Self::Crash, when(faults.crashes, 1)),
            (Self::CrashSoon, when(faults.crashes, 1)),
            (Self::Stop, when(faults.stops, 1)),
            (Self::Reload, when(faults.reloads, 2)),
            (Self::DiskFull, when(faults.disk_full, 1)),
            (Self::CutPower, when(faults.power_cuts, 1)),
            (Self::OtherHost, when(faults.other_hosts, 2) + when(others, 5)),
            (Self::Nothing, 1),
        ]
    }

    /// Draws one of them.
    pub(super) fn draw(weights: &[(Self, u64)], rng: &mut Rng) -> Self {
        let all = weights.iter().map(|(_, weight)| weight).sum();
        let mut left = rng.below(all);
        for (act, weight) in weights {
            if left < *weight {
                return *act;
            }
            left -= weight;
        }
        Self::Nothing
    }
}
