//! How many requests run at the same time.
//!
//! One bound for reads and one for writes, as upstream before API Priority and Fairness (`--max-requests-inflight`,
//! `--max-mutating-requests-inflight`). Long-running requests (watches, logs, exec, port-forward, proxy) are not counted, and
//! `system:masters` is never refused, so that an overloaded server can still be repaired.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meta::Status;

use crate::context::Context;

pub struct Flow {
    reads: Arc<AtomicUsize>,
    writes: Arc<AtomicUsize>,
    reads_max: usize,
    writes_max: usize,
}

/// A request's place; given back when dropped.
pub struct Place(Option<Arc<AtomicUsize>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(count) = &self.0 {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Subresources whose requests last as long as the client likes.
const LONG_RUNNING: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];

impl Flow {
    pub fn new(reads_max: usize, writes_max: usize) -> Self {
        Self { reads: Arc::default(), writes: Arc::default(), reads_max, writes_max }
    }

    pub fn enter(&self, context: &Context) -> Result<Place, Status> {
        let info = &context.info;
        let unbounded = info.verb == "watch"
            || LONG_RUNNING.contains(&info.subresource.as_str())
            || context.user.groups.iter().any(|group| group == "system:masters");
        if unbounded {
            return Ok(Place(None));
        }
        let writes = matches!(info.verb.as_str(), "create" | "update" | "patch" | "delete" | "deletecollection");
        let (count, max) = if writes { (&self.writes, self.writes_max) } else { (&self.reads, self.reads_max) };
        if count.fetch_add(1, Ordering::Relaxed) >= max {
            count.fetch_sub(1, Ordering::Relaxed);
            return Err(Status::too_many_requests("Too many requests, please try again later.", 1));
        }
        Ok(Place(Some(count.clone())))
    }
}
