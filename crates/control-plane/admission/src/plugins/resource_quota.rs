//! ResourceQuota: nothing is created that a namespace's quotas do not allow; what is created is charged at once.
//!
//! The charge is a compare-and-swap on the quota's status, one namespace at a time here, retried where another server or the quota
//! controller wrote in between. What is charged and then not created comes back with the controller's next count.
//! Source: apiserver `pkg/admission/plugin/resourcequota/controller.go`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use meta::gvk::GroupResource;
use meta::status::Status;
use meta::{Quantity, time};
use rules::quota::{self, Amounts, Resource};
use rules::value::{at, entries, list, name, set, text};
use serde_json::{Map, Value};

use crate::{Attributes, Lookup, Operation, Options, Plugin, Verdict, core};

const NAME: &str = "ResourceQuota";
/// Attempts against others who write the same status.
const ATTEMPTS: usize = 16;

/// Something of which the configuration says that it needs a quota.
struct Limited {
    group: String,
    resource: String,
    contains: Vec<String>,
    scopes: Vec<quota::Scope>,
}

type Turn = Arc<tokio::sync::Mutex<()>>;

#[derive(Default)]
pub struct ResourceQuota {
    limited: Vec<Limited>,
    /// Who charges in a namespace; entries go when nobody waits.
    turns: Mutex<HashMap<String, Turn>>,
}

impl ResourceQuota {
    pub fn new(options: &Options) -> Self {
        let Some(configuration) = options.configurations.get(NAME) else { return Self::default() };
        let read = |limited: &Value| Limited {
            group: text(limited, "apiGroup").to_owned(),
            resource: text(limited, "resource").to_owned(),
            contains: list(limited, "matchContains").iter().filter_map(|word| word.as_str().map(str::to_owned)).collect(),
            scopes: quota::scopes_in(list(limited, "matchScopes")),
        };
        Self { limited: list(configuration, "limitedResources").iter().map(read).collect(), turns: Mutex::default() }
    }

    fn turn(&self, namespace: &str) -> Turn {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        turns.entry(namespace.to_owned()).or_default().clone()
    }
}

impl Plugin for ResourceQuota {
    fn name(&self) -> &'static str {
        NAME
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        let resource = Resource { group: &attributes.gvr.group, plural: &attributes.gvr.resource };
        let charged = match attributes.operation {
            Operation::Create => attributes.subresource.is_empty(),
            _ => resource.charges_updates(&attributes.subresource),
        };
        // A namespace is not inside itself; events would charge quotas for what nobody asked for.
        let counted = !attributes.namespace.is_empty() && !matches!(attributes.gvr.resource.as_str(), "namespaces" | "events");
        if !charged || !counted || attributes.object.is_none() {
            return crate::accept();
        }
        Box::pin(self.charge(attributes, lookup))
    }
}

