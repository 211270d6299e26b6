//! Priority: a pod's priority and preemption policy follow from its priority class.

use std::sync::Arc;

use meta::gvk::GroupResource;
use meta::status::Status;
use rules::value::{flag, has, int, keep, name, set, text, text_or};
use serde_json::{Value, json};

use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

/// Classes that exist even before their objects do.
const BUILTIN: [(&str, i64); 2] = [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)];

pub struct Priority;

fn classes() -> GroupResource {
    GroupResource { group: "scheduling.k8s.io".into(), resource: "priorityclasses".into() }
}

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if !attributes.is("", "pods") {
                return Ok(());
            }
            match attributes.operation {
                Operation::Create => create(attributes, lookup).await,
                _ => {
                    keep_computed(attributes);
                    Ok(())
                }
            }
        })
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if attributes.is("scheduling.k8s.io", "priorityclasses") { one_default(attributes, lookup).await } else { Ok(()) }
        })
    }
}

/// A client that does not know the computed fields may leave them out of an update.
fn keep_computed(attributes: &mut Attributes) {
    if let (Some(pod), Some(old)) = (&mut attributes.object, &attributes.old) {
        for field in ["spec.priority", "spec.preemptionPolicy"] {
            if !has(pod, field) {
                keep(pod, old, field);
            }
        }
    }
}

async fn create(attributes: &mut Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let Some(pod) = &attributes.object else { return Ok(()) };
    let class = match text(pod, "spec.priorityClassName") {
        "" => default_class(lookup).await?,
        wanted => Some(class(attributes, wanted, lookup).await?),
    };
    let value = class.as_deref().and_then(|class| int(class, "value")).unwrap_or(0);
    let policy = class.as_deref().map_or("PreemptLowerPriority", |class| text_or(class, "preemptionPolicy", "PreemptLowerPriority"));
    if let Some(given) = int(pod, "spec.priority").filter(|given| *given != value) {
        return Err(attributes.forbidden(format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller computed {value} \
             from the given PriorityClass name"
        )));
    }
    let given = text(pod, "spec.preemptionPolicy");
    if !given.is_empty() && given != policy {
        return Err(attributes.forbidden(format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission controller computed \
             {policy} from the given PriorityClass name"
        )));
    }
    let (name, policy) = (class.as_deref().map(|class| name(class).to_owned()), policy.to_owned());
    if let Some(pod) = &mut attributes.object {
        if let Some(name) = name {
            set(pod, "spec.priorityClassName", name);
        }
        set(pod, "spec.priority", value);
        set(pod, "spec.preemptionPolicy", policy);
    }
    Ok(())
}

async fn class(attributes: &Attributes, wanted: &str, lookup: &dyn Lookup) -> Result<Arc<Value>, Status> {
    if let Some(class) = lookup.get(&classes(), "", wanted).await? {
        return Ok(class);
    }
    let builtin = BUILTIN.iter().find(|(name, _)| *name == wanted);
    let object = |(name, value): &(&str, i64)| Arc::new(json!({"metadata": {"name": name}, "value": value}));
    builtin.map(object).ok_or_else(|| attributes.forbidden(format!("no PriorityClass with name {wanted} was found")))
}

/// The class marked as default; of several the one with the lowest value.
async fn default_class(lookup: &dyn Lookup) -> Result<Option<Arc<Value>>, Status> {
    let all = lookup.list(&classes(), "").await?;
    Ok(all.into_iter().filter(|class| flag(class, "globalDefault")).min_by_key(|class| int(class, "value")))
}

async fn one_default(attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let Some(object) = attributes.object.as_ref().filter(|object| flag(object, "globalDefault")) else { return Ok(()) };
    match default_class(lookup).await? {
        Some(other) if name(&other) != name(object) => {
            Err(attributes.forbidden(format!("PriorityClass {} is already marked as default. Only one default can exist", name(&other))))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Objects, run, write};

    fn objects() -> Objects {
        Objects::default()
            .with("priorityclasses", json!({"metadata": {"name": "high"}, "value": 100, "preemptionPolicy": "Never"}))
            .with("priorityclasses", json!({"metadata": {"name": "usual"}, "value": 7, "globalDefault": true}))
    }

    #[tokio::test]
    async fn a_pods_priority_is_its_classs() {
        let cases = [
            (json!({}), Ok((7, "PreemptLowerPriority"))),
            (json!({"priorityClassName": "high"}), Ok((100, "Never"))),
            (json!({"priorityClassName": "system-node-critical"}), Ok((2_000_001_000, "PreemptLowerPriority"))),
            (json!({"priorityClassName": "none"}), Err("pods \"p\" is forbidden: no PriorityClass with name none was found")),
            (
                json!({"priorityClassName": "high", "priority": 5}),
                Err("pods \"p\" is forbidden: the integer value of priority (5) must not be provided in pod spec; priority admission \
                     controller computed 100 from the given PriorityClass name"),
            ),
        ];
        for (spec, expected) in cases {
            let mut attributes = write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p"}, "spec": spec}));
            let found = run(Priority, objects(), &mut attributes).await;
            let object = attributes.object.expect("object");
            let found = found.map(|()| (int(&object, "spec.priority").unwrap_or(-1), text(&object, "spec.preemptionPolicy")));
            assert_eq!(found, expected.map_err(str::to_owned), "{spec}");
        }
    }

    #[tokio::test]
    async fn only_one_class_is_the_default() {
        for (name, refused) in [("other", true), ("usual", false)] {
            let object = json!({"metadata": {"name": name}, "value": 1, "globalDefault": true});
            let mut attributes = write(Operation::Create, "priorityclasses", "PriorityClass", object);
            attributes.gvr.group = "scheduling.k8s.io".into();
            assert_eq!(run(Priority, objects(), &mut attributes).await.is_err(), refused);
        }
    }
}
