//! Pushing an image to a registry.

use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::http::{empty, file};
use crate::manifest::{Descriptor, Document};
use crate::pull::{Progress, Reporter, fail};
use crate::reference::Reference;
use crate::remote::{Failure, Remote};
use crate::store::Store;
use crate::{Error, Result};

const LAYERS_AT_ONCE: usize = 3;

impl Store {
    /// Uploads what the registry lacks, then the manifest; its digest. A name of the built-in registry costs nothing.
    pub async fn push(self: &Arc<Self>, name: &str, auth: Option<&cri::v1::AuthConfig>, progress: Option<Reporter>) -> Result<String> {
        let reference = Reference::parse(name)?;
        let tag = reference.tag.clone().filter(|_| reference.digest.is_none());
        let tag = tag.ok_or_else(|| Error::Reference { reference: name.to_owned(), reason: "a tag is pushed, not a digest".into() })?;
        let image = self.resolve(name).ok_or_else(|| Error::NoImage(name.to_owned()))?;
        let manifest = image.manifest.clone().ok_or_else(|| Error::Unpacked(reference.to_string()))?;
        let _hold = self.hold(image.blobs.iter().cloned().collect());
        if self.is_own(&reference) {
            self.publish_own(&image, &reference)?;
            return Ok(manifest);
        }
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let bytes = self.document(&manifest)?;
        let document = Document::parse(&bytes)?;
        let registries = self.registries();
        let endpoint = registries.outside(&reference, auth)?.into_iter().find(|endpoint| endpoint.is_registry);
        let endpoint = endpoint.ok_or_else(|| Error::NoImage(name.to_owned()))?;
        let remote = Remote::new(endpoint, registries.resolver.clone(), true);
        let uploads =
            document.references().map(|descriptor| self.upload(&remote, &reference, descriptor, progress.as_ref())).collect::<Vec<_>>();
        stream::iter(uploads).buffered(LAYERS_AT_ONCE).try_collect::<Vec<()>>().await?;
        let step = "failed to push the manifest";
        remote.put_manifest(&tag, document.kind(), &bytes).await.map_err(|error| pushed(&reference, step, &error))?;
        Ok(manifest)
    }

    async fn upload(&self, remote: &Remote, name: &Reference, descriptor: &Descriptor, progress: Option<&Reporter>) -> Result<()> {
        let digest = &descriptor.digest;
        let step = format!("failed to push {digest}");
        if remote.blob_size(digest).await.map_err(|error| pushed(name, &step, &error))?.is_some() {
            progress.into_iter().for_each(|report| report(Progress::Present { digest: digest.clone() }));
            return Ok(());
        }
        let opened = self.blob(digest)?;
        // The length on disk: a registry refuses what is not what the manifest says.
        let size = opened.metadata().map_or(descriptor.size, |metadata| metadata.len());
        drop(opened);
        let open = || self.blob(digest).map_or_else(|_| empty(), |opened| file(tokio::fs::File::from_std(opened), size));
        remote.upload(digest, size, open).await.map_err(|error| pushed(name, &step, &error))?;
        progress.into_iter().for_each(|report| report(Progress::Moved { digest: digest.clone(), bytes: size, of: size }));
        Ok(())
    }
}

fn pushed(name: &Reference, step: &str, failure: &Failure) -> Error {
    match fail(name, step, failure) {
        Error::Pull { reason, .. } => {
            Error::Push { reference: name.to_string(), reason: reason.replace("pull access denied", "push access denied") }
        }
        other => other,
    }
}
