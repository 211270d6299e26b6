//! The remote APIServices, ready to be called.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use admission::webhook::endpoint;
use admission::webhook::tls::{self, Trust};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use serde_json::Value;

use super::Place;
use crate::Inner;
use crate::backend::Backend;
use crate::object::meta;
use crate::registry::catalog;
use crate::selection::Selection;

pub const GROUP: &str = "apiregistration.k8s.io";
pub const PLURAL: &str = "apiservices";
/// Changes of these may change who answers.
const WATCHED: [(&str, &str); 3] = [(GROUP, PLURAL), ("", "services"), ("discovery.k8s.io", "endpointslices")];

/// A group-version that another server serves.
pub struct Remote {
    /// The APIService's name: `v1beta1.metrics.k8s.io`.
    pub name: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// The condition says so.
    pub available: bool,
    pub tls: Result<Arc<rustls::ClientConfig>, String>,
    priority: (i64, i64),
}

#[derive(Default)]
pub struct Table {
    pub revision: Option<u64>,
    pub by_place: HashMap<Place, Arc<Remote>>,
    /// As discovery lists them: the weightier groups first.
    pub in_order: Vec<Arc<Remote>>,
}

/// The newest changes of what decides about remote servers, CRDs among them.
pub fn revisions(server: &Inner) -> [u64; 4] {
    let revision = |(group, plural): (&str, &str)| {
        let kind = catalog::stored(group, plural);
        kind.map_or(0, |kind| server.registry.caches.of(kind.storage.prefix.as_bytes()).revision())
    };
    let [api_services, services, slices] = WATCHED.map(revision);
    let definitions = revision(("apiextensions.k8s.io", "customresourcedefinitions"));
    // Services and slices come and go all the time; without remote servers nobody cares.
    match server.aggregator.table(server).by_place.is_empty() {
        true => [api_services, 0, 0, definitions],
        false => [api_services, services, slices, definitions],
    }
}

/// All APIServices.
pub fn all(server: &Inner) -> Vec<Value> {
    let Some(kind) = catalog::stored(GROUP, PLURAL) else { return Vec::new() };
    let selection = Selection::all(kind.prefix(""), kind.storage.rules.clone());
    let page = server.registry.caches.of(kind.storage.prefix.as_bytes()).list(&selection.prefix, b"", 0, &selection, 0);
    page.objects.iter().map(|object| object.value()).collect()
}

impl Table {
    pub fn read(server: &Inner, revision: u64, identity: Option<&Arc<dyn ResolvesClientCert>>) -> Self {
        let mut in_order: Vec<Arc<Remote>> = all(server)
            .iter()
            .filter(|object| object["spec"]["service"].is_object())
            .map(|object| Arc::new(Remote::read(object, identity)))
            .collect();
        in_order.sort_by(|a, b| (b.priority, &a.group, &a.version).cmp(&(a.priority, &b.group, &b.version)));
        let by_place = in_order.iter().map(|remote| (remote.place(), remote.clone())).collect();
        Self { revision: Some(revision), by_place, in_order }
    }
}

impl Remote {
    fn read(object: &Value, identity: Option<&Arc<dyn ResolvesClientCert>>) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let trust = match (spec["insecureSkipTLSVerify"].as_bool(), spec["caBundle"].as_str()) {
            (Some(true), _) => Ok(Trust::Anybody),
            (_, Some(bundle)) if !bundle.is_empty() => STANDARD.decode(bundle).map(Trust::Bundle).map_err(|error| error.to_string()),
            _ => Ok(Trust::System),
        };
        let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
        let mut available = conditions.filter(|condition| condition["type"] == "Available");
        Self {
            name: meta(object, "name").to_owned(),
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            namespace: text(&spec["service"]["namespace"]),
            service: text(&spec["service"]["name"]),
            port: spec["service"]["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            available: available.any(|condition| condition["status"] == "True"),
            tls: trust.and_then(|trust| tls::client_config(&trust, identity.cloned())).map(Arc::new),
            priority: (spec["groupPriorityMinimum"].as_i64().unwrap_or(0), spec["versionPriority"].as_i64().unwrap_or(0)),
        }
    }

    pub fn place(&self) -> Place {
        (self.group.clone(), self.version.clone())
    }

    pub fn host(&self) -> String {
        format!("{}.{}.svc", self.service, self.namespace)
    }

    pub fn server_name(&self) -> Result<ServerName<'static>, String> {
        ServerName::try_from(self.host()).map_err(|error| error.to_string())
    }

    /// One of the endpoints behind the Service, at random.
    pub async fn backend(&self, server: &Inner) -> Result<Backend, String> {
        let tls = self.tls.clone()?;
        let addresses = endpoint::resolve(&*server.registry.reader, &self.namespace, &self.service, self.port).await?;
        let address: SocketAddr = addresses.first().copied().ok_or("no address")?;
        Ok(Backend { address: address.ip(), port: address.port(), tls: Some(tls) })
    }
}
