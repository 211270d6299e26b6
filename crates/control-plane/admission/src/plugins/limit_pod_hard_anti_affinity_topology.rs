//! LimitPodHardAntiAffinityTopology: a required anti-affinity is about nodes only, so that one pod cannot claim a whole zone.

use rules::value::{list, text};

use crate::{Attributes, Lookup, Plugin, Verdict, accept};

const HOST: &str = "kubernetes.io/hostname";

pub struct LimitPodHardAntiAffinityTopology;

impl Plugin for LimitPodHardAntiAffinityTopology {
    fn name(&self) -> &'static str {
        "LimitPodHardAntiAffinityTopology"
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        let Some(pod) = attributes.object.as_ref().filter(|_| attributes.is("", "pods")) else { return accept() };
        let terms = list(pod, "spec.affinity.podAntiAffinity.requiredDuringSchedulingIgnoredDuringExecution");
        let Some(key) = terms.iter().map(|term| text(term, "topologyKey")).find(|key| *key != HOST) else { return accept() };
        let why = format!("affinity.PodAntiAffinity.RequiredDuringScheduling has TopologyKey {key} but only key {HOST} is allowed");
        Box::pin(std::future::ready(Err(attributes.forbidden(why))))
    }
}