impl ResourceQuota {
    async fn charge(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        let quotas = lookup.list(&core("resourcequotas"), &attributes.namespace).await?;
        if quotas.is_empty() && self.limited.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = quotas.iter().map(|quota| name(quota).to_owned()).collect();
        let turn = self.turn(&attributes.namespace);
        let _mine = turn.lock().await;
        let mut paid = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let mut current = Vec::new();
            for name in names.iter().filter(|name| !paid.contains(*name)) {
                current.extend(lookup.get(&core("resourcequotas"), &attributes.namespace, name).await?);
            }
            // Several quotas are paid one by one: those already paid are not asked again.
            let wanted = self.check(attributes, &current, paid.is_empty())?;
            if attributes.dry_run {
                return Ok(());
            }
            let mut conflict = false;
            for quota in wanted {
                let quota_name = name(&quota).to_owned();
                match lookup.write_status(&resource_quotas(), quota).await? {
                    true => drop(paid.insert(quota_name)),
                    false => conflict = true,
                }
            }
            if !conflict {
                return Ok(());
            }
        }
        Err(Status::conflict(
            &resource_quotas(),
            names.first().map_or("", String::as_str),
            "the quota is being changed by others; try again",
        ))
    }

    /// The quotas with their new usage, those that change; the refusal otherwise.
    fn check(&self, attributes: &Attributes, quotas: &[Arc<Value>], demand_cover: bool) -> Result<Vec<Value>, Status> {
        let Some(object) = &attributes.object else { return Ok(Vec::new()) };
        let resource = Resource { group: &attributes.gvr.group, plural: &attributes.gvr.resource };
        let now = time::epoch(&time::now()).unwrap_or(0);
        let usage = resource.usage(object, now);
        let negative: Vec<&str> = usage.iter().filter(|(_, amount)| amount.is_negative()).map(|(name, _)| name.as_str()).collect();
        if !negative.is_empty() {
            return Err(attributes.forbidden(format!("quota usage is negative for resource(s): {}", negative.join(","))));
        }
        let matching: Vec<&Arc<Value>> = quotas.iter().filter(|quota| resource.matches(quota, object)).collect();
        for quota in &matching {
            let bounded: Vec<&String> = entries(quota, "status.hard").map(|(name, _)| name).filter(|name| resource.counts(name)).collect();
            if let Some(why) = resource.missing(object, bounded.iter().copied()) {
                return Err(attributes.forbidden(format!("failed quota: {}: {why}", name(quota))));
            }
            let used = at(quota, "status.used");
            if bounded.iter().any(|name| used.get(name.as_str()).is_none()) {
                let bounded: Vec<&str> = bounded.iter().map(|name| name.as_str()).collect();
                let why = format!("status unknown for quota: {}, resources: {}", name(quota), bounded.join(","));
                return Err(attributes.forbidden(why));
            }
        }
        let delta = |quota: &Value| match attributes.old.as_ref().filter(|old| resource.matches(quota, old)) {
            Some(old) => less(&usage, &resource.usage(old, now)),
            None => usage.iter().map(|(name, amount)| (name.clone(), *amount)).filter(|(_, amount)| !amount.is_zero()).collect(),
        };
        if demand_cover {
            self.covered(attributes, resource, object, &usage, quotas)?;
        }
        let mut changed = Vec::new();
        for quota in matching {
            changed.extend(charged(attributes, quota, &delta(quota))?);
        }
        Ok(changed)
    }

    /// What the configuration limits must be bounded by some quota.
    fn covered(
        &self,
        attributes: &Attributes,
        resource: Resource<'_>,
        object: &Value,
        usage: &Amounts,
        quotas: &[Arc<Value>],
    ) -> Result<(), Status> {
        let about = |limited: &&Limited| limited.group == resource.group && limited.resource == resource.plural;
        let limited: Vec<&Limited> = self.limited.iter().filter(about).collect();
        let consumed = usage.iter().filter(|(_, amount)| !amount.is_zero()).map(|(name, _)| name);
        let needs = |name: &&String| limited.iter().any(|limited| limited.contains.iter().any(|word| name.contains(word.as_str())));
        let bounded =
            |name: &String| quotas.iter().any(|quota| resource.matches(quota, object) && at(quota, "status.hard").get(name).is_some());
        let uncovered: Vec<&str> = consumed.filter(needs).filter(|name| !bounded(name)).map(String::as_str).collect();
        if !uncovered.is_empty() {
            return Err(attributes.forbidden(format!("insufficient quota to consume: {}", uncovered.join(","))));
        }
        let wanted = limited.iter().flat_map(|limited| &limited.scopes).filter(|scope| resource.in_scope(scope, object));
        let given: Vec<quota::Scope> = quotas.iter().flat_map(|quota| quota::scopes_of(quota)).collect();
        let given: Vec<&str> = given.iter().filter(|scope| resource.in_scope(scope, object)).map(|scope| scope.name.as_str()).collect();
        let uncovered: Vec<String> = wanted.filter(|scope| !given.contains(&scope.name.as_str())).map(ToString::to_string).collect();
        match uncovered.is_empty() {
            true => Ok(()),
            false => Err(attributes.forbidden(format!("insufficient quota to match these scopes: [{}]", uncovered.join(" ")))),
        }
    }
}

fn resource_quotas() -> GroupResource {
    core("resourcequotas")
}

/// `new - old` where that is more than nothing.
fn less(new: &Amounts, old: &Amounts) -> Amounts {
    let rest = new.iter().map(|(name, amount)| (name.clone(), old.get(name).map_or(*amount, |old| *amount - *old)));
    rest.filter(|(_, amount)| !amount.is_zero() && !amount.is_negative()).collect()
}

