//! Whose work goes next: the tasks of connections take turns by their users, from the first byte of a request to the last of its answer.
//!
//! A runtime polls its tasks in the order in which they were woken: beside two hundred busy connections of one user, another's single
//! request would wait for two hundred others before anybody has read who it is of. So a connection's task that wakes asks for a place here
//! first. A place is held for one poll, never while a task waits for anything; there are fewer places than threads, so that somebody is always
//! free to see who comes. Who finds no place waits in the line of their user, and the line goes next whose user had least of the processors
//! lately (start-time fair queuing, by measured time). No line has all the places: however long one poll of it takes, another finds room.
//!
//! Who is alone has no need of all that: as long as nobody else's work was seen for a while, polls are neither counted nor limited. Components
//! inside the process come on no connection and wait in no line, but while they are busy nobody is alone.
//!
//! This is below API Priority and Fairness ([`crate::flow`]), which knows what a request asks for and divides requests that last; it divides
//! processors among requests that are read, answered and gone. Upstream leaves this to Go's scheduler.
//!
//! Invariant: nobody waits whose line may have a free place.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use futures_util::task::AtomicWaker;

/// A poll is taken to last this long until it has ended.
const POLL_NANOS: u64 = 20_000;
/// After this long who can makes room for others.
const SLICE: Duration = Duration::from_micros(200);
/// A user is alone when nobody else's work was seen for so long.
const ALONE_AFTER: Duration = Duration::from_secs(1);
/// The same of components inside the process: short, because one or the other renews a Lease all the time.
const ALONE_AFTER_INSIDE: Duration = Duration::from_millis(50);
/// The number of the line of all connections of which nothing is known yet.
const NEWCOMERS: u64 = 0;
/// Names of lines that nobody holds any more are forgotten when there are so many.
const NAMES_MAX: usize = 1_024;

thread_local! {
    /// When the poll under way on this thread began, if it is one in turns.
    static BEGAN: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Whether the poll under way has had its slice.
pub fn is_spent() -> bool {
    BEGAN.get().is_some_and(|began| began.elapsed() > SLICE)
}

/// Threads for a runtime that serves: one for each processor, and one to see who comes. Beside others, one line has all processors but one.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from) + 1
}

/// All places, and who waits for one.
pub struct Turns {
    places: usize,
    /// Of them, the most that one line has.
    most: usize,
    taken: AtomicUsize,
    waiting: AtomicUsize,
    /// The user's line that was polled last.
    last: AtomicU64,
    /// Until then, in nanoseconds after `born`, that line's user has company.
    company: AtomicU64,
    born: Instant,
    newcomers: Arc<Line>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: HashMap<Arc<str>, Weak<Line>>,
    numbers: u64,
    /// Lines in which somebody waits, by the time they had.
    order: BTreeSet<(u64, u64)>,
    lines: HashMap<u64, Waiting>,
    /// The time that the line had had which went last: where a line begins in which nobody waited.
    served: u64,
}

struct Waiting {
    line: Arc<Line>,
    /// Nanoseconds.
    had: u64,
    seats: VecDeque<Arc<Seat>>,
}

/// All work of one user.
pub struct Line {
    name: Arc<str>,
    number: u64,
    most: usize,
    taken: AtomicUsize,
}

/// The line of a connection: that of its user, once that is known. Cloning shares it.
#[derive(Clone)]
pub struct Whose(Arc<Turns>, Arc<ArcSwap<Line>>);

impl Whose {
    /// From now on the connection's work is this user's.
    pub fn is(&self, user: &str) {
        if *self.1.load().name != *user {
            self.1.store(self.0.line(user));
        }
    }

    /// A task's work, in turns.
    pub fn take<F: Future>(&self, work: F) -> Turn<F> {
        let seat = Arc::new(Seat { state: AtomicU8::new(IDLE), waker: AtomicWaker::new() });
        Turn { whose: self.clone(), seat, asked: None, work: Box::pin(work) }
    }
}

/// Lets the tasks that a connection starts (the streams of HTTP/2) wait in its line.
impl<F> hyper::rt::Executor<F> for Whose
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, work: F) {
        tokio::spawn(self.take(work));
    }
}

impl Turns {
    /// For the runtime that this is called in.
    pub fn of_runtime() -> Arc<Self> {
        Self::new(tokio::runtime::Handle::current().metrics().num_workers().saturating_sub(1).max(1))
    }

