#!/usr/bin/env python3
"""Breaks mechanisms on purpose, and counts in how many seeds the simulation finds each.

    tests/mutants.py [SEEDS] [NAME…]     SEEDS: seeds for each mutant, 100 by default

All mutants are put into one copy of the tree, each behind a name that the environment
variable FLYWHEEL_MUTANT switches on, so that one build serves all of them. Fails when the
unbroken copy violates an invariant, or when no seed finds a mutant.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

# Name: what is broken, file, text, and the text that breaks it when `M` is true.
MUTANTS = {
    "cursor-first": ("the cursor moves before the rows are in the ledger", "src/daemon/intake/look.rs",
        "            self.take_rows(rows, Some(&next))?;",
        "            if M { self.ledger.admit(Admit { cursor: Some(next.clone()), pushes: Vec::new(), at: Wall::now().0 })?; }\n"
        "            self.take_rows(rows, Some(&next))?;"),
    "reference-order": ("a push does not wait for its references", "src/flow/step.rs",
        "push.phase == Phase::Held && push.references.is_empty()",
        "push.phase == Phase::Held && (push.references.is_empty() || M)"),
    "old-confirmation": ("a confirmation counts for ever", "src/flow/step.rs",
        "if push.closure_at.is_none_or(|at| now.since(at) > *recheck_after) {",
        "if push.closure_at.is_none_or(|at| now.since(at) > *recheck_after) && !M {"),
    "deadline": ("callers are not answered at their deadline", "src/daemon/driver/waiting.rs",
        "        self.answer_waiters(|waiter| waiter.deadline <= now);",
        "        if M { return; }\n        self.answer_waiters(|waiter| waiter.deadline <= now);"),
    "other-users": ("a path of an unseen maker is one session's while another user has one", "src/attribution/windows.rs",
        "} else if holding.iter().any(|w| w.uid != holding[0].uid) {",
        "} else if M { holding.truncate(1); } else if holding.iter().any(|w| w.uid != holding[0].uid) {"),
    "maker": ("who made a path does not count", "src/attribution/windows.rs",
        "        if let Some(maker) = maker {\n            let uid",
        "        if let Some(maker) = maker.filter(|_| !M) {\n            let uid"),
    "attributed-twice": ("a reference that was taken in gets sessions again", "src/daemon/intake/look.rs",
        "None if info.id < first_new => {", "None if info.id < first_new && !M => {"),
    "not-protected": ("paths are not protected from collection", "src/daemon/gc_roots/mod.rs",
        "        if new.is_empty() {\n            return;\n        }\n        if let Some(links)",
        "        if new.is_empty() || M {\n            return;\n        }\n        if let Some(links)"),
    "not-released": ("the protection of a pushed path does not end", "src/daemon/push/outcome.rs",
        "        self.gc_roots.release(push.cache.0, push.path);",
        "        if !M { self.gc_roots.release(push.cache.0, push.path); }"),
    "not-recorded": ("a settled push is not recorded", "src/daemon/push/outcome.rs",
        "        self.ledger.settle(id, records::settled(outcome, push.attempts, push.steps));",
        "        if !M { self.ledger.settle(id, records::settled(outcome, push.attempts, push.steps)); }"),
    "remembered": ("the end of a session does not ask the cache again", "src/daemon/intake/name.rs",
        "let confirmed = self.confirmed_paths(session)?;",
        "let confirmed = if M { Vec::new() } else { self.confirmed_paths(session)? };"),
    "restart-remembers": ("after a restart a session closes without asking", "src/daemon/driver/ending.rs",
        "                Next::Take => self.session_act(row, SessionAction::Take),",
        "                Next::Take if M => self.session_step(row, SessionEvent::Named),\n"
        "                Next::Take => self.session_act(row, SessionAction::Take),"),
    "old-rows": ("settlements of rows from before a rollback count", "src/daemon/intake/mod.rs",
        "Settlement::Settled { row, .. } if row.generation != self.generation => {}",
        "Settlement::Settled { row, .. } if row.generation != self.generation && !M => {}"),
    "flush-in-vain": ("a flush at its deadline is complete before the intake has looked", "src/daemon/driver/waiting.rs",
        "let unknown = left == 0 && (stuck.is_some() || !warnings.is_empty());",
        "let unknown = left == 0 && (stuck.is_some() || !warnings.is_empty()) && !M;"),
    "orphans": ("a session whose anchor has ended stays open", "src/flow/sessions/mod.rs",
        "(State::Orphaned { until }, Event::Tick) if until <= now => abandon(),",
        "(State::Orphaned { until }, Event::Tick) if until <= now && !M => abandon(),"),
    "known-pushes": ("a push that is known does not gain a session", "src/flow/step.rs",
        "            new.sessions.iter().for_each(|s| self.want(*s, id));\n            if is_stale",
        "            if !M { new.sessions.iter().for_each(|s| self.want(*s, id)); }\n            if is_stale"),
    "no-retry": ("an upload that failed for a moment is not retried", "src/flow/step.rs",
        "    fn rest(&mut self, id: PushId, until: Mono) {",
        "    fn rest(&mut self, id: PushId, until: Mono) {\n        let until = if M { until.after(Duration::from_secs(1 << 30)) } else { until };"),
}

SWITCH = """
/// Whether a mutant is switched on.
pub(crate) fn mutant(name: &str) -> bool {
    static NAME: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    NAME.get_or_init(|| std::env::var("FLYWHEEL_MUTANT").ok()).as_deref() == Some(name)
}
"""


def main():
    args = sys.argv[1:]
    seeds = args.pop(0) if args and args[0].isdigit() else "100"
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    chosen = args or list(MUTANTS)
    with tempfile.TemporaryDirectory(prefix="flywheel-mutants") as copy:
        for name in ["src", "tests", "benches", "packaging", "Cargo.toml", "Cargo.lock", "clippy.toml"]:
            where = os.path.join(top, name)
            (shutil.copytree if os.path.isdir(where) else shutil.copy)(where, os.path.join(copy, name))
        for name, (_, file, old, new) in MUTANTS.items():
            path = os.path.join(copy, file)
            text = open(path).read()
            if text.count(old) != 1:
                sys.exit(f"{name}: {file} has its text {text.count(old)} times; adapt tests/mutants.py")
            switch = f'crate::types::mutant("{name}")'
            open(path, "w").write(text.replace(old, re.sub(r"\bM\b", switch, new)))
        with open(os.path.join(copy, "src/types/mod.rs"), "a") as types:
            types.write(SWITCH)
        env = dict(os.environ, CARGO_TARGET_DIR=os.path.join(top, "target"))
        built = subprocess.run(["cargo", "test", "--locked", "--lib", "--no-run", "--message-format=short"],
                               cwd=copy, env=env, stderr=subprocess.PIPE, text=True)
        found = re.search(r"\((\S+/deps/flywheel-\w+)\)", built.stderr)
        if not found:
            sys.exit(built.stderr[-4000:])
        binary = os.path.join(copy, found.group(1))
        missed = []
        for name in ["", *chosen]:
            env = dict(os.environ, FLYWHEEL_MUTANT=name, FLYWHEEL_SIM_ALL="1", FLYWHEEL_SIM_SEEDS=seeds,
                       RUST_BACKTRACE="0")
            ran = subprocess.run([binary, "daemon::sim::the_simulation_runs", "--exact", "--nocapture"],
                                 env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
            counted = re.search(r"(\d+) runs, \d+ turns, (\d+) failed", ran.stderr)
            first = re.search(r"^seed \d+: (.*)", ran.stderr, re.M)
            runs, failed = map(int, counted.groups()) if counted else (0, 0)
            what = MUTANTS[name][0] if name else "nothing is broken"
            print(f"{name or '-':18} {failed:4} of {runs} seeds  {what}", flush=True)
            if failed and first:
                print(f"{'':18} {first.group(1)[:150]}", flush=True)
            if (failed == 0) == bool(name):
                missed.append(name or "nothing is broken")
        if missed:
            sys.exit(f"not as expected: {', '.join(missed)}")


if __name__ == "__main__":
    main()
