//! What happened and was not yet sent to one watcher.
//!
//! An idle watcher's queue owns no memory beyond itself. A watcher that falls too far behind is closed and told so; it is never skipped.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use super::{Change, Delivery};

/// Undelivered events a watcher may have before it is closed.
const LENGTH_MAX: usize = 4_096;
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
    phase: Phase,
    reader: Option<Waker>,
}

/// One watcher's queue; the cache and the reader share it.
pub struct Queue(Mutex<State>);

/// What a reader finds.
pub enum Next {
    Event(Change, Arc<Delivery>),
    /// Nothing more will come: the watcher was too slow.
    Lagged,
    /// Nothing more will come.
    Closed,
}

impl Queue {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(State { waiting: VecDeque::new(), phase: Phase::Open, reader: None })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` where the watcher takes no more.
    pub fn push(&self, change: Change, delivery: &Arc<Delivery>) -> bool {
        let mut state = self.lock();
        if state.phase != Phase::Open {
            return false;
        }
        if state.waiting.len() >= LENGTH_MAX {
            state.phase = Phase::Lagged;
            return false;
        }
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
        self.lock().waiting.pop_front()
    }

    pub fn poll_next(&self, poller: &mut Context<'_>) -> Poll<Next> {
        let mut state = self.lock();
        if let Some((change, delivery)) = state.waiting.pop_front() {
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
