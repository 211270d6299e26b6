//! Events are forgotten an hour after they last happened (upstream: `--event-ttl`).
//!
//! A sweep reads the watch cache and deletes what is too old through the store; watchers see ordinary deletions. It writes nothing while
//! nothing is old.

use std::sync::Arc;
use std::time::Duration;

use meta::time;
use serde_json::Value;
use store::Expect;

use crate::Inner;
use crate::object::{decode, meta};
use crate::registry::catalog;
use crate::selection::Selection;

const TTL_SECONDS: i64 = 3_600;
const SWEEP_PERIOD: Duration = Duration::from_secs(60);

/// Sweeps until the server stops.
pub async fn run(server: Arc<Inner>) {
    while server.drain.run(tokio::time::sleep(SWEEP_PERIOD)).await.is_some() {
        sweep(&server, time::epoch(&time::now()).unwrap_or(i64::MIN)).await;
    }
}

/// Deletes every Event that last happened more than the TTL before `now` (seconds since the epoch). Returns how many.
pub async fn sweep(server: &Inner, now: i64) -> usize {
    let Some(kind) = catalog::stored("", "events") else { return 0 };
    let prefix = kind.storage.prefix.as_bytes();
    let page = server.registry.caches.of(prefix).list(prefix, b"", 0, &Selection::all(kind.prefix(""), kind.storage.rules.clone()), 0);
    let mut deleted = 0;
    for object in page.objects {
        if last_happened(&decode(&object.bytes, object.revision)).is_some_and(|at| now - at > TTL_SECONDS) {
            // An event that happened again meanwhile has another revision and stays.
            deleted += usize::from(server.registry.store.delete(&object.key, Expect::Revision(object.revision)).await.is_ok());
        }
    }
    deleted
}

/// Seconds since the epoch; the newest of the times that an Event may carry.
fn last_happened(event: &Value) -> Option<i64> {
    let times = [
        event["lastTimestamp"].as_str(),
        event["eventTime"].as_str(),
        event["series"]["lastObservedTime"].as_str(),
        Some(meta(event, "creationTimestamp")),
    ];
    times.into_iter().flatten().filter_map(time::epoch).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_as_old_as_its_newest_time() {
        let at = |text: &str| time::epoch(text);
        let cases = [
            (json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}}), at("2026-01-01T00:00:00Z")),
            (
                json!({"metadata": {"creationTimestamp": "2026-01-01T00:00:00Z"}, "lastTimestamp": "2026-01-01T05:00:00Z"}),
                at("2026-01-01T05:00:00Z"),
            ),
            (
                json!({"metadata": {}, "eventTime": "2026-01-01T00:00:00.000001Z", "series": {"lastObservedTime": "2026-01-01T06:00:00.5Z"}}),
                at("2026-01-01T06:00:00Z"),
            ),
            (json!({"metadata": {}}), None),
        ];
        for (event, expected) in cases {
            assert_eq!(last_happened(&event), expected, "{event}");
        }
    }
}
