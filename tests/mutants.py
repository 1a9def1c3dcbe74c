#!/usr/bin/env python3
"""Breaks mechanisms on purpose, and counts in how many seeds the simulation finds each.

    tests/mutants.py [SEEDS] [NAME…]     SEEDS: seeds for each mutant at most, 40 by default
    tests/mutants.py --all [SEEDS] …     also when three seeds have found a mutant
    tests/mutants.py --check             only whether each mutant fits the code

All mutants are put into one copy of the tree (target/mutants; what is built of it:
target/of-mutants), each behind a name that the environment variable FLYWHEEL_MUTANT switches
on, so that one build serves all of them. For each, seeds run until three have found it, and
the unit tests run if fewer have.
Fails when the unbroken copy violates an invariant, or when neither a seed nor a unit test
finds a mutant. CARGO names another cargo. PROFILE names another build profile than `dev`:
`simulate` is optimized, which takes minutes and repays with more than some hundred seeds.
"""

import os
import re
import shutil
import subprocess
import sys

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
        "if push.closure_at.get().is_none_or(|at| now.since(at) > *recheck_after) {",
        "if push.closure_at.get().is_none_or(|at| now.since(at) > *recheck_after) && !M {"),
    "deadline": ("callers are not answered at their deadline", "src/flow/sessions/callers.rs",
        "(Stage::Settling, Event::Tick) if late =>",
        "(Stage::Settling, Event::Tick) if late && !M =>"),
    "naming-deadline": ("callers that wait for the intake are not answered at their deadline", "src/flow/sessions/callers.rs",
        "(Stage::Taking, Event::Tick) if late =>",
        "(Stage::Taking, Event::Tick) if late && !M =>"),
    "other-users": ("a path of an unseen maker is one session's while another user has one", "src/attribution/windows.rs",
        "} else if holding.iter().any(|w| w.uid != holding[0].uid) {",
        "} else if M { holding.truncate(1); } else if holding.iter().any(|w| w.uid != holding[0].uid) {"),
    "maker": ("who made a path does not count", "src/attribution/windows.rs",
        "        if let Some(maker) = maker {\n            let uid",
        "        if let Some(maker) = maker.filter(|_| !M) {\n            let uid"),
    "attributed-twice": ("a reference that was taken in gets sessions again", "src/daemon/intake/look.rs",
        "None if info.id < first_new || known.contains_key(&info.id) => PlannedPush",
        "None if (info.id < first_new || known.contains_key(&info.id)) && !M => PlannedPush"),
    "not-protected": ("paths are not protected from collection", "src/daemon/gc_roots/mod.rs",
        "        if new.is_empty() {\n            return;\n        }\n        if let Some(links)",
        "        if new.is_empty() || M {\n            return;\n        }\n        if let Some(links)"),
    "not-released": ("the protection of a pushed path does not end", "src/daemon/push/outcome.rs",
        "        if push.protected {\n            self.gc_roots.release",
        "        if push.protected && !M {\n            self.gc_roots.release"),
    "not-recorded": ("a settled push is not recorded", "src/daemon/push/outcome.rs",
        "        if !is_recheck {\n", "        if !is_recheck && !M {\n"),
    "remembered": ("the end of a session does not ask the cache again", "src/daemon/intake/name.rs",
        "let others = self.paths_of(session, cache)?;",
        "let others = if M { Vec::new() } else { self.paths_of(session, cache)? };"),
    "pending-unasked": ("the end of a session does not ask about what is pending in the ledger", "src/daemon/intake/name.rs",
        "Outcome::Pushed | Outcome::AlreadyCached | Outcome::Pending | Outcome::Failed => true,",
        "Outcome::Pushed | Outcome::AlreadyCached | Outcome::Failed => true,\n                Outcome::Pending => !M,"),
    "window-open": ("the end of a session does not close its window", "src/daemon/intake/name.rs",
        "self.windows().close(naming.session, head);",
        "if !M { self.windows().close(naming.session, head); }"),
    "older-question": ("the answer to a question counts for who asked later", "src/flow/ask.rs",
        "asking.is_some_and(|push| push.ask_after <= asked_at)",
        "asking.is_some_and(|push| M || push.ask_after <= asked_at)"),
    "distrust": ("confirmations count although the cache has deleted paths", "src/flow/ask.rs",
        "push.closure_at = cache.trusted(push.closure_at);",
        "push.closure_at = if M { push.closure_at } else { cache.trusted(push.closure_at) };"),
    "trusted-upload": ("an upload from before the cache was seen to delete paths confirms", "src/flow/settling.rs",
        "push.closure_at.min(cache.trusted(ClosureAt::at(at)))",
        "push.closure_at.min(if M { ClosureAt::at(at) } else { cache.trusted(ClosureAt::at(at)) })"),
    "deleted-confirmed": ("a path that the cache has deleted stays confirmed in the ledger", "src/flow/ask.rs",
        "self.out.push(Action::Wanted(wanted));",
        "if !M { self.out.push(Action::Wanted(wanted)); }"),
    "one-round": ("a session closes without a question after its last upload", "src/daemon/driver/waiting.rs",
        "let uploaded = session.life.is_settling() && self.flow.take_uploaded(group);",
        "let uploaded = session.life.is_settling() && self.flow.take_uploaded(group) && !M;"),
    "caller-gone": ("a session stays open whose caller left before it learned the id", "src/flow/sessions/mod.rs",
        "(State::Open { .. } | State::Orphaned { .. }, Event::CallerGone) => abandon(Ended::CallerGone),",
        "(State::Open { .. } | State::Orphaned { .. }, Event::CallerGone) if M => (self.state, Vec::new()),\n"
        "            (State::Open { .. } | State::Orphaned { .. }, Event::CallerGone) => abandon(Ended::CallerGone),"),
    "quiet-early": ("a session is quiet with one push left", "src/flow/group.rs",
        "if group.flushing && group.unsettled == 0 {\n                self.out",
        "if group.flushing && (group.unsettled == 0 || (M && group.unsettled == 1)) {\n                self.out"),
    "closure-of-references": ("a push does not wait for what its confirmed reference still lacks", "src/flow/settling.rs",
        "self.inherit_references(referrer_id, &push.references);",
        "if !M { self.inherit_references(referrer_id, &push.references); }"),
    "closure-newest": ("the newest confirmation of a closure counts, not the oldest", "src/flow/settling.rs",
        "let closure_at = push.closure_at.min(",
        "let closure_at = if M { ClosureAt::at(at) } else { push.closure_at }.min("),
    "answered-at": ("an upload confirms from its end on, not from its beginning", "src/flow/step.rs",
        "self.settle(id, outcome, upload.began);",
        "self.settle(id, outcome, if M { now } else { upload.began });"),
    "not-restored": ("pushes of an earlier run are not taken up", "src/daemon/intake/mod.rs",
        "if !*restored {", "if !*restored && !M {"),
    "settled-since": ("a push that settles after the intake has read it is as the intake read it", "src/daemon/push/since.rs",
        "        if since.is_empty() {", "        if since.is_empty() || M {"),
    "admitted-trusted": ("for a push that is admitted later, confirmations from before a deletion count", "src/flow/step.rs",
        "closure_at: self.caches[usize::from(cache_id.0)].trusted(ClosureAt::new(new.closure_at)),",
        "closure_at: if M { ClosureAt::new(new.closure_at) } else { self.caches[usize::from(cache_id.0)].trusted(ClosureAt::new(new.closure_at)) },"),
    "route-of-maker": ("the routes do not ask who made a path", "src/daemon/intake/routes.rs",
        "        match maker {\n            _ if self.settings",
        "        match maker.filter(|_| !M) {\n            _ if self.settings"),
    "window-from-start": ("a session's window begins with the first row", "src/daemon/sessions/opening.rs",
        "let after = parts.store.head().unwrap_or(parts.cursor);",
        "let after = if M { 0 } else { parts.store.head().unwrap_or(parts.cursor) };"),
    "row-again": ("a database that went back is not noticed", "src/daemon/intake/standing.rs",
        "if first_wrong.is_none() && head >= last {",
        "if M || (first_wrong.is_none() && head >= last) {"),
    "read-again": ("rows that are read again after a rollback are attributed again", "src/daemon/intake/look.rs",
        "let again: Vec<&PathInfo> = rows.iter().filter(|row| row.id <= last).collect();",
        "let again: Vec<&PathInfo> = rows.iter().filter(|row| row.id <= last && !M).collect();"),
    "unanswered": ("a session is open before its caller is answered", "src/daemon/sessions/opening.rs",
        "if with_window { parts.ledger.session_unanswered(new) }",
        "if with_window && !M { parts.ledger.session_unanswered(new) }"),
    "early-complete": ("an early answer is complete although something is asked", "src/daemon/sessions/report/mod.rs",
        "if incomplete || (unsettled && summary.outcome == m::Outcome::Complete) {",
        "if incomplete || (unsettled && summary.outcome == m::Outcome::Complete && !M) {"),
    "another-round": ("an early answer is complete although the cache is to be asked once more", "src/daemon/driver/waiting.rs",
        "let unsettled = early && (another_round ||",
        "let unsettled = early && (another_round && !M ||"),
    "failed-waits": ("a failed push leaves its referrers waiting", "src/flow/settling.rs",
        "stack.extend(referrers.iter().filter(held).map(|referrer| (referrer, Cause::Reference(id))));",
        "stack.extend(referrers.iter().filter(held).filter(|_| !M).map(|referrer| (referrer, Cause::Reference(id))));"),
    "restart-remembers": ("after a restart a session closes without asking", "src/daemon/driver/ending.rs",
        "                Resume::Take => self.session_act(row, SessionAction::Take),",
        "                Resume::Take if M => self.session_step(row, SessionEvent::Named),\n"
        "                Resume::Take => self.session_act(row, SessionAction::Take),"),
    "old-rows": ("settlements of rows from before a rollback count", "src/daemon/intake/mod.rs",
        "Settlement::Settled { row, .. } if row.generation != self.generation => {}",
        "Settlement::Settled { row, .. } if row.generation != self.generation && !M => {}"),
    "flush-in-vain": ("a flush at its deadline is complete before the intake has looked", "src/daemon/driver/flushing.rs",
        "let unknown = early && left == 0 && (stuck.is_some() || !warnings.is_empty());",
        "let unknown = early && left == 0 && (stuck.is_some() || !warnings.is_empty()) && !M;"),
    "orphans": ("a session whose anchor has ended stays open", "src/flow/sessions/mod.rs",
        "(State::Orphaned { until }, Event::Tick) if until <= now => abandon(Ended::AnchorGone),",
        "(State::Orphaned { until }, Event::Tick) if until <= now && !M => abandon(Ended::AnchorGone),"),
    "known-pushes": ("a push that is known does not gain a session", "src/flow/step.rs",
        "            new.sessions.iter().for_each(|s| self.want(*s, id));\n            if is_stale",
        "            if !M { new.sessions.iter().for_each(|s| self.want(*s, id)); }\n            if is_stale"),
    "failed-reference": ("a session does not count the failed reference of its path", "src/daemon/push/outcome.rs",
        "        if !sessions.is_empty() {",
        "        if !sessions.is_empty() && !M {"),
    "failed-before": ("a session does not count a reference of its path that failed before it ended", "src/ledger/pushes.rs",
        "new.needed_by.filter(|_| now == PushState::Failed)",
        "new.needed_by.filter(|_| now == PushState::Failed && !M)"),
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


