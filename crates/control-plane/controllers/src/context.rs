//! What every controller is given.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use client::{ApiResource, Client, Object};
use k8s_openapi::api::core::v1::Node;
use reconcile::{Cache, Caches, EventRecorder, PartialObject, Scope};
use stdx::Drain;
use tokio::sync::watch;

use crate::node_ipam::ClusterRange;

/// The settings of all controllers; the defaults are upstream's.
#[derive(Clone, Debug)]
pub struct Config {
    /// The authorities that vouch for the API server; published in every namespace. Empty publishes nothing.
    pub root_ca: RootCa,
    /// What nodes get their pods' ranges from, one of each IP family at most; empty gives none.
    pub cluster_ranges: Vec<ClusterRange>,
    /// A node silent for so long is not trusted to be alive.
    pub node_monitor_grace_period: Duration,
    /// Asked about a node that is about to be taken for dead: a busy node is late with its words and yet alive. Absent, silence alone decides.
    pub node_probe: Option<NodeProbe>,
    /// A node silent for so long is not trusted even though it answers the probe.
    pub node_stuck_grace_period: Duration,
    /// How often a node in trouble is looked at.
    pub node_monitor_period: Duration,
    /// Between two nodes of a zone whose pods are evicted (upstream: `--node-eviction-rate`).
    pub node_eviction_pause: Duration,
    /// Above this many ended pods, the oldest are deleted; 0 keeps all.
    pub terminated_pods_max: usize,
    /// The folder of every node in which the built-in provisioner has its volumes; absent, there is none.
    pub local_path: Option<std::path::PathBuf>,
    /// Services of type LoadBalancer get the nodes' addresses where nobody else gives them any.
    pub node_load_balancer: bool,
    /// Signs certificates that were asked for and approved; absent, nobody does.
    pub signer: Option<Arc<auth::csr::Signer>>,
    /// The longest validity of what it signs.
    pub signing_duration: Duration,
}

/// Whether somebody is there, asked over the network; it may take as long as it likes.
#[derive(Clone)]
pub struct NodeProbe(Arc<dyn Fn(Arc<Node>) -> Answer + Send + Sync>);

type Answer = Pin<Box<dyn Future<Output = bool> + Send>>;

impl NodeProbe {
    pub fn new<F: Future<Output = bool> + Send + 'static>(ask: impl Fn(Arc<Node>) -> F + Send + Sync + 'static) -> Self {
        Self(Arc::new(move |node| Box::pin(ask(node))))
    }
    pub(crate) fn ask(&self, node: Arc<Node>) -> Answer {
        (self.0)(node)
    }
}

impl std::fmt::Debug for NodeProbe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeProbe")
    }
}

/// Certificates (PEM), which may be exchanged while controllers run.
#[derive(Clone, Debug)]
pub struct RootCa(watch::Receiver<String>);

impl RootCa {
    pub fn new(changing: watch::Receiver<String>) -> Self {
        Self(changing)
    }
    pub fn get(&self) -> String {
        self.0.borrow().clone()
    }
    /// Calls `changed` after every change, until nobody can change it any more.
    pub(crate) fn on_change(&self, changed: impl Fn() + Send + 'static) {
        let mut changing = self.0.clone();
        changing.mark_unchanged();
        tokio::spawn(async move {
            while changing.changed().await.is_ok() {
                changed();
            }
        });
    }
}

impl<T: Into<String>> From<T> for RootCa {
    /// One that never changes.
    fn from(pem: T) -> Self {
        Self(watch::channel(pem.into()).1)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca: RootCa::from(""),
            cluster_ranges: Vec::new(),
            signer: None,
            signing_duration: Duration::from_secs(365 * 86_400),
            node_monitor_grace_period: Duration::from_secs(50),
            node_probe: None,
            node_stuck_grace_period: Duration::from_secs(50),
            node_monitor_period: Duration::from_secs(5),
            node_eviction_pause: Duration::from_secs(10),
            terminated_pods_max: 12_500,
            local_path: None,
            node_load_balancer: true,
        }
    }
}

