//! Which pod is next: by priority, then by arrival. A pod that did not fit waits until something changes that could help, and at least its
//! back-off; every five minutes it is tried all the same.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use reconcile::ObjectKey;

use crate::class::Class;
use crate::profile::Plugins;

/// Upstream's `--pod-max-in-unschedulable-pods-duration`.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// Higher priority first, then the earlier arrival.
type Turn = (Reverse<i32>, u64);
/// A moment, and the arrival to tell pods of the same moment apart.
type Moment = (Instant, u64);

/// Each pod is in exactly one of: active, back-off, failed (back-off after an error), unschedulable, in flight (taken and neither bound nor
/// returned).
pub struct Queue {
    pods: HashMap<Arc<ObjectKey>, Waiting>,
    active: BTreeMap<Turn, Arc<ObjectKey>>,
    /// Tried early where nobody else waits: something happened that could help them.
    backoff: BTreeMap<Moment, Arc<ObjectKey>>,
    /// Not tried early: the API did not take the binding.
    failed: BTreeMap<Moment, Arc<ObjectKey>>,
    /// By who objected, then by the moment since which they wait: an event that helps against others passes them by at no cost.
    unschedulable: HashMap<Plugins, BTreeMap<Moment, Arc<ObjectKey>>>,
    arrivals: u64,
    backoff_first: Duration,
    backoff_max: Duration,
}

struct Waiting {
    turn: Turn,
    class: Arc<Class>,
    attempts: u32,
    since: Instant,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Active,
    Backoff(Moment),
    Failed(Moment),
    Unschedulable { plugins: Plugins, since: Moment, not_before: Instant },
    InFlight,
}

/// How many pods are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    pub active: usize,
    pub backoff: usize,
    pub unschedulable: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self::new(Duration::from_secs(1), Duration::from_secs(10))
    }
}

impl Queue {
    /// `first` and `max` are `podInitialBackoffSeconds` and `podMaxBackoffSeconds`.
    pub fn new(first: Duration, max: Duration) -> Self {
        Self {
            pods: HashMap::new(),
            active: BTreeMap::new(),
            backoff: BTreeMap::new(),
            failed: BTreeMap::new(),
            unschedulable: HashMap::new(),
            arrivals: 0,
            backoff_first: first,
            backoff_max: max,
        }
    }

    /// A pod wants a node. One that waits already keeps its place, unless its own change could make it fit: it is of another class than
    /// the one that was tried.
    pub fn add(&mut self, key: &ObjectKey, class: &Arc<Class>, now: Instant) {
        if let Some((key, waiting)) = self.pods.get_key_value(key).map(|(key, waiting)| (key.clone(), waiting)) {
            if waiting.class.id == class.id {
                return;
            }
            let was_active = waiting.place == Place::Active;
            if was_active && waiting.class.priority != class.priority {
                self.active.remove(&waiting.turn);
            }
            if let Some(waiting) = self.pods.get_mut(&key) {
                waiting.class = class.clone();
                waiting.turn.0 = Reverse(class.priority);
                if was_active {
                    self.active.insert(waiting.turn, key.clone());
                }
            }
            return self.wake(&key, now);
        }
        self.arrivals += 1;
        let (key, turn) = (Arc::new(key.clone()), (Reverse(class.priority), self.arrivals));
        self.pods.insert(key.clone(), Waiting { turn, class: class.clone(), attempts: 0, since: now, place: Place::Active });
        self.active.insert(turn, key);
    }

    /// The pod is bound, gone, or somebody else's.
    pub fn remove(&mut self, key: &ObjectKey) {
        let Some(waiting) = self.pods.remove(key) else { return };
        self.leave(&waiting);
    }

    /// The next pod to place; it is in flight until it is returned or removed.
    pub fn pop(&mut self, now: Instant) -> Option<Arc<ObjectKey>> {
        self.promote(now);
        let key = match self.active.pop_first() {
            Some((_, key)) => key,
            None => self.backoff.pop_first()?.1,
        };
        if let Some(waiting) = self.pods.get_mut(&key) {
            waiting.place = Place::InFlight;
            waiting.attempts += 1;
        }
        Some(key)
    }

    /// Takes this pod wherever it waits; `false` where it does not.
    pub fn take(&mut self, key: &ObjectKey) -> bool {
        let Some(mut waiting) = self.pods.remove_entry(key) else { return false };
        if waiting.1.place != Place::InFlight {
            self.leave(&waiting.1);
            waiting.1.place = Place::InFlight;
            waiting.1.attempts += 1;
        }
        self.pods.insert(waiting.0, waiting.1);
        true
    }

