//! A receiver of the trail outside: events go there in batches, and whoever makes requests never waits for it.
//!
//! Source: `apiserver/plugin/pkg/audit/{buffered,webhook}`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use admission::Lookup;
use tokio::sync::mpsc;

use crate::outcall::Remote;

/// Events that wait (upstream: `--audit-webhook-batch-buffer-size`), and those of one batch (`…-batch-max-size`).
const QUEUE: usize = 10_000;
const BATCH_MAX: usize = 400;
const TIMEOUT: Duration = Duration::from_secs(30);
/// How often a batch is tried, and the pause after the first failure, which doubles.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);

/// Where the receiver is (`--audit-webhook-config-file`), and how long a first event waits for others (`…-batch-max-wait`, 30 s there).
#[derive(Clone, Debug)]
pub struct AuditWebhook {
    pub kubeconfig: PathBuf,
    pub wait_max: Duration,
}

/// The way to the receiver.
pub struct Webhook(mpsc::Sender<Vec<u8>>);

impl Webhook {
    /// Starts the task that sends, which ends with this.
    pub fn start(settings: &AuditWebhook, lookup: Arc<dyn Lookup>) -> Result<Self, String> {
        let remote = Remote::from_kubeconfig(Path::new(&settings.kubeconfig))?;
        let (sender, events) = mpsc::channel(QUEUE);
        tokio::spawn(run(remote, events, settings.wait_max, lookup));
        Ok(Self(sender))
    }

    /// `false` when too many wait.
    pub fn send(&self, event: Vec<u8>) -> bool {
        self.0.try_send(event).is_ok()
    }
}

async fn run(remote: Remote, mut events: mpsc::Receiver<Vec<u8>>, wait_max: Duration, lookup: Arc<dyn Lookup>) {
    while let Some(first) = events.recv().await {
        let (mut batch, deadline) = (vec![first], tokio::time::Instant::now() + wait_max);
        while batch.len() < BATCH_MAX
            && let Ok(Some(event)) = tokio::time::timeout_at(deadline, events.recv()).await
        {
            batch.push(event);
        }
        deliver(&remote, &batch, &*lookup).await;
    }
}

async fn deliver(remote: &Remote, batch: &[Vec<u8>], lookup: &dyn Lookup) {
    let mut list = br#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":["#.to_vec();
    list.extend_from_slice(&batch.join(&b','));
    list.extend_from_slice(b"]}");
    let list = bytes::Bytes::from(list);
    let mut pause = PAUSE;
    for attempt in 1..=TRIES {
        let why = match remote.post(list.clone(), TIMEOUT, lookup).await {
            Ok((code, _)) if code.is_success() => return,
            // Another try would be answered in the same way.
            Ok((code, _)) if code.is_client_error() && code != http::StatusCode::TOO_MANY_REQUESTS => {
                return tracing::error!(events = batch.len(), %code, "audit: the receiver refuses the events");
            }
            Ok((code, _)) => code.to_string(),
            Err(why) => why,
        };
        if attempt == TRIES {
            return tracing::error!(events = batch.len(), why, "audit: the receiver does not take the events; they are in the file alone");
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}
