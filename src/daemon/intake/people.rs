//! The people behind user numbers, from the system's name service. It may be slow,
//! or a directory that does not answer: a look-up runs on a thread of its own, the
//! caller waits for a limited time, and the last known answer stands until there is a
//! new one. Must not know what the answers are used for.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is used without asking again.
const FRESH: Duration = Duration::from_secs(300);
/// The time between a look-up that failed and the next one.
const RETRY: Duration = Duration::from_secs(5);
/// Look-ups that run at a time. One that hangs cannot be ended, and keeps its thread.
const LOOKUPS: usize = 8;
/// People that are remembered.
const PEOPLE: usize = 1024;

/// A user, as routes name one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) struct Person {
    pub(in crate::daemon) name: Option<String>,
    /// Other names of the user in the configuration, such as another spelling.
    pub(in crate::daemon) aliases: Vec<String>,
    /// With each name that a group has.
    pub(in crate::daemon) groups: Vec<(u32, Option<String>)>,
    /// Whether the name service has answered. Otherwise the name and further groups
    /// are not known.
    pub(in crate::daemon) complete: bool,
}

impl Person {
    /// Somebody of whom only the numbers are known.
    fn unknown(gid: u32) -> Self {
        Self { name: None, aliases: Vec::new(), groups: vec![(gid, None)], complete: false }
    }
}

/// Asks the name service for the user with these numbers. Blocks as long as it takes.
pub(super) type LookUp = Arc<dyn Fn(u32, u32) -> Result<Person, String> + Send + Sync>;

/// The people who have been asked for.
#[derive(Clone)]
pub(in crate::daemon) struct People(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    /// Notified when a look-up ends.
    ended: Condvar,
    /// Called when a look-up has brought an answer.
    on_answer: Box<dyn Fn() + Send + Sync>,
}

struct State {
    look_up: LookUp,
    known: HashMap<(u32, u32), Entry>,
    running: usize,
}

#[derive(Default)]
struct Entry {
    answer: Option<(Arc<Person>, Instant)>,
    /// When the running look-up began.
    asked: Option<Instant>,
    /// When the last look-up failed.
    failed: Option<Instant>,
}

impl Entry {
    fn is_due(&self, now: Instant) -> bool {
        let before = |at: Instant, age| now.saturating_duration_since(at) >= age;
        self.asked.is_none()
            && self.answer.as_ref().is_none_or(|(_, at)| before(*at, FRESH))
            && self.failed.is_none_or(|at| before(at, RETRY))
    }
}

