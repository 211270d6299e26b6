//! What other programs of a node say to its kubelet over sockets, and what they are asked: gRPC on the wire, and nothing decided.
//!
//! [`device`]: device plugins register themselves at `device-plugins/kubelet.sock` and are then asked for their devices (KEP-3573).
//! [`registry`]: a socket below `plugins_registry` is asked what it is (a CSI or DRA driver, or a device plugin) and told whether it was
//! taken. [`dra`]: a driver of ResourceClaims prepares what a pod was given (KEP-4381). [`resources`]: who may know which device a pod has asks
//! `pod-resources/kubelet.sock` (KEP-606).
//!
//! Tasks: one per server, one for the folder of the registry. The crate knows no Kubernetes kinds.

pub mod device;
pub mod dra;
pub mod registry;
pub mod resources;

use std::path::PathBuf;

use remote::grpc::Channel;

/// A plugin behind a socket.
pub(crate) fn channel(socket: impl Into<PathBuf>) -> Channel {
    Channel::new(socket.into())
}
