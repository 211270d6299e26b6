//! CRI's image calls.

use std::sync::Arc;

use cri::v1;

use crate::{Error, Image, Pull, Store};

/// The annotation of an image's spec by which the kubelet says that a tag may be believed as another node of the cluster knows it.
pub const ANY_KNOWN: &str = "sternpost.io/any-known";

/// As the traits of `cri` return it.
type Call<'a, T> = std::pin::Pin<Box<dyn Future<Output = cri::Result<T>> + Send + 'a>>;

/// The store behind CRI's trait; a newtype because calls need the shared store.
#[derive(Clone)]
pub struct Service(pub Arc<Store>);

impl From<Error> for cri::Error {
    fn from(error: Error) -> Self {
        match &error {
            Error::Reference { .. } => cri::Error::invalid(error.to_string()),
            Error::Pull { not_found: true, .. } => cri::Error::not_found(error.to_string()),
            _ => cri::Error::new(cri::Code::Unknown, error.to_string()),
        }
    }
}

impl cri::ImageService for Service {
    fn list_images(&self, request: v1::ListImagesRequest) -> Call<'_, v1::ListImagesResponse> {
        let wanted = request.filter.and_then(|f| f.image).map(|i| i.image).filter(|name| !name.is_empty());
        let images = match wanted {
            Some(name) => self.0.resolve(&name).into_iter().collect(),
            None => self.0.list(),
        };
        Box::pin(async move { Ok(v1::ListImagesResponse { images: images.iter().map(to_cri).collect() }) })
    }

    fn image_status(&self, request: v1::ImageStatusRequest) -> Call<'_, v1::ImageStatusResponse> {
        Box::pin(async move {
            let name = request.image.map(|i| i.image).unwrap_or_default();
            let image = self.0.resolve(&name);
            let info = match (&image, request.verbose) {
                (Some(image), true) => [("info".to_owned(), serde_json::to_string(&image.config).unwrap_or_default())].into(),
                _ => Default::default(),
            };
            Ok(v1::ImageStatusResponse { image: image.as_ref().map(to_cri), info })
        })
    }

    fn pull_image(&self, request: v1::PullImageRequest) -> Call<'_, v1::PullImageResponse> {
        Box::pin(async move {
            let spec = request.image.unwrap_or_default();
            let any_known = spec.annotations.get(ANY_KNOWN).is_some_and(|value| value == "true");
            let how = Pull { auth: request.auth.as_ref(), any_known, progress: None };
            let image = Box::pin(self.0.clone().pull_with(&spec.image, how)).await?;
            Ok(v1::PullImageResponse { image_ref: image.id })
        })
    }

    fn remove_image(&self, request: v1::RemoveImageRequest) -> Call<'_, v1::RemoveImageResponse> {
        Box::pin(async move {
            let (store, name) = (self.0.clone(), request.image.map(|i| i.image).unwrap_or_default());
            tokio::task::spawn_blocking(move || store.remove(&name)).await.map_err(|e| cri::Error::internal(e.to_string()))??;
            Ok(v1::RemoveImageResponse {})
        })
    }

    fn image_fs_info(&self) -> Call<'_, v1::ImageFsInfoResponse> {
        Box::pin(async move {
            let directory = self.0.directory.clone();
            let (used, inodes) =
                tokio::task::spawn_blocking(move || usage(&directory)).await.map_err(|e| cri::Error::internal(e.to_string()))?;
            let usage = v1::FilesystemUsage {
                timestamp: now_nanos(),
                fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.0.directory.display().to_string() }),
                used_bytes: Some(v1::UInt64Value { value: used }),
                inodes_used: Some(v1::UInt64Value { value: inodes }),
            };
            Ok(v1::ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
        })
    }
}

fn to_cri(image: &Image) -> v1::Image {
    let user = image.config.user.split(':').next().unwrap_or_default();
    let uid = if user.is_empty() { Some(0) } else { user.parse::<i64>().ok() };
    v1::Image {
        id: image.id.clone(),
        repo_tags: image.tags.iter().cloned().collect(),
        repo_digests: image.digests.iter().cloned().collect(),
        size: image.size,
        uid: uid.map(|value| v1::Int64Value { value }),
        username: if uid.is_none() { user.to_owned() } else { String::new() },
        spec: Some(v1::ImageSpec { image: image.tags.first().cloned().unwrap_or_default(), ..Default::default() }),
        pinned: image.pinned,
    }
}

fn now_nanos() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}

/// Allocated bytes and inodes below a directory.
pub fn usage(directory: &std::path::Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let mut total = (0, 0);
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            total = (total.0 + metadata.blocks() * 512, total.1 + 1);
            if metadata.is_dir() {
                pending.push(entry.path());
            }
        }
    }
    total
}
