//! One priority level: so many seats at a time; who finds none waits in a queue of its flow, and queues are served fairly.
//!
//! A flow is dealt a hand of queues and waits in the shortest of them (shuffle sharding), so that a flood in one flow rarely touches another. Among
//! queues, the one that has used the fewest seats goes next (start-time fair queuing). Invariant: nobody waits while a seat that fits is free.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::sync::oneshot;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub exempt: bool,
    pub shares: u64,
    /// Waiting is refused.
    pub reject: bool,
    pub queues: usize,
    pub hand: usize,
    pub queue_length: usize,
}

impl Settings {
    pub fn parse(object: &Value) -> Self {
        let spec = &object["spec"];
        let exempt = spec["type"] == "Exempt";
        let limited = &spec["limited"];
        let queuing = &limited["limitResponse"]["queuing"];
        let count = |value: &Value, default: u64| usize::try_from(value.as_u64().unwrap_or(default)).unwrap_or(1).max(1);
        Self {
            exempt,
            shares: limited["nominalConcurrencyShares"].as_u64().unwrap_or(if exempt { 0 } else { 30 }),
            reject: limited["limitResponse"]["type"] == "Reject",
            queues: count(&queuing["queues"], 64).min(10_000),
            hand: count(&queuing["handSize"], 8),
            queue_length: count(&queuing["queueLengthLimit"], 50),
        }
    }
}

pub struct Level {
    pub uid: String,
    pub settings: Settings,
    pub seats_max: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    seats_taken: usize,
    waiting: usize,
    queues: Vec<Queue>,
    /// The service that the last served queue had had: where a queue that was empty begins.
    served: u64,
}

#[derive(Default)]
struct Queue {
    waiters: VecDeque<Waiter>,
    served: u64,
}

struct Waiter {
    seats: usize,
    ready: oneshot::Sender<Place>,
}

/// A request's seats; given back when dropped.
pub struct Place(Option<(Arc<Level>, usize)>);

impl Place {
    pub fn free() -> Self {
        Self(None)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((level, seats)) = self.0.take() {
            level.leave(seats);
        }
    }
}

