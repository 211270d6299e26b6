//! API server and controllers, and the commands of scenarios.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use client::{ApiResource, Client, ListParams, Patch};
use controllers::{Config, RootCa};
use http::Method;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use sim::{Embedded, Parts};
use stdx::Drain;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::facts::{Facts, facts_of, nicknames};
use crate::script::Step;

/// Between two signs of life of a node.
const BEAT: Duration = Duration::from_millis(200);

/// What is looked at: kind, group-version and plural, and whether it is in namespaces.
const KINDS: [(&str, &str, &str, bool); 43] = [
    ("Namespace", "v1", "namespaces", false),
    ("Node", "v1", "nodes", false),
    ("Pod", "v1", "pods", true),
    ("Service", "v1", "services", true),
    ("Endpoints", "v1", "endpoints", true),
    ("EndpointSlice", "discovery.k8s.io/v1", "endpointslices", true),
    ("ConfigMap", "v1", "configmaps", true),
    ("Secret", "v1", "secrets", true),
    ("ServiceAccount", "v1", "serviceaccounts", true),
    ("ReplicationController", "v1", "replicationcontrollers", true),
    ("ResourceQuota", "v1", "resourcequotas", true),
    ("PersistentVolume", "v1", "persistentvolumes", false),
    ("PersistentVolumeClaim", "v1", "persistentvolumeclaims", true),
    ("StorageClass", "storage.k8s.io/v1", "storageclasses", false),
    ("VolumeAttachment", "storage.k8s.io/v1", "volumeattachments", false),
    ("VolumeAttributesClass", "storage.k8s.io/v1", "volumeattributesclasses", false),
    ("CSINode", "storage.k8s.io/v1", "csinodes", false),
    ("CSIDriver", "storage.k8s.io/v1", "csidrivers", false),
    ("Deployment", "apps/v1", "deployments", true),
    ("ReplicaSet", "apps/v1", "replicasets", true),
    ("StatefulSet", "apps/v1", "statefulsets", true),
    ("DaemonSet", "apps/v1", "daemonsets", true),
    ("ControllerRevision", "apps/v1", "controllerrevisions", true),
    ("Job", "batch/v1", "jobs", true),
    ("CronJob", "batch/v1", "cronjobs", true),
    ("HorizontalPodAutoscaler", "autoscaling/v2", "horizontalpodautoscalers", true),
    ("PodDisruptionBudget", "policy/v1", "poddisruptionbudgets", true),
    ("ClusterRole", "rbac.authorization.k8s.io/v1", "clusterroles", false),
    ("CertificateSigningRequest", "certificates.k8s.io/v1", "certificatesigningrequests", false),
    ("ClusterTrustBundle", "certificates.k8s.io/v1", "clustertrustbundles", false),
    ("Lease", "coordination.k8s.io/v1", "leases", true),
    ("IPAddress", "networking.k8s.io/v1", "ipaddresses", false),
    ("ServiceCIDR", "networking.k8s.io/v1", "servicecidrs", false),
    ("ResourceClaim", "resource.k8s.io/v1", "resourceclaims", true),
    ("ResourceClaimTemplate", "resource.k8s.io/v1", "resourceclaimtemplates", true),
    ("ResourceSlice", "resource.k8s.io/v1", "resourceslices", false),
    ("DeviceClass", "resource.k8s.io/v1", "deviceclasses", false),
    ("DeviceTaintRule", "resource.k8s.io/v1", "devicetaintrules", false),
    ("ResourcePoolStatusRequest", "resource.k8s.io/v1alpha3", "resourcepoolstatusrequests", false),
    ("StorageVersionMigration", "storagemigration.k8s.io/v1", "storageversionmigrations", false),
    ("PodMetrics", "metrics.k8s.io/v1beta1", "pods", true),
    ("ValidatingAdmissionPolicy", "admissionregistration.k8s.io/v1", "validatingadmissionpolicies", false),
    ("CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", false),
];

