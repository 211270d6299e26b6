//! The live side of watches: who listens to which prefix, and how a slow listener is closed.

use bytes::Bytes;
use tokio::sync::mpsc;

use crate::{Error, Event, Watch};

/// How many live events a watcher may be behind before it is closed.
const BACKLOG: usize = 8_192;

#[derive(Default)]
pub(crate) struct Watchers(Vec<Watcher>);

struct Watcher {
    prefix: Bytes,
    sender: mpsc::Sender<Result<Event, Error>>,
}

impl Watchers {
    /// Starts a watch with the events that it missed, in order.
    pub(crate) fn add(&mut self, prefix: &[u8], missed: Vec<Event>) -> Watch {
        // One slot more than events may use: it is kept for the error that closes a slow watcher.
        let (sender, events) = mpsc::channel(BACKLOG + missed.len() + 1);
        for event in missed {
            let _ = sender.try_send(Ok(event));
        }
        self.0.retain(|watcher| !watcher.sender.is_closed());
        self.0.push(Watcher { prefix: Bytes::copy_from_slice(prefix), sender });
        Watch { events }
    }

    /// Hands one event to everybody whose prefix matches. `oldest` is told to those that are closed for being too slow.
    pub(crate) fn notify(&mut self, event: &Event, oldest: u64) {
        self.0.retain(|watcher| !event.key().starts_with(&watcher.prefix) || watcher.offer(event, oldest));
    }
}

impl Watcher {
    fn offer(&self, event: &Event, oldest: u64) -> bool {
        if self.sender.capacity() > 1 {
            return self.sender.try_send(Ok(event.clone())).is_ok();
        }
        let _ = self.sender.try_send(Err(Error::Compacted { oldest }));
        false
    }
}
