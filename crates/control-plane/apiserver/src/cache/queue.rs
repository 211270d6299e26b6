//! What happened and was not yet sent to one watcher.
//!
//! An idle watcher's queue owns no memory beyond itself. A watcher that falls too far behind is closed and told so; it is never skipped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Change, Delivery};

/// Undelivered events a watcher may have before it is closed, unless the configuration says otherwise: more than a burst makes, such as the
/// 10,000 pods of one Deployment, …
pub const LENGTH_MAX: usize = 32_768;
/// … or bytes of objects in them: whoever asks for large objects and does not read them must not keep gigabytes here. A few events always fit.
const BYTES_MAX: usize = 128 << 20;
const FEW: usize = 16;
/// An empty queue gives memory back beyond this many places.
const KEPT_MAX: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The watcher was too slow, or everything was loaded again.
    Lagged,
    /// The server stops, or the reader is gone.
    Closed,
}

struct State {
    waiting: VecDeque<(Change, Arc<Delivery>)>,
    /// Of the objects in `waiting`.
    bytes: usize,
    phase: Phase,
    reader: Option<Waker>,
}

impl State {
    fn pop(&mut self) -> Option<(Change, Arc<Delivery>)> {
        let (change, delivery) = self.waiting.pop_front()?;
        self.bytes -= delivery.event.object.bytes.len();
        Some((change, delivery))
    }
}

/// One watcher's queue; the cache and the reader share it.
pub struct Queue {
    state: Mutex<State>,
    length_max: usize,
}

/// What a reader finds.
pub enum Next {
    Event(Change, Arc<Delivery>),
    /// Nothing more will come: the watcher was too slow.
    Lagged,
    /// Nothing more will come.
    Closed,
}

impl Queue {
    pub fn new(length_max: usize) -> Arc<Self> {
        let state = State { waiting: VecDeque::new(), bytes: 0, phase: Phase::Open, reader: None };
        Arc::new(Self { state: Mutex::new(state), length_max })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` where the watcher takes no more.
    pub fn push(&self, change: Change, delivery: &Arc<Delivery>) -> bool {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return false;
        }
        let size = delivery.event.object.bytes.len();
        let heavy = state.bytes + size > BYTES_MAX && state.waiting.len() >= FEW;
        if state.waiting.len() >= self.length_max || heavy {
            state.phase = Phase::Lagged;
            return false;
        }
        state.bytes += size;
        state.waiting.push_back((change, delivery.clone()));
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
        true
    }

    pub fn is_open(&self) -> bool {
        self.lock().phase == Phase::Open
    }

    /// Ends the queue behind what waits in it. `lagged`: the watcher has to list again.
    pub fn close(&self, lagged: bool) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = if lagged { Phase::Lagged } else { Phase::Closed };
        }
        let reader = state.reader.take();
        drop(state);
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// What waits already. Does not register the reader: [`Queue::poll_next`] does.
    pub fn take_event(&self) -> Option<(Change, Arc<Delivery>)> {
        self.lock().pop()
    }

    pub fn poll_next(&self, poller: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.lock();
        if let Some((change, delivery)) = state.pop() {
            return Poll::Ready(Next::Event(change, delivery));
        }
        if state.waiting.capacity() > KEPT_MAX {
            state.waiting = VecDeque::new();
        }
        match state.phase {
            Phase::Lagged => Poll::Ready(Next::Lagged),
            Phase::Closed => Poll::Ready(Next::Closed),
            Phase::Open => {
                if !state.reader.as_ref().is_some_and(|reader| reader.will_wake(poller.waker())) {
                    state.reader = Some(poller.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::cache::Event;
    use crate::object::Object;

    fn delivery(size: usize) -> Arc<Delivery> {
        let bytes = format!("{{\"metadata\":{{}},\"data\":\"{}\"}}", "x".repeat(size));
        let object = Arc::new(Object::new(Bytes::from_static(b"/registry/a/b"), bytes.into(), 1).unwrap());
        Arc::new(Delivery::new(Event { deleted: false, object, previous: None }))
    }

    /// How many such events an unread queue takes, and whether its reader then hears that it lagged.
    fn fill(size: usize) -> (usize, bool) {
        let (queue, delivery) = (Queue::new(1_000), delivery(size));
        let taken = (0..10_000).take_while(|_| queue.push(Change::Added, &delivery)).count();
        let read = std::iter::from_fn(|| queue.take_event()).count();
        let lagged = matches!(queue.poll_next(&mut Context::from_waker(Waker::noop())), Poll::Ready(Next::Lagged));
        (taken, lagged && taken == read)
    }

    #[test]
    fn a_queue_is_bounded_by_number_and_by_size() {
        assert_eq!(fill(100), (1_000, true));
        assert_eq!(fill(1 << 20), (127, true));
        assert_eq!(fill(16 << 20), (FEW, true));
    }

    #[test]
    fn what_was_read_makes_room() {
        let (queue, delivery) = (Queue::new(1_000), delivery(1 << 20));
        for _ in 0..200 {
            assert!(queue.push(Change::Added, &delivery));
            assert!(queue.take_event().is_some());
        }
    }
}