pub struct Cluster {
    embedded: Embedded,
    admin: Client,
    /// Not where the steps that a controller takes depend on how much it sees at once.
    events: bool,
    /// Generated names that were ever seen: events speak of them after their objects.
    nicknames: Mutex<BTreeMap<String, String>>,
    alive: Mutex<BTreeMap<String, Drain>>,
    authority: watch::Sender<String>,
    /// What candidates would run.
    config: Config,
    candidates: Mutex<BTreeMap<String, (Drain, JoinHandle<()>)>>,
}

/// In the middle of a scenario, candidates are as slow as the machine.
const LEASE_SECONDS: u64 = 6;

fn seconds(settings: &BTreeMap<String, String>, name: &str, default: Duration) -> Duration {
    settings.get(name).and_then(|value| value.parse().ok()).map_or(default, Duration::from_secs_f64)
}

fn signer() -> Arc<auth::csr::Signer> {
    let names = auth::pki::Names {
        api_hosts: Vec::new(),
        api_addresses: Vec::new(),
        cluster_domain: String::new(),
        node_name: "n".into(),
        node_addresses: Vec::new(),
    };
    let pki = auth::pki::Pki::open(tempfile::tempdir().unwrap().path(), &names).unwrap();
    Arc::new(auth::csr::Signer::new(&pki.issuing, &pki.ca_key).unwrap())
}

