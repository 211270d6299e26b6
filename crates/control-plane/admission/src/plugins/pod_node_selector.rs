//! PodNodeSelector: the pods of a namespace run on the nodes that the namespace is given.

use std::collections::BTreeMap;

use meta::status::Status;
use rules::value::{annotation, entries, object_at};
use serde_json::Value;

use crate::{Attributes, Lookup, Operation, Options, Plugin, Verdict, core};

const NAME: &str = "PodNodeSelector";
const ANNOTATION: &str = "scheduler.alpha.kubernetes.io/node-selector";

type Labels = BTreeMap<String, String>;

#[derive(Default)]
pub struct PodNodeSelector {
    /// For namespaces that say nothing.
    default: Labels,
    /// What pods of a namespace may select.
    allowed: BTreeMap<String, Labels>,
}

impl PodNodeSelector {
    pub fn new(options: &Options) -> Self {
        let Some(configuration) = options.configurations.get(NAME) else { return Self::default() };
        let mut made = Self::default();
        for (namespace, selector) in entries(configuration, "podNodeSelectorPluginConfig") {
            let labels = parse(selector.as_str().unwrap_or_default());
            match namespace.as_str() {
                "clusterDefaultNodeSelector" => made.default = labels,
                _ => drop(made.allowed.insert(namespace.clone(), labels)),
            }
        }
        made
    }

    async fn of_namespace(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<Labels, Status> {
        let namespace = lookup.get(&core("namespaces"), "", &attributes.namespace).await?;
        let namespace = namespace.ok_or_else(|| Status::not_found(&core("namespaces"), &attributes.namespace))?;
        Ok(annotation(&namespace, ANNOTATION).map_or_else(|| self.default.clone(), parse))
    }
}

/// `a=b,c=d`.
fn parse(text: &str) -> Labels {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.trim().to_owned(), value.trim_start_matches('=').trim().to_owned())).collect()
}

fn of_pod(pod: &Value) -> Labels {
    entries(pod, "spec.nodeSelector").filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn conflict(one: &Labels, other: &Labels) -> bool {
    one.iter().any(|(key, value)| other.get(key).is_some_and(|present| present != value))
}

impl Plugin for PodNodeSelector {
    fn name(&self) -> &'static str {
        NAME
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            if !attributes.is("", "pods") {
                return Ok(());
            }
            let wanted = self.of_namespace(attributes, lookup).await?;
            let pod = attributes.object.as_ref().map(of_pod).unwrap_or_default();
            if conflict(&wanted, &pod) {
                return Err(attributes.forbidden("pod node label selector conflicts with its namespace node label selector"));
            }
            let selector = attributes.object.as_mut().filter(|_| !wanted.is_empty()).and_then(|pod| object_at(pod, "spec.nodeSelector"));
            if let Some(selector) = selector {
                selector.extend(wanted.into_iter().map(|(key, value)| (key, value.into())));
            }
            Ok(())
        })
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let Some(pod) = attributes.object.as_ref().filter(|_| attributes.is("", "pods")) else { return Ok(()) };
            let selected = of_pod(pod);
            if conflict(&self.of_namespace(attributes, lookup).await?, &selected) {
                return Err(attributes.forbidden("pod node label selector conflicts with its namespace node label selector"));
            }
            let allowed = self.allowed.get(&attributes.namespace);
            match allowed.is_some_and(|allowed| selected.iter().any(|(key, value)| allowed.get(key).is_some_and(|other| other != value))) {
                true => Err(attributes.forbidden("pod node label selector labels conflict with its namespace whitelist")),
                false => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn a_namespaces_nodes_are_its_pods() {
        let namespace = json!({"metadata": {"name": "a", "annotations": {ANNOTATION: "zone=east, disk=ssd"}}});
        for (own, expected) in
            [(json!({"a": "b"}), Some(json!({"a": "b", "zone": "east", "disk": "ssd"}))), (json!({"zone": "west"}), None)]
        {
            let object = json!({"metadata": {"name": "p", "namespace": "a"}, "spec": {"nodeSelector": own}});
            let mut attributes = write(Operation::Create, "pods", "Pod", object);
            let outcome = run(PodNodeSelector::default(), Objects::default().with("namespaces", namespace.clone()), &mut attributes).await;
            assert_eq!(outcome.is_ok(), expected.is_some());
            if let Some(expected) = expected {
                assert_eq!(attributes.object.expect("object")["spec"]["nodeSelector"], expected);
            }
        }
    }
}
