//! EndpointSlices of one owner: which endpoints go into which slice, with as few slices changed as can be, and the writes.
//!
//! Shared by the two controllers that make slices: of a Service's pods, and of Endpoints that users write themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{ApiResource, Client, DeleteParams, Error};
use http::Method;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use reconcile::{Expectations, ObjectKey, PartialObject, key_of};

use crate::act;
use crate::service::Port;

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(crate) const HEADLESS: &str = "service.kubernetes.io/headless";

/// Endpoints per slice (upstream: `--max-endpoints-per-slice`).
pub(crate) const ENDPOINTS_MAX: usize = 100;

/// What a slice is one of: an address family and a set of ports.
pub(crate) type Group = (String, Vec<Port>);

/// Endpoints by what makes them themselves: a pod's uid, or an address.
pub(crate) type Members = BTreeMap<String, Endpoint>;

/// What all slices of an owner have in common.
pub(crate) struct Template {
    pub namespace: Option<String>,
    /// What their names begin with.
    pub prefix: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: Option<BTreeMap<String, String>>,
    pub owner: OwnerReference,
}

#[derive(Default)]
pub(crate) struct Plan {
    pub create: Vec<EndpointSlice>,
    pub update: Vec<EndpointSlice>,
    pub delete: Vec<Arc<EndpointSlice>>,
}

pub(crate) fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.clone());
    uid.unwrap_or_else(|| endpoint.addresses.join(","))
}

/// Groups without members are wanted as one empty slice; groups that are not in `wanted` lose their slices.
pub(crate) fn pack(template: &Template, mut wanted: BTreeMap<Group, Members>, slices: &[Arc<EndpointSlice>]) -> Plan {
    let mut have: BTreeMap<Group, Vec<&Arc<EndpointSlice>>> = BTreeMap::new();
    slices.iter().for_each(|slice| have.entry(group_of(slice)).or_default().push(slice));
    let groups: BTreeSet<Group> = wanted.keys().chain(have.keys()).cloned().collect();
    let mut plan = Plan::default();
    for group in groups {
        let slices = have.get(&group).map(Vec::as_slice).unwrap_or_default();
        match wanted.remove(&group) {
            Some(members) => arrange(template, &group, members, slices, &mut plan),
            None => plan.delete.extend(slices.iter().map(|slice| (*slice).clone())),
        }
    }
    plan
}

fn group_of(slice: &EndpointSlice) -> Group {
    let port = |port: &EndpointPort| Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
        number: port.port.unwrap_or(0),
        app_protocol: port.app_protocol.clone(),
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    (slice.address_type.clone(), ports)
}

/// Leaves each endpoint in the slice where it is; fills the new ones into slices that change anyway, then into others with room,
/// then into new slices; drops slices that became empty.
fn arrange(template: &Template, group: &Group, mut left: Members, slices: &[&Arc<EndpointSlice>], plan: &mut Plan) {
    let wants_nobody = left.is_empty();
    let mut kept: Vec<(&Arc<EndpointSlice>, Vec<Endpoint>, bool)> = Vec::new();
    for slice in slices {
        let before: Vec<&Endpoint> = slice.endpoints.iter().flatten().collect();
        let after: Vec<Endpoint> = before.iter().filter_map(|endpoint| left.remove(&identity(endpoint))).collect();
        let changed = before.len() != after.len() || before.iter().zip(&after).any(|(a, b)| *a != b) || stale_meta(template, slice);
        kept.push((slice, after, changed));
    }
    let mut left: Vec<Endpoint> = left.into_values().collect();
    // Changed slices first, then the fullest.
    let mut order: Vec<usize> = (0..kept.len()).collect();
    order.sort_by_key(|index| (!kept[*index].2, usize::MAX - kept[*index].1.len()));
    for index in order {
        let (_, endpoints, changed) = &mut kept[index];
        let room = ENDPOINTS_MAX.saturating_sub(endpoints.len()).min(left.len());
        *changed |= room > 0;
        endpoints.extend(left.drain(..room));
    }
    let mut standing = 0;
    let total = kept.len();
    for (index, (slice, endpoints, changed)) in kept.into_iter().enumerate() {
        let last_hope = wants_nobody && standing == 0 && index + 1 == total;
        if endpoints.is_empty() && !last_hope {
            plan.delete.push(slice.clone());
            continue;
        }
        standing += 1;
        if changed {
            plan.update.push(EndpointSlice {
                metadata: meta(template, Some(slice)),
                endpoints: Some(endpoints),
                ..EndpointSlice::clone(slice)
            });
        }
    }
    plan.create.extend(left.chunks(ENDPOINTS_MAX).map(|endpoints| new_slice(template, group, endpoints.to_vec())));
    if standing == 0 && wants_nobody {
        plan.create.push(new_slice(template, group, Vec::new()));
    }
}

