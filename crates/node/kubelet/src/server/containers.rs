//! From a pod and a container's name to what the runtime knows.

use std::collections::HashMap;

use cri::v1;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::Server;

const POD_UID: &str = "io.kubernetes.pod.uid";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";

impl Server {
    /// The container's newest instance, or the one before it. `None`: the runtime has none.
    pub(super) async fn find_container(&self, pod: &Pod, name: &str, previous: bool) -> cri::Result<Option<v1::ContainerStatus>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let labels = HashMap::from([(POD_UID.to_owned(), uid), (CONTAINER_NAME.to_owned(), name.to_owned())]);
        let filter = v1::ContainerFilter { label_selector: labels, ..v1::ContainerFilter::default() };
        let mut found = self.runtime.list_containers(v1::ListContainersRequest { filter: Some(filter) }).await?.containers;
        found.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        let running = v1::ContainerState::ContainerRunning as i32;
        let mut ended = found.iter().filter(|container| container.state != running);
        let chosen = match (previous, found.first()) {
            (false, newest) => newest,
            (true, Some(newest)) if newest.state == running => ended.next(),
            (true, _) => ended.nth(1),
        };
        let Some(id) = chosen.map(|container| container.id.clone()) else { return Ok(None) };
        let request = v1::ContainerStatusRequest { container_id: id, verbose: false };
        Ok(self.runtime.container_status(request).await?.status)
    }

    /// The pod's sandbox that is ready.
    pub(super) async fn find_sandbox(&self, pod: &Pod) -> cri::Result<Option<String>> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let ready = v1::PodSandboxStateValue { state: v1::PodSandboxState::SandboxReady as i32 };
        let filter = v1::PodSandboxFilter {
            label_selector: HashMap::from([(POD_UID.to_owned(), uid)]),
            state: Some(ready),
            ..v1::PodSandboxFilter::default()
        };
        let found = self.runtime.list_pod_sandbox(v1::ListPodSandboxRequest { filter: Some(filter) }).await?.items;
        Ok(found.into_iter().max_by_key(|sandbox| sandbox.created_at).map(|sandbox| sandbox.id))
    }
}

/// Whether the pod's spec has a container of that name, of any sort.
pub(super) fn has_container(pod: &Pod, name: &str) -> bool {
    let Some(spec) = &pod.spec else { return false };
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).any(|container| container.name == name)
        || spec.ephemeral_containers.iter().flatten().any(|container| container.name == name)
}

/// Why there is no log yet, in upstream's words (`validateContainerLogStatus`).
pub(super) fn why_no_log(pod: &Pod, name: &str, previous: bool) -> String {
    let pod_name = pod.metadata.name.as_deref().unwrap_or_default();
    if previous {
        return format!("previous terminated container {name:?} in pod {pod_name:?} not found");
    }
    let waiting = status_of(pod, name).and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone());
    match waiting.as_deref() {
        Some(reason @ ("ImagePullBackOff" | "ErrImagePull")) => {
            let why = if reason == "ErrImagePull" { "image can't be pulled" } else { "trying and failing to pull image" };
            format!("container {name:?} in pod {pod_name:?} is waiting to start: {why}")
        }
        Some(reason) => format!("container {name:?} in pod {pod_name:?} is waiting to start: {reason}"),
        None => format!("container {name:?} in pod {pod_name:?} is not available"),
    }
}

fn status_of<'a>(pod: &'a Pod, name: &str) -> Option<&'a ContainerStatus> {
    let status = pod.status.as_ref()?;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    lists.into_iter().flatten().flatten().find(|status| status.name == name)
}
