//! Orderly stop: one side asks, every task that holds a [`Drain`] hears it.

use tokio_util::sync::CancellationToken;

/// A cloneable ear for "please finish". Children stop with their parent, not the other way round.
#[derive(Clone, Debug, Default)]
pub struct Drain(CancellationToken);

/// A fresh one; call [`Drain::stop`] to ask everybody to finish.
pub fn drain() -> Drain {
    Drain(CancellationToken::new())
}

impl Drain {
    pub fn stop(&self) {
        self.0.cancel();
    }
    pub fn is_stopping(&self) -> bool {
        self.0.is_cancelled()
    }
    /// Resolves once [`Drain::stop`] was called here or on an ancestor.
    pub async fn stopping(&self) {
        self.0.cancelled().await;
    }
    pub fn child(&self) -> Self {
        Self(self.0.child_token())
    }
    /// Runs `work` until it ends (`Some`) or the stop is asked for (`None`).
    pub async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.0.run_until_cancelled(work).await
    }
}
