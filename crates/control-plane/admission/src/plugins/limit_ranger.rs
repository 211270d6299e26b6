//! LimitRanger: the limit ranges of a namespace give its pods default requests and limits, and bound them.

use std::collections::BTreeMap;
use std::sync::Arc;

use meta::status::Status;
use meta::{Quantity, quantity};
use rules::value::{at, entries, items_mut, list, object_at, set, text};
use serde_json::Value;

use crate::{Attributes, Lookup, Operation, Plugin, Verdict, core};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

pub struct LimitRanger;

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if attributes.is("", "pods") && attributes.operation == Operation::Create {
                let ranges = lookup.list(&core("limitranges"), &attributes.namespace).await?;
                if let Some(pod) = attributes.object.as_mut() {
                    ranges.iter().for_each(|range| fill_in(pod, range));
                }
            }
            Ok(())
        })
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(judge(attributes, lookup))
    }
}

async fn judge(attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    // Of pods only a resize changes what they ask for.
    let part = if attributes.operation == Operation::Create { "" } else { "resize" };
    let is_pod = attributes.is_part("", "pods", part);
    if !is_pod && !attributes.is("", "persistentvolumeclaims") {
        return Ok(());
    }
    let Some(object) = &attributes.object else { return Ok(()) };
    let ranges: Vec<Arc<Value>> = lookup.list(&core("limitranges"), &attributes.namespace).await?;
    let mut complaints = Vec::new();
    for limit in ranges.iter().flat_map(|range| list(range, "spec.limits")) {
        match text(limit, "type") {
            "Container" if is_pod => {
                for container in list(object, "spec.initContainers").iter().chain(list(object, "spec.containers")) {
                    complaints.extend(within(limit, "Container", &Amounts::of(at(container, "resources"))));
                }
            }
            "Pod" if is_pod => complaints.extend(within(limit, "Pod", &Amounts::of_pod(object))),
            "PersistentVolumeClaim" if !is_pod => {
                let amounts = Amounts { limits: Resources::new(), ..Amounts::of(at(object, "spec.resources")) };
                complaints.extend(within(limit, "PersistentVolumeClaim", &amounts));
            }
            _ => {}
        }
    }
    match complaints.as_slice() {
        [] => Ok(()),
        [one] => Err(attributes.forbidden(one)),
        many => Err(attributes.forbidden(format!("[{}]", many.join(", ")))),
    }
}

/// Gives every container what it lacks, and says so in an annotation.
fn fill_in(pod: &mut Value, range: &Value) {
    let mut done = Vec::new();
    for limit in list(range, "spec.limits").iter().filter(|limit| text(limit, "type") == "Container") {
        for (kind, word) in [("spec.containers", "container"), ("spec.initContainers", "init container")] {
            for container in items_mut(pod, kind) {
                let name = text(container, "name").to_owned();
                for (part, defaults) in [("requests", "defaultRequest"), ("limits", "default")] {
                    let added = add_missing(container, part, at(limit, defaults));
                    if !added.is_empty() {
                        done.push(format!("{} {} for {word} {name}", added.join(", "), part.trim_end_matches('s')));
                    }
                }
            }
        }
    }
    if let Some(annotations) = (!done.is_empty()).then(|| object_at(pod, "metadata.annotations")).flatten() {
        annotations.insert(ANNOTATION.into(), format!("LimitRanger plugin set: {}", done.join("; ")).into());
    }
}

fn add_missing(container: &mut Value, part: &str, defaults: &Value) -> Vec<String> {
    let path = format!("resources.{part}");
    let present = at(container, &path).clone();
    let missing = defaults.as_object().into_iter().flatten().filter(|(name, _)| present.get(*name).is_none());
    let missing: Vec<(String, Value)> = missing.map(|(name, amount)| (name.clone(), amount.clone())).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    let mut all = present.as_object().cloned().unwrap_or_default();
    let names = missing.iter().map(|(name, _)| name.clone()).collect();
    all.extend(missing);
    set(container, &path, all);
    names
}

type Resources = BTreeMap<String, Quantity>;

#[derive(Default)]
struct Amounts {
    requests: Resources,
    limits: Resources,
}

impl Amounts {
    fn of(resources: &Value) -> Self {
        let read = |part: &str| {
            let pairs = entries(resources, part);
            pairs.filter_map(|(name, amount)| Some((name.clone(), quantity::from_json(amount)?))).collect()
        };
        Self { requests: read("requests"), limits: read("limits") }
    }
    /// All containers together, or the start where it needs more; what the pod says of itself as a whole takes their place.
    fn of_pod(pod: &Value) -> Self {
        let of = |part: &str| {
            let mut sum = rules::resources::of_containers(at(pod, "spec"), part);
            let whole = Self::of(at(pod, "spec.resources"));
            sum.extend(if part == "requests" { whole.requests } else { whole.limits });
            sum
        };
        Self { requests: of("requests"), limits: of("limits") }
    }
}

