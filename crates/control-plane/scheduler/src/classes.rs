//! One [`Class`] for all pods of one template: pods are recognised by a digest of what placement depends on.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::Write;
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

    fn digest(&self, pod: &Pod, owners: u64) -> Digest {
        let mut hashers = Hashers(self.keys.0.build_hasher(), self.keys.1.build_hasher());
        hashers.number(owners);
        hashers.put(&pod.metadata.namespace);
        hashers.put(&pod.metadata.labels);
        hashers.put(&pod.metadata.deletion_timestamp.is_some());
        let Some(spec) = &pod.spec else { return hashers.finish() };
        hashers.put(&(&spec.scheduler_name, &spec.priority, &spec.preemption_policy));
        hashers.put(&(&spec.node_selector, &spec.tolerations, &spec.topology_spread_constraints, &spec.overhead));
        match target(pod) {
            // The name of the wanted node is not part of the class.
            Some(_) => hashers.put(&Class::of(pod).node_affinity),
            None => hashers.put(&spec.affinity),
        }
        if target(pod).is_some() {
            let affinity = spec.affinity.as_ref();
            hashers.put(&affinity.map(|affinity| (&affinity.pod_affinity, &affinity.pod_anti_affinity)));
        }
        hashers.put(&spec.resources);
        spec.containers.iter().for_each(|container| hashers.container(container));
        for container in spec.init_containers.iter().flatten() {
            hashers.put(&container.restart_policy);
            hashers.container(container);
        }
        for image in spec.volumes.iter().flatten().filter_map(|volume| volume.image.as_ref()) {
            hashers.put(&image.reference);
        }
        hashers.finish()
    }
}

struct Hashers<H>(H, H);

impl<H: Hasher> Hashers<H> {
    fn number(&mut self, number: u64) {
        self.0.write_u64(number);
        self.1.write_u64(number);
    }
    fn put(&mut self, part: &impl Serialize) {
        // Hashing does not fail, and these types have no key that is not a string.
        let _ = serde_json::to_writer(&mut *self, part);
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
    fn finish(&self) -> Digest {
        (self.0.finish(), self.1.finish())
    }
}

impl<H: Hasher> Write for Hashers<H> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes);
        self.1.write(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
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