/// What happens to one who comes.
pub enum Entry {
    Now(Place),
    Wait(oneshot::Receiver<Place>),
    /// With upstream's word for why.
    Refused(&'static str),
}

impl Level {
    pub fn new(uid: String, settings: Settings, seats_max: usize) -> Arc<Self> {
        let queues = if settings.exempt || settings.reject { 0 } else { settings.queues };
        let state = State { queues: (0..queues).map(|_| Queue::default()).collect(), ..State::default() };
        Arc::new(Self { uid, settings, seats_max, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seats in use, and requests that wait.
    pub fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.seats_taken, state.waiting)
    }

    pub fn enter(self: &Arc<Self>, flow: (&str, &str), seats: usize) -> Entry {
        if self.settings.exempt {
            return Entry::Now(Place::free());
        }
        // Who needs more than there is gets all there is.
        let seats = seats.min(self.seats_max).max(1);
        let mut state = self.lock();
        if state.waiting == 0 && state.seats_taken + seats <= self.seats_max {
            state.seats_taken += seats;
            return Entry::Now(Place(Some((self.clone(), seats))));
        }
        if state.queues.is_empty() {
            return Entry::Refused("concurrency-limit");
        }
        let shortest = self.hand(flow).into_iter().min_by_key(|at| state.queues.get(*at).map_or(usize::MAX, |queue| queue.waiters.len()));
        let served = state.served;
        let Some(queue) = shortest.and_then(|at| state.queues.get_mut(at)) else { return Entry::Refused("queue-full") };
        queue.waiters.retain(|waiter| !waiter.ready.is_closed());
        if queue.waiters.len() >= self.settings.queue_length {
            return Entry::Refused("queue-full");
        }
        if queue.waiters.is_empty() {
            queue.served = queue.served.max(served);
        }
        let (ready, receiver) = oneshot::channel();
        queue.waiters.push_back(Waiter { seats, ready });
        state.waiting = state.queues.iter().map(|queue| queue.waiters.len()).sum();
        Entry::Wait(receiver)
    }

    /// Different queues for one flow, the same every time.
    fn hand(&self, flow: (&str, &str)) -> Vec<usize> {
        let mut hasher = DefaultHasher::new();
        flow.hash(&mut hasher);
        let mut entropy = hasher.finish();
        let mut dealt: Vec<usize> = Vec::with_capacity(self.settings.hand);
        for left in (1..=self.settings.queues).rev().take(self.settings.hand) {
            let mut card = (entropy % left as u64) as usize;
            entropy /= left as u64;
            // The card is counted among those not dealt yet.
            let mut sorted = dealt.clone();
            sorted.sort_unstable();
            sorted.iter().for_each(|before| card += usize::from(*before <= card));
            dealt.push(card);
        }
        dealt
    }

    fn leave(self: &Arc<Self>, seats: usize) {
        let mut called = Vec::new();
        {
            let mut state = self.lock();
            state.seats_taken = state.seats_taken.saturating_sub(seats);
            while let Some(waiter) = state.next(self.seats_max) {
                called.push(waiter);
            }
        }
        for waiter in called {
            // Who has gone in the meantime drops the place, which comes back here.
            let _ = waiter.ready.send(Place(Some((self.clone(), waiter.seats))));
        }
    }
}

impl State {
    /// The next waiter that a free seat fits, taken out with its seats taken.
    fn next(&mut self, seats_max: usize) -> Option<Waiter> {
        loop {
            if self.waiting == 0 {
                return None;
            }
            let queue = self.queues.iter_mut().filter(|queue| !queue.waiters.is_empty()).min_by_key(|queue| queue.served)?;
            let front = queue.waiters.front()?;
            let gone = front.ready.is_closed();
            if !gone && self.seats_taken + front.seats > seats_max {
                return None;
            }
            let waiter = queue.waiters.pop_front()?;
            self.waiting -= 1;
            if gone {
                continue;
            }
            self.served = queue.served;
            queue.served += waiter.seats as u64;
            self.seats_taken += waiter.seats;
            return Some(waiter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn level(seats: usize, queues: usize, length: usize) -> Arc<Level> {
        let settings = Settings { exempt: false, shares: 1, reject: false, queues, hand: 2.min(queues), queue_length: length };
        Level::new(String::new(), settings, seats)
    }

    fn wait(entry: Entry) -> oneshot::Receiver<Place> {
        match entry {
            Entry::Wait(receiver) => receiver,
            _ => panic!("it waits"),
        }
    }

    #[test]
    fn a_flood_of_one_flow_leaves_room_for_another() {
        let level = level(1, 64, 1_000);
        let Entry::Now(first) = level.enter(("s", "flood"), 1) else { panic!("there was a seat") };
        let mut flood: Vec<_> = (0..100).map(|_| wait(level.enter(("s", "flood"), 1))).collect();
        let mut other = wait(level.enter(("s", "other"), 1));
        let mut holding = first;
        let mut turns = 0;
        loop {
            drop(holding);
            if let Ok(place) = other.try_recv() {
                drop(place);
                break;
            }
            turns += 1;
            holding = flood.iter_mut().find_map(|waiter| waiter.try_recv().ok()).expect("somebody is served");
        }
        assert!(turns <= 3, "the other flow waited for {turns} of the flood");
    }

    #[test]
    fn seats_come_back_also_of_those_who_gave_up() {
        let level = level(2, 4, 10);
        let Entry::Now(both) = level.enter(("s", "a"), 5) else { panic!("it gets all there is") };
        let gone = wait(level.enter(("s", "b"), 1));
        let stays = wait(level.enter(("s", "c"), 2));
        drop(gone);
        drop(both);
        let place = { stays }.try_recv().expect("served");
        assert_eq!(level.load(), (2, 0));
        drop(place);
        assert_eq!(level.load(), (0, 0));
    }

    #[test]
    fn a_full_queue_and_a_level_without_queues_refuse() {
        let level = level(1, 1, 1);
        let _first = level.enter(("s", "a"), 1);
        let _second = wait(level.enter(("s", "a"), 1));
        assert!(matches!(level.enter(("s", "a"), 1), Entry::Refused("queue-full")));
        let settings = Settings { reject: true, ..level.settings.clone() };
        let rejecting = Level::new(String::new(), settings, 1);
        let _first = rejecting.enter(("s", "a"), 1);
        assert!(matches!(rejecting.enter(("s", "a"), 1), Entry::Refused("concurrency-limit")));
    }

    #[test]
    fn a_hand_has_no_card_twice() {
        let settings = Settings { exempt: false, shares: 1, reject: false, queues: 8, hand: 8, queue_length: 1 };
        let level = Level::new(String::new(), settings, 1);
        for flow in ["a", "b", "c"] {
            let mut hand = level.hand(("s", flow));
            hand.sort_unstable();
            assert_eq!(hand, (0..8).collect::<Vec<_>>(), "{flow}");
        }
    }
}