    pub fn new(places: usize) -> Arc<Self> {
        Arc::new(Self {
            places,
            most: places.saturating_sub(1).max(1),
            taken: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            last: AtomicU64::new(NEWCOMERS),
            company: AtomicU64::new(0),
            born: Instant::now(),
            // No user has this name: theirs are not empty.
            newcomers: Arc::new(Line { name: "".into(), number: NEWCOMERS, most: places.div_ceil(2), taken: AtomicUsize::new(0) }),
            state: Mutex::default(),
        })
    }

    /// The line of a connection of which nothing is known yet: all those together have half of the places.
    pub fn newcomer(self: &Arc<Self>) -> Whose {
        Whose(self.clone(), Arc::new(ArcSwap::new(self.newcomers.clone())))
    }

    /// Whether nobody but this line's user has been at work lately. Newcomers are nobody's company: they find half of the places free.
    fn is_alone(&self, line: &Line, now: Instant) -> bool {
        if line.number == NEWCOMERS {
            return false;
        }
        if self.last.load(Ordering::Relaxed) != line.number {
            self.last.store(line.number, Ordering::Relaxed);
            self.company.store(self.nanos(now + ALONE_AFTER), Ordering::Relaxed);
            return false;
        }
        self.nanos(now) >= self.company.load(Ordering::Relaxed)
    }

    /// A component inside the process is at work.
    pub fn is_busy_inside(&self, now: Instant) {
        // Not every one of its requests needs to say so.
        let company = self.company.load(Ordering::Relaxed);
        if company < self.nanos(now + ALONE_AFTER_INSIDE / 2) {
            self.company.fetch_max(self.nanos(now + ALONE_AFTER_INSIDE), Ordering::Relaxed);
        }
    }

    fn nanos(&self, time: Instant) -> u64 {
        u64::try_from(time.duration_since(self.born).as_nanos()).unwrap_or(u64::MAX)
    }

    fn line(&self, name: &str) -> Arc<Line> {
        let mut state = self.lock();
        if let Some(line) = state.names.get(name).and_then(Weak::upgrade) {
            return line;
        }
        if state.names.len() >= NAMES_MAX {
            state.names.retain(|_, line| line.strong_count() > 0);
        }
        state.numbers += 1;
        let line = Arc::new(Line { name: name.into(), number: state.numbers, most: self.most, taken: AtomicUsize::new(0) });
        state.names.insert(line.name.clone(), Arc::downgrade(&line));
        line
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, if nobody waits and one is free.
    fn take_now(&self, line: &Line) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0 && self.try_take(line)
    }

    fn try_take(&self, line: &Line) -> bool {
        if !count_up(&line.taken, line.most) {
            return false;
        }
        if count_up(&self.taken, self.places) {
            return true;
        }
        line.taken.fetch_sub(1, Ordering::SeqCst);
        false
    }

    /// Puts a seat at the end of its line, and calls whom there is room for: that may be itself.
    fn wait(&self, line: &Arc<Line>, seat: &Arc<Seat>) {
        let mut state = self.lock();
        let served = state.served;
        let State { lines, order, .. } = &mut *state;
        let waiting = lines.entry(line.number).or_insert_with(|| {
            order.insert((served, line.number));
            Waiting { line: line.clone(), had: served, seats: VecDeque::new() }
        });
        waiting.seats.push_back(seat.clone());
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.call(state, Some(seat));
    }

    /// The end of a poll that began then.
    fn leave(&self, line: &Line, began: Instant) {
        line.taken.fetch_sub(1, Ordering::SeqCst);
        self.taken.fetch_sub(1, Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let mut state = self.lock();
            state.charge(line.number, began.elapsed().as_nanos().try_into().unwrap_or(u64::MAX));
            self.call(state, None);
        }
    }

    /// Gives free places to those whose turn it is, and wakes them; not the one who is asking.
    fn call(&self, mut state: MutexGuard<'_, State>, asking: Option<&Arc<Seat>>) {
        let mut called: Vec<Arc<Seat>> = Vec::new();
        while let Some(number) = state.order.iter().map(|(_, number)| *number).find(|number| {
            // Whoever is at their most is passed over; of those there are no more than there are places.
            state.lines.get(number).is_some_and(|waiting| self.try_take(&waiting.line))
        }) {
            let Some((line, seat)) = state.next_of(number) else { break };
            self.waiting.fetch_sub(1, Ordering::SeqCst);
            if seat.state.compare_exchange(WAITS, CALLED, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                called.push(seat);
                continue;
            }
            // It has gone.
            line.taken.fetch_sub(1, Ordering::SeqCst);
            self.taken.fetch_sub(1, Ordering::SeqCst);
        }
        drop(state);
        called.iter().filter(|seat| asking.is_none_or(|asking| !Arc::ptr_eq(asking, seat))).for_each(|seat| seat.waker.wake());
    }
}

