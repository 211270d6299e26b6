//! Saving images as an archive that both `docker load` and readers of OCI layouts take, as Docker itself writes since version 25.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};

use serde_json::json;

use crate::manifest::{Descriptor, Document};
use crate::reference::Reference;
use crate::store::{Image, Store};
use crate::{Error, Result, io_error};

impl Store {
    /// Writes the named images. The same images give the same bytes. Blocking.
    pub fn save_archive(&self, names: &[String], to: impl Write) -> Result<()> {
        let mut archive = tar::Builder::new(to);
        let (mut index, mut docker, mut written) = (Vec::new(), Vec::new(), BTreeSet::new());
        for name in names {
            let image = self.resolve(name).ok_or_else(|| Error::NoImage(name.clone()))?;
            let digest = image.manifest.clone().ok_or_else(|| Error::Unpacked(name.clone()))?;
            let bytes = self.document(&digest)?;
            let document = Document::parse(&bytes)?;
            for descriptor in document.references() {
                self.append_blob(&mut archive, &mut written, &descriptor.digest)?;
            }
            self.append_blob(&mut archive, &mut written, &digest)?;
            let tag = tag_of(&image, name);
            docker.push(docker_entry(&document, tag.as_deref()));
            index.push(oci_entry(&document, &digest, bytes.len() as u64, tag));
        }
        append(
            &mut archive,
            "index.json",
            json!({ "schemaVersion": 2, "mediaType": crate::manifest::OCI_INDEX, "manifests": index }).to_string().as_bytes(),
        )?;
        append(&mut archive, "manifest.json", json!(docker).to_string().as_bytes())?;
        append(&mut archive, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        archive.into_inner().and_then(|mut to| to.flush()).map_err(io_error("write the archive"))
    }

    fn append_blob(&self, archive: &mut tar::Builder<impl Write>, written: &mut BTreeSet<String>, digest: &str) -> Result<()> {
        if !written.insert(digest.to_owned()) {
            return Ok(());
        }
        let blob = self.blob(digest)?;
        let size = blob.metadata().map_err(io_error(format!("read blob {digest}")))?.len();
        let mut header = header(size);
        archive.append_data(&mut header, path_of(digest), blob.take(size)).map_err(io_error("write the archive"))
    }
}

/// The name that it is known by: as asked for, where that was a tag.
fn tag_of(image: &Image, name: &str) -> Option<String> {
    let whole = Reference::parse(name).ok().map(|reference| reference.to_string());
    whole.filter(|whole| image.tags.contains(whole))
}

fn path_of(digest: &str) -> String {
    format!("blobs/{}", digest.replace(':', "/"))
}

fn docker_entry(document: &Document, tag: Option<&str>) -> serde_json::Value {
    let layers: Vec<String> = document.layers.iter().map(|layer| path_of(&layer.digest)).collect();
    let config = document.config.as_ref().map(|config| path_of(&config.digest)).unwrap_or_default();
    json!({ "Config": config, "RepoTags": tag.into_iter().collect::<Vec<_>>(), "Layers": layers })
}

fn oci_entry(document: &Document, digest: &str, size: u64, tag: Option<String>) -> Descriptor {
    let mut annotations = BTreeMap::new();
    if let Some(tag) = tag {
        let short = tag.rsplit(':').next().unwrap_or_default().to_owned();
        annotations.insert("io.containerd.image.name".to_owned(), tag);
        annotations.insert("org.opencontainers.image.ref.name".to_owned(), short);
    }
    Descriptor { media_type: document.kind().to_owned(), digest: digest.to_owned(), size, annotations, ..Descriptor::default() }
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, bytes: &[u8]) -> Result<()> {
    archive.append_data(&mut header(bytes.len() as u64), name, bytes).map_err(io_error("write the archive"))
}
