//! What a daemon runs until it stops, each part by its name, so that a start that fails and a stop that takes long can say whose fault it is.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};

/// Tasks that none of them is expected to end before all are asked to. Dropping it ends them where they stand.
#[derive(Default)]
pub struct Components {
    tasks: JoinSet<()>,
    names: HashMap<Id, &'static str>,
}

impl Components {
    pub fn spawn(&mut self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let id = self.tasks.spawn(work).id();
        self.names.insert(id, name);
    }

    /// Waits until one has ended by itself, and says which and how; for ever where there is none.
    pub async fn ended(&mut self) -> String {
        match self.tasks.join_next_with_id().await {
            Some(ended) => self.forget(ended),
            None => std::future::pending().await,
        }
    }

    /// Waits for all, which have been asked to stop. The names of those who still have not ended after `grace`; they are ended then.
    pub async fn finish(mut self, grace: Duration) -> Vec<&'static str> {
        let all = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                let ended = self.forget(ended);
                tracing::debug!(ended, "a component has stopped");
            }
        };
        let _ = tokio::time::timeout(grace, all).await;
        let mut late: Vec<&str> = self.names.into_values().collect();
        late.sort_unstable();
        late
    }

    fn forget(&mut self, ended: Result<(Id, ()), JoinError>) -> String {
        let (id, how) = match ended {
            Ok((id, ())) => (id, String::new()),
            Err(error) => (error.id(), format!(": {error}")),
        };
        format!("{}{how}", self.names.remove(&id).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_ends_by_itself_and_who_does_not_end_is_named() {
        let drain = stdx::drain();
        let mut components = Components::default();
        let hears = drain.clone();
        components.spawn("willing", async move { hears.stopping().await });
        components.spawn("deaf", std::future::pending());
        components.spawn("weak", async { panic!("too much") });
        let ended = components.ended().await;
        assert!(ended.starts_with("weak: ") && ended.contains("too much"), "{ended}");
        drain.stop();
        assert_eq!(components.finish(Duration::from_millis(200)).await, ["deaf"]);
    }
}
