//! Which devices, processors and memory pods have. Source: upstream's `pkg/apis/podresources/v1`.

use std::path::Path;
use std::sync::Arc;

use cri::{Code, Error};
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use prost::Message;
use remote::grpc;
use remote::serve::{self, Frames, Services, one};
use stdx::Drain;

use crate::device::{CdiDevice, TopologyInfo};

#[derive(Clone, PartialEq, Message)]
pub struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub struct Allocatable {
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<ContainerDevices>,
    #[prost(int64, repeated, tag = "2")]
    pub cpu_ids: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    pub memory: Vec<ContainerMemory>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListPodResourcesResponse {
    #[prost(message, repeated, tag = "1")]
    pub pod_resources: Vec<PodResources>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PodResources {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(string, tag = "2")]
    pub namespace: String,
    #[prost(message, repeated, tag = "3")]
    pub containers: Vec<ContainerResources>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerResources {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, repeated, tag = "2")]
    pub devices: Vec<ContainerDevices>,
    #[prost(int64, repeated, tag = "3")]
    pub cpu_ids: Vec<i64>,
    #[prost(message, repeated, tag = "4")]
    pub memory: Vec<ContainerMemory>,
    #[prost(message, repeated, tag = "5")]
    pub dynamic_resources: Vec<DynamicResource>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerMemory {
    #[prost(string, tag = "1")]
    pub memory_type: String,
    #[prost(uint64, tag = "2")]
    pub size: u64,
    #[prost(message, optional, tag = "3")]
    pub topology: Option<TopologyInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerDevices {
    #[prost(string, tag = "1")]
    pub resource_name: String,
    #[prost(string, repeated, tag = "2")]
    pub device_ids: Vec<String>,
    #[prost(message, optional, tag = "3")]
    pub topology: Option<TopologyInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub struct DynamicResource {
    #[prost(string, tag = "2")]
    pub claim_name: String,
    #[prost(string, tag = "3")]
    pub claim_namespace: String,
    #[prost(message, repeated, tag = "4")]
    pub claim_resources: Vec<ClaimResource>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ClaimResource {
    #[prost(message, repeated, tag = "1")]
    pub cdi_devices: Vec<CdiDevice>,
    #[prost(string, tag = "2")]
    pub driver_name: String,
    #[prost(string, tag = "3")]
    pub pool_name: String,
    #[prost(string, tag = "4")]
    pub device_name: String,
    #[prost(string, optional, tag = "5")]
    pub share_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetPodResourcesRequest {
    #[prost(string, tag = "1")]
    pub pod_name: String,
    #[prost(string, tag = "2")]
    pub pod_namespace: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct GetPodResourcesResponse {
    #[prost(message, optional, tag = "1")]
    pub pod_resources: Option<PodResources>,
}

/// Who knows.
pub trait Source: Send + Sync + 'static {
    fn pods(&self) -> Vec<PodResources>;
    fn allocatable(&self) -> Allocatable;
}

struct Lister(Arc<dyn Source>);

impl Lister {
    async fn get(&self, body: Incoming) -> cri::Result<GetPodResourcesResponse> {
        let request: GetPodResourcesRequest = grpc::question(body).await?;
        let found = self.0.pods().into_iter().find(|pod| pod.name == request.pod_name && pod.namespace == request.pod_namespace);
        let missing = || Error::new(Code::NotFound, format!("pod {} in namespace {} not found", request.pod_name, request.pod_namespace));
        Ok(GetPodResourcesResponse { pod_resources: Some(found.ok_or_else(missing)?) })
    }
}

impl Services for Lister {
    fn call<'a>(&'a self, service: &'a str, method: &'a str, body: Incoming) -> BoxFuture<'a, Frames> {
        Box::pin(async move {
            match (service, method) {
                ("v1.PodResourcesLister", "List") => one(Ok(ListPodResourcesResponse { pod_resources: self.0.pods() })),
                ("v1.PodResourcesLister", "GetAllocatableResources") => one(Ok(self.0.allocatable())),
                ("v1.PodResourcesLister", "Get") => one(self.get(body).await),
                _ => serve::unknown(service, method),
            }
        })
    }
}

/// Serves on `socket` until `drain`.
pub fn serve(socket: &Path, source: Arc<dyn Source>, drain: Drain) -> Result<(), remote::Error> {
    let listener = serve::listen(socket)?;
    tokio::spawn(serve::serve(Arc::new(Lister(source)), listener, drain));
    Ok(())
}
