//! A device plugin of two gifts: each is a file, a variable, a device and a named device.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use hyper::body::Incoming;
use plugins::device::{self, Allocated, CdiDevice, Device, DeviceSpec, Mount};
use plugins::resources;
use remote::grpc::{self, Channel};
use remote::serve::{self, Frames, Services, many, one, unknown};

struct Gifts {
    file: PathBuf,
}

impl Services for Gifts {
    fn call<'a>(&'a self, service: &'a str, method: &'a str, body: Incoming) -> BoxFuture<'a, Frames> {
        Box::pin(async move {
            match method {
                "GetDevicePluginOptions" => {
                    one(Ok(device::Options { pre_start_required: true, get_preferred_allocation_available: false }))
                }
                "ListAndWatch" => {
                    let device = |id: &str| Device { id: id.into(), health: device::HEALTHY.into(), topology: None };
                    let first = device::ListAndWatchResponse { devices: vec![device("g0"), device("g1")] };
                    many(Box::pin(futures_util::stream::iter([Ok(first)]).chain(futures_util::stream::pending())))
                }
                "Allocate" => one(grpc::question(body).await.map(|request| self.allocate(request))),
                "PreStartContainer" => one(Ok(device::Empty {})),
                _ => unknown(service, method),
            }
        })
    }
}

impl Gifts {
    fn allocate(&self, request: device::AllocateRequest) -> device::AllocateResponse {
        let of = |asked: device::ContainerAllocateRequest| Allocated {
            envs: [("GIVEN".to_owned(), asked.devices_ids.join(" "))].into(),
            mounts: vec![Mount { container_path: "/given".into(), host_path: self.file.display().to_string(), read_only: true }],
            devices: vec![DeviceSpec { container_path: "/dev/gift".into(), host_path: "/dev/null".into(), permissions: "rw".into() }],
            annotations: Default::default(),
            cdi_devices: vec![CdiDevice { name: "acme.test/named=one".into() }],
        };
        device::AllocateResponse { container_responses: request.container_requests.into_iter().map(of).collect() }
    }
}

/// Serves until it is dropped.
pub struct Plugin {
    folder: PathBuf,
    drain: stdx::Drain,
    tokio: Option<tokio::runtime::Runtime>,
}

impl Plugin {
    /// Below the kubelet's folder of plugins; `file` is what everybody gets.
    pub fn start(plugins: &Path, file: &Path) -> Self {
        std::fs::write(file, "a gift\n").expect("a file");
        let folder = plugins.join("device-plugins");
        let plugin = Self { folder, drain: stdx::drain(), tokio: Some(tokio::runtime::Runtime::new().expect("tokio")) };
        plugin.serve(file);
        plugin.register();
        plugin
    }

    fn runtime(&self) -> &tokio::runtime::Runtime {
        self.tokio.as_ref().expect("it serves")
    }

    fn serve(&self, file: &Path) {
        let gifts = Arc::new(Gifts { file: file.to_owned() });
        let _inside = self.runtime().enter();
        let listener = serve::listen(&self.folder.join("acme.sock")).expect("a socket");
        tokio::spawn(serve::serve(gifts, listener, self.drain.clone()));
    }

    /// At a kubelet that may have begun anew, which removes our socket and then listens.
    pub fn register(&self) {
        let request = device::RegisterRequest {
            version: device::VERSION.into(),
            endpoint: "acme.sock".into(),
            resource_name: "acme.test/gift".into(),
            options: None,
        };
        cluster::wait_for("a registration", 30, || {
            if !self.folder.join("acme.sock").exists() {
                self.serve(&self.folder.join("../../../given"));
            }
            let kubelet = Channel::new(self.folder.join(device::SOCKET));
            let registered = self.runtime().block_on(kubelet.unary::<device::Empty>("v1beta1.Registration/Register", &request));
            registered.map(drop).map_err(|error| format!("{error:?}"))
        });
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.drain.stop();
        if let Some(runtime) = self.tokio.take() {
            runtime.shutdown_background();
        }
    }
}

/// `namespace/pod/container device` of all who have one, as the pod resources API tells.
pub fn holders(plugins: &Path, resource: &str) -> Vec<String> {
    let tokio = tokio::runtime::Runtime::new().expect("tokio");
    let channel = Channel::new(plugins.join("pod-resources/kubelet.sock"));
    let answer = tokio.block_on(channel.unary::<resources::ListPodResourcesResponse>("v1.PodResourcesLister/List", &resources::Nothing {}));
    let mut found = Vec::new();
    for pod in answer.expect("the pods' resources").pod_resources {
        for container in pod.containers {
            let devices = container.devices.iter().filter(|devices| devices.resource_name == resource);
            found.extend(
                devices.map(|devices| format!("{}/{}/{} {}", pod.namespace, pod.name, container.name, devices.device_ids.join(" "))),
            );
        }
    }
    found
}
