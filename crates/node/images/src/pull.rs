//! Pulling from registries over HTTP(S).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{ImageIndexEntry, OciDescriptor};
use oci_client::secrets::RegistryAuth;
use sha2::{Digest, Sha256};

use crate::archive::architecture;
use crate::config::ConfigFile;
use crate::reference::Reference;
use crate::store::{Image, Store, hex};
use crate::{Error, Result, io_error};

/// Layers downloaded and unpacked at the same time, as containerd.
const LAYERS_MAX: usize = 3;
/// Tries for one layer: registries behind CDNs drop connections.
const ATTEMPTS: u32 = 3;
/// Without a byte for so long a transfer has stalled.
const STALL: Duration = Duration::from_secs(30);
const CONNECT: Duration = Duration::from_secs(15);
/// A configuration larger than this is refused.
const CONFIG_BYTES_MAX: i64 = 8 << 20;

struct Source<'a> {
    client: oci_client::Client,
    remote: oci_client::Reference,
    auth: RegistryAuth,
    name: &'a Reference,
}

impl Store {
    /// Brings an image onto the node: manifest for this machine, configuration, the layers that are missing. Every digest is verified. Pulls of
    /// one reference wait for each other; a built-in image is never looked for elsewhere.
    pub async fn pull(self: Arc<Self>, name: &str, auth: Option<&cri::v1::AuthConfig>) -> Result<Image> {
        let reference = Reference::parse(name)?;
        if let Some(image) = self.resolve(name).filter(|image| image.pinned) {
            return Ok(image);
        }
        let key = reference.to_string();
        let turn = self.inflight.lock().await.entry(key.clone()).or_default().clone();
        let result = {
            let _turn = turn.lock().await;
            self.pull_now(&Source::new(&reference, auth)?).await
        };
        let mut inflight = self.inflight.lock().await;
        if Arc::strong_count(&turn) == 2 {
            inflight.remove(&key);
        }
        result
    }

    async fn pull_now(self: &Arc<Self>, source: &Source<'_>) -> Result<Image> {
        let (manifest, digest, list) = source
            .client
            .pull_image_manifest_and_list_digest(&source.remote, &source.auth)
            .await
            .map_err(|e| source.fail(&format!("failed to resolve reference {:?}", source.name.to_string()), &e))?;
        let config = source.config(&manifest.config).await?;
        let id = format!("sha256:{}", hex(&Sha256::digest(&config)));
        let file: ConfigFile = serde_json::from_slice(&config).map_err(|e| source.refuse(format!("the image's configuration: {e}")))?;
        if file.rootfs.diff_ids.len() != manifest.layers.len() {
            return Err(source.refuse(format!("{} layers, but {} diff ids", manifest.layers.len(), file.rootfs.diff_ids.len())));
        }
        let pairs = manifest.layers.iter().zip(&file.rootfs.diff_ids);
        let work = pairs.map(|(layer, diff_id)| self.layer(source, layer, diff_id)).collect::<Vec<_>>();
        let layers: Vec<PathBuf> = stream::iter(work).buffered(LAYERS_MAX).try_collect().await?;
        let size = manifest.layers.iter().chain([&manifest.config]).map(|d| u64::try_from(d.size).unwrap_or(0)).sum();
        let tags = source.name.tag.iter().filter(|_| source.name.digest.is_none());
        let tags = tags.map(|tag| format!("{}:{tag}", source.name.name())).collect();
        // What the user named by digest is found again under that digest: the list's, if it was one.
        let digests: BTreeSet<String> =
            source.name.digest.iter().chain(&list).chain([&digest]).take(1).map(|d| format!("{}@{d}", source.name.name())).collect();
        self.record(Image { id, config: file.config, layers, size, tags, digests, pinned: false, removed: false })
    }

    /// One layer: downloaded to a file, hashed on the way, unpacked on a blocking thread.
    async fn layer(self: &Arc<Self>, source: &Source<'_>, descriptor: &OciDescriptor, diff_id: &str) -> Result<PathBuf> {
        if let Some(present) = self.present(diff_id) {
            return Ok(present);
        }
        if descriptor.media_type.contains("zstd") {
            return Err(Error::Unsupported { layer: descriptor.digest.clone(), media_type: descriptor.media_type.clone() });
        }
        let path = self.temporary()?;
        let outcome = self.download_and_unpack(source, descriptor, diff_id, &path).await;
        let _ = tokio::fs::remove_file(&path).await;
        outcome
    }

    async fn download_and_unpack(
        self: &Arc<Self>,
        source: &Source<'_>,
        descriptor: &OciDescriptor,
        diff_id: &str,
        path: &Path,
    ) -> Result<PathBuf> {
        source.download(descriptor, path).await?;
        let (store, diff_id, path) = (self.clone(), diff_id.to_owned(), path.to_owned());
        let unpack = move || {
            let file = std::fs::File::open(&path).map_err(io_error("open a downloaded layer"))?;
            store.add_layer(&diff_id, file)
        };
        let unpacked = tokio::task::spawn_blocking(unpack).await.map_err(|e| io_error("unpack a layer")(std::io::Error::other(e)))?;
        unpacked.map_err(|e| match e {
            unsupported @ Error::Unsupported { .. } => unsupported,
            other => source.refuse(format!("failed to extract layer {}: {other}", descriptor.digest)),
        })
    }

    fn present(&self, diff_id: &str) -> Option<PathBuf> {
        let layer = PathBuf::from(diff_id.strip_prefix("sha256:").filter(|_| crate::reference::is_digest(diff_id))?);
        self.layer_path(&layer).is_dir().then_some(layer)
    }
}