impl Cluster {
    pub async fn start(settings: &BTreeMap<String, String>) -> Self {
        let usual = Config::default();
        let authority = watch::Sender::new("the authority".to_owned());
        let config = Config {
            root_ca: RootCa::new(authority.subscribe()),
            signer: settings.contains_key("signer").then(signer),
            node_monitor_grace_period: seconds(settings, "grace", usual.node_monitor_grace_period),
            node_monitor_period: Duration::from_millis(200),
            node_eviction_pause: Duration::from_millis(10),
            terminated_pods_max: settings.get("terminated-pods").and_then(|value| value.parse().ok()).unwrap_or(usual.terminated_pods_max),
            cluster_ranges: settings.get("ranges").and_then(|text| range(text)).into_iter().collect(),
            ..usual
        };
        let elected = settings.contains_key("elected");
        let parts = Parts { controllers: (!elected).then(|| config.clone()), scheduler: None, taints: true };
        let embedded = Embedded::start(Arc::new(store::memory::Memory::new()), parts).await.unwrap();
        let admin = embedded.admin();
        let cluster = Self {
            embedded,
            admin,
            events: settings.get("events").is_none_or(|value| value != "no"),
            nicknames: Mutex::default(),
            alive: Mutex::default(),
            authority,
            config,
            candidates: Mutex::default(),
        };
        if elected {
            return cluster;
        }
        for path in ["/api/v1/namespaces/default/serviceaccounts/default", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"] {
            while cluster.admin.request_json::<Value>(Method::GET, path, None).await.is_err() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        cluster
    }

    pub async fn facts(&self) -> Facts {
        let mut objects = Vec::new();
        for (kind, group_version, plural, _) in KINDS {
            let found = self.list(group_version, plural).await;
            objects.extend(found.into_iter().filter(|object| is_told(kind, object)).map(|object| (kind.to_owned(), object)));
        }
        let events = self.list("v1", "events").await.into_iter().filter(|event| self.events && event["metadata"]["namespace"] == "default");
        objects.extend(events.map(|event| ("Event".to_owned(), event)));
        let mut nicknames = self.nicknames.lock().unwrap();
        nicknames.extend(self::nicknames(&objects));
        let mut facts = Facts::new();
        for fact in objects.iter().flat_map(|(kind, object)| facts_of(kind, object, &nicknames)) {
            *facts.entry(fact).or_default() += 1;
        }
        facts
    }

    async fn list(&self, group_version: &str, plural: &str) -> Vec<Value> {
        loop {
            match self.admin.request_json::<Value>(Method::GET, &collection(group_version, plural, None), None).await {
                Ok(mut list) => return list["items"].as_array_mut().map(std::mem::take).unwrap_or_default(),
                Err(error) if error.is_not_found() => return Vec::new(),
                // A list may be refused while the server's own view lags.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub async fn carry_out(&self, step: &Step) -> anyhow::Result<()> {
        let words: Vec<&str> = step.command.split_whitespace().collect();
        match words.as_slice() {
            ["create", times @ ..] => {
                let times = times.first().map_or(Ok(1), |times| times.parse())?;
                for text in std::iter::repeat_n(&step.input, times).flat_map(|input| input.split("---\n")) {
                    self.create(serde_saphyr::from_str(text)?).await?;
                }
                Ok(())
            }
            ["patch", object, more @ ..] => {
                self.patch(object, more.first().copied().unwrap_or_default(), serde_saphyr::from_str(&step.input)?).await
            }
            ["delete", object, more @ ..] => {
                let policy = more.first().copied().unwrap_or("Background");
                let options = json!({ "kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy });
                self.send(Method::DELETE, &path_of(object, "")?, "application/json", options).await
            }
            ["pods", state, labels @ ..] => self.pods(state, labels).await,
            // Its Lease is renewed from now on, or no more.
            ["alive", node] => self.alive(node),
            ["silent", node] => {
                self.alive.lock().unwrap().remove(*node).inspect(Drain::stop);
                Ok(())
            }
            // The authority of the API server is another.
            ["authority"] => {
                self.authority.send_replace(step.input.clone());
                Ok(())
            }
            // A process with all controllers that would lead; one that ends in order; one that is gone from one moment to the next.
            ["candidate", name] => {
                self.candidate(name);
                Ok(())
            }
            ["stop", name] => self.ended(name, false).await,
            ["kill", name] => self.ended(name, true).await,
            // The claim is allocated, and reserved for the pod.
            ["use", claim, pod] => self.reserve(claim, pod, serde_saphyr::from_str(&step.input)?).await,
            // What a metrics server would say of all pods with the labels.
            ["measured", labels @ ..] => self.measure(&serde_saphyr::from_str(&step.input)?, labels).await,
            // Makes a ConfigMap that those own.
            ["own", object, owners @ ..] => self.own(object, owners).await,
            ["wait", seconds] => {
                tokio::time::sleep(Duration::from_secs(seconds.parse()?)).await;
                Ok(())
            }
            _ => anyhow::bail!("no such command"),
        }
    }

    /// Creates the object with the status that it names.
    async fn create(&self, mut object: Value) -> anyhow::Result<()> {
        let kind = object["kind"].as_str().context("no kind")?.to_owned();
        let (_, group_version, plural, namespaced) = KINDS.iter().find(|(known, ..)| *known == kind).copied().unwrap_or(("", "", "", true));
        let group_version = object["apiVersion"].as_str().unwrap_or(group_version).to_owned();
        let plural = if plural.is_empty() { format!("{}s", kind.to_lowercase()) } else { plural.to_owned() };
        object["apiVersion"] = group_version.as_str().into();
        let status = object.as_object_mut().and_then(|fields| fields.remove("status"));
        let namespace = namespaced.then(|| object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned());
        let path = collection(&group_version, &plural, namespace.as_deref());
        let created: Value = self.admin.request_json(Method::POST, &path, Some(object.to_string().into())).await?;
        let Some(status) = status else { return Ok(()) };
        let name = created["metadata"]["name"].as_str().unwrap_or_default();
        self.send(Method::PATCH, &format!("{path}/{name}/status"), "application/merge-patch+json", json!({ "status": status })).await
    }

    async fn patch(&self, object: &str, subresource: &str, patch: Value) -> anyhow::Result<()> {
        self.send(Method::PATCH, &path_of(object, subresource)?, "application/merge-patch+json", patch).await
    }

    async fn send(&self, method: Method, path: &str, content_type: &str, body: Value) -> anyhow::Result<()> {
        let request =
            http::Request::builder().method(method).uri(path).header("content-type", content_type).header("accept", "application/json");
        let answer = self.admin.send(request.body(Bytes::from(body.to_string()))?).await?;
        ensure!(answer.status().is_success(), "{path}: {}", answer.status());
        Ok(())
    }

    fn alive(&self, node: &str) -> anyhow::Result<()> {
        let (drain, admin, node) = (stdx::drain(), self.admin.clone(), node.to_owned());
        self.alive.lock().unwrap().insert(node.clone(), drain.clone());
        tokio::spawn(async move {
            let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
            loop {
                let now = jiff::Timestamp::now().to_string();
                let patch = Patch::Merge(json!({ "spec": { "renewTime": now } }));
                let renewed = admin.patch::<Lease>(Some("kube-node-lease"), &node, &patch, "").await;
                if renewed.is_err() {
                    let lease = json!({ "metadata": { "name": node }, "spec": { "holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now } });
                    let _ = admin.request_json::<Value>(Method::POST, leases, Some(lease.to_string().into())).await;
                }
                if drain.run(tokio::time::sleep(BEAT)).await.is_none() {
                    return;
                }
            }
        });
        Ok(())
    }

    fn candidate(&self, name: &str) {
        let drain = stdx::drain();
        let election = reconcile::leader::Config {
            lease_duration: Duration::from_secs(LEASE_SECONDS),
            renew_deadline: Duration::from_secs(LEASE_SECONDS - 1),
            retry_period: BEAT,
            ..reconcile::leader::Config::new("default", "kube-controller-manager", name)
        };
        let client = self.embedded.client("system:kube-controller-manager", &["system:masters"]);
        let task = tokio::spawn(controllers::run_as_leader(client, self.config.clone(), election, drain.clone()));
        self.candidates.lock().unwrap().insert(name.to_owned(), (drain, task));
    }

    async fn ended(&self, name: &str, at_once: bool) -> anyhow::Result<()> {
        let (drain, task) = self.candidates.lock().unwrap().remove(name).context("no such candidate")?;
        if at_once {
            task.abort();
            let _ = task.await;
        } else {
            drain.stop();
            task.await?;
        }
        Ok(())
    }

    async fn reserve(&self, claim: &str, pod: &str, mut status: Value) -> anyhow::Result<()> {
        let found: Value = self.admin.request_json(Method::GET, &path_of(pod, "")?, None).await?;
        let meta = &found["metadata"];
        status["reservedFor"] = json!([{ "resource": "pods", "name": meta["name"], "uid": meta["uid"] }]);
        self.patch(claim, "status", json!({ "status": status })).await
    }

    async fn measure(&self, container: &Value, labels: &[&str]) -> anyhow::Result<()> {
        for pod in self.labelled(labels).await? {
            let meta = json!({ "name": pod["metadata"]["name"], "labels": pod["metadata"]["labels"] });
            let container = json!({ "name": pod["spec"]["containers"][0]["name"], "usage": container["usage"] });
            let now = jiff::Timestamp::now().to_string();
            self.create(json!({ "kind": "PodMetrics", "metadata": meta, "timestamp": now, "window": "10s", "containers": [container] }))
                .await?;
        }
        Ok(())
    }

    async fn labelled(&self, labels: &[&str]) -> anyhow::Result<Vec<Value>> {
        let params = ListParams::in_namespace("default").labels(labels.join(","));
        Ok(self.admin.list_of::<Value>(&ApiResource::of::<Pod>(), &params, false).await?.items)
    }

    async fn own(&self, object: &str, owners: &[&str]) -> anyhow::Result<()> {
        let mut references = Vec::new();
        for owner in owners {
            let found: Value = self.admin.request_json(Method::GET, &path_of(owner, "")?, None).await?;
            let meta = &found["metadata"];
            references.push(json!({ "apiVersion": found["apiVersion"], "kind": found["kind"], "name": meta["name"], "uid": meta["uid"] }));
        }
        let name = object.split_once('/').map(|(_, name)| name);
        self.create(json!({ "kind": "ConfigMap", "metadata": { "name": name, "ownerReferences": references } })).await
    }

    /// What a kubelet would say of all pods with the labels: `Running` and ready, `Unready`, `Succeeded`, `Failed`.
    async fn pods(&self, state: &str, labels: &[&str]) -> anyhow::Result<()> {
        let pods = self.labelled(labels).await?;
        for (number, pod) in pods.iter().filter(|pod| !matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"))).enumerate()
        {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let ready = if state == "Running" { "True" } else { "False" };
            let phase = if state == "Unready" { "Running" } else { state };
            let code = i32::from(state == "Failed");
            let ended = matches!(state, "Succeeded" | "Failed");
            let running = if ended { json!({ "terminated": { "exitCode": code } }) } else { json!({ "running": {} }) };
            let container = pod["spec"]["containers"][0]["name"].clone();
            let ip = pod["status"]["podIP"].as_str().map_or_else(|| format!("10.0.0.{}", number + 1), str::to_owned);
            let status = json!({
                "phase": phase, "startTime": "2026-01-01T00:00:00Z", "podIP": ip, "podIPs": [{ "ip": ip }],
                "conditions": [{ "type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z" }],
                "containerStatuses": [{ "name": container, "image": "i", "imageID": "", "ready": !ended, "restartCount": 0, "state": running }],
            });
            self.send(
                Method::PATCH,
                &format!("/api/v1/namespaces/default/pods/{name}/status"),
                "application/merge-patch+json",
                json!({ "status": status }),
            )
            .await?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.candidates.lock().unwrap().values().for_each(|(drain, _)| drain.stop());
        self.embedded.stop();
    }
}

/// Not what every cluster has from its start.
fn is_told(kind: &str, object: &Value) -> bool {
    let meta = &object["metadata"];
    let name = meta["name"].as_str().unwrap_or_default();
    let own_namespace = meta["namespace"].as_str().is_none_or(|namespace| !namespace.starts_with("kube-"))
        || name == "cluster-info"
        || object["type"] == "bootstrap.kubernetes.io/token";
    let first = match kind {
        "Namespace" => name.starts_with("kube-"),
        "ServiceCIDR" => name == "kubernetes",
        "IPAddress" => name == "10.96.0.1",
        "ClusterRole" => name.starts_with("system:") || ["admin", "edit", "view", "cluster-admin"].contains(&name),
        _ => false,
    };
    own_namespace && !first
}

fn collection(group_version: &str, plural: &str, namespace: Option<&str>) -> String {
    let root = if group_version.contains('/') { "apis" } else { "api" };
    let namespace = namespace.map(|namespace| format!("/namespaces/{namespace}")).unwrap_or_default();
    format!("/{root}/{group_version}{namespace}/{plural}")
}

/// The path of `Kind/name` or `Kind/namespace/name`.
fn path_of(object: &str, subresource: &str) -> anyhow::Result<String> {
    let (kind, name) = object.split_once('/').context("Kind/name")?;
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let (_, group_version, plural, namespaced) = KINDS.iter().find(|(known, ..)| *known == kind).with_context(|| kind.to_owned())?;
    let path = format!("{}/{name}", collection(group_version, plural, namespaced.then_some(namespace)));
    Ok(if subresource.is_empty() { path } else { format!("{path}/{subresource}") })
}

/// `10.1.0.0/16`, of which nodes get /24.
fn range(text: &str) -> Option<controllers::ClusterRange> {
    let (address, prefix) = text.split_once('/')?;
    Some(controllers::ClusterRange { address: address.parse().ok()?, prefix: prefix.parse().ok()?, node_prefix: 24 })
}
