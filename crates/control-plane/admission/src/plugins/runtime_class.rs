//! RuntimeClass: a pod takes over what its runtime class says about overhead and nodes (KEP-688).

use meta::gvk::GroupResource;
use meta::status::Status;
use rules::value::{at, entries, has, list, object_at, same, set, text};
use serde_json::Value;

use super::service_account::push;
use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

pub struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let Some(class) = class(attributes, lookup).await? else { return Ok(()) };
            let refused = attributes.object.as_mut().map(|pod| take_over(pod, &class)).unwrap_or(Ok(()));
            refused.map_err(|why| attributes.forbidden(why))
        })
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let Some(pod) = attributes.object.as_ref().filter(|_| attributes.is("", "pods")) else { return Ok(()) };
            let class = class(attributes, lookup).await?;
            let fixed = class.as_ref().map(|class| at(class, "overhead.podFixed")).unwrap_or(&Value::Null);
            let overhead = at(pod, "spec.overhead");
            if same(overhead, fixed) {
                return Ok(());
            }
            Err(attributes.forbidden(match fixed.is_null() {
                true => "pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead",
                false => "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead",
            }))
        })
    }
}

async fn class(attributes: &Attributes, lookup: &dyn Lookup) -> Result<Option<Value>, Status> {
    let name = attributes.object.as_ref().filter(|_| attributes.is("", "pods")).map(|pod| text(pod, "spec.runtimeClassName"));
    let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(None) };
    let classes = GroupResource { group: "node.k8s.io".into(), resource: "runtimeclasses".into() };
    match lookup.get(&classes, "", name).await? {
        Some(class) => Ok(Some((*class).clone())),
        None => Err(attributes.forbidden(format!("pod rejected: RuntimeClass {name:?} not found"))),
    }
}

fn take_over(pod: &mut Value, class: &Value) -> Result<(), String> {
    let fixed = at(class, "overhead.podFixed");
    if !fixed.is_null() && !has(pod, "spec.overhead") {
        set(pod, "spec.overhead", fixed.clone());
    }
    for (key, value) in entries(class, "scheduling.nodeSelector") {
        let selector = object_at(pod, "spec.nodeSelector");
        let Some(selector) = selector else { continue };
        let own = selector.entry(key.clone()).or_insert_with(|| value.clone());
        if own != value {
            let words = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let (theirs, own) = (words(value), words(own));
            return Err(format!("conflict: runtimeClass.scheduling.nodeSelector[{key}] = {theirs}; pod.spec.nodeSelector[{key}] = {own}"));
        }
    }
    for toleration in list(class, "scheduling.tolerations") {
        if !list(pod, "spec.tolerations").contains(toleration) {
            push(pod, "spec.tolerations", toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn a_pod_takes_over_what_its_class_says() {
        let class = json!({
            "metadata": {"name": "vm"},
            "overhead": {"podFixed": {"cpu": "100m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
        });
        let cases = [
            (json!({"runtimeClassName": "vm"}), Ok(())),
            (
                json!({"runtimeClassName": "vm", "overhead": {"cpu": "1"}}),
                Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"),
            ),
            (json!({"overhead": {"cpu": "1"}}), Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")),
            (json!({"runtimeClassName": "gone"}), Err("pod rejected: RuntimeClass \"gone\" not found")),
            (
                json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}),
                Err("conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no"),
            ),
        ];
        for (spec, expected) in cases {
            let mut attributes = write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p"}, "spec": spec}));
            let found = run(RuntimeClass, Objects::default().with("runtimeclasses", class.clone()), &mut attributes).await;
            assert_eq!(found, expected.map_err(|why| format!("pods \"p\" is forbidden: {why}")), "{spec}");
            if found.is_ok() {
                let pod = attributes.object.expect("object");
                assert_eq!(pod["spec"]["overhead"], json!({"cpu": "100m"}));
                assert_eq!((&pod["spec"]["nodeSelector"]["vm"], list(&pod, "spec.tolerations").len()), (&json!("yes"), 1));
            }
        }
    }
}
