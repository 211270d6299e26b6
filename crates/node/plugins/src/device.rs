//! Device plugins, version v1beta1. Source: upstream's `pkg/apis/deviceplugin/v1beta1` and the page "Device Plugins".

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cri::Error;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use hyper::body::Incoming;
use prost::Message;
use remote::grpc::{self, Channel};
use remote::serve::{self, Frames, Services, one};
use stdx::Drain;

/// The only version there is.
pub const VERSION: &str = "v1beta1";
/// Where plugins register, in their folder.
pub const SOCKET: &str = "kubelet.sock";
pub const HEALTHY: &str = "Healthy";

#[derive(Clone, PartialEq, Message)]
pub struct Empty {}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Options {
    #[prost(bool, tag = "1")]
    pub pre_start_required: bool,
    #[prost(bool, tag = "2")]
    pub get_preferred_allocation_available: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct RegisterRequest {
    #[prost(string, tag = "1")]
    pub version: String,
    /// The name of its socket, in the folder of the kubelet's.
    #[prost(string, tag = "2")]
    pub endpoint: String,
    #[prost(string, tag = "3")]
    pub resource_name: String,
    #[prost(message, optional, tag = "4")]
    pub options: Option<Options>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ListAndWatchResponse {
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct TopologyInfo {
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<NumaNode>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct NumaNode {
    #[prost(int64, tag = "1")]
    pub id: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Device {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(string, tag = "2")]
    pub health: String,
    #[prost(message, optional, tag = "3")]
    pub topology: Option<TopologyInfo>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PreStartContainerRequest {
    #[prost(string, repeated, tag = "1")]
    pub devices_ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PreferredAllocationRequest {
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerPreferredAllocationRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerPreferredAllocationRequest {
    #[prost(string, repeated, tag = "1")]
    pub available: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub must_include: Vec<String>,
    #[prost(int32, tag = "3")]
    pub size: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct PreferredAllocationResponse {
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<ContainerPreferredAllocationResponse>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerPreferredAllocationResponse {
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AllocateRequest {
    #[prost(message, repeated, tag = "1")]
    pub container_requests: Vec<ContainerAllocateRequest>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ContainerAllocateRequest {
    #[prost(string, repeated, tag = "1")]
    pub devices_ids: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AllocateResponse {
    #[prost(message, repeated, tag = "1")]
    pub container_responses: Vec<Allocated>,
}

/// What a container needs to use its devices.
#[derive(Clone, PartialEq, Message)]
pub struct Allocated {
    #[prost(map = "string, string", tag = "1")]
    pub envs: HashMap<String, String>,
    #[prost(message, repeated, tag = "2")]
    pub mounts: Vec<Mount>,
    #[prost(message, repeated, tag = "3")]
    pub devices: Vec<DeviceSpec>,
    #[prost(map = "string, string", tag = "4")]
    pub annotations: HashMap<String, String>,
    #[prost(message, repeated, tag = "5")]
    pub cdi_devices: Vec<CdiDevice>,
}

#[derive(Clone, PartialEq, Message)]
pub struct CdiDevice {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Mount {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    #[prost(bool, tag = "3")]
    pub read_only: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct DeviceSpec {
    #[prost(string, tag = "1")]
    pub container_path: String,
    #[prost(string, tag = "2")]
    pub host_path: String,
    /// Of `rwm`.
    #[prost(string, tag = "3")]
    pub permissions: String,
}

/// One device plugin.
pub struct Plugin(Channel);

const SERVICE: &str = "v1beta1.DevicePlugin";

impl Plugin {
    pub fn at(socket: impl Into<PathBuf>) -> Self {
        Self(crate::channel(socket))
    }

    pub async fn options(&self) -> cri::Result<Options> {
        self.0.unary(&format!("{SERVICE}/GetDevicePluginOptions"), &Empty {}).await
    }

    /// All its devices, again at every change.
    pub async fn devices(&self) -> cri::Result<BoxStream<'static, cri::Result<ListAndWatchResponse>>> {
        self.0.stream(&format!("{SERVICE}/ListAndWatch"), &Empty {}).await
    }

    pub async fn allocate(&self, ids: Vec<String>) -> cri::Result<Allocated> {
        let request = AllocateRequest { container_requests: vec![ContainerAllocateRequest { devices_ids: ids }] };
        let answer: AllocateResponse = self.0.unary(&format!("{SERVICE}/Allocate"), &request).await?;
        answer.container_responses.into_iter().next().ok_or_else(|| Error::internal("no containers return in allocation response"))
    }

    pub async fn preferred(&self, request: ContainerPreferredAllocationRequest) -> cri::Result<Vec<String>> {
        let request = PreferredAllocationRequest { container_requests: vec![request] };
        let answer: PreferredAllocationResponse = self.0.unary(&format!("{SERVICE}/GetPreferredAllocation"), &request).await?;
        Ok(answer.container_responses.into_iter().next().unwrap_or_default().ids)
    }

    pub async fn pre_start(&self, ids: Vec<String>) -> cri::Result<()> {
        let request = PreStartContainerRequest { devices_ids: ids };
        self.0.unary::<Empty>(&format!("{SERVICE}/PreStartContainer"), &request).await.map(drop)
    }
}

/// What is done with a plugin that registers.
pub type OnRegister = Arc<dyn Fn(RegisterRequest) -> cri::Result<()> + Send + Sync>;

struct Registration(OnRegister);

impl Services for Registration {
    fn call<'a>(&'a self, service: &'a str, method: &'a str, body: Incoming) -> BoxFuture<'a, Frames> {
        Box::pin(async move {
            match (service, method) {
                ("v1beta1.Registration", "Register") => {
                    one(grpc::question(body).await.and_then(|request| (self.0)(request)).map(|()| Empty {}))
                }
                _ => serve::unknown(service, method),
            }
        })
    }
}

/// Takes registrations in `folder` until `drain`. Sockets from before go: their plugins see that, and register again.
pub fn serve(folder: &Path, on_register: OnRegister, drain: Drain) -> Result<(), remote::Error> {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_socket()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
    let listener = serve::listen(&folder.join(SOCKET))?;
    tokio::spawn(serve::serve(Arc::new(Registration(on_register)), listener, drain));
    Ok(())
}
