//! What drivers of the Container Storage Interface are asked, over gRPC on their sockets; nothing is decided here.
//!
//! [`v1`] has the messages (by hand, as far as a kubelet and the sidecars use them); [`Driver`] asks. Source: the specification,
//! `container-storage-interface/spec`, version 1.12. The crate starts no task and knows no Kubernetes kinds.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cri::{Code, Error, Result};
use remote::grpc::Channel;

pub mod v1;

/// Upstream's limit for one call of its kubelet.
const TIMEOUT: Duration = Duration::from_secs(120);

/// Codes after which a call may have had an effect, and has to be repeated until it says yes or no.
pub fn is_uncertain(error: &Error) -> bool {
    matches!(error.code, Code::DeadlineExceeded | Code::Unavailable | Code::Unknown | Code::Aborted)
}

/// A driver behind a socket.
pub struct Driver {
    channel: Channel,
    socket: PathBuf,
}

macro_rules! calls {
    ($($name:ident $method:literal $question:ident $answer:ident)*) => {$(
        pub async fn $name(&self, request: &v1::$question) -> Result<v1::$answer> {
            self.call($method, request).await
        }
    )*};
}

impl Driver {
    pub fn new(socket: &Path) -> Self {
        Self { channel: Channel::new(socket.to_owned()), socket: socket.to_owned() }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    async fn call<A: prost::Message + Default>(&self, method: &str, request: &impl prost::Message) -> Result<A> {
        let method = format!("csi.v1.{method}");
        let answer = tokio::time::timeout(TIMEOUT, self.channel.unary(&method, request)).await;
        answer.unwrap_or_else(|_| Err(Error::new(Code::DeadlineExceeded, format!("{method}: no answer within {} s", TIMEOUT.as_secs()))))
    }

    calls! {
        plugin_info "Identity/GetPluginInfo" GetPluginInfoRequest GetPluginInfoResponse
        plugin_capabilities "Identity/GetPluginCapabilities" GetPluginCapabilitiesRequest GetPluginCapabilitiesResponse
        probe "Identity/Probe" ProbeRequest ProbeResponse
        create_volume "Controller/CreateVolume" CreateVolumeRequest CreateVolumeResponse
        delete_volume "Controller/DeleteVolume" DeleteVolumeRequest DeleteVolumeResponse
        controller_publish "Controller/ControllerPublishVolume" ControllerPublishVolumeRequest ControllerPublishVolumeResponse
        controller_unpublish "Controller/ControllerUnpublishVolume" ControllerUnpublishVolumeRequest ControllerUnpublishVolumeResponse
        create_snapshot "Controller/CreateSnapshot" CreateSnapshotRequest CreateSnapshotResponse
        delete_snapshot "Controller/DeleteSnapshot" DeleteSnapshotRequest DeleteSnapshotResponse
        list_snapshots "Controller/ListSnapshots" ListSnapshotsRequest ListSnapshotsResponse
        capacity "Controller/GetCapacity" GetCapacityRequest GetCapacityResponse
        controller_capabilities "Controller/ControllerGetCapabilities" ControllerGetCapabilitiesRequest ControllerGetCapabilitiesResponse
        controller_expand "Controller/ControllerExpandVolume" ControllerExpandVolumeRequest ControllerExpandVolumeResponse
        node_stage "Node/NodeStageVolume" NodeStageVolumeRequest NodeStageVolumeResponse
        node_unstage "Node/NodeUnstageVolume" NodeUnstageVolumeRequest NodeUnstageVolumeResponse
        node_publish "Node/NodePublishVolume" NodePublishVolumeRequest NodePublishVolumeResponse
        node_unpublish "Node/NodeUnpublishVolume" NodeUnpublishVolumeRequest NodeUnpublishVolumeResponse
        node_stats "Node/NodeGetVolumeStats" NodeGetVolumeStatsRequest NodeGetVolumeStatsResponse
        node_expand "Node/NodeExpandVolume" NodeExpandVolumeRequest NodeExpandVolumeResponse
        node_capabilities "Node/NodeGetCapabilities" NodeGetCapabilitiesRequest NodeGetCapabilitiesResponse
        node_info "Node/NodeGetInfo" NodeGetInfoRequest NodeGetInfoResponse
    }
}