impl<'a> Source<'a> {
    fn new(name: &'a Reference, auth: Option<&cri::v1::AuthConfig>) -> Result<Self> {
        // Whoever came first has chosen the provider for the process; it is the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let protocol = if name.is_loopback() { ClientProtocol::Http } else { ClientProtocol::Https };
        let config = ClientConfig {
            protocol,
            read_timeout: Some(STALL),
            connect_timeout: Some(CONNECT),
            platform_resolver: Some(Box::new(choose_platform)),
            user_agent: concat!("sternpost/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).map_err(|e| Error::Pull {
            reference: name.to_string(),
            reason: e.to_string(),
            not_found: false,
        })?;
        let (registry, repository) = (name.registry.clone(), name.repository.clone());
        let remote = match (&name.digest, &name.tag) {
            (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.clone()),
            (None, tag) => oci_client::Reference::with_tag(registry, repository, tag.clone().unwrap_or_else(|| "latest".into())),
        };
        Ok(Self { client, remote, auth: credentials(auth)?, name })
    }

    async fn config(&self, descriptor: &OciDescriptor) -> Result<Vec<u8>> {
        if descriptor.size > CONFIG_BYTES_MAX {
            return Err(self.refuse(format!("the image's configuration has {} bytes", descriptor.size)));
        }
        let mut bytes = Vec::new();
        self.client
            .pull_blob(&self.remote, descriptor, &mut bytes)
            .await
            .map_err(|e| self.fail("failed to fetch the configuration", &e))?;
        Ok(bytes)
    }

    async fn download(&self, descriptor: &OciDescriptor, path: &Path) -> Result<()> {
        let mut backoff = Duration::from_millis(200);
        for attempt in 1.. {
            let file = tokio::fs::File::create(path).await.map_err(io_error("write a layer"))?;
            let writer = tokio::io::BufWriter::with_capacity(256 << 10, file);
            match self.client.pull_blob(&self.remote, descriptor, writer).await {
                Ok(()) => return Ok(()),
                Err(error) if attempt < ATTEMPTS && is_transient(&error) => {
                    tracing::debug!(layer = descriptor.digest, %error, "the download broke off; trying again");
                    tokio::time::sleep(backoff).await;
                    backoff *= 4;
                }
                Err(error) => return Err(self.fail(&format!("failed to fetch layer {}", descriptor.digest), &error)),
            }
        }
        Ok(())
    }

    fn refuse(&self, reason: String) -> Error {
        Error::Pull { reference: self.name.to_string(), reason, not_found: false }
    }

    /// Upstream's words for what people meet most: no such image, no access, no connection.
    fn fail(&self, step: &str, error: &OciDistributionError) -> Error {
        let name = self.name.to_string();
        let not_found = is_not_found(error);
        let reason = match error {
            _ if not_found => format!("{name}: not found"),
            OciDistributionError::UnauthorizedError { .. } | OciDistributionError::AuthenticationFailure(_) => {
                "pull access denied, repository does not exist or may require authorization: authorization failed".to_owned()
            }
            other => chain(other),
        };
        Error::Pull { reference: name, reason: format!("{step}: {reason}"), not_found }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = error.source();
    }
    text
}

fn is_not_found(error: &OciDistributionError) -> bool {
    use oci_client::errors::OciErrorCode::{BlobUnknown, ManifestUnknown, NameUnknown, NotFound};
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => {
            envelope.errors.iter().any(|e| matches!(e.code, BlobUnknown | ManifestUnknown | NameUnknown | NotFound))
        }
        _ => false,
    }
}

fn is_transient(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::RequestError(_) | OciDistributionError::DigestError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code >= 500 || *code == 429,
        _ => false,
    }
}

fn choose_platform(entries: &[ImageIndexEntry]) -> Option<String> {
    let ours = |e: &&ImageIndexEntry| {
        e.platform.as_ref().is_some_and(|p| p.os.to_string() == "linux" && p.architecture.to_string() == architecture())
    };
    entries.iter().find(ours).map(|e| e.digest.clone())
}

/// CRI's credentials: user and password, or both in base64, or a token.
fn credentials(auth: Option<&cri::v1::AuthConfig>) -> Result<RegistryAuth> {
    let Some(auth) = auth else { return Ok(RegistryAuth::Anonymous) };
    if !auth.registry_token.is_empty() {
        return Ok(RegistryAuth::Bearer(auth.registry_token.clone()));
    }
    if !auth.username.is_empty() {
        return Ok(RegistryAuth::Basic(auth.username.clone(), auth.password.clone()));
    }
    if auth.auth.is_empty() {
        return Ok(RegistryAuth::Anonymous);
    }
    use base64::Engine;
    let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (user, password) = pair.ok_or_else(|| Error::Pull {
        reference: auth.server_address.clone(),
        reason: "invalid registry credentials: auth is not base64 of user:password".into(),
        not_found: false,
    })?;
    Ok(RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cri::v1::AuthConfig;

    #[test]
    fn credentials_come_in_three_shapes() {
        let user = AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
        let both = AuthConfig { auth: "dTpwOnE=".into(), ..Default::default() };
        assert!(matches!(credentials(None), Ok(RegistryAuth::Anonymous)));
        assert!(matches!(credentials(Some(&user)), Ok(RegistryAuth::Basic(u, p)) if u == "u" && p == "p"));
        assert!(matches!(credentials(Some(&both)), Ok(RegistryAuth::Basic(u, p)) if u == "u" && p == "p:q"));
        assert!(credentials(Some(&AuthConfig { auth: "?".into(), ..Default::default() })).is_err());
    }
}
