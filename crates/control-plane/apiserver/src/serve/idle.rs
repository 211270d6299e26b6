//! When a connection has nothing under way for too long.
//!
//! hyper's own time-out for a request's head sets a timer for every request; this one costs a request two atomic additions.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use crate::reply::Body;

/// What a connection is doing.
#[derive(Clone)]
pub struct Activity(Arc<Inner>);

struct Inner {
    opened: Instant,
    /// Requests whose answer is not sent yet.
    running: AtomicUsize,
    requests: AtomicUsize,
    /// When nothing was running any more, in seconds after `opened`.
    since: AtomicU64,
}

impl Activity {
    pub fn new() -> Self {
        let (running, requests, since) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
        Self(Arc::new(Inner { opened: Instant::now(), running, requests, since }))
    }

    /// A request was read whole: the connection is busy until the returned value is dropped.
    pub fn begin(&self) -> Running {
        self.0.running.fetch_add(1, Ordering::Relaxed);
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        Running(self.0.clone())
    }

    /// Returns when the connection had nothing to do for `limit`, or up to half as much more. With `at_first` only a connection that never
    /// asked anything counts.
    pub async fn rested(&self, limit: Duration, at_first: bool) {
        loop {
            tokio::time::sleep(limit / 2).await;
            let inner = &self.0;
            let asked = at_first && inner.requests.load(Ordering::Relaxed) > 0;
            let rests = inner.opened.elapsed().saturating_sub(Duration::from_secs(inner.since.load(Ordering::Relaxed)));
            if !asked && inner.running.load(Ordering::Relaxed) == 0 && rests >= limit {
                return;
            }
        }
    }
}

/// One request under way.
pub struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.since.store(self.0.opened.elapsed().as_secs(), Ordering::Relaxed);
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body: the request is under way until it was sent.
pub struct Answer {
    pub body: Body,
    pub _running: Running,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_rests_when_its_last_answer_is_sent() {
        let activity = Activity::new();
        // Longer than an idle connection is watched here, however slow the machine; shorter than what a busy one is.
        let rested = |at_first| {
            let activity = activity.clone();
            async move { tokio::time::timeout(Duration::from_millis(50), activity.rested(Duration::from_millis(2), at_first)).await.is_ok() }
        };
        assert!(rested(true).await && rested(false).await, "nothing was ever asked");
        let (first, second) = (activity.begin(), activity.begin());
        drop(first);
        assert!(!rested(false).await, "one request is still running");
        drop(second);
        assert!(rested(false).await);
        assert!(!rested(true).await, "it has asked something");
    }
}