/// One more, if that is not more than `most`.
fn count_up(counter: &AtomicUsize, most: usize) -> bool {
    counter.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| (count < most).then_some(count + 1)).is_ok()
}

impl State {
    /// The first of a line; the time of its poll is put on account.
    fn next_of(&mut self, number: u64) -> Option<(Arc<Line>, Arc<Seat>)> {
        let waiting = self.lines.get_mut(&number)?;
        let (line, seat, had) = (waiting.line.clone(), waiting.seats.pop_front()?, waiting.had);
        self.served = self.served.max(had);
        self.order.remove(&(had, number));
        if waiting.seats.is_empty() {
            self.lines.remove(&number);
        } else {
            waiting.had += POLL_NANOS;
            self.order.insert((waiting.had, number));
        }
        Some((line, seat))
    }

    /// Corrects the account of a line after a poll of it.
    fn charge(&mut self, number: u64, took: u64) {
        let Some(waiting) = self.lines.get_mut(&number) else { return };
        self.order.remove(&(waiting.had, number));
        waiting.had = (waiting.had + took).saturating_sub(POLL_NANOS).max(self.served);
        self.order.insert((waiting.had, number));
    }
}

const IDLE: u8 = 0;
const WAITS: u8 = 1;
const CALLED: u8 = 2;
const GONE: u8 = 3;

/// Where a task stands: it waits in one line at most.
struct Seat {
    state: AtomicU8,
    waker: AtomicWaker,
}

/// Work that is polled in turns.
pub struct Turn<F> {
    whose: Whose,
    seat: Arc<Seat>,
    /// The line in which it waits or was called.
    asked: Option<Arc<Line>>,
    work: Pin<Box<F>>,
}

impl<F: Future> Future for Turn<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = &mut *self;
        let turns = &this.whose.0;
        let line = match this.asked.take() {
            Some(line) => line,
            None => {
                let (line, now) = (this.whose.1.load(), Instant::now());
                if turns.is_alone(&line, now) {
                    let _time = Began::at(now);
                    return this.work.as_mut().poll(context);
                }
                if turns.take_now(&line) {
                    return held(turns, &line, now, || this.work.as_mut().poll(context));
                }
                let line = arc_swap::Guard::into_inner(line);
                this.seat.waker.register(context.waker());
                this.seat.state.store(WAITS, Ordering::SeqCst);
                turns.wait(&line, &this.seat);
                line
            }
        };
        if this.seat.state.load(Ordering::SeqCst) == WAITS {
            this.seat.waker.register(context.waker());
        }
        if this.seat.state.compare_exchange(CALLED, IDLE, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            this.asked = Some(line);
            return Poll::Pending;
        }
        held(turns, &line, Instant::now(), || this.work.as_mut().poll(context))
    }
}

impl<F> Drop for Turn<F> {
    fn drop(&mut self) {
        if let (CALLED, Some(line)) = (self.seat.state.swap(GONE, Ordering::SeqCst), &self.asked) {
            self.whose.0.leave(line, Instant::now());
        }
    }
}

/// A poll that began then is under way on this thread, until this is dropped.
struct Began(Instant, Option<Instant>);

impl Began {
    fn at(now: Instant) -> Self {
        Self(now, BEGAN.replace(Some(now)))
    }
}

impl Drop for Began {
    fn drop(&mut self) {
        BEGAN.set(self.1);
    }
}

/// Does something in a place, and gives it back even when that panics.
fn held<T>(turns: &Turns, line: &Line, now: Instant, work: impl FnOnce() -> T) -> T {
    struct Place<'a>(&'a Turns, &'a Line, Began);
    impl Drop for Place<'_> {
        fn drop(&mut self) {
            self.0.leave(self.1, self.2.0);
        }
    }
    let _place = Place(turns, line, Began::at(now));
    work()
}

#[cfg(test)]
mod tests;
