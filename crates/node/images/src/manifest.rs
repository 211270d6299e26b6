//! Manifests and indexes, as registries and archives have them (OCI image specification 1.1, Docker image manifest 2.2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::reference::is_digest;
use crate::{Error, Result};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// What is asked of a registry, the preferred kind first.
pub(crate) const ACCEPT: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// Manifests, indexes and configurations are small; a larger one is an attack. The limit of the distribution specification.
pub const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// Layers of one image: overlayfs takes 500.
pub(crate) const LAYERS_MAX: usize = 500;

/// A reference to content by its digest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    /// `sha256:<hex>`.
    pub digest: String,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// This machine's.
    pub fn ours() -> Self {
        Self { architecture: architecture().into(), os: "linux".into(), variant: String::new() }
    }

    fn fits(&self) -> bool {
        // 64-bit ARM is `v8` or nothing; of x86-64 only the baseline is known to run.
        let variant = matches!(self.variant.as_str(), "" | "v8" | "v1");
        self.os == "linux" && self.architecture == architecture() && variant
    }
}

/// This machine's architecture in Go's words, as images name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "loongarch64" => "loong64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

/// A manifest or an index: whichever fields are there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    #[serde(default)]
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Descriptor>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub manifests: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Only schema 1 has it.
    #[serde(default, rename = "fsLayers", skip_serializing)]
    pub(crate) old_layers: Option<serde_json::Value>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Document {
    /// Parses and checks what came from outside.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let fail = |reason: String| Error::Manifest(reason);
        if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
            return Err(fail(format!("it has {} bytes", bytes.len())));
        }
        let document: Self = serde_json::from_slice(bytes).map_err(|e| fail(e.to_string()))?;
        if document.schema_version == 1 || document.old_layers.is_some() {
            return Err(fail("schema 1 manifests are no longer supported: push the image again with a current tool".into()));
        }
        if document.layers.len() > LAYERS_MAX {
            return Err(fail(format!("{} layers, more than {LAYERS_MAX}", document.layers.len())));
        }
        if document.config.is_some() && !document.manifests.is_empty() {
            return Err(fail("both a manifest and an index".into()));
        }
        let bad = document.references().chain(&document.subject).find(|referred| !is_digest(&referred.digest));
        match bad.map(|bad| bad.digest.clone()) {
            Some(digest) => Err(fail(format!("digest {digest:?} is not a SHA-256 digest"))),
            None => Ok(document),
        }
    }

    /// Everything that it names by digest, its subject apart.
    pub fn references(&self) -> impl Iterator<Item = &Descriptor> {
        self.config.iter().chain(&self.layers).chain(&self.manifests)
    }

    pub fn is_index(&self) -> bool {
        self.config.is_none() && (!self.manifests.is_empty() || matches!(self.media_type.as_str(), OCI_INDEX | DOCKER_LIST))
    }

    /// The media type, told or inferred.
    pub fn kind(&self) -> &str {
        match (self.media_type.as_str(), self.is_index()) {
            ("", true) => OCI_INDEX,
            ("", false) => OCI_MANIFEST,
            (told, _) => told,
        }
    }

    /// Of an index: the entry for this machine; one without a platform only where nothing names one.
    pub fn ours(&self) -> Result<&Descriptor> {
        let fits = |entry: &&Descriptor| entry.platform.as_ref().is_some_and(Platform::fits);
        let only = || self.manifests.first().filter(|_| self.manifests.iter().all(|entry| entry.platform.is_none()));
        let known = || -> String {
            let all = self.manifests.iter().filter_map(|entry| entry.platform.as_ref());
            all.map(|platform| format!("{}/{}", platform.os, platform.architecture)).collect::<Vec<_>>().join(", ")
        };
        let found = self.manifests.iter().find(fits).or_else(only);
        found.ok_or_else(|| {
            Error::Manifest(format!("no match for platform in manifest: linux/{} is not among: {}", architecture(), known()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(os: &str, architecture: &str, letter: char) -> Descriptor {
        let platform = Some(Platform { os: os.into(), architecture: architecture.into(), variant: String::new() });
        Descriptor { digest: format!("sha256:{}", letter.to_string().repeat(64)), platform, ..Descriptor::default() }
    }

    #[test]
    fn an_index_gives_the_entry_of_this_machine_or_says_what_it_has() {
        let ours = entry("linux", architecture(), 'a');
        let index = Document { manifests: vec![entry("linux", "s390x", 'b'), ours.clone()], ..Document::default() };
        assert_eq!(index.ours().unwrap(), &ours);
        let foreign = Document { manifests: vec![entry("windows", architecture(), 'c')], ..Document::default() };
        let error = foreign.ours().unwrap_err().to_string();
        assert!(error.contains("no match for platform in manifest") && error.contains("windows/"), "{error}");
        let bare = Descriptor { platform: None, ..ours };
        let single = Document { manifests: vec![bare.clone()], ..Document::default() };
        assert_eq!(single.ours().unwrap(), &bare);
    }

    #[test]
    fn malformed_documents_are_refused_with_the_reason() {
        let digest = format!("sha256:{}", "a".repeat(64));
        let layers = vec![serde_json::json!({ "digest": digest }); LAYERS_MAX + 1];
        for (document, reason) in [
            (serde_json::json!({ "schemaVersion": 1, "fsLayers": [] }), "schema 1"),
            (serde_json::json!({ "config": { "digest": "sha256:../../etc/passwd" } }), "not a SHA-256 digest"),
            (serde_json::json!({ "config": { "digest": digest }, "manifests": [{ "digest": digest }] }), "both"),
            (serde_json::json!({ "layers": layers }), "501 layers"),
            (serde_json::json!({ "layers": 7 }), "invalid type"),
        ] {
            let error = Document::parse(document.to_string().as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        assert!(Document::parse(&vec![b' '; DOCUMENT_BYTES_MAX as usize + 1]).is_err());
        assert!(Document::parse(br#"{"layers":null,"annotations":null}"#).is_ok());
    }
}