impl People {
    /// Knows nobody yet. `on_answer` is called after each answer of the name service,
    /// on the look-up's thread.
    pub(super) fn new(look_up: LookUp, on_answer: impl Fn() + Send + Sync + 'static) -> Self {
        let state = State { look_up, known: HashMap::new(), running: 0 };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            ended: Condvar::new(),
            on_answer: Box::new(on_answer),
        }))
    }

    /// Knows these users, by their numbers only, and asks nobody: for the simulation.
    #[cfg(test)]
    pub(in crate::daemon) fn simulated(uids: &[u32]) -> Self {
        let this = Self::new(Arc::new(|_, _| Err("simulated".to_owned())), || ());
        for uid in uids {
            let person = Person { complete: true, ..Person::unknown(*uid) };
            let entry = Entry { answer: Some((Arc::new(person), Instant::now())), ..Entry::default() };
            this.state().known.insert((*uid, *uid), entry);
        }
        this
    }

    /// Replaces the way in which people are looked up. Everybody is asked for again,
    /// and the last known answers stand meanwhile.
    pub(super) fn set_look_up(&self, look_up: LookUp) {
        let mut state = self.state();
        state.look_up = look_up;
        for entry in state.known.values_mut() {
            entry.failed = None;
            if let Some((_, at)) = &mut entry.answer {
                *at = at.checked_sub(FRESH).unwrap_or(*at);
            }
        }
    }

    /// Returns who the user with these numbers is. Waits for the name service until its
    /// look-up has taken `limit`; the next caller does not wait for that look-up any
    /// more. Without an answer the last known one counts, else only the numbers are known.
    pub(in crate::daemon) fn who_is(&self, uid: u32, gid: u32, limit: Duration) -> Arc<Person> {
        let key = (uid, gid);
        let mut state = self.state();
        self.ask(&mut state, key);
        let under_way = |state: &State| state.known.get(&key).and_then(|entry| entry.asked);
        if let Some(asked) = under_way(&state) {
            let left = limit.saturating_sub(asked.elapsed());
            let waited = self.0.ended.wait_timeout_while(state, left, |state| under_way(state).is_some());
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let answer = state.known.get(&key).and_then(|entry| entry.answer.as_ref());
        answer.map_or_else(|| Arc::new(Person::unknown(gid)), |(person, _)| Arc::clone(person))
    }

    /// Begins a look-up if one is due and fewer than [`LOOKUPS`] run.
    fn ask(&self, state: &mut State, key: (u32, u32)) {
        let now = Instant::now();
        if state.known.get(&key).is_some_and(|entry| !entry.is_due(now)) || state.running >= LOOKUPS {
            return;
        }
        if state.known.len() >= PEOPLE && !state.known.contains_key(&key) {
            let idle = state.known.iter().filter(|(_, entry)| entry.asked.is_none());
            let oldest = idle.min_by_key(|(_, entry)| entry.answer.as_ref().map(|(_, at)| *at));
            let Some(oldest) = oldest.map(|(key, _)| *key) else { return };
            state.known.remove(&oldest);
        }
        let (people, look_up) = (self.clone(), Arc::clone(&state.look_up));
        let thread = std::thread::Builder::new().name("name service".to_owned());
        let started = thread.spawn(move || people.ended(key, look_up(key.0, key.1)));
        let entry = state.known.entry(key).or_default();
        if started.is_ok() {
            entry.asked = Some(now);
            state.running += 1;
        } else {
            entry.failed = Some(now);
        }
    }

    /// A look-up has ended.
    fn ended(&self, key: (u32, u32), result: Result<Person, String>) {
        let mut state = self.state();
        state.running -= 1;
        let entry = state.known.entry(key).or_default();
        entry.asked = None;
        let answered = result.is_ok();
        match result {
            Ok(person) => {
                entry.answer = Some((Arc::new(person), Instant::now()));
                entry.failed = None;
            }
            Err(error) => {
                entry.failed = Some(Instant::now());
                crate::observe::detail!(
                    uid = key.0,
                    error = error,
                    "the name service does not say who this is"
                );
            }
        }
        drop(state);
        self.0.ended.notify_all();
        if answered {
            (self.0.on_answer)();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for People {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("People").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn person(name: &str) -> Person {
        Person {
            name: Some(name.to_owned()),
            aliases: Vec::new(),
            groups: vec![(7, Some("domain users".to_owned()))],
            complete: true,
        }
    }

    /// A name service that answers for uid 1 only what is sent to it, and for all other
    /// users `other` at once. Returns the sender of answers, and a receiver that gets a
    /// message when a look-up begins.
    fn slow() -> (People, Sender<Result<Person, String>>, std::sync::mpsc::Receiver<u32>) {
        let (answer, answers) = channel::<Result<Person, String>>();
        let (begin, begun) = channel();
        let (answers, begin) = (Mutex::new(answers), Mutex::new(begin));
        let look_up = move |uid, _| {
            let _ = begin.lock().unwrap().send(uid);
            if uid == 1 { answers.lock().unwrap().recv().unwrap() } else { Ok(person("other")) }
        };
        (People::new(Arc::new(look_up), || ()), answer, begun)
    }

    #[test]
    fn a_look_up_that_hangs_is_waited_for_once_and_costs_others_nothing() {
        let (people, answer, begun) = slow();
        let limit = Duration::from_millis(20);
        assert_eq!(*people.who_is(1, 5, limit), Person::unknown(5));
        begun.recv().unwrap();
        // It is under way for longer than the limit: nobody waits, and no second one begins.
        assert_eq!(*people.who_is(1, 5, limit), Person::unknown(5));
        assert_eq!(*people.who_is(2, 5, LONG), person("other"));
        assert_eq!(begun.recv().unwrap(), 2);
        assert!(begun.try_recv().is_err());
        answer.send(Ok(person("slow"))).unwrap();
        assert_eq!(*people.who_is(1, 5, LONG), person("slow"));
        // It is remembered.
        assert_eq!(*people.who_is(1, 5, LONG), person("slow"));
        assert!(begun.try_recv().is_err());
    }

    #[test]
    fn the_last_known_answer_stands_while_the_name_service_fails_or_hangs() {
        let (people, answer, begun) = slow();
        answer.send(Ok(person("known"))).unwrap();
        assert_eq!(*people.who_is(1, 5, LONG), person("known"));
        let age = |people: &People| {
            let mut state = people.state();
            let entry = state.known.get_mut(&(1, 5)).unwrap();
            let (_, at) = entry.answer.as_mut().unwrap();
            *at = at.checked_sub(FRESH).unwrap();
            entry.failed = None;
        };
        age(&people);
        answer.send(Err("down".to_owned())).unwrap();
        assert_eq!(*people.who_is(1, 5, LONG), person("known"));
        age(&people);
        assert_eq!(*people.who_is(1, 5, Duration::from_millis(20)), person("known"), "it hangs");
        answer.send(Ok(person("new"))).unwrap();
        assert_eq!(*people.who_is(1, 5, LONG), person("new"));
        assert_eq!(begun.try_iter().count(), 3);
    }

    /// A contract of people who are looked up, and of the simulation's, who are known.
    #[test]
    fn who_is_known_is_known_by_the_simulation_too() {
        let look_up = |uid: u32, gid: u32| {
            if uid == 1 {
                Ok(Person { complete: true, ..Person::unknown(gid) })
            } else {
                Err("down".to_owned())
            }
        };
        for people in [People::new(Arc::new(look_up), || ()), People::simulated(&[1])] {
            assert_eq!(*people.who_is(1, 1, LONG), Person { complete: true, ..Person::unknown(1) });
            assert_eq!(*people.who_is(2, 2, LONG), Person::unknown(2));
        }
    }

    #[test]
    fn only_so_many_look_ups_hang() {
        let (_keep, hang) = channel::<()>();
        let hang = Mutex::new(hang);
        let look_up = move |_, _| {
            let _ = hang.lock().unwrap().recv();
            Err(String::new())
        };
        let people = People::new(Arc::new(look_up), || ());
        for uid in 0..100 {
            assert_eq!(*people.who_is(uid, 5, Duration::ZERO), Person::unknown(5));
        }
        assert_eq!(people.state().running, LOOKUPS);
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let people = People::new(Arc::new(|_, _| Ok(person("any"))), || ());
        let most = u32::try_from(PEOPLE).unwrap();
        for uid in 0..most + 10 {
            assert!(people.who_is(uid, 5, LONG).complete);
        }
        let state = people.state();
        assert_eq!(state.known.len(), PEOPLE);
        assert!(!state.known.contains_key(&(0, 5)) && state.known.contains_key(&(most, 5)));
    }
}
