//! What caches of pods leave out: what only the kubelet of a pod's node reads.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

use crate::cache::Trim;

/// Of pods that are not on `node`, containers without their command, environment, mounts, probes and hooks: more than half of a usual pod.
/// What is left is no whole pod: it may be patched, never replaced.
pub fn pods_elsewhere(node: &str) -> Trim<Pod> {
    let node = node.to_owned();
    Arc::new(move |pod| {
        let Some(spec) = &mut pod.spec else { return };
        if spec.node_name.as_ref() == Some(&node) {
            return;
        }
        spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()).for_each(container);
        spec.ephemeral_containers.iter_mut().flatten().for_each(ephemeral);
    })
}

macro_rules! leave_out {
    ($name:ident: $kind:ty) => {
        fn $name(container: &mut $kind) {
            container.command = None;
            container.args = None;
            container.env = None;
            container.env_from = None;
            container.volume_mounts = None;
            container.liveness_probe = None;
            container.readiness_probe = None;
            container.startup_probe = None;
            container.lifecycle = None;
            container.security_context = None;
        }
    };
}
leave_out!(container: Container);
leave_out!(ephemeral: EphemeralContainer);

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_a_pod_of_this_node_is_kept_whole() {
        let container = json!({"name": "a", "image": "i", "env": [{"name": "x", "value": "y"}], "ports": [{"containerPort": 80}],
            "livenessProbe": {"exec": {"command": ["true"]}}, "resources": {"requests": {"cpu": "1"}}});
        let pod = |node: Option<&str>| {
            let spec =
                json!({"nodeName": node, "containers": [container], "initContainers": [container], "ephemeralContainers": [container]});
            let mut pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
            let whole = pod.clone();
            pods_elsewhere("here")(&mut pod);
            (pod, whole)
        };
        let (kept, whole) = pod(Some("here"));
        assert_eq!(kept, whole);
        for node in [None, Some("there")] {
            let spec = pod(node).0.spec.unwrap();
            let (first, last) = (&spec.containers[0], &spec.ephemeral_containers.unwrap()[0]);
            assert_eq!((&first.env, &first.liveness_probe, &last.env), (&None, &None, &None));
            assert!(first.ports.is_some() && first.resources.is_some() && first.image.is_some());
            assert_eq!(spec.init_containers.unwrap()[0], *first);
        }
    }
}
