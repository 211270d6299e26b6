//! Which pod is next: by priority, then by arrival. A pod that did not fit waits until something changes that could help, and at least its
//! back-off; every five minutes it is tried all the same.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use reconcile::ObjectKey;

/// Upstream's podInitialBackoffSeconds, podMaxBackoffSeconds and the unschedulable time-out.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// Higher priority first, then the earlier arrival.
type Turn = (std::cmp::Reverse<i32>, u64);

/// Each pod is in exactly one of: active, back-off, unschedulable, in flight (taken and neither bound nor returned).
#[derive(Default)]
pub struct Queue {
    pods: HashMap<ObjectKey, Waiting>,
    active: BTreeMap<Turn, ObjectKey>,
    backoff: BTreeSet<(Instant, ObjectKey)>,
    /// By the moment since which they wait.
    unschedulable: BTreeSet<(Instant, ObjectKey)>,
    arrivals: u64,
}

struct Waiting {
    turn: Turn,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Copy, PartialEq)]
enum Place {
    Active,
    Backoff(Instant),
    Unschedulable { since: Instant, not_before: Instant },
    InFlight,
}

impl Queue {
    /// A pod wants a node. One that waits already keeps its place, unless its own change could make it fit (`changed`).
    pub fn add(&mut self, key: &ObjectKey, priority: i32, changed: bool, now: Instant) {
        if self.pods.contains_key(key) {
            if changed {
                self.wake(key, now);
            }
            return;
        }
        self.arrivals += 1;
        let turn = (std::cmp::Reverse(priority), self.arrivals);
        self.pods.insert(key.clone(), Waiting { turn, attempts: 0, place: Place::Active });
        self.active.insert(turn, key.clone());
    }

    /// The pod is bound, gone, or somebody else's.
    pub fn remove(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.pods.remove(key) else { return };
        match waiting.place {
            Place::Active => drop(self.active.remove(&waiting.turn)),
            Place::Backoff(until) => drop(self.backoff.remove(&(until, key.clone()))),
            Place::Unschedulable { since, .. } => drop(self.unschedulable.remove(&(since, key.clone()))),
            Place::InFlight => {}
        }
    }

    /// The next pod to place; it is in flight until it is returned or removed.
    pub fn pop(&mut self, now: Instant) -> Option<ObjectKey> {
        self.promote(now);
        let (_, key) = self.active.pop_first()?;
        if let Some(waiting) = self.pods.get_mut(&key) {
            waiting.place = Place::InFlight;
            waiting.attempts += 1;
        }
        Some(key)
    }

    /// No node fits.
    pub fn unschedulable(&mut self, key: &ObjectKey, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.place = Place::Unschedulable { since: now, not_before: now + wait(waiting.attempts) };
            self.unschedulable.insert((now, key.clone()));
        }
    }

    /// The attempt failed for another reason: try again after the back-off.
    pub fn retry(&mut self, key: &ObjectKey, now: Instant) {
        if let Some(waiting) = self.pods.get_mut(key) {
            let until = now + wait(waiting.attempts);
            waiting.place = Place::Backoff(until);
            self.backoff.insert((until, key.clone()));
        }
    }

    /// Something changed that may make unschedulable pods fit.
    pub fn wake_all(&mut self, now: Instant) {
        let keys: Vec<ObjectKey> = self.unschedulable.iter().map(|(_, key)| key.clone()).collect();
        keys.iter().for_each(|key| self.wake(key, now));
    }

    /// When to look again at the latest, if nothing else happens.
    pub fn next_due(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let forgotten = self.unschedulable.first().map(|(since, _)| *since + UNSCHEDULABLE_MAX);
        backoff.into_iter().chain(forgotten).min()
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    fn wake(&mut self, key: &ObjectKey, now: Instant) {
        let Some(waiting) = self.pods.get_mut(key) else { return };
        let Place::Unschedulable { since, not_before } = waiting.place else { return };
        self.unschedulable.remove(&(since, key.clone()));
        if not_before > now {
            waiting.place = Place::Backoff(not_before);
            self.backoff.insert((not_before, key.clone()));
        } else {
            waiting.place = Place::Active;
            self.active.insert(waiting.turn, key.clone());
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some((since, key)) = self.unschedulable.first().cloned() {
            if now < since + UNSCHEDULABLE_MAX {
                break;
            }
            self.wake(&key, now);
        }
        while let Some((until, key)) = self.backoff.first().cloned() {
            if until > now {
                break;
            }
            self.backoff.pop_first();
            if let Some(waiting) = self.pods.get_mut(&key) {
                waiting.place = Place::Active;
                self.active.insert(waiting.turn, key);
            }
        }
    }
}

fn wait(attempts: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }

    #[test]
    fn higher_priority_goes_first_then_the_earlier_arrival() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.add(&key(name), priority, false, now);
        }
        let order: Vec<String> = std::iter::from_fn(|| queue.pop(now)).map(|key| key.name).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn an_unschedulable_pod_waits_for_a_change_and_for_its_back_off() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut queue = Queue::default();
        queue.add(&key("a"), 0, false, start);
        queue.pop(start);
        queue.unschedulable(&key("a"), start);
        assert_eq!(queue.pop(after(30)), None, "nothing changed");
        queue.wake_all(start);
        assert_eq!(queue.pop(start), None, "still in its back-off");
        assert_eq!(queue.pop(after(1)), Some(key("a")));
        queue.unschedulable(&key("a"), after(1));
        assert_eq!(queue.pop(after(302)), Some(key("a")), "tried again after five minutes without any change");
    }

    #[test]
    fn the_back_off_doubles_to_ten_seconds() {
        let waits: Vec<u64> = (1..=6).map(|attempts| wait(attempts).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_removed_pod_is_nowhere() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(&key("a"), 0, false, now);
        queue.pop(now);
        queue.retry(&key("a"), now);
        queue.remove(&key("a"));
        assert_eq!((queue.pop(now + Duration::from_secs(60)), queue.next_due(), queue.len()), (None, None, 0));
    }
}