/// The quota with `delta` added to what is used; `None` where that changes nothing.
fn charged(attributes: &Attributes, quota: &Value, delta: &Amounts) -> Result<Option<Value>, Status> {
    let hard = quota::amounts(quota, "status.hard");
    let mut used = quota::amounts(quota, "status.used");
    let asked: BTreeMap<&String, &Quantity> = delta.iter().filter(|(name, _)| hard.contains_key(*name)).collect();
    if asked.is_empty() {
        return Ok(None);
    }
    let before = used.clone();
    for (name, amount) in &asked {
        let sum = used.get(*name).map_or(**amount, |present| *present + **amount);
        used.insert((*name).clone(), sum);
    }
    let exceeded: Vec<&String> = asked.keys().copied().filter(|name| used.get(*name) > hard.get(*name)).collect();
    if !exceeded.is_empty() {
        let part = |of: &Amounts| quota::shown(of.iter().filter(|(name, _)| exceeded.contains(name)));
        let (name, requested) = (name(quota), part(delta));
        let why = format!("exceeded quota: {name}, requested: {requested}, used: {}, limited: {}", part(&before), part(&hard));
        return Err(attributes.forbidden(why));
    }
    let written: Map<String, Value> = used.into_iter().map(|(name, amount)| (name, amount.to_string().into())).collect();
    let mut next = quota.clone();
    set(&mut next, "status.used", written);
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    fn quota(hard: Value, used: Value) -> Value {
        json!({"metadata": {"name": "q", "namespace": "a", "resourceVersion": "1"}, "status": {"hard": hard, "used": used}})
    }

    fn pod(requests: Value) -> Attributes {
        let spec = json!({"containers": [{"name": "c", "resources": {"requests": requests}}]});
        write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec}))
    }

    #[tokio::test]
    async fn what_exceeds_a_quota_is_refused_with_the_figures() {
        let cases = [
            (json!({"pods": "2"}), json!({"pods": "1"}), json!({}), Ok(())),
            (
                json!({"pods": "1"}),
                json!({"pods": "1"}),
                json!({}),
                Err("exceeded quota: q, requested: pods=1, used: pods=1, limited: pods=1"),
            ),
            (
                json!({"requests.cpu": "1", "requests.memory": "1Gi"}),
                json!({"requests.cpu": "500m", "requests.memory": "0"}),
                json!({"cpu": "600m", "memory": "2Gi"}),
                Err(
                    "exceeded quota: q, requested: requests.cpu=600m,requests.memory=2Gi, used: requests.cpu=500m,requests.memory=0, limited: requests.cpu=1,requests.memory=1Gi",
                ),
            ),
            (
                json!({"requests.cpu": "1"}),
                json!({"requests.cpu": "0"}),
                json!({}),
                Err("failed quota: q: must specify requests.cpu for: c"),
            ),
            (json!({"pods": "1"}), json!({}), json!({}), Err("status unknown for quota: q, resources: pods")),
            (json!({"count/pods": "5", "services": "0"}), json!({"count/pods": "4", "services": "0"}), json!({}), Ok(())),
            (json!({"configmaps": "0"}), json!({"configmaps": "0"}), json!({}), Ok(())),
        ];
        for (hard, used, requests, expected) in cases {
            let objects = Objects::default().with("resourcequotas", quota(hard.clone(), used));
            let found = run(ResourceQuota::default(), objects, &mut pod(requests)).await;
            assert_eq!(found, expected.map_err(|why| format!("pods \"p\" is forbidden: {why}")), "{hard}");
        }
    }

    #[tokio::test]
    async fn usage_is_charged_but_not_by_a_dry_run() {
        for (dry_run, used) in [(true, "1"), (false, "2")] {
            let objects = Arc::new(Objects::default().with("resourcequotas", quota(json!({"pods": "5"}), json!({"pods": "1"}))));
            let mut attributes = pod(json!({}));
            attributes.dry_run = dry_run;
            let plugin = ResourceQuota::default();
            assert!(plugin.validate(&attributes, &*objects).await.is_ok());
            let quotas = objects.list(&core("resourcequotas"), "a").await.expect("quotas");
            assert_eq!(text(&quotas[0], "status.used.pods"), used, "dry run: {dry_run}");
        }
    }

    #[tokio::test]
    async fn an_update_pays_the_difference() {
        let service = |ports: usize| {
            let ports: Vec<Value> = (0..ports).map(|port| json!({"port": port})).collect();
            json!({"metadata": {"name": "s", "namespace": "a"}, "spec": {"type": "NodePort", "ports": ports}})
        };
        let used = json!({"services": "1", "services.nodeports": "2"});
        let objects = Arc::new(Objects::default().with("resourcequotas", quota(json!({"services": "1", "services.nodeports": "3"}), used)));
        for (ports, passes) in [(3, true), (6, false)] {
            let mut attributes = write(Operation::Update, "services", "Service", service(ports));
            attributes.old = Some(service(2));
            assert_eq!(ResourceQuota::default().validate(&attributes, &*objects).await.is_ok(), passes, "{ports}");
        }
    }

    #[tokio::test]
    async fn what_is_limited_by_configuration_needs_a_quota() {
        let limited = json!({"limitedResources": [{"resource": "pods", "matchScopes": [{"scopeName": "PriorityClass", "operator": "In", "values": ["high"]}]}]});
        let options = Options { configurations: [(NAME.to_owned(), limited)].into(), ..Options::default() };
        let mut attributes = pod(json!({}));
        attributes.object.as_mut().expect("object")["spec"]["priorityClassName"] = "high".into();
        let found = run(ResourceQuota::new(&options), Objects::default(), &mut attributes).await;
        let expected = "pods \"p\" is forbidden: insufficient quota to match these scopes: [{PriorityClass In [high]}]";
        assert_eq!(found, Err(expected.to_owned()));
        assert_eq!(run(ResourceQuota::new(&options), Objects::default(), &mut pod(json!({}))).await, Ok(()));
    }
}