/// Cheap to clone; everything inside is shared.
#[derive(Clone)]
pub(crate) struct Context {
    /// The controller's own account: its role (`system:controller:…`) allows what it writes and nothing else.
    pub client: Client,
    /// The account of all controllers together, which may list and watch everything: for caches.
    pub reader: Client,
    pub caches: Caches,
    pub config: Arc<Config>,
    pub drain: Drain,
    /// Stops after the last controller has ended.
    reading: Drain,
}

impl Context {
    pub fn new(client: Client, caches: Caches, config: Config, drain: Drain) -> Self {
        let reading = stdx::drain();
        let client = client.named("kube-controller-manager");
        Self { reader: client.clone(), client, caches, config: Arc::new(config), drain, reading }
    }

    /// A cache of one controller's own. Like the shared ones it outlives `drain`: a controller that waits for it when the stop comes would wait
    /// for ever.
    pub fn cache<K: Object>(&self, scope: Scope) -> Cache<K> {
        Cache::start(&self.reader, scope, self.reading.clone())
    }

    /// The same of any resource, of which only the metadata is read.
    pub fn metadata_cache(&self, resource: ApiResource) -> Cache<PartialObject> {
        Cache::start_of(&self.reader, resource, Scope::all(), true, self.reading.clone())
    }

    /// Every controller has ended.
    pub fn end_caches(&self) {
        self.reading.stop();
    }

    pub fn recorder(&self, component: &str) -> EventRecorder {
        EventRecorder::start(&self.client, component, None, self.drain.clone())
    }

    /// The context of one controller.
    pub fn for_controller(&self, name: &str) -> Self {
        Self { client: self.client.as_account("kube-system", account(name)), ..self.clone() }
    }
}

/// The service account of a controller, which has an older name than the controller itself in many cases.
/// Source: `cmd/kube-controller-manager/names`, `bootstrappolicy/controller_policy.go`.
fn account(controller: &str) -> &str {
    match controller {
        "bootstrap-signer-controller" => "bootstrap-signer",
        "certificatesigningrequest-approving-controller"
        | "certificatesigningrequest-cleaner-controller"
        | "certificatesigningrequest-signing-controller"
        | "podcertificaterequest-signing-controller" => "certificate-controller",
        "daemonset-controller" => "daemon-set-controller",
        "endpoints-controller" => "endpoint-controller",
        "endpointslice-mirroring-controller" => "endpointslicemirroring-controller",
        "garbage-collector-controller" => "generic-garbage-collector",
        "horizontal-pod-autoscaler-controller" => "horizontal-pod-autoscaler",
        "kube-apiserver-serving-clustertrustbundle-publisher-controller" => "kube-apiserver-serving-clustertrustbundle-publisher",
        "legacy-serviceaccount-token-cleaner-controller" => "legacy-service-account-token-cleaner",
        "node-ipam-controller" | "node-lifecycle-controller" | "taint-eviction-controller" => "node-controller",
        "persistentvolume-attach-detach-controller" => "attachdetach-controller",
        "persistentvolume-binder-controller" => "persistent-volume-binder",
        "persistentvolume-expander-controller" => "expand-controller",
        "persistentvolume-protection-controller" => "pv-protection-controller",
        "persistentvolumeclaim-protection-controller" => "pvc-protection-controller",
        "pod-garbage-collector-controller" => "pod-garbage-collector",
        "podcertificaterequest-cleaner-controller" => "podcertificaterequestcleaner",
        "replicationcontroller-controller" => "replication-controller",
        "resourceclaim-controller" => "resource-claim-controller",
        "root-ca-certificate-publisher-controller" => "root-ca-cert-publisher",
        "service-cidr-controller" | "service-ip-address-controller" => "service-cidrs-controller",
        "service-lb-controller" => "service-controller",
        "serviceaccount-controller" => "service-account-controller",
        "token-cleaner-controller" => "token-cleaner",
        other => other,
    }
}
