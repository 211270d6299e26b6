//! The trait of the contract, call by call.

use std::pin::Pin;

use cri::streams::{Forward, Streams};
use cri::v1;
use futures_util::stream::unfold;
use tokio::sync::broadcast::error::RecvError;

use crate::state::{Event, Inner, Runtime};

/// As the traits of `cri` return it.
type Call<'a, T> = Pin<Box<dyn Future<Output = cri::Result<T>> + Send + 'a>>;
type Events = Pin<Box<dyn futures_util::Stream<Item = cri::Result<v1::ContainerEventResponse>> + Send>>;

const NAME: &str = "sternpost";

impl Inner {
    fn event_response(&self, event: &Event) -> v1::ContainerEventResponse {
        let statuses = self.containers_of(&event.sandbox).iter().map(|c| self.container_status(c)).collect();
        v1::ContainerEventResponse {
            container_id: event.container.clone(),
            container_event_type: event.kind as i32,
            created_at: event.at,
            pod_sandbox_status: self.sandbox(&event.sandbox).ok().map(|s| self.sandbox_status(&s)),
            containers_statuses: statuses,
        }
    }
}

fn condition(kind: &str) -> v1::RuntimeCondition {
    v1::RuntimeCondition { r#type: kind.to_owned(), status: true, reason: String::new(), message: String::new() }
}

fn info(verbose: bool, text: impl FnOnce() -> String) -> std::collections::HashMap<String, String> {
    if verbose { [("info".to_owned(), text())].into() } else { Default::default() }
}

impl cri::RuntimeService for Runtime {
    fn version(&self) -> Call<'_, v1::VersionResponse> {
        Box::pin(async {
            Ok(v1::VersionResponse {
                version: "0.1.0".into(),
                runtime_name: NAME.into(),
                runtime_version: env!("CARGO_PKG_VERSION").into(),
                runtime_api_version: "v1".into(),
            })
        })
    }

    fn status(&self, _: v1::StatusRequest) -> Call<'_, v1::StatusResponse> {
        Box::pin(async {
            let mut network = condition("NetworkReady");
            if let Err(message) = self.network_readiness() {
                network = v1::RuntimeCondition { status: false, reason: "NetworkPluginNotReady".into(), message, ..network };
            }
            let external = &self.inner.config.handlers;
            let own = crate::sandbox::HANDLERS.iter().copied().filter(|name| !external.contains_key(*name));
            let handler = |name: &str, is_own: bool| v1::RuntimeHandler {
                name: name.to_owned(),
                features: Some(v1::RuntimeHandlerFeatures {
                    recursive_read_only_mounts: is_own,
                    user_namespaces: crate::sandbox::has_user_namespaces(),
                }),
            };
            let others = external.keys().map(|name| handler(name, false));
            let runtime_handlers = own.map(|name| handler(name, true)).chain(others).collect();
            Ok(v1::StatusResponse {
                status: Some(v1::RuntimeStatus { conditions: vec![condition("RuntimeReady"), network] }),
                info: Default::default(),
                runtime_handlers,
                features: Some(v1::RuntimeFeatures { supplemental_groups_policy: true, ..Default::default() }),
            })
        })
    }

    fn update_runtime_config(&self, request: v1::UpdateRuntimeConfigRequest) -> Call<'_, v1::UpdateRuntimeConfigResponse> {
        Box::pin(async move {
            let ranges =
                request.runtime_config.and_then(|config| config.network_config).map(|network| network.pod_cidr).unwrap_or_default();
            self.set_network_ranges(&ranges).await?;
            Ok(v1::UpdateRuntimeConfigResponse {})
        })
    }

    fn run_pod_sandbox(&self, request: v1::RunPodSandboxRequest) -> Call<'_, v1::RunPodSandboxResponse> {
        Box::pin(async move { Ok(v1::RunPodSandboxResponse { pod_sandbox_id: self.inner.run_pod_sandbox(request).await? }) })
    }

    fn stop_pod_sandbox(&self, request: v1::StopPodSandboxRequest) -> Call<'_, v1::StopPodSandboxResponse> {
        Box::pin(async move {
            self.inner.stop_pod_sandbox(&request.pod_sandbox_id).await?;
            Ok(v1::StopPodSandboxResponse {})
        })
    }

    fn remove_pod_sandbox(&self, request: v1::RemovePodSandboxRequest) -> Call<'_, v1::RemovePodSandboxResponse> {
        Box::pin(async move {
            self.inner.remove_pod_sandbox(&request.pod_sandbox_id).await?;
            Ok(v1::RemovePodSandboxResponse {})
        })
    }

    fn pod_sandbox_status(&self, request: v1::PodSandboxStatusRequest) -> Call<'_, v1::PodSandboxStatusResponse> {
        Box::pin(async move {
            let sandbox = self.inner.sandbox(&request.pod_sandbox_id)?;
            let statuses = self.inner.containers_of(&sandbox.id).iter().map(|c| self.inner.container_status(c)).collect();
            Ok(v1::PodSandboxStatusResponse {
                status: Some(self.inner.sandbox_status(&sandbox)),
                info: info(request.verbose, || serde_json::json!({ "directory": sandbox.directory }).to_string()),
                containers_statuses: statuses,
                timestamp: crate::shim::now(),
            })
        })
    }

    fn list_pod_sandbox(&self, request: v1::ListPodSandboxRequest) -> Call<'_, v1::ListPodSandboxResponse> {
        Box::pin(async move { Ok(v1::ListPodSandboxResponse { items: self.inner.list_sandboxes(request.filter) }) })
    }

    fn create_container(&self, request: v1::CreateContainerRequest) -> Call<'_, v1::CreateContainerResponse> {
        Box::pin(async move { Ok(v1::CreateContainerResponse { container_id: self.inner.create_container(request).await? }) })
    }

    fn start_container(&self, request: v1::StartContainerRequest) -> Call<'_, v1::StartContainerResponse> {
        Box::pin(async move {
            self.inner.start_container(&request.container_id).await?;
            Ok(v1::StartContainerResponse {})
        })
    }

    fn stop_container(&self, request: v1::StopContainerRequest) -> Call<'_, v1::StopContainerResponse> {
        Box::pin(async move {
            self.inner.stop_container(&request.container_id, request.timeout).await?;
            Ok(v1::StopContainerResponse {})
        })
    }

    fn remove_container(&self, request: v1::RemoveContainerRequest) -> Call<'_, v1::RemoveContainerResponse> {
        Box::pin(async move {
            self.inner.remove_container(&request.container_id).await?;
            Ok(v1::RemoveContainerResponse {})
        })
    }

    fn container_status(&self, request: v1::ContainerStatusRequest) -> Call<'_, v1::ContainerStatusResponse> {
        Box::pin(async move {
            let container = self.inner.container(&request.container_id)?;
            let pid = container.life.borrow().pid;
            Ok(v1::ContainerStatusResponse {
                status: Some(self.inner.container_status(&container)),
                info: info(request.verbose, || serde_json::json!({ "pid": pid, "sandboxID": container.sandbox.id }).to_string()),
            })
        })
    }

    fn list_containers(&self, request: v1::ListContainersRequest) -> Call<'_, v1::ListContainersResponse> {
        Box::pin(async move { Ok(v1::ListContainersResponse { containers: self.inner.list_containers(request.filter) }) })
    }

    fn update_container_resources(&self, request: v1::UpdateContainerResourcesRequest) -> Call<'_, v1::UpdateContainerResourcesResponse> {
        Box::pin(async move {
            self.inner.update_resources(&request.container_id, request.linux.unwrap_or_default()).await?;
            Ok(v1::UpdateContainerResourcesResponse {})
        })
    }

    fn update_pod_sandbox_resources(
        &self,
        request: v1::UpdatePodSandboxResourcesRequest,
    ) -> Call<'_, v1::UpdatePodSandboxResourcesResponse> {
        Box::pin(async move {
            self.inner.update_sandbox_resources(request).await?;
            Ok(v1::UpdatePodSandboxResourcesResponse {})
        })
    }

    fn reopen_container_log(&self, request: v1::ReopenContainerLogRequest) -> Call<'_, v1::ReopenContainerLogResponse> {
        Box::pin(async move {
            self.inner.reopen_log(&request.container_id).await?;
            Ok(v1::ReopenContainerLogResponse {})
        })
    }

    fn exec_sync(&self, request: v1::ExecSyncRequest) -> Call<'_, v1::ExecSyncResponse> {
        Box::pin(async move { Ok(self.inner.exec_sync(request).await?) })
    }

    fn exec(&self, request: v1::ExecRequest) -> Call<'_, Streams> {
        Box::pin(async move { Ok(self.inner.exec(request).await?) })
    }

    fn attach(&self, request: v1::AttachRequest) -> Call<'_, Streams> {
        Box::pin(async move { Ok(self.inner.attach(request).await?) })
    }

    fn port_forward(&self, pod_sandbox_id: String, port: u16) -> Call<'_, Forward> {
        Box::pin(async move { Ok(self.inner.port_forward(&pod_sandbox_id, port).await?.into()) })
    }

    fn container_stats(&self, request: v1::ContainerStatsRequest) -> Call<'_, v1::ContainerStatsResponse> {
        Box::pin(async move {
            let container = self.inner.container(&request.container_id)?;
            Ok(v1::ContainerStatsResponse { stats: Some(self.inner.container_stats(container).await?) })
        })
    }

    fn list_container_stats(&self, request: v1::ListContainerStatsRequest) -> Call<'_, v1::ListContainerStatsResponse> {
        Box::pin(async move { Ok(v1::ListContainerStatsResponse { stats: self.inner.list_container_stats(request.filter).await? }) })
    }

    fn pod_sandbox_stats(&self, request: v1::PodSandboxStatsRequest) -> Call<'_, v1::PodSandboxStatsResponse> {
        Box::pin(async move {
            let sandbox = self.inner.sandbox(&request.pod_sandbox_id)?;
            Ok(v1::PodSandboxStatsResponse { stats: Some(self.inner.sandbox_stats(sandbox).await?) })
        })
    }

    fn list_pod_sandbox_stats(&self, request: v1::ListPodSandboxStatsRequest) -> Call<'_, v1::ListPodSandboxStatsResponse> {
        Box::pin(async move { Ok(v1::ListPodSandboxStatsResponse { stats: self.inner.list_sandbox_stats(request.filter).await? }) })
    }

    fn get_container_events(&self) -> Call<'_, Events> {
        Box::pin(async move {
            let (inner, receiver) = (self.inner.clone(), self.inner.events.subscribe());
            let events = unfold((inner, receiver), |(inner, mut receiver)| async move {
                match receiver.recv().await {
                    Ok(event) => Some((Ok(inner.event_response(&event)), (inner, receiver))),
                    Err(RecvError::Lagged(_) | RecvError::Closed) => None,
                }
            });
            Ok(Box::pin(events) as Events)
        })
    }

    fn runtime_config(&self, _: v1::RuntimeConfigRequest) -> Call<'_, v1::RuntimeConfigResponse> {
        Box::pin(async {
            let linux = v1::LinuxRuntimeConfiguration { cgroup_driver: v1::CgroupDriver::Cgroupfs as i32 };
            Ok(v1::RuntimeConfigResponse { linux: Some(linux) })
        })
    }
}