fn new_slice(template: &Template, group: &Group, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |port: &Port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    };
    EndpointSlice {
        address_type: group.0.clone(),
        endpoints: Some(endpoints),
        ports: (!group.1.is_empty()).then(|| group.1.iter().map(port).collect()),
        metadata: meta(template, None),
    }
}

fn meta(template: &Template, slice: Option<&EndpointSlice>) -> ObjectMeta {
    let mut meta = slice.map(|slice| slice.metadata.clone()).unwrap_or_else(|| ObjectMeta {
        namespace: template.namespace.clone(),
        generate_name: Some(template.prefix.clone()),
        ..ObjectMeta::default()
    });
    meta.labels = Some(template.labels.clone());
    if let Some(annotations) = &template.annotations {
        meta.annotations = Some(annotations.clone());
    }
    meta.owner_references = Some(vec![template.owner.clone()]);
    meta
}

fn stale_meta(template: &Template, slice: &EndpointSlice) -> bool {
    let owned = slice.metadata.owner_references.iter().flatten().any(|owner| owner.uid == template.owner.uid);
    let annotated = template.annotations.as_ref().is_none_or(|wanted| slice.metadata.annotations.clone().unwrap_or_default() == *wanted);
    !owned || !annotated || slice.metadata.labels.as_ref() != Some(&template.labels)
}

/// New slices before old ones go: in between an endpoint may be in two, but never in none.
pub(crate) async fn write(
    client: &Client,
    expectations: &Arc<Expectations<ObjectKey>>,
    owner: &ObjectKey,
    plan: Plan,
) -> Result<(), Error> {
    let with = || (client.clone(), expectations.clone(), owner.clone());
    let created = act::at_once(plan.create, |slice| {
        let (client, expectations, owner) = with();
        async move { put(&client, Method::POST, &slice).await.map(|revision| expectations.wrote(&owner, Some(&revision))) }
    });
    match created.await {
        Err(error) if error.is_namespace_terminating() || error.is_not_found() => return Ok(()),
        other => other?,
    }
    act::at_once(plan.update, |slice| {
        let (client, expectations, owner) = with();
        async move { put(&client, Method::PUT, &slice).await.map(|revision| expectations.wrote(&owner, Some(&revision))) }
    })
    .await?;
    act::at_once(plan.delete, |slice| {
        let (client, expectations, owner) = with();
        async move {
            let key = key_of(&slice.metadata);
            let uid = slice.metadata.uid.as_deref().unwrap_or_default();
            let deleted = client.delete::<EndpointSlice>(key.namespace(), &key.name, &DeleteParams::of_uid(uid)).await;
            client::ignore_not_found(deleted)?;
            expectations.deleted(&owner, key, uid);
            Ok(())
        }
    })
    .await
}

/// Writes a slice and returns its revision; a hundred endpoints are not decoded again for that.
async fn put(client: &Client, method: Method, slice: &EndpointSlice) -> Result<String, Error> {
    let (resource, key) = (ApiResource::of::<EndpointSlice>(), key_of(&slice.metadata));
    let path = match method {
        Method::POST => resource.collection(key.namespace()),
        _ => resource.object(key.namespace(), &key.name, ""),
    };
    let body = serde_json::to_vec(slice).map_err(|error| Error::Request(error.to_string()))?;
    let written: PartialObject = client.request_json(method, &path, Some(body.into())).await?;
    Ok(written.metadata.resource_version)
}
