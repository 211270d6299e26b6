//! What every controller is given.

use std::sync::Arc;
use std::time::Duration;

use client::Client;
use reconcile::{Caches, EventRecorder};
use stdx::Drain;

/// The settings of all controllers; the defaults are upstream's.
#[derive(Clone, Debug)]
pub struct Config {
    /// PEM of the authority that signed the API server's certificate; published in every namespace. Empty publishes nothing.
    pub root_ca: String,
    /// A node silent for so long is not trusted to be alive.
    pub node_monitor_grace_period: Duration,
    /// How often silence is looked for.
    pub node_monitor_period: Duration,
    /// Above this many ended pods, the oldest are deleted; 0 keeps all.
    pub terminated_pods_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca: String::new(),
            node_monitor_grace_period: Duration::from_secs(50),
            node_monitor_period: Duration::from_secs(5),
            terminated_pods_max: 12_500,
        }
    }
}

/// Cheap to clone; everything inside is shared.
#[derive(Clone)]
pub(crate) struct Context {
    pub client: Client,
    pub caches: Caches,
    pub config: Arc<Config>,
    pub drain: Drain,
}

impl Context {
    pub fn new(client: Client, caches: Caches, config: Config, drain: Drain) -> Self {
        Self { client: client.named("kube-controller-manager"), caches, config: Arc::new(config), drain }
    }

    pub fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::start(&self.client, component, None, self.drain.clone())
    }
}
