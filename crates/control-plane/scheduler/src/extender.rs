//! Extenders: other programs that filter, score and bind over HTTP (upstream's `HTTPExtender`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::api::core::v1::{Node, Pod};
use reconcile::ObjectKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::filters::Objection;
use crate::profile::Plugin;

const ANSWER_BYTES_MAX: usize = 64 << 20;
/// An extender's scores are 0 to 10, a node's are 0 to 100.
const SCALE: i64 = 10;

/// An entry of `extenders` in the configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    pub url_prefix: String,
    pub filter_verb: String,
    pub preempt_verb: String,
    pub prioritize_verb: String,
    pub bind_verb: String,
    pub weight: i64,
    #[serde(rename = "enableHTTPS")]
    pub enable_https: bool,
    #[serde(rename = "httpTimeout")]
    pub http_timeout: Option<String>,
    pub node_cache_capable: bool,
    pub managed_resources: Vec<ManagedResource>,
    pub ignorable: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ManagedResource {
    pub name: String,
    pub ignored_by_scheduler: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("extender {url}: {why}")]
    Call { url: String, why: String },
    #[error("extender {url}: {message}")]
    Refused { url: String, message: String },
}

pub struct Extender {
    config: Config,
    timeout: Duration,
    client: Client<HttpConnector, Full<Bytes>>,
}

/// What the extenders say of the nodes for one pod.
#[derive(Default)]
pub struct Verdicts {
    /// The nodes that passed; `None`: nobody filtered.
    passed: Option<HashSet<String>>,
    failed: HashMap<String, (String, bool)>,
    scores: HashMap<String, i64>,
}

impl Verdicts {
    pub fn objection(&self, node: &str) -> Option<Objection> {
        if self.passed.as_ref().is_none_or(|passed| passed.contains(node)) {
            return None;
        }
        let (why, unresolvable) =
            self.failed.get(node).cloned().unwrap_or_else(|| ("node(s) were filtered out by an extender".into(), false));
        Some(Objection { plugin: Plugin::Extender, reasons: vec![why.into()], unresolvable })
    }
    /// No node passes, for that reason.
    pub fn fail(&mut self, why: &str, nodes: &[std::sync::Arc<Node>]) {
        self.passed = Some(HashSet::new());
        let names = nodes.iter().filter_map(|node| node.metadata.name.clone());
        self.failed = names.map(|name| (name, (why.to_owned(), true))).collect();
    }
    pub fn score(&self, node: &str) -> i64 {
        self.scores.get(node).copied().unwrap_or(0)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Args<'a> {
    pod: &'a Pod,
    nodes: Option<Value>,
    node_names: Option<Vec<&'a str>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Filtered {
    #[serde(alias = "Nodes")]
    nodes: Option<Value>,
    #[serde(alias = "NodeNames", alias = "nodenames", rename = "nodeNames")]
    node_names: Option<Vec<String>>,
    #[serde(alias = "FailedNodes", rename = "failedNodes")]
    failed_nodes: Option<BTreeMap<String, String>>,
    #[serde(alias = "FailedAndUnresolvableNodes", rename = "failedAndUnresolvableNodes")]
    unresolvable_nodes: Option<BTreeMap<String, String>>,
    #[serde(alias = "Error")]
    error: Option<String>,
}

#[derive(Deserialize)]
struct HostPriority {
    #[serde(alias = "Host")]
    host: String,
    #[serde(alias = "Score")]
    score: i64,
}

impl Extender {
    pub fn new(config: Config) -> Self {
        let timeout = config.http_timeout.as_deref().and_then(crate::config::duration).unwrap_or(Duration::from_secs(5));
        Self { config, timeout, client: Client::builder(TokioExecutor::new()).build_http() }
    }

    pub fn binds(&self) -> bool {
        !self.config.bind_verb.is_empty()
    }

    /// It manages nothing in particular, or something that the pod asks for.
    pub fn is_interested(&self, pod: &Pod) -> bool {
        let spec = pod.spec.as_ref();
        let containers = spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let amounts = containers.filter_map(|container| container.resources.as_ref());
        let mut names = amounts.flat_map(|resources| resources.requests.iter().flatten().chain(resources.limits.iter().flatten()));
        self.config.managed_resources.is_empty()
            || names.any(|(name, _)| self.config.managed_resources.iter().any(|managed| managed.name == *name))
    }

