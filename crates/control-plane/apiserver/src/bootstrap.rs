//! What every cluster has from its first moment, made or repaired at every start.

pub mod roles;

use std::time::Duration;

use auth::UserInfo;
use futures_util::future::try_join_all;
use http::HeaderMap;
use meta::Status;
use rules::Part;
use serde_json::{Value, json};

use crate::context::{Context, WriteOptions};
use crate::object::{decode, meta, metadata_mut};
use crate::registry::catalog::{self, Kind};
use crate::registry::{Owners, Target};
use crate::request::{Query, RequestInfo};
use crate::selection::Selection;
use crate::{Error, Inner};

/// How long the store may take to be read at start.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

pub async fn run(server: &Inner) -> Result<(), Error> {
    let caches = &server.registry.caches;
    let fail = |what: &str| {
        let what = what.to_owned();
        move |status: Status| Error::Bootstrap { what, status }
    };
    if !caches.wait_loaded(LOAD_PATIENCE).await {
        return Err(fail("reading the store")(Status::internal("it was not read in time")));
    }
    occupy_services(server);
    // All at once: the store makes one durable write of many, and the first start is short.
    let namespaces = NAMESPACES.map(|name| ensure(server, "", "namespaces", json!({"metadata": {"name": name}}), |_, _| {}));
    try_join_all(namespaces).await.map_err(fail("namespaces"))?;
    let classes = priority_classes().map(|class| ensure(server, "scheduling.k8s.io", "priorityclasses", class, |_, _| {}));
    let roles = roles::all().into_iter().map(|(plural, object)| ensure(server, "rbac.authorization.k8s.io", plural, object, roles::repair));
    let (classes, roles, flows) = tokio::join!(try_join_all(classes), try_join_all(roles), flows(server));
    flows.map_err(fail("flows and priority levels"))?;
    classes.map_err(fail("priority classes"))?;
    roles.map_err(fail("roles"))?;
    if let Some(authorities) = &server.client_authorities {
        publish_authorities(server, authorities).await.map_err(fail("the authentication of extension API servers"))?;
    }
    token_tracking(server).await.map_err(fail("since when the use of tokens without an end is noted"))?;
    service_range(server).await.map_err(fail("the range of Services"))?;
    kubernetes_service(server).await.map_err(fail("the kubernetes Service"))?;
    // From here on the roles count.
    match caches.reach(server.registry.store.revision(), LOAD_PATIENCE).await {
        true => Ok(()),
        false => Err(fail("reading back")(Status::internal("the watch cache did not follow"))),
    }
}

/// The mandatory and the suggested objects of flow control, as they should be: at start, and again when somebody changed or deleted one.
pub async fn flows(server: &Inner) -> Result<(), Status> {
    let (levels, schemas) = crate::flow::schema::standard();
    let levels = levels.into_iter().map(|level| ("prioritylevelconfigurations", level));
    let flows = levels.chain(schemas.into_iter().map(|schema| ("flowschemas", schema)));
    let flows = flows.map(|(plural, object)| ensure(server, crate::flow::GROUP, plural, object, crate::flow::schema::repair));
    try_join_all(flows).await.map(drop)
}

/// Extension API servers follow this object.
pub async fn publish_authorities(server: &Inner, authorities: &crate::ClientAuthorities) -> Result<(), Status> {
    let map = extension_authentication(authorities);
    ensure(server, "", "configmaps", map, |old, wanted| old["data"] = wanted["data"].clone()).await.map(drop)
}

/// How extension API servers know our clients and us as their front proxy. Source: `controlplane/controller/clusterauthenticationtrust`.
fn extension_authentication(authorities: &crate::ClientAuthorities) -> Value {
    json!({
        "metadata": {"name": "extension-apiserver-authentication", "namespace": "kube-system"},
        "data": {
            "client-ca-file": authorities.client_ca,
            "requestheader-client-ca-file": authorities.front_proxy_ca,
            "requestheader-allowed-names": json!(authorities.front_proxies).to_string(),
            "requestheader-username-headers": r#"["X-Remote-User"]"#,
            "requestheader-uid-headers": r#"["X-Remote-Uid"]"#,
            "requestheader-group-headers": r#"["X-Remote-Group"]"#,
            "requestheader-extra-headers-prefix": r#"["X-Remote-Extra-"]"#,
        },
    })
}

/// From which day on the uses of Secrets' tokens are noted. Source: `controlplane/controller/legacytokentracking`.
async fn token_tracking(server: &Inner) -> Result<(), Status> {
    let name = "kube-apiserver-legacy-service-account-token-tracking";
    let map = json!({"metadata": {"name": name, "namespace": "kube-system"}, "data": {"since": crate::access::today()}});
    ensure(server, "", "configmaps", map, |old, wanted| {
        let day = old["data"]["since"].as_str().unwrap_or_default();
        if day.parse::<jiff::civil::Date>().is_err() {
            old["data"] = wanted["data"].clone();
        }
    })
    .await
}

