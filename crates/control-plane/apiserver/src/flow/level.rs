//! One priority level: so many seats at a time; who finds none waits in a queue of its flow.
//!
//! Invariant: nobody waits while a seat that fits is free. A request that is wider than the level is served when it is alone.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::oneshot;

use super::borrow::{Limits, Want};
use super::counted::Counted;
use super::demand::Demand;
use super::queues::{Queues, Waits, hand};

/// A PriorityLevelConfiguration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub exempt: bool,
    pub shares: u64,
    pub lendable_percent: u64,
    /// Absent: without limit.
    pub borrowing_percent: Option<u64>,
    /// None: waiting is refused.
    pub queues: usize,
    pub hand: usize,
    pub queue_length: usize,
}

impl Settings {
    pub fn parse(object: &Value) -> Self {
        let spec = &object["spec"];
        let exempt = spec["type"] == "Exempt";
        let level = if exempt { &spec["exempt"] } else { &spec["limited"] };
        let response = &spec["limited"]["limitResponse"];
        let queuing = &response["queuing"];
        let count = |value: &Value, default: u64| usize::try_from(value.as_u64().unwrap_or(default)).unwrap_or(1).max(1);
        let waits = !exempt && response["type"] != "Reject";
        Self {
            exempt,
            shares: level["nominalConcurrencyShares"].as_u64().unwrap_or(if exempt { 0 } else { 30 }),
            lendable_percent: level["lendablePercent"].as_u64().unwrap_or(0).min(100),
            borrowing_percent: spec["limited"]["borrowingLimitPercent"].as_u64(),
            queues: if waits { count(&queuing["queues"], 64).min(10_000) } else { 0 },
            hand: count(&queuing["handSize"], 8),
            queue_length: count(&queuing["queueLengthLimit"], 50),
        }
    }

    /// The most seats that one request of this level is said to need (KEP-1040: a wide one must not block the whole level).
    pub fn widest(&self, nominal: usize) -> usize {
        match self.queues {
            0 => usize::MAX,
            _ => (nominal as f64 * 0.15).ceil().min((nominal / self.hand) as f64).max(1.0) as usize,
        }
    }
}

pub struct Level {
    pub name: String,
    state: Mutex<State>,
}

struct State {
    settings: Settings,
    limits: Limits,
    /// Seats at this moment: its own, with what it lent taken off and what it borrowed put on.
    seats_max: usize,
    seats_taken: usize,
    executing: usize,
    queues: Queues<Waiter>,
    /// By the number that a place has; free numbers are given again.
    running: Vec<Option<Running>>,
    free: Vec<usize>,
    demand: Demand,
    tallies: Tallies,
}

/// What became of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tallies {
    pub dispatched: u64,
    pub rejected: u64,
    pub timed_out: u64,
    pub cancelled: u64,
}

/// A request that wants seats.
#[derive(Clone, Debug)]
pub struct Ticket {
    pub seats: usize,
    /// What tells its flow from others of the schema.
    pub flow: String,
    /// User, verb, path, namespace, name, version, resource and subresource, for those who look.
    pub details: String,
    pub arrived: Timestamp,
    pub is_watch: bool,
    /// Knows its schema.
    pub counted: Arc<Counted>,
}

struct Waiter {
    ticket: Ticket,
    ready: oneshot::Sender<Place>,
}

impl Waits for Waiter {
    fn seats(&self) -> usize {
        self.ticket.seats
    }
    fn is_gone(&self) -> bool {
        self.ready.is_closed()
    }
}

struct Running {
    ticket: Ticket,
    /// It came from there; none where it found a seat at once.
    queue: Option<usize>,
    started: Timestamp,
}

/// A request's seats; given back when dropped.
pub struct Place(Option<Held>);

struct Held {
    level: Arc<Level>,
    number: Option<usize>,
    seats: usize,
    since: Instant,
    is_watch: bool,
    counted: Arc<Counted>,
}

impl Place {
    pub fn free() -> Self {
        Self(None)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(held) = self.0.take() {
            held.counted.left(held.seats, held.since.elapsed(), held.is_watch);
            held.level.leave(held.seats, held.number);
        }
    }
}