# Unit tests that ask about the same mechanisms.
UNIT_TESTS = ["attribution::windows::", "daemon::gc_roots::", "daemon::intake::", "daemon::push::", "daemon::sessions::",
              "flow::", "ledger::"]


# With fewer seeds than this that find a mutant, the unit tests are asked, too.
FEW = 3


def run(binary, name, seeds, enough):
    """Returns how many of the seeds and how many unit tests have found the mutant, and what the first seed says.

    None in place of the unit tests: they were not asked."""
    env = dict(os.environ, FLYWHEEL_MUTANT=name, FLYWHEEL_SIM_ENOUGH=enough, FLYWHEEL_SIM_SEEDS=seeds, RUST_BACKTRACE="0")
    sim = subprocess.run([binary, "daemon::sim::every_seed_keeps_the_invariants", "--exact", "--nocapture"],
                         env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    counted = re.search(r"(\d+) runs, \d+ turns, (\d+) failed", sim.stderr)
    if not counted:
        sys.exit(f"{name}: the simulation has not said how many seeds it ran:\n{sim.stderr[-2000:]}")
    runs, failed = map(int, counted.groups())
    first = re.search(r"^seed \d+: (.*)", sim.stderr, re.M)
    if failed >= FEW and name:
        return runs, failed, first.group(1), None
    try:
        unit = subprocess.run([binary, *UNIT_TESTS, "--skip", "::scale::"], env=env, stderr=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        # A test that waits for ever has found it as well.
        return runs, failed, first.group(1) if first else "", 1
    # The last one: a test may run this program as well, which then counts its own.
    tests = re.findall(r"(\d+) passed; (\d+) failed", unit.stdout)
    if not tests:
        sys.exit(f"{name}: the unit tests have not said how many they are:\n{unit.stdout[-2000:]}")
    return runs, failed, first.group(1) if first else "", int(tests[-1][1])


def broken(top):
    """The files that are broken, with all mutants in them. Ends when one does not fit its file."""
    files = {}
    for name, (_, file, old, new) in MUTANTS.items():
        text = files.get(file) or open(os.path.join(top, file)).read()
        if text.count(old) != 1:
            sys.exit(f"{name}: {file} has its text {text.count(old)} times; adapt tests/mutants.py")
        switch = f'crate::types::mutant("{name}")'
        files[file] = text.replace(old, re.sub(r"\bM\b", switch, new))
    return files


def main():
    args = sys.argv[1:]
    enough = str(10**9) if "--all" in args else str(FEW)
    args = [arg for arg in args if arg != "--all"]
    seeds = args.pop(0) if args and args[0].isdigit() else "40"
    top = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if args == ["--check"]:
        broken(top)
        return
    chosen = args or list(MUTANTS)
    # Always the same place, so that the next build is incremental.
    copy = os.path.join(top, "target", "mutants")
    shutil.rmtree(copy, ignore_errors=True)
    os.makedirs(copy)
    for name in ["src", "tests", "benches", "packaging", "Cargo.toml", "Cargo.lock", "clippy.toml"]:
        where = os.path.join(top, name)
        (shutil.copytree if os.path.isdir(where) else shutil.copy)(where, os.path.join(copy, name))
    for file, text in broken(top).items():
        open(os.path.join(copy, file), "w").write(text)
    with open(os.path.join(copy, "src/types/mod.rs"), "a") as types:
        types.write(SWITCH)
    env = dict(os.environ)
    # Not that of the tree: cargo gives the copy's programs the names of the tree's own.
    env.setdefault("CARGO_TARGET_DIR", os.path.join(top, "target", "of-mutants"))
    profile = ["--profile", os.environ["PROFILE"]] if "PROFILE" in os.environ else []
    built = subprocess.run([os.environ.get("CARGO", "cargo"), "test", "--locked", "--lib", "--no-run", *profile,
                            "--message-format=short"], cwd=copy, env=env, stderr=subprocess.PIPE, text=True)
    found = re.search(r"\((\S+/deps/flywheel-\w+)\)", built.stderr)
    if not found:
        sys.exit(built.stderr[-4000:])
    binary = os.path.join(copy, "mutants")
    shutil.copy(os.path.join(copy, found.group(1)), binary)
    wrong = []
    for name in ["", *chosen]:
        runs, failed, first, units = run(binary, name, seeds, enough)
        what = MUTANTS[name][0] if name else "nothing is broken"
        also = "" if units is None else f", {units} unit tests"
        print(f"{name or '-':22} {failed:5} of {runs} seeds{also}: {what}", flush=True)
        if failed:
            print(f"{'':22} {first[:150]}", flush=True)
        if (failed + (units or 0) == 0) == bool(name):
            wrong.append(name or "nothing is broken")
    if wrong:
        sys.exit(f"not as expected: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
