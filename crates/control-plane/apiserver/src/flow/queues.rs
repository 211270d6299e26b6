//! The queues of one priority level.
//!
//! A flow is dealt a hand of queues and waits in the shortest of them (shuffle sharding), so that a flood in one flow rarely touches another. Among
//! queues, the one that has used the fewest seats goes next (start-time fair queuing).
//! Source: KEP-1040; `apiserver/pkg/util/shufflesharding`, `pkg/util/flowcontrol/fairqueuing`.

use std::collections::VecDeque;

use sha2::{Digest, Sha256};

/// What waits: how many seats it takes, and whether it still waits.
pub trait Waits {
    fn seats(&self) -> usize;
    fn is_gone(&self) -> bool;
}

#[derive(Debug)]
pub struct Queues<W> {
    /// Those that are dealt; the ones behind them (the level had more before) are only emptied.
    dealt: usize,
    queues: Vec<Queue<W>>,
    waiting: usize,
    waiting_seats: usize,
    /// The service that the last served queue had had: where a queue that was empty begins.
    served: u64,
}

#[derive(Debug)]
pub struct Queue<W> {
    pub waiters: VecDeque<W>,
    /// Seats given to it, ever.
    pub served: u64,
}

impl<W: Waits> Queues<W> {
    pub fn new(count: usize) -> Self {
        let mut made = Self { dealt: 0, queues: Vec::new(), waiting: 0, waiting_seats: 0, served: 0 };
        made.resize(count);
        made
    }

    /// Who waits in a queue beyond `count` is still served.
    pub fn resize(&mut self, count: usize) {
        self.dealt = count;
        while self.queues.len() < count {
            self.queues.push(Queue { waiters: VecDeque::new(), served: self.served });
        }
        self.trim();
    }

    fn trim(&mut self) {
        while self.queues.len() > self.dealt && self.queues.last().is_some_and(|queue| queue.waiters.is_empty()) {
            self.queues.pop();
        }
    }

    pub fn all(&self) -> &[Queue<W>] {
        &self.queues
    }
    pub fn waiting(&self) -> usize {
        self.waiting
    }
    pub fn waiting_seats(&self) -> usize {
        self.waiting_seats
    }

    /// The shortest queue of a hand; none where there are no queues.
    pub fn shortest(&self, hand: &[usize]) -> Option<usize> {
        hand.iter()
            .copied()
            .filter(|at| *at < self.dealt)
            .min_by_key(|at| self.queues.get(*at).map_or(usize::MAX, |queue| queue.waiters.len()))
    }

    /// Puts it at the end of a queue, or gives it back where that is full.
    pub fn push(&mut self, at: usize, waiter: W, length_max: usize) -> Result<(), W> {
        let served = self.served;
        let Some(queue) = self.queues.get_mut(at).filter(|queue| queue.waiters.len() < length_max) else { return Err(waiter) };
        if queue.waiters.is_empty() {
            queue.served = queue.served.max(served);
        }
        self.waiting += 1;
        self.waiting_seats += waiter.seats();
        queue.waiters.push_back(waiter);
        Ok(())
    }

    /// The queue that goes next, and its first waiter.
    pub fn front(&self) -> Option<(usize, &W)> {
        let waited_in = self.queues.iter().enumerate().filter_map(|(at, queue)| Some((at, queue.served, queue.waiters.front()?)));
        waited_in.min_by_key(|(_, served, _)| *served).map(|(at, _, waiter)| (at, waiter))
    }

    /// Takes the first waiter of a queue out, to be served.
    pub fn pop(&mut self, at: usize) -> Option<W> {
        let queue = self.queues.get_mut(at)?;
        let waiter = queue.waiters.pop_front()?;
        self.served = queue.served;
        queue.served += waiter.seats() as u64;
        self.waiting -= 1;
        self.waiting_seats -= waiter.seats();
        self.trim();
        Some(waiter)
    }

    /// Takes out those of a queue that wait no longer.
    pub fn tidy(&mut self, at: usize) {
        let Some(queue) = self.queues.get_mut(at) else { return };
        let (mut count, mut seats) = (0, 0);
        queue.waiters.retain(|waiter| {
            let gone = waiter.is_gone();
            count += usize::from(gone);
            seats += if gone { waiter.seats() } else { 0 };
            !gone
        });
        self.waiting -= count;
        self.waiting_seats -= seats;
        self.trim();
    }
}

/// `size` different queues of `count` for one flow, the same every time and on every server.
pub fn hand(flow: (&str, &str), count: usize, size: usize) -> Vec<usize> {
    let mut digest = Sha256::new();
    digest.update(flow.0);
    digest.update([0]);
    digest.update(flow.1);
    let mut entropy = u64::from_le_bytes(digest.finalize().first_chunk::<8>().copied().unwrap_or_default());
    let mut dealt: Vec<usize> = Vec::with_capacity(size);
    for left in (1..=count).rev().take(size) {
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

#[cfg(test)]
mod tests {
    use super::*;

    impl Waits for (&str, usize, bool) {
        fn seats(&self) -> usize {
            self.1
        }
        fn is_gone(&self) -> bool {
            self.2
        }
    }

    #[test]
    fn a_hand_has_no_card_twice() {
        for flow in ["a", "b", "c"] {
            let mut all = hand(("s", flow), 8, 8);
            all.sort_unstable();
            assert_eq!(all, (0..8).collect::<Vec<_>>(), "{flow}");
            assert_eq!(hand(("s", flow), 128, 6), hand(("s", flow), 128, 6));
        }
    }

    #[test]
    fn queues_take_turns_by_the_seats_they_used() {
        let mut queues = Queues::new(2);
        for (at, waiter) in [(0, ("wide", 5, false)), (0, ("wide again", 5, false)), (1, ("a", 1, false)), (1, ("b", 1, false))] {
            queues.push(at, waiter, 10).expect("there is room");
        }
        assert_eq!((queues.waiting(), queues.waiting_seats()), (4, 12));
        let mut order = Vec::new();
        while let Some((at, _)) = queues.front() {
            order.extend(queues.pop(at).map(|waiter| waiter.0));
        }
        assert_eq!(order, ["wide", "a", "b", "wide again"]);
        assert_eq!((queues.waiting(), queues.waiting_seats()), (0, 0));
    }

    #[test]
    fn fewer_queues_lose_nobody() {
        let mut queues = Queues::new(4);
        queues.push(3, ("last", 1, false), 1).expect("there is room");
        assert!(queues.push(3, ("more", 1, false), 1).is_err(), "the queue is full");
        queues.resize(1);
        assert_eq!(queues.all().len(), 4);
        assert_eq!(queues.shortest(&[3, 0]), Some(0), "nobody is sent there any more");
        assert_eq!(queues.pop(3).map(|waiter| waiter.0), Some("last"));
        assert_eq!(queues.all().len(), 1);
    }

    #[test]
    fn who_gave_up_is_not_counted() {
        let mut queues = Queues::new(1);
        for waiter in [("stays", 1, false), ("gone", 3, true)] {
            queues.push(0, waiter, 10).expect("there is room");
        }
        queues.tidy(0);
        assert_eq!((queues.waiting(), queues.waiting_seats()), (1, 1));
    }
}
