//! Events about pods. They are told once there is time for it: writing one costs the API more than a binding does, and pods that wait for a node
//! go first. (Upstream's scheduler writes at most 50 events a second.)

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use reconcile::{EventKind, reference_to};
use tracing::debug;

use super::Scheduler;

/// Events that wait; more are dropped.
const WAITING_MAX: usize = 16 * 1024;
/// So many are told within so long where nothing else is to do: what the writer of events can take.
const PORTION: usize = 128;
const PERIOD: Duration = Duration::from_millis(50);
/// Where there always is something else to do, events wait so long, and then fewer are told within a period.
const LATE: Duration = Duration::from_secs(2);
const PORTION_BUSY: usize = 32;

/// Events in the order in which they happened.
#[derive(Default)]
pub(super) struct Announcements {
    waiting: VecDeque<(Instant, Announcement)>,
    /// When the period began, and how many were told in it.
    period: Option<Instant>,
    told: usize,
}

/// One event about a pod.
pub(super) struct Announcement {
    pub about: Arc<Pod>,
    pub kind: EventKind,
    pub reason: &'static str,
    pub action: &'static str,
    pub message: String,
}

impl Announcements {
    pub fn push(&mut self, announcement: Announcement) {
        if self.waiting.len() >= WAITING_MAX {
            return debug!(reason = announcement.reason, "event dropped");
        }
        self.waiting.push_back((Instant::now(), announcement));
    }

    /// When to look again, at the latest.
    pub fn next_due(&self) -> Option<Instant> {
        if self.waiting.is_empty() { None } else { self.period.map(|began| began + PERIOD) }
    }

    /// What may be told now. `idle`: no pod waits for anything but the API's changes.
    fn take(&mut self, idle: bool, now: Instant) -> impl Iterator<Item = Announcement> {
        if self.period.is_none_or(|began| now >= began + PERIOD) {
            (self.period, self.told) = (Some(now), 0);
        }
        let is_late = self.waiting.front().is_some_and(|(since, _)| now.duration_since(*since) >= LATE);
        let portion = match (idle, is_late) {
            (true, _) => PORTION,
            (false, true) => PORTION_BUSY,
            (false, false) => 0,
        };
        let count = portion.saturating_sub(self.told).min(self.waiting.len());
        self.told += count;
        self.waiting.drain(..count).map(|(_, announcement)| announcement)
    }
}

impl Scheduler {
    /// Tells what waited, as far as there is time.
    pub(super) fn announce(&mut self) {
        if self.announcements.waiting.is_empty() {
            return;
        }
        let idle = self.queue.sizes().active == 0 && self.bindings.is_empty();
        for Announcement { about, kind, reason, action, message } in self.announcements.take(idle, Instant::now()) {
            self.recorder.event_with_action(&reference_to(&*about), kind, reason, action, message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_wait_for_a_quiet_moment_but_not_for_ever() {
        let (start, pod) = (Instant::now(), Arc::new(Pod::default()));
        let after = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let mut announcements = Announcements::default();
        let add = |announcements: &mut Announcements, count: usize| {
            for number in 0..count {
                let announcement =
                    Announcement { about: pod.clone(), kind: EventKind::Normal, reason: "R", action: "A", message: number.to_string() };
                announcements.waiting.push_back((start, announcement));
            }
        };
        add(&mut announcements, 1);
        assert_eq!(announcements.take(true, after(0)).count(), 1, "one pod's event is told at once");
        add(&mut announcements, 1000);
        assert_eq!(announcements.take(true, after(5)).count(), PORTION - 1);
        assert_eq!(announcements.take(true, after(10)).count(), 0, "the writer has had its portion");
        assert_eq!(announcements.take(false, after(60)).count(), 0, "pods wait");
        assert_eq!(announcements.take(true, after(120)).count(), PORTION);
        assert_eq!(announcements.take(false, after(2200)).count(), PORTION_BUSY, "too late to wait for a quiet moment");
        let all: usize = (1..100).map(|turn| announcements.take(true, after(3000 + turn * 60)).count()).sum();
        assert_eq!(all, 1001 - 2 * PORTION - PORTION_BUSY);
        assert_eq!(announcements.next_due(), None);
    }
}