    /// Filters and scores `nodes`; an ignorable extender that fails says nothing.
    pub async fn judge(&self, pod: &Pod, nodes: &[std::sync::Arc<Node>], verdicts: &mut Verdicts) -> Result<(), Error> {
        match self.ask(pod, nodes, verdicts).await {
            Err(error) if self.config.ignorable => {
                tracing::warn!(%error, "an ignorable extender failed");
                Ok(())
            }
            other => other,
        }
    }

    async fn ask(&self, pod: &Pod, nodes: &[std::sync::Arc<Node>], verdicts: &mut Verdicts) -> Result<(), Error> {
        let admitted = |verdicts: &Verdicts, name: &str| verdicts.passed.as_ref().is_none_or(|passed| passed.contains(name));
        let args = |verdicts: &Verdicts| {
            let nodes = nodes.iter().filter(|node| admitted(verdicts, node.metadata.name.as_deref().unwrap_or_default()));
            match self.config.node_cache_capable {
                true => {
                    json!(Args { pod, nodes: None, node_names: Some(nodes.filter_map(|node| node.metadata.name.as_deref()).collect()) })
                }
                false => {
                    json!(Args { pod, nodes: Some(json!({ "items": nodes.map(|node| &**node).collect::<Vec<_>>() })), node_names: None })
                }
            }
        };
        if !self.config.filter_verb.is_empty() {
            let answer: Filtered = self.call(&self.config.filter_verb, &args(verdicts)).await?;
            if let Some(message) = answer.error.filter(|message| !message.is_empty()) {
                return Err(Error::Refused { url: self.config.url_prefix.clone(), message });
            }
            let items = answer.nodes.as_ref().and_then(|nodes| nodes.get("items")).and_then(Value::as_array);
            let listed = items.into_iter().flatten().filter_map(|node| node["metadata"]["name"].as_str().map(str::to_owned));
            verdicts.passed = Some(answer.node_names.map_or_else(|| listed.collect(), |names| names.into_iter().collect()));
            verdicts.failed.extend(answer.failed_nodes.into_iter().flatten().map(|(node, why)| (node, (why, false))));
            verdicts.failed.extend(answer.unresolvable_nodes.into_iter().flatten().map(|(node, why)| (node, (why, true))));
        }
        if !self.config.prioritize_verb.is_empty() {
            let scores: Vec<HostPriority> = self.call(&self.config.prioritize_verb, &args(verdicts)).await?;
            for HostPriority { host, score } in scores {
                *verdicts.scores.entry(host).or_default() += score.saturating_mul(self.config.weight).saturating_mul(SCALE);
            }
        }
        Ok(())
    }

    pub async fn bind(&self, pod: &ObjectKey, uid: &str, node: &str) -> Result<(), Error> {
        let args = json!({ "PodName": pod.name, "PodNamespace": pod.namespace, "PodUID": uid, "Node": node });
        let answer: Value = self.call(&self.config.bind_verb, &args).await?;
        let message = answer.get("Error").or_else(|| answer.get("error")).and_then(Value::as_str).unwrap_or_default();
        match message.is_empty() {
            true => Ok(()),
            false => Err(Error::Refused { url: self.config.url_prefix.clone(), message: message.to_owned() }),
        }
    }

    async fn call<T: serde::de::DeserializeOwned>(&self, verb: &str, body: &Value) -> Result<T, Error> {
        let url = format!("{}/{verb}", self.config.url_prefix.trim_end_matches('/'));
        let failed = |why: String| Error::Call { url: url.clone(), why };
        let request = http::Request::post(&url)
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))
            .map_err(|error| failed(error.to_string()))?;
        let answer = async {
            let response = self.client.request(request).await.map_err(|error| failed(error.to_string()))?;
            if !response.status().is_success() {
                return Err(failed(format!("failed {verb} with code {}", response.status().as_u16())));
            }
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = body.map_err(|error| failed(error.to_string()))?.to_bytes();
            serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))
        };
        tokio::time::timeout(self.timeout, answer).await.unwrap_or_else(|_| Err(failed("no answer in time".into())))
    }
}