/// Addresses and ports that stored Services have are taken.
fn occupy_services(server: &Inner) {
    let Some(kind) = catalog::stored("", "services") else { return };
    let cache = server.registry.caches.of(kind.storage.prefix.as_bytes());
    let page = cache.list(kind.storage.prefix.as_bytes(), b"", 0, &Selection::all(kind.prefix(""), kind.storage.rules.clone()), 0);
    for object in page.objects {
        server.registry.services.occupy(&decode(&object.bytes, object.revision));
    }
}

fn priority_classes() -> [Value; 2] {
    let class = |name: &str, value: i64, description: &str| json!({"metadata": {"name": name}, "value": value, "description": description, "preemptionPolicy": "PreemptLowerPriority"});
    [
        class("system-node-critical", 2_000_001_000, "Used for system critical pods that must not be moved from their current node."),
        class(
            "system-cluster-critical",
            2_000_000_000,
            "Used for system critical pods that must run in the cluster, but can be moved to another node if necessary.",
        ),
    ]
}

/// The addresses that Services get, as the object that KEP-1880 makes of them; a second family that came since is added.
async fn service_range(server: &Inner) -> Result<(), Status> {
    let networks = &server.registry.services.ranges.networks;
    let cidrs: Vec<String> = networks.iter().map(|network| format!("{}/{}", network.first, network.prefix)).collect();
    let range = json!({"metadata": {"name": "kubernetes"}, "spec": {"cidrs": cidrs}});
    let widen = |old: &mut Value, wanted: &Value| {
        let count = |range: &Value| range["spec"]["cidrs"].as_array().map_or(0, Vec::len);
        if (count(old), count(wanted)) == (1, 2) && old["spec"]["cidrs"][0] == wanted["spec"]["cidrs"][0] {
            old["spec"]["cidrs"] = wanted["spec"]["cidrs"].clone();
        }
    };
    ensure(server, "networking.k8s.io", "servicecidrs", range, widen).await
}

/// The Service through which pods reach the API, with its endpoints.
async fn kubernetes_service(server: &Inner) -> Result<(), Status> {
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": server.registry.services.ranges.first().to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": server.port}],
            "sessionAffinity": "None",
        },
    });
    ensure(server, "", "services", service, |old, wanted| old["spec"]["ports"] = wanted["spec"]["ports"].clone()).await?;
    if server.advertise.is_loopback() {
        tracing::warn!("the API server advertises a loopback address: the kubernetes Service has no endpoints");
        return Ok(());
    }
    let address = server.advertise.to_string();
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{"addresses": [{"ip": address}], "ports": [{"name": "https", "port": server.port, "protocol": "TCP"}]}],
    });
    ensure(server, "", "endpoints", endpoints, |old, wanted| old["subsets"] = wanted["subsets"].clone()).await?;
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": server.port, "protocol": "TCP"}],
    });
    let repair = |old: &mut Value, wanted: &Value| {
        old["endpoints"] = wanted["endpoints"].clone();
        old["ports"] = wanted["ports"].clone();
    };
    ensure(server, "discovery.k8s.io", "endpointslices", slice, repair).await
}

/// Creates the object, or lets `repair` bring the existing one up to date.
pub async fn ensure(
    server: &Inner,
    group: &str,
    plural: &str,
    mut object: Value,
    repair: impl Fn(&mut Value, &Value) + Send + Sync,
) -> Result<(), Status> {
    let kind = catalog::stored(group, plural).ok_or_else(|| Status::internal(format!("{plural}.{group} is not served")))?;
    let context = context(kind);
    object["kind"] = kind.facts.kind.into();
    object["apiVersion"] = kind.api_version().into();
    crate::codec::default(kind, &mut object);
    let (namespace, name) = (meta(&object, "namespace").to_owned(), meta(&object, "name").to_owned());
    let target = Target { kind, namespace: &namespace, name: &name };
    let options = WriteOptions::internal();
    if server.registry.find(target).await?.is_none() {
        match server.registry.create(&context, target, object.clone(), &options, Owners::Update).await {
            Err(status) if !status.is("AlreadyExists") => return Err(status),
            _ => return Ok(()),
        }
    }
    let make = |old: &Value| {
        let mut new = old.clone();
        repair(&mut new, &object);
        metadata_mut(&mut new).remove("resourceVersion");
        Ok(new)
    };
    server.registry.update(&context, target, Part::Main, &options, Owners::Update, make).await.map(drop)
}

/// The server itself as the one who asks.
pub fn context(kind: &Kind) -> Context {
    let info =
        RequestInfo { is_resource: true, resource: kind.facts.plural.into(), group: kind.facts.group.into(), ..RequestInfo::default() };
    Context::new(info, Query::default(), HeaderMap::new(), UserInfo::authenticated("system:apiserver", &["system:masters"]))
}
