//! PodTopologyLabels: a pod learns the zone and region of its node as labels of its own (KEP-4742).

use rules::value::{object_at, text};

use crate::{Attributes, Lookup, Operation, Plugin, Verdict, core};

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

pub struct PodTopologyLabels;

impl Plugin for PodTopologyLabels {
    fn name(&self) -> &'static str {
        "PodTopologyLabels"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let place = match attributes.subresource.as_str() {
                "binding" if attributes.is_part("", "pods", "binding") => "target.name",
                "" if attributes.is("", "pods") => "spec.nodeName",
                _ => return Ok(()),
            };
            let node = attributes.object.as_ref().map(|object| text(object, place).to_owned()).unwrap_or_default();
            if node.is_empty() {
                return Ok(());
            }
            // There are many nodes, and each binding asks for another one: not for the whole of it.
            let Some(node) = lookup.labels(&core("nodes"), "", &node).await? else { return Ok(()) };
            let found: Vec<_> = LABELS.iter().filter_map(|key| Some((*key, node.get(*key)?.as_str()?.to_owned()))).collect();
            let labels = attributes.object.as_mut().filter(|_| !found.is_empty()).and_then(|object| object_at(object, "metadata.labels"));
            if let Some(labels) = labels {
                labels.extend(found.into_iter().map(|(key, value)| (key.to_owned(), value.into())));
            }
            Ok(())
        })
    }
}