fn within(limit: &Value, kind: &str, amounts: &Amounts) -> Vec<String> {
    let mut complaints = Vec::new();
    let bounds = |field: &str| -> Resources {
        entries(limit, field).filter_map(|(name, amount)| Some((name.clone(), quantity::from_json(amount)?))).collect()
    };
    for (name, bound) in bounds("min") {
        let head = format!("minimum {name} usage per {kind} is {bound}");
        match (amounts.requests.get(&name), amounts.limits.get(&name)) {
            (None, _) => complaints.push(format!("{head}.  No request is specified")),
            (Some(request), _) if *request < bound => complaints.push(format!("{head}, but request is {request}")),
            (_, Some(limit)) if *limit < bound => complaints.push(format!("{head}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, bound) in bounds("max") {
        let head = format!("maximum {name} usage per {kind} is {bound}");
        if kind == "PersistentVolumeClaim" {
            // Of claims only what they ask for counts.
            match amounts.requests.get(&name) {
                None => complaints.push(format!("{head}.  No request is specified")),
                Some(request) if *request > bound => complaints.push(format!("{head}, but request is {request}")),
                _ => {}
            }
            continue;
        }
        match (amounts.limits.get(&name), amounts.requests.get(&name)) {
            (None, _) => complaints.push(format!("{head}.  No limit is specified")),
            (Some(limit), _) if *limit > bound => complaints.push(format!("{head}, but limit is {limit}")),
            (_, Some(request)) if *request > bound => complaints.push(format!("{head}, but request is {request}")),
            _ => {}
        }
    }
    for (name, bound) in bounds("maxLimitRequestRatio") {
        complaints.extend(ratio(&name, bound, kind, amounts));
    }
    complaints
}

fn ratio(name: &str, bound: Quantity, kind: &str, amounts: &Amounts) -> Option<String> {
    let head = format!("{name} max limit to request ratio per {kind} is {bound}");
    let given = |part: &Resources| part.get(name).filter(|amount| !amount.is_zero()).map(Quantity::milli_value);
    let Some(request) = given(&amounts.requests) else {
        return Some(format!("{head}, but no request is specified or request is 0"));
    };
    let Some(limit) = given(&amounts.limits) else {
        return Some(format!("{head}, but no limit is specified or limit is 0"));
    };
    let provided = limit as f64 / request as f64;
    (provided > bound.milli_value() as f64 / 1000.0).then(|| format!("{head}, but provided ratio is {provided:.6}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    fn range(limit: Value) -> Objects {
        Objects::default().with("limitranges", json!({"metadata": {"name": "l", "namespace": "a"}, "spec": {"limits": [limit]}}))
    }

    fn pod(resources: Value) -> Attributes {
        let spec = json!({"containers": [{"name": "c", "resources": resources}]});
        write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "a"}, "spec": spec}))
    }

    #[tokio::test]
    async fn containers_get_the_defaults_they_lack() {
        let limit = json!({"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}});
        let mut attributes = pod(json!({"limits": {"cpu": "2"}}));
        assert_eq!(run(LimitRanger, range(limit), &mut attributes).await, Ok(()));
        let object = attributes.object.expect("object");
        let expected = json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "100m"}});
        assert_eq!(object["spec"]["containers"][0]["resources"], expected);
        let note = "LimitRanger plugin set: cpu request for container c; memory limit for container c";
        assert_eq!(object["metadata"]["annotations"][ANNOTATION], note);
    }

    #[tokio::test]
    async fn pods_outside_the_bounds_are_refused() {
        let cases = [
            (
                json!({"type": "Container", "max": {"cpu": "1"}}),
                json!({"limits": {"cpu": "2"}}),
                "maximum cpu usage per Container is 1, but limit is 2",
            ),
            (json!({"type": "Container", "max": {"cpu": "1"}}), json!({}), "maximum cpu usage per Container is 1.  No limit is specified"),
            (
                json!({"type": "Pod", "min": {"memory": "1Gi"}}),
                json!({"requests": {"memory": "1Mi"}}),
                "minimum memory usage per Pod is 1Gi, but request is 1Mi",
            ),
            (
                json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
                json!({"limits": {"cpu": "3"}, "requests": {"cpu": "1"}}),
                "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
            ),
        ];
        for (limit, resources, expected) in cases {
            let found = run(LimitRanger, range(limit), &mut pod(resources)).await;
            assert_eq!(found, Err(format!("pods \"p\" is forbidden: {expected}")));
        }
    }
}
