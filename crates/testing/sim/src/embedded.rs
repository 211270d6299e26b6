//! The parts, put together.

use std::pin::Pin;
use std::sync::Arc;

use auth::UserInfo;
use bytes::Bytes;
use client::{Body, Client, Transport};
use http_body_util::{BodyExt, Full};
use reconcile::{Caches, EventRecorder};
use stdx::Drain;
use store::Store;

/// What runs beside the API server.
pub struct Parts {
    pub controllers: Option<controllers::Config>,
    pub scheduler: Option<scheduler::Config>,
    /// New nodes are tainted until a controller finds them ready, even where none is started here.
    pub taints: bool,
}

impl Default for Parts {
    fn default() -> Self {
        Self { controllers: Some(controllers::Config::default()), scheduler: Some(scheduler::Config::default()), taints: false }
    }
}

/// A control plane without a socket.
pub struct Embedded {
    pub server: apiserver::Server,
    pub caches: Caches,
    pub drain: Drain,
}

impl Embedded {
    pub async fn start(store: Arc<dyn Store>, parts: Parts) -> anyhow::Result<Self> {
        let mut admission = admission::Options::default();
        if parts.controllers.is_none() && !parts.taints {
            // Nobody would take the taint of new nodes away.
            admission.disable.push("TaintNodesByCondition".into());
        }
        let config = apiserver::Config {
            admission,
            reads_inflight_max: 4096,
            writes_inflight_max: 4096,
            // Not served by default, as upstream: gangs are of the one, the pools' status of the other.
            served: schema::resources::Served::parse("scheduling.k8s.io/v1beta1=true,resource.k8s.io/v1alpha3=true")?,
            ..apiserver::Config::default()
        };
        let server = apiserver::Server::new(config, store)?;
        server.bootstrap().await?;
        let drain = stdx::drain();
        let caches = Caches::new(&client(&server, "system:apiserver", &["system:masters"]), drain.clone());
        let embedded = Self { server, caches, drain };
        if let Some(settings) = parts.controllers {
            let client = embedded.client("system:kube-controller-manager", &["system:masters"]);
            tokio::spawn(controllers::run_on(client, embedded.caches.clone(), settings, embedded.drain.clone()));
        }
        if let Some(config) = parts.scheduler {
            let client = embedded.client("system:kube-scheduler", &[]).named("kube-scheduler");
            let recorder = EventRecorder::start(&client, "default-scheduler", None, embedded.drain.clone());
            tokio::spawn(scheduler::run(config, client, embedded.caches.clone(), recorder, embedded.drain.clone()));
        }
        Ok(embedded)
    }

    /// A client with an identity of its own.
    pub fn client(&self, username: &str, groups: &[&str]) -> Client {
        client(&self.server, username, groups)
    }

    /// What such a client speaks over.
    pub fn transport(&self, username: &str, groups: &[&str]) -> Arc<dyn Transport> {
        Arc::new(InProcess { server: self.server.clone(), user: UserInfo::authenticated(username, groups) })
    }

    pub fn admin(&self) -> Client {
        self.client("admin", &["system:masters"])
    }

    pub fn stop(&self) {
        self.drain.stop();
        self.server.stop();
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Calls the server with a fixed identity.
struct InProcess {
    server: apiserver::Server,
    user: UserInfo,
}

fn client(server: &apiserver::Server, username: &str, groups: &[&str]) -> Client {
    Client::new(Arc::new(InProcess { server: server.clone(), user: UserInfo::authenticated(username, groups) }))
}

impl Transport for InProcess {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        let request = request.map(|body| Full::new(body).map_err(|never| match never {}).boxed());
        Box::pin(async move { Ok(self.server.handle(request, Some(self.user.clone())).await) })
    }
}
