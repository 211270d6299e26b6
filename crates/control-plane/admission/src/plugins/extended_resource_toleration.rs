//! ExtendedResourceToleration: a pod that asks for a device tolerates the taint that keeps others off its nodes.

use std::collections::BTreeSet;

use rules::value::{entries, list, text};
use serde_json::json;

use super::service_account::push;
use crate::{Attributes, Lookup, Plugin, Verdict, accept};

pub struct ExtendedResourceToleration;

impl Plugin for ExtendedResourceToleration {
    fn name(&self) -> &'static str {
        "ExtendedResourceToleration"
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        let concerned = attributes.is("", "pods");
        let Some(pod) = attributes.object.as_mut().filter(|_| concerned) else { return accept() };
        let mut wanted = BTreeSet::new();
        for kind in ["spec.initContainers", "spec.containers"] {
            let requests = list(pod, kind).iter().flat_map(|container| entries(container, "resources.requests"));
            wanted.extend(requests.map(|(name, _)| name.clone()).filter(|name| is_extended(name)));
        }
        for key in wanted {
            let same = |toleration: &serde_json::Value| text(toleration, "key") == key && text(toleration, "effect") == "NoSchedule";
            if !list(pod, "spec.tolerations").iter().any(same) {
                push(pod, "spec.tolerations", json!({"key": key, "operator": "Exists", "effect": "NoSchedule"}));
            }
        }
        accept()
    }
}

/// A domain of its own: not Kubernetes', not a quota's `requests.` prefix.
fn is_extended(resource: &str) -> bool {
    let domain = resource.split_once('/').map(|(domain, _)| domain);
    domain.is_some_and(|domain| !domain.ends_with("kubernetes.io")) && !resource.starts_with("requests.")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn a_device_brings_its_toleration_once() {
        let requests = json!({"requests": {"example.com/gpu": "1", "cpu": "1", "hugepages-2Mi": "1"}});
        let object = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "resources": requests}]}});
        let mut attributes = write(Operation::Create, "pods", "Pod", object);
        for _ in 0..2 {
            assert_eq!(run(ExtendedResourceToleration, Objects::default(), &mut attributes).await, Ok(()));
        }
        let expected = json!([{"key": "example.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]);
        assert_eq!(attributes.object.expect("object")["spec"]["tolerations"], expected);
    }
}
