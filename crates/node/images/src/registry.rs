//! The built-in registry: what was pushed to it, and (in [`serve`]) the OCI distribution API 1.1 over it.
//!
//! Its blobs are the store's: an image of the node that gets a name of the registry costs a line in `registry.json`, and an image that is
//! pulled from it is unpacked from where it lies.

mod routes;
mod serve;
mod uploads;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::manifest::{Descriptor, Document};
use crate::reference::Reference;
use crate::store::{Image, Store};
use crate::{Error, Result};

pub use serve::{Access, Server};

/// One repository of the built-in registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Repository {
    pub tags: BTreeMap<String, Tag>,
    /// By digest.
    pub manifests: BTreeMap<String, Manifest>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tag {
    pub digest: String,
    /// Nanoseconds since 1970.
    pub pushed: u64,
}

/// What lists need to know of a manifest without reading it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Manifest {
    pub media_type: String,
    pub size: u64,
    /// Digests of configuration and layers, or of an index's manifests.
    pub references: BTreeSet<String>,
    pub subject: Option<String>,
    pub artifact_type: Option<String>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

impl Repository {
    /// Everything that must be kept for it.
    pub fn digests(&self) -> impl Iterator<Item = &str> {
        self.manifests.iter().flat_map(|(digest, manifest)| std::iter::once(digest).chain(&manifest.references)).map(String::as_str)
    }

    pub fn has(&self, digest: &str) -> bool {
        self.manifests.contains_key(digest) || self.manifests.values().any(|manifest| manifest.references.contains(digest))
    }

    /// The digest behind a tag or a digest.
    pub fn find(&self, reference: &str) -> Option<&str> {
        match self.tags.get(reference) {
            Some(tag) => Some(&tag.digest),
            None => self.manifests.get_key_value(reference).map(|(digest, _)| digest.as_str()),
        }
    }

    fn is_empty(&self) -> bool {
        self.tags.is_empty() && self.manifests.is_empty()
    }
}

impl Manifest {
    fn of(document: &Document, size: u64, media_type: &str) -> Self {
        // As the specification has it: without a type of its own an artifact is what its configuration is.
        let artifact_type = document.artifact_type.clone().or_else(|| document.config.as_ref().map(|config| config.media_type.clone()));
        Self {
            media_type: media_type.to_owned(),
            size,
            references: document.references().map(|referred| referred.digest.clone()).collect(),
            subject: document.subject.as_ref().map(|subject| subject.digest.clone()),
            artifact_type,
            annotations: document.annotations.clone(),
        }
    }

    pub fn descriptor(&self, digest: &str) -> Descriptor {
        Descriptor {
            media_type: self.media_type.clone(),
            digest: digest.to_owned(),
            size: self.size,
            platform: None,
            artifact_type: self.artifact_type.clone(),
            annotations: self.annotations.clone(),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

impl Store {
    /// Takes a manifest into a repository, under a tag if one is given; its digest. Everything that it names must be there.
    pub(crate) fn publish(&self, repository: &str, tag: Option<&str>, bytes: &[u8], media_type: &str) -> Result<String> {
        let document = Document::parse(bytes)?;
        if let Some(missing) = document.references().find(|referred| !self.has_blob(&referred.digest)) {
            return Err(Error::Missing(missing.digest.clone()));
        }
        let digest = self.add_document(bytes)?;
        let mut state = self.lock();
        let entry = state.repositories.entry(repository.to_owned()).or_default();
        entry.manifests.insert(digest.clone(), Manifest::of(&document, bytes.len() as u64, media_type));
        if let Some(tag) = tag {
            entry.tags.insert(tag.to_owned(), Tag { digest: digest.clone(), pushed: now() });
        }
        for referred in document.references() {
            state.uploaded.remove(&referred.digest);
        }
        self.save_repositories(&state)?;
        Ok(digest)
    }

    /// Removes a tag, or a manifest with its tags; false where there is none. What nobody else needs goes with it.
    pub(crate) fn unpublish(&self, repository: &str, reference: &str) -> Result<bool> {
        let mut state = self.lock();
        let Some(entry) = state.repositories.get_mut(repository) else { return Ok(false) };
        let gone = if entry.tags.remove(reference).is_some() {
            Vec::new()
        } else if let Some(manifest) = entry.manifests.remove(reference) {
            entry.tags.retain(|_, tag| tag.digest != reference);
            manifest.references.into_iter().chain([reference.to_owned()]).collect()
        } else {
            return Ok(false);
        };
        if entry.is_empty() {
            state.repositories.remove(repository);
        }
        self.save_repositories(&state)?;
        self.remove_unused(&state, &[], &gone);
        Ok(true)
    }

    pub(crate) fn repository(&self, name: &str) -> Option<Repository> {
        self.lock().repositories.get(name).cloned()
    }

    /// An image of the node under a name of the built-in registry is in the registry.
    pub(crate) fn publish_own(&self, image: &Image, name: &Reference) -> Result<()> {
        let (Some(manifest), true, Some(tag)) = (&image.manifest, self.is_own(name), &name.tag) else { return Ok(()) };
        let bytes = self.document(manifest)?;
        let kind = Document::parse(&bytes)?.kind().to_owned();
        self.publish(&name.repository, Some(tag), &bytes, &kind).map(drop)
    }

    /// Takes a name out of the built-in registry, where it is one of its own; with its last tag a manifest goes, too.
    pub fn unpublish_own(&self, name: &str) -> Result<()> {
        let Ok(reference) = Reference::parse(name) else { return Ok(()) };
        let Some(repository) = self.repository(&reference.repository).filter(|_| self.is_own(&reference)) else { return Ok(()) };
        let wanted = reference.digest.or(reference.tag).unwrap_or_default();
        let Some(digest) = repository.find(&wanted).map(str::to_owned) else { return Ok(()) };
        self.unpublish(&reference.repository, &wanted)?;
        let left = repository.tags.iter().any(|(tag, at)| at.digest == digest && *tag != wanted);
        if !left {
            self.unpublish(&reference.repository, &digest)?;
        }
        Ok(())
    }
}