/// What happens to one who comes.
pub enum Entry {
    Now(Place),
    Wait(Waiting),
    /// With upstream's word for why.
    Refused(&'static str),
}

/// A request in a queue; it leaves the queue when dropped.
pub struct Waiting {
    level: Arc<Level>,
    queue: usize,
    seats: usize,
    since: Instant,
    counted: Arc<Counted>,
    receiver: oneshot::Receiver<Place>,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Served,
    TimedOut,
    /// The client went away.
    Cancelled,
}

impl Waiting {
    /// Its seats; `None` when they took too long.
    pub async fn place(mut self, patience: Duration) -> Option<Place> {
        self.end = End::Cancelled;
        match tokio::time::timeout(patience, &mut self.receiver).await {
            Ok(Ok(place)) => {
                self.end = End::Served;
                Some(place)
            }
            _ => {
                self.end = End::TimedOut;
                None
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.counted.waited(self.seats, self.since.elapsed(), self.end == End::Served);
        let why = match self.end {
            End::Served => return,
            End::TimedOut => "time-out",
            End::Cancelled => "cancelled",
        };
        self.counted.rejected(why);
        self.receiver.close();
        self.level.give_up(self.queue, self.end);
    }
}

impl Level {
    pub fn new(name: &str, settings: Settings, limits: Limits) -> Arc<Self> {
        let state = State {
            limits,
            seats_max: limits.nominal - (limits.nominal - limits.min) / 2,
            seats_taken: 0,
            executing: 0,
            queues: Queues::new(settings.queues),
            running: Vec::new(),
            free: Vec::new(),
            demand: Demand::new(Instant::now()),
            tallies: Tallies::default(),
            settings,
        };
        Arc::new(Self { name: name.to_owned(), state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes new settings on; who runs and who waits stays.
    pub fn configure(&self, settings: Settings, limits: Limits) {
        let mut state = self.lock();
        state.queues.resize(settings.queues);
        state.settings = settings;
        state.limits = limits;
    }

    pub fn settings(&self) -> Settings {
        self.lock().settings.clone()
    }

    /// What it could use, since this was last asked.
    pub fn want(&self) -> Want {
        let mut state = self.lock();
        let demand = state.demand.take(Instant::now());
        Want { exempt: state.settings.exempt, limits: state.limits, demand }
    }

    /// So many seats there are from now on.
    pub fn limit(self: &Arc<Self>, seats_max: usize) {
        self.settle(|state| state.seats_max = seats_max);
    }

    pub fn enter(self: &Arc<Self>, ticket: Ticket) -> Entry {
        let now = Instant::now();
        let (ticket, count, size) = match self.lock().try_start(self, ticket, now) {
            Ok(entry) => return entry,
            Err(waits) => waits,
        };
        // Dealing takes longer than anything else here: nobody else waits for it.
        let hand = hand((ticket.counted.schema(), &ticket.flow), count, size);
        let mut state = self.lock();
        let (ticket, length_max) = match state.try_start(self, ticket, now) {
            Ok(entry) => return entry,
            Err((ticket, _, _)) => (ticket, state.settings.queue_length),
        };
        let (ready, receiver) = oneshot::channel();
        let (seats, counted) = (ticket.seats, ticket.counted.clone());
        let queue = state.queues.shortest(&hand);
        let Some(queue) = queue.filter(|queue| state.queues.push(*queue, Waiter { ticket, ready }, length_max).is_ok()) else {
            state.tallies.rejected += 1;
            return Entry::Refused("queue-full");
        };
        state.note_demand(now);
        counted.waits(seats);
        Entry::Wait(Waiting { level: self.clone(), queue, seats, since: now, counted, receiver, end: End::Cancelled })
    }

    fn leave(self: &Arc<Self>, seats: usize, number: Option<usize>) {
        self.settle(|state| {
            state.seats_taken = state.seats_taken.saturating_sub(seats);
            state.executing = state.executing.saturating_sub(1);
            if let Some(number) = number {
                if let Some(running) = state.running.get_mut(number) {
                    *running = None;
                }
                state.free.push(number);
            }
        });
    }

    fn give_up(self: &Arc<Self>, queue: usize, end: End) {
        self.settle(|state| {
            state.queues.tidy(queue);
            match end {
                End::TimedOut => state.tallies.timed_out += 1,
                _ => state.tallies.cancelled += 1,
            }
        });
    }

    /// Changes something, and serves whom that lets in.
    fn settle(self: &Arc<Self>, change: impl FnOnce(&mut State)) {
        let mut called = Vec::new();
        let now = Instant::now();
        {
            let mut state = self.lock();
            change(&mut state);
            while let Some((queue, waiter)) = state.next() {
                called.push((waiter.ready, state.start(self, waiter.ticket, Some(queue), now)));
            }
            state.note_demand(now);
        }
        for (ready, place) in called {
            // Who has gone in the meantime drops the place, which comes back here.
            let _ = ready.send(place);
        }
    }

    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        let queues = state.queues.all().iter().enumerate().map(|(at, queue)| {
            let here = || state.running.iter().flatten().filter(move |running| running.queue == Some(at));
            QueueSnapshot {
                executing: here().count(),
                seats: here().map(|running| running.ticket.seats).sum(),
                served: queue.served,
                waiting: queue.waiters.iter().map(|waiter| waiter.ticket.clone()).collect(),
            }
        });
        Snapshot {
            #[cfg(test)]
            seats_taken: state.seats_taken,
            executing: state.executing,
            waiting: state.queues.waiting(),
            queues: queues.collect(),
            running: state.running.iter().flatten().map(|running| (running.queue, running.ticket.clone(), running.started)).collect(),
            tallies: state.tallies,
        }
    }

    pub fn limits(&self) -> Limits {
        self.lock().limits
    }
}

/// A level as it is at one moment.
pub struct Snapshot {
    #[cfg(test)]
    pub seats_taken: usize,
    pub executing: usize,
    pub waiting: usize,
    pub queues: Vec<QueueSnapshot>,
    /// With the queue each came from. The exempt are only counted.
    pub running: Vec<(Option<usize>, Ticket, Timestamp)>,
    pub tallies: Tallies,
}

pub struct QueueSnapshot {
    pub executing: usize,
    pub seats: usize,
    pub served: u64,
    pub waiting: Vec<Ticket>,
}

impl State {
    fn fits(&self, seats: usize) -> bool {
        self.seats_taken + seats <= self.seats_max || (seats > self.seats_max && self.seats_taken == 0)
    }

    /// Seats, where there are some, or a refusal; otherwise the ticket again, with the number of queues and of those that a flow is dealt.
    fn try_start(&mut self, level: &Arc<Level>, ticket: Ticket, now: Instant) -> Result<Entry, (Ticket, usize, usize)> {
        if self.settings.exempt || (self.queues.waiting() == 0 && self.fits(ticket.seats)) {
            return Ok(Entry::Now(self.start(level, ticket, None, now)));
        }
        if self.settings.queues == 0 {
            self.tallies.rejected += 1;
            return Ok(Entry::Refused("concurrency-limit"));
        }
        Err((ticket, self.settings.queues, self.settings.hand))
    }

    fn start(&mut self, level: &Arc<Level>, ticket: Ticket, queue: Option<usize>, now: Instant) -> Place {
        let (seats, is_watch) = (ticket.seats, ticket.is_watch);
        self.seats_taken += seats;
        self.executing += 1;
        self.tallies.dispatched += 1;
        ticket.counted.starts(seats);
        let (number, counted) = match self.settings.exempt {
            true => (None, ticket.counted),
            false => {
                let counted = ticket.counted.clone();
                (Some(self.run(ticket, queue)), counted)
            }
        };
        self.note_demand(now);
        Place(Some(Held { level: level.clone(), number, seats, since: now, is_watch, counted }))
    }

    /// Remembers it among those who run, under the number that is returned.
    fn run(&mut self, ticket: Ticket, queue: Option<usize>) -> usize {
        let started = if queue.is_some() { Timestamp::now() } else { ticket.arrived };
        let running = Some(Running { ticket, queue, started });
        match self.free.pop() {
            Some(number) => {
                self.running[number] = running;
                number
            }
            None => {
                self.running.push(running);
                self.running.len() - 1
            }
        }
    }

    /// The next waiter that free seats fit, with the queue it stood in.
    fn next(&mut self) -> Option<(usize, Waiter)> {
        loop {
            let (at, waiter) = self.queues.front()?;
            if waiter.is_gone() {
                self.queues.tidy(at);
                continue;
            }
            if !self.fits(waiter.seats()) {
                return None;
            }
            return Some((at, self.queues.pop(at)?));
        }
    }

    fn note_demand(&mut self, now: Instant) {
        let seats = self.seats_taken + self.queues.waiting_seats();
        self.demand.set(seats, now);
    }
}

#[cfg(test)]
mod tests;