    /// When the pod came, and how often it was tried.
    pub fn history(&self, key: &ObjectKey) -> Option<(Instant, u32)> {
        self.pods.get(key).map(|waiting| (waiting.since, waiting.attempts))
    }

    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.pods.contains_key(key)
    }

    /// No node fits, by the word of those plugins.
    pub fn unschedulable(&mut self, key: &ObjectKey, plugins: Plugins, now: Instant) {
        let wait = self.wait(key);
        let Some((key, _)) = self.pods.get_key_value(key) else { return };
        let key = key.clone();
        let Some(waiting) = self.pods.get_mut(&key) else { return };
        let since = (now, waiting.turn.1);
        waiting.place = Place::Unschedulable { plugins, since, not_before: now + wait };
        self.unschedulable.entry(plugins).or_default().insert(since, key);
    }

    /// The attempt failed for another reason: try again after the back-off.
    pub fn retry(&mut self, key: &ObjectKey, now: Instant) {
        let wait = self.wait(key);
        let Some((key, _)) = self.pods.get_key_value(key) else { return };
        let key = key.clone();
        let Some(waiting) = self.pods.get_mut(&key) else { return };
        let until = (now + wait, waiting.turn.1);
        waiting.place = Place::Failed(until);
        self.failed.insert(until, key);
    }

    /// Something changed that may overcome objections of those plugins; `hint` says for a class whether it really could help.
    pub fn wake_for(&mut self, plugins: Plugins, now: Instant, mut hint: impl FnMut(&Arc<Class>) -> bool) {
        let mut known: HashMap<u64, bool> = HashMap::new();
        let concerned = self.unschedulable.iter().filter(|(objectors, _)| objectors.meets(plugins)).flat_map(|(_, pods)| pods.values());
        let helped: Vec<Arc<ObjectKey>> = concerned
            .filter(|key| self.pods.get(*key).is_some_and(|waiting| *known.entry(waiting.class.id).or_insert_with(|| hint(&waiting.class))))
            .cloned()
            .collect();
        helped.iter().for_each(|key| self.wake(key, now));
    }

    /// The pod that waits longest of those to whom exactly these plugins objected.
    pub fn first_unschedulable(&self, plugins: Plugins) -> Option<(ObjectKey, Arc<Class>)> {
        let (_, key) = self.unschedulable.get(&plugins)?.first_key_value()?;
        Some((ObjectKey::clone(key), self.pods.get(key)?.class.clone()))
    }

    /// Something changed that may help this pod.
    pub fn wake(&mut self, key: &ObjectKey, now: Instant) {
        let Some((key, waiting)) = self.pods.get_key_value(key) else { return };
        let (key, Place::Unschedulable { plugins, since, not_before }) = (key.clone(), waiting.place) else { return };
        self.drop_unschedulable(plugins, since);
        let Some(waiting) = self.pods.get_mut(&key) else { return };
        if not_before > now {
            let until = (not_before, waiting.turn.1);
            waiting.place = Place::Backoff(until);
            self.backoff.insert(until, key);
        } else {
            waiting.place = Place::Active;
            self.active.insert(waiting.turn, key);
        }
    }

    /// When to look again at the latest, if nothing else happens.
    pub fn next_due(&self) -> Option<Instant> {
        let waits = [self.backoff.first_key_value(), self.failed.first_key_value()];
        let waits = waits.into_iter().flatten().map(|((until, _), _)| *until);
        let oldest = self.unschedulable.values().filter_map(|pods| pods.first_key_value());
        waits.chain(oldest.map(|((since, _), _)| *since + UNSCHEDULABLE_MAX)).min()
    }

    pub fn len(&self) -> usize {
        self.pods.len()
    }
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }
    pub fn sizes(&self) -> Sizes {
        Sizes {
            active: self.active.len(),
            backoff: self.backoff.len() + self.failed.len(),
            unschedulable: self.unschedulable.values().map(BTreeMap::len).sum(),
        }
    }

    fn leave(&mut self, waiting: &Waiting) {
        match waiting.place {
            Place::Active => drop(self.active.remove(&waiting.turn)),
            Place::Backoff(until) => drop(self.backoff.remove(&until)),
            Place::Failed(until) => drop(self.failed.remove(&until)),
            Place::Unschedulable { plugins, since, .. } => self.drop_unschedulable(plugins, since),
            Place::InFlight => {}
        }
    }

    fn drop_unschedulable(&mut self, plugins: Plugins, since: Moment) {
        let Some(pods) = self.unschedulable.get_mut(&plugins) else { return };
        pods.remove(&since);
        if pods.is_empty() {
            self.unschedulable.remove(&plugins);
        }
    }

    fn promote(&mut self, now: Instant) {
        let forgotten = |((since, _), key): (&Moment, &Arc<ObjectKey>)| (now >= *since + UNSCHEDULABLE_MAX).then(|| key.clone());
        while let Some(key) = self.unschedulable.values().find_map(|pods| pods.first_key_value().and_then(forgotten)) {
            self.wake(&key, now);
        }
        for waiting in [&mut self.backoff, &mut self.failed] {
            while let Some(first) = waiting.first_entry()
                && first.key().0 <= now
            {
                let key = first.remove();
                if let Some(waiting) = self.pods.get_mut(&key) {
                    waiting.place = Place::Active;
                    self.active.insert(waiting.turn, key);
                }
            }
        }
    }

    /// How long the pod waits after so many attempts: doubled each time.
    fn wait(&self, key: &ObjectKey) -> Duration {
        let attempts = self.pods.get(key).map_or(0, |waiting| waiting.attempts);
        self.backoff_first.saturating_mul(1 << attempts.saturating_sub(1).min(20)).min(self.backoff_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Plugin;

    fn key(name: &str) -> ObjectKey {
        ObjectKey::new("default", name)
    }
    fn class(priority: i32) -> Arc<Class> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1 << 32);
        let id = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Arc::new(Class { id, priority, ..Class::default() })
    }
    fn pop(queue: &mut Queue, now: Instant) -> Option<String> {
        queue.pop(now).map(|key| key.name.clone())
    }

    #[test]
    fn higher_priority_goes_first_then_the_earlier_arrival() {
        let now = Instant::now();
        let mut queue = Queue::default();
        for (name, priority) in [("a", 0), ("b", 10), ("c", 0), ("d", 10)] {
            queue.add(&key(name), &class(priority), now);
        }
        let order: Vec<String> = std::iter::from_fn(|| pop(&mut queue, now)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn an_unschedulable_pod_waits_for_a_change_that_could_help_it() {
        let start = Instant::now();
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let mut queue = Queue::default();
        queue.add(&key("a"), &class(0), start);
        queue.pop(start);
        queue.unschedulable(&key("a"), Plugin::NodeResourcesFit.bit(), start);
        assert_eq!(pop(&mut queue, after(30)), None, "nothing changed");
        queue.wake_for(Plugin::NodePorts.bit(), after(30), |_| true);
        assert_eq!(pop(&mut queue, after(30)), None, "what changed concerns others");
        queue.wake_for(Plugin::NodeResourcesFit.bit(), after(30), |_| false);
        assert_eq!(pop(&mut queue, after(30)), None, "what changed does not help");
        queue.wake_for(Plugin::NodeResourcesFit.bit(), after(30), |_| true);
        assert_eq!(pop(&mut queue, after(30)), Some("a".into()));
        queue.unschedulable(&key("a"), Plugin::NodeResourcesFit.bit(), after(30));
        assert_eq!(pop(&mut queue, after(331)), Some("a".into()), "tried again after five minutes without any change");
    }

    #[test]
    fn a_pod_in_its_back_off_is_tried_early_only_where_nobody_else_waits_and_no_error_sent_it_there() {
        let start = Instant::now();
        let mut queue = Queue::default();
        for name in ["helped", "failed"] {
            queue.add(&key(name), &class(0), start);
            queue.pop(start);
        }
        queue.unschedulable(&key("helped"), Plugin::NodePorts.bit(), start);
        queue.retry(&key("failed"), start);
        queue.wake(&key("helped"), start);
        queue.add(&key("new"), &class(0), start);
        assert_eq!(pop(&mut queue, start), Some("new".into()));
        assert_eq!(pop(&mut queue, start), Some("helped".into()));
        assert_eq!(pop(&mut queue, start), None);
        assert_eq!(pop(&mut queue, start + Duration::from_secs(1)), Some("failed".into()));
    }

    #[test]
    fn the_back_off_doubles_to_ten_seconds() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(&key("a"), &class(0), now);
        let mut waits = Vec::new();
        let mut at = now;
        for _ in 0..6 {
            queue.pop(at).unwrap();
            queue.retry(&key("a"), at);
            waits.push((queue.next_due().unwrap() - at).as_secs());
            at = queue.next_due().unwrap();
        }
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
    }

    #[test]
    fn a_pod_that_changed_is_tried_again() {
        let now = Instant::now();
        let later = now + Duration::from_secs(60);
        let (mut queue, first) = (Queue::default(), class(0));
        queue.add(&key("a"), &first, now);
        queue.pop(now);
        queue.unschedulable(&key("a"), Plugin::NodeAffinity.bit(), now);
        queue.add(&key("a"), &first, later);
        assert_eq!(pop(&mut queue, later), None, "its status changed");
        queue.add(&key("a"), &class(0), later);
        assert_eq!(pop(&mut queue, later), Some("a".into()), "its tolerations changed");
    }

    #[test]
    fn a_removed_pod_is_nowhere() {
        let now = Instant::now();
        let mut queue = Queue::default();
        queue.add(&key("a"), &class(0), now);
        queue.pop(now);
        queue.retry(&key("a"), now);
        queue.remove(&key("a"));
        assert_eq!((pop(&mut queue, now + Duration::from_secs(60)), queue.next_due(), queue.len()), (None, None, 0));
    }
}
