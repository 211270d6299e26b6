//! Sockets that are asked what they are. Source: upstream's `pkg/apis/pluginregistration/v1` and `pkg/kubelet/pluginmanager`.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use prost::Message;
use stdx::Drain;

/// How often the folder is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Clone, PartialEq, Message)]
pub struct InfoRequest {}

#[derive(Clone, PartialEq, Message)]
pub struct PluginInfo {
    /// `CSIPlugin`, `DRAPlugin`, `DevicePlugin`.
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where it serves, if not on the socket that it registered with.
    #[prost(string, tag = "3")]
    pub endpoint: String,
    #[prost(string, repeated, tag = "4")]
    pub supported_versions: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct RegistrationStatus {
    #[prost(bool, tag = "1")]
    pub plugin_registered: bool,
    #[prost(string, tag = "2")]
    pub error: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct RegistrationStatusResponse {}

/// Who takes plugins of one kind. `Err` is told to the plugin.
pub trait Taker: Send + Sync {
    fn register<'a>(&'a self, plugin: &'a PluginInfo) -> BoxFuture<'a, Result<(), String>>;
    /// Its socket is gone.
    fn gone(&self, plugin: &PluginInfo);
}

/// By kind.
pub type Takers = BTreeMap<&'static str, Arc<dyn Taker>>;

/// Follows the sockets in `folder` and the folders in it until `drain`.
pub async fn follow(folder: PathBuf, takers: Takers, drain: Drain) {
    // By path: which file it was, and what it said of itself, if it was taken.
    let mut known: BTreeMap<PathBuf, ((u64, i64), Option<PluginInfo>)> = BTreeMap::new();
    loop {
        let found = sockets(&folder);
        known.retain(|path, (identity, plugin)| {
            let stays = found.get(path) == Some(identity);
            if let Some(plugin) = plugin.as_ref().filter(|_| !stays) {
                takers.get(plugin.kind.as_str()).inspect(|taker| taker.gone(plugin));
            }
            stays
        });
        for (path, identity) in found {
            if known.get(&path).is_some_and(|(_, plugin)| plugin.is_some()) {
                continue;
            }
            match introduce(&path, &takers).await {
                Ok(plugin) => drop(known.insert(path, (identity, Some(plugin)))),
                // It may just have begun: the next look asks again.
                Err(error) if known.insert(path.clone(), (identity, None)).is_none() => {
                    tracing::warn!(socket = %path.display(), error, "a plugin cannot be registered; will retry");
                }
                Err(_) => {}
            }
        }
        if drain.run(tokio::time::sleep(LOOK_INTERVAL)).await.is_none() {
            return;
        }
    }
}

fn sockets(folder: &Path) -> BTreeMap<PathBuf, (u64, i64)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        match entry.metadata() {
            Ok(metadata) if metadata.file_type().is_socket() && !hidden => {
                found.insert(entry.path(), (metadata.ino(), metadata.ctime_nsec() ^ metadata.ctime()));
            }
            Ok(metadata) if metadata.is_dir() && !hidden => found.extend(sockets(&entry.path())),
            _ => {}
        }
    }
    found
}

async fn introduce(socket: &Path, takers: &Takers) -> Result<PluginInfo, String> {
    let channel = crate::channel(socket);
    let asked = channel.unary("pluginregistration.Registration/GetInfo", &InfoRequest {});
    let mut plugin: PluginInfo = asked.await.map_err(|error| error.to_string())?;
    if plugin.endpoint.is_empty() {
        plugin.endpoint = socket.display().to_string();
    }
    let taken = match takers.get(plugin.kind.as_str()) {
        Some(taker) => taker.register(&plugin).await,
        None => Err(format!("no handler registered for plugin type: {} at socket {}", plugin.kind, socket.display())),
    };
    let status = RegistrationStatus { plugin_registered: taken.is_ok(), error: taken.clone().err().unwrap_or_default() };
    let told = channel.unary::<RegistrationStatusResponse>("pluginregistration.Registration/NotifyRegistrationStatus", &status).await;
    taken.and(told.map_err(|error| error.to_string()))?;
    Ok(plugin)
}
