//! Drivers of ResourceClaims. Source: upstream's `pkg/apis/dra/v1`; v1beta1 has the same messages under another name.

use std::collections::HashMap;
use std::path::PathBuf;

use cri::Error;
use prost::Message;
use remote::grpc::Channel;

/// The kind by which a driver registers.
pub const KIND: &str = "DRAPlugin";

#[derive(Clone, PartialEq, Message)]
pub struct Claim {
    #[prost(string, tag = "1")]
    pub namespace: String,
    #[prost(string, tag = "2")]
    pub uid: String,
    #[prost(string, tag = "3")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Claims {
    #[prost(message, repeated, tag = "1")]
    pub claims: Vec<Claim>,
}

#[derive(Clone, PartialEq, Message)]
pub struct PrepareResponse {
    /// By the claim's uid.
    #[prost(map = "string, message", tag = "1")]
    pub claims: HashMap<String, Prepared>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Prepared {
    #[prost(message, repeated, tag = "1")]
    pub devices: Vec<Device>,
    #[prost(string, tag = "2")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Device {
    /// The requests of the claim that it serves; none means all.
    #[prost(string, repeated, tag = "1")]
    pub request_names: Vec<String>,
    #[prost(string, tag = "2")]
    pub pool_name: String,
    #[prost(string, tag = "3")]
    pub device_name: String,
    #[prost(string, repeated, tag = "4")]
    pub cdi_device_ids: Vec<String>,
    #[prost(string, optional, tag = "5")]
    pub share_id: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct UnprepareResponse {
    #[prost(map = "string, message", tag = "1")]
    pub claims: HashMap<String, Unprepared>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Unprepared {
    #[prost(string, tag = "1")]
    pub error: String,
}

/// One driver.
pub struct Driver {
    channel: Channel,
    service: &'static str,
}

impl Driver {
    /// `versions` are those that it registered with.
    pub fn at(socket: impl Into<PathBuf>, versions: &[String]) -> Result<Self, String> {
        let has = |wanted: &[&str]| versions.iter().any(|version| wanted.contains(&version.as_str()));
        let service = match () {
            () if has(&["v1.DRAPlugin"]) => "k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin",
            () if has(&["v1beta1.DRAPlugin", "1.0.0"]) => "v1beta1.DRAPlugin",
            () => return Err(format!("none of the gRPC services supported by the driver are implemented by the kubelet: {versions:?}")),
        };
        Ok(Self { channel: crate::channel(socket), service })
    }

    /// Repeating it does no harm.
    pub async fn prepare(&self, claims: Vec<Claim>) -> cri::Result<HashMap<String, Prepared>> {
        let answer: PrepareResponse = self.channel.unary(&format!("{}/NodePrepareResources", self.service), &Claims { claims }).await?;
        match answer.claims.iter().find(|(_, prepared)| !prepared.error.is_empty()) {
            Some((uid, prepared)) => Err(Error::internal(format!("claim {uid}: {}", prepared.error))),
            None => Ok(answer.claims),
        }
    }

    pub async fn unprepare(&self, claims: Vec<Claim>) -> cri::Result<()> {
        let answer: UnprepareResponse = self.channel.unary(&format!("{}/NodeUnprepareResources", self.service), &Claims { claims }).await?;
        match answer.claims.iter().find(|(_, unprepared)| !unprepared.error.is_empty()) {
            Some((uid, unprepared)) => Err(Error::internal(format!("claim {uid}: {}", unprepared.error))),
            None => Ok(()),
        }
    }
}
