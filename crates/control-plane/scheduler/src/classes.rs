//! One [`Class`] for all pods of one template: pods are recognised by a digest of what placement depends on.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod};
use serde::Serialize;

use crate::class::{Class, target};
use crate::neighbours::DefaultSpread;

/// Classes that nobody uses are looked for when there are so many more than after the last look.
const SWEEP_AFTER: usize = 4096;

/// Two independently keyed hashes: nobody can make two pods look alike on purpose.
type Digest = (u64, u64);

#[derive(Default)]
pub struct Classes {
    keys: (RandomState, RandomState),
    known: HashMap<Digest, Arc<Class>>,
    kept: usize,
    /// Kept from pod to pod so that it is not allocated for each.
    text: Vec<u8>,
}

impl Classes {
    /// The pod's class; the flag says that it is new. `owners` stands for whatever else decides the default spread, which `spread` works
    /// out for a class that is new.
    pub fn of(&mut self, pod: &Pod, owners: u64, spread: impl FnOnce() -> DefaultSpread) -> (Arc<Class>, bool) {
        let digest = self.digest(pod, owners);
        if let Some(known) = self.known.get(&digest) {
            return (known.clone(), false);
        }
        if self.known.len() > self.kept + SWEEP_AFTER {
            self.known.retain(|_, class| Arc::strong_count(class) > 1);
            self.kept = self.known.len();
        }
        let class = Arc::new(Class::with_spread(pod, &spread()));
        self.known.insert(digest, class.clone());
        (class, true)
    }

    fn digest(&mut self, pod: &Pod, owners: u64) -> Digest {
        self.write(pod, owners);
        let digest = |key: &RandomState| {
            let mut hasher = key.build_hasher();
            hasher.write(&self.text);
            hasher.finish()
        };
        (digest(&self.keys.0), digest(&self.keys.1))
    }

    /// Everything that placement depends on, one after the other.
    fn write(&mut self, pod: &Pod, owners: u64) {
        let mut part = Part(&mut self.text);
        part.0.clear();
        part.number(owners);
        part.put(&pod.metadata.namespace);
        part.put(&pod.metadata.labels);
        part.put(&pod.metadata.deletion_timestamp.is_some());
        let Some(spec) = &pod.spec else { return };
        part.put(&(&spec.scheduler_name, &spec.priority, &spec.preemption_policy));
        part.put(&(&spec.node_selector, &spec.tolerations, &spec.topology_spread_constraints, &spec.overhead));
        match target(pod) {
            // The name of the wanted node is not part of the class.
            Some(_) => part.put(&Class::of(pod).node_affinity),
            None => part.put(&spec.affinity),
        }
        if target(pod).is_some() {
            let affinity = spec.affinity.as_ref();
            part.put(&affinity.map(|affinity| (&affinity.pod_affinity, &affinity.pod_anti_affinity)));
        }
        part.put(&spec.resources);
        spec.containers.iter().for_each(|container| part.container(container));
        for container in spec.init_containers.iter().flatten() {
            part.put(&container.restart_policy);
            part.container(container);
        }
        for image in spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()) {
            part.put(&image.reference);
        }
    }
}

/// What decides, as text that is hashed when it is whole: hashing it in the pieces that it is written in would cost ten times as much.
struct Part<'a>(&'a mut Vec<u8>);

impl Part<'_> {
    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }
    fn put(&mut self, part: &impl Serialize) {
        // Writing to memory does not fail, and these types have no key that is not a string.
        let _ = serde_json::to_writer(&mut *self.0, part);
        self.number(0);
    }
    fn container(&mut self, container: &Container) {
        self.put(&container.image);
        self.put(&container.resources.as_ref().and_then(|resources| resources.requests.as_ref()));
        for port in container.ports.iter().flatten().filter(|port| port.host_port.is_some_and(|port| port > 0)) {
            self.put(port);
        }
        self.number(1);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn pods_of_one_template_are_of_one_class_and_others_are_not() {
        let mut classes = Classes::default();
        let mut class = |name: &str, labels: Value, spec: Value| {
            let mut pod = json!({ "metadata": { "namespace": "a", "name": name, "uid": name, "labels": labels }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
            pod["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            classes.of(&serde_json::from_value(pod).unwrap(), 0, DefaultSpread::default).0.id
        };
        let first = class("one", json!({ "app": "a" }), json!({}));
        assert_eq!(first, class("two", json!({ "app": "a" }), json!({ "hostname": "h" })), "a name and a host name do not matter");
        let others = [
            class("three", json!({ "app": "b" }), json!({})),
            class("four", json!({ "app": "a" }), json!({ "priority": 5 })),
            class("five", json!({ "app": "a" }), json!({ "nodeSelector": { "a": "b" } })),
            class(
                "six",
                json!({ "app": "a" }),
                json!({ "containers": [{ "name": "c", "image": "i", "resources": { "requests": { "cpu": "1" } } }] }),
            ),
        ];
        assert!(others.iter().all(|other| *other != first), "{first} {others:?}");
    }
}
