//! What a build makes: layers from a tar stream that it writes, and images from layers and a configuration.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::config::ConfigFile;
use crate::manifest::{Descriptor, Document, OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST, architecture};
use crate::reference::Reference;
use crate::store::{Hold, Image, Store, hex};
use crate::{Error, Result, io_error};

/// A layer of an image: its content's digest, and what it is packed as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub diff_id: String,
    pub packed: Descriptor,
}

/// What an image is made of, to build upon.
#[derive(Clone, Debug)]
pub struct Base {
    /// The whole configuration document.
    pub config: Value,
    pub layers: Vec<Layer>,
}

/// Hashes and counts what goes through it.
struct Counting<W> {
    to: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Counting<W> {
    fn new(to: W) -> Self {
        Self { to, hash: Sha256::new(), size: 0 }
    }

    fn digest(self) -> (String, u64) {
        (format!("sha256:{}", hex(&self.hash.finalize())), self.size)
    }
}

impl<W: Write> Write for Counting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.to.write(bytes)?;
        self.hash.update(bytes.get(..length).unwrap_or_default());
        self.size += length as u64;
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl Store {
    /// Keeps layers and images from being collected while it lives: those that a build has made and not yet named.
    pub fn keep(self: &Arc<Self>, names: Vec<String>) -> Kept {
        Kept(self.hold(names))
    }

    /// Packs the tar stream that `write` writes, and unpacks it to be built upon. The same stream gives the same layer. Blocking.
    pub fn add_built_layer(self: &Arc<Self>, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Layer> {
        let temporary = self.temporary()?;
        let made = self.pack(&temporary, write);
        if made.is_err() {
            let _ = std::fs::remove_file(&temporary);
        }
        let layer = made?;
        let _held = self.hold(vec![layer.packed.digest.clone(), layer.diff_id.clone()]);
        self.adopt_blob(&temporary, &layer.packed.digest)?;
        self.add_layer(&layer.diff_id, self.blob(&layer.packed.digest)?)?;
        Ok(layer)
    }

    fn pack(&self, path: &std::path::Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<Layer> {
        let step = "pack a layer";
        let file = io::BufWriter::with_capacity(256 << 10, File::create(path).map_err(io_error(step))?);
        let gzip = flate2::GzBuilder::new().mtime(0).write(Counting::new(file), flate2::Compression::default());
        let mut plain = Counting::new(gzip);
        write(&mut plain).map_err(io_error(step))?;
        let gzip = std::mem::replace(&mut plain.hash, Sha256::new());
        let diff_id = format!("sha256:{}", hex(&gzip.finalize()));
        let mut packed = plain.to.finish().map_err(io_error(step))?;
        packed.flush().map_err(io_error(step))?;
        let (digest, size) = packed.digest();
        Ok(Layer { diff_id, packed: Descriptor { media_type: OCI_LAYER_GZIP.into(), digest, size, ..Descriptor::default() } })
    }

    /// Whether a layer that was built earlier is still here, whole.
    pub fn has_layer(&self, layer: &Layer) -> bool {
        self.has_blob(&layer.packed.digest) && self.present(&layer.diff_id).is_some()
    }

    /// The directories of some layers, in their order.
    pub fn layer_directories(&self, layers: &[Layer]) -> Vec<PathBuf> {
        layers.iter().filter_map(|layer| self.present(&layer.diff_id)).map(|layer| self.layer_path(&layer)).collect()
    }

    /// What an image of this node is made of. A built-in one, which was never packed, is packed for it. Blocking.
    pub fn base(self: &Arc<Self>, image: &Image) -> Result<Base> {
        let Some(manifest) = &image.manifest else { return self.base_of_directory(image) };
        let document = Document::parse(&self.document(manifest)?)?;
        let bytes = self.document(&image.id)?;
        let file = ConfigFile::parse(&bytes).map_err(Error::Manifest)?;
        file.matches(document.layers.len()).map_err(Error::Manifest)?;
        let layers = file.rootfs.diff_ids.into_iter().zip(document.layers).map(|(diff_id, packed)| Layer { diff_id, packed });
        Ok(Base { config: serde_json::from_slice(&bytes).map_err(|error| Error::Manifest(error.to_string()))?, layers: layers.collect() })
    }

    fn base_of_directory(self: &Arc<Self>, image: &Image) -> Result<Base> {
        let mut layers = Vec::new();
        for layer in &image.layers {
            let directory = self.layer_path(layer);
            layers.push(self.add_built_layer(|to| {
                let mut archive = tar::Builder::new(to);
                archive.follow_symlinks(false);
                archive.mode(tar::HeaderMode::Deterministic);
                append_sorted(&mut archive, &directory, std::path::Path::new(""))?;
                archive.finish()
            })?);
        }
        let config = json!({ "architecture": architecture(), "os": "linux", "config": image.config, "rootfs": { "type": "layers" } });
        Ok(Base { config, layers })
    }

    /// Makes an image: the configuration gets the layers' digests, and the image the given names, in the built-in registry, too, where they are
    /// its own. Blocking.
    pub fn add_built_image(self: &Arc<Self>, mut config: Value, layers: &[Layer], names: &[String]) -> Result<Image> {
        let references = names.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>>>()?;
        config["rootfs"] = json!({ "type": "layers", "diff_ids": layers.iter().map(|layer| &layer.diff_id).collect::<Vec<_>>() });
        let bytes = serde_json::to_vec(&config).map_err(|error| Error::Manifest(error.to_string()))?;
        let file = ConfigFile::parse(&bytes).map_err(Error::Manifest)?;
        let parts = layers.iter().map(|layer| layer.packed.digest.clone());
        let _held = self.hold(parts.clone().chain(file.rootfs.diff_ids.iter().cloned()).collect());
        let id = self.add_document(&bytes)?;
        let descriptor =
            Descriptor { media_type: OCI_CONFIG.into(), digest: id.clone(), size: bytes.len() as u64, ..Descriptor::default() };
        let document = Document {
            schema_version: 2,
            media_type: OCI_MANIFEST.into(),
            config: Some(descriptor),
            layers: layers.iter().map(|layer| layer.packed.clone()).collect(),
            ..Document::default()
        };
        let manifest = self.add_document(&serde_json::to_vec(&document).map_err(|error| Error::Manifest(error.to_string()))?)?;
        let directories = layers.iter().map(|layer| self.present(&layer.diff_id).ok_or_else(|| Error::Missing(layer.diff_id.clone())));
        let image = self.record(Image {
            id: id.clone(),
            config: file.config,
            layers: directories.collect::<Result<_>>()?,
            size: document.references().map(|part| part.size).sum(),
            tags: references.iter().map(Reference::to_string).collect(),
            digests: references.iter().map(|reference| format!("{}@{manifest}", reference.name())).collect(),
            blobs: parts.chain([id, manifest.clone()]).collect::<BTreeSet<_>>(),
            manifest: Some(manifest),
            ..Image::default()
        })?;
        for reference in &references {
            self.publish_own(&image, reference)?;
        }
        Ok(image)
    }
}

/// See [`Store::keep`].
pub struct Kept(#[expect(dead_code, reason = "held for its drop")] Hold);

fn append_sorted(archive: &mut tar::Builder<impl Write>, root: &std::path::Path, relative: &std::path::Path) -> io::Result<()> {
    let mut entries: Vec<_> = std::fs::read_dir(root.join(relative))?.collect::<io::Result<_>>()?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (name, kind) = (relative.join(entry.file_name()), entry.file_type()?);
        archive.append_path_with_name(entry.path(), &name)?;
        if kind.is_dir() {
            append_sorted(archive, root, &name)?;
        }
    }
    Ok(())
}

/// Reads a file of an archive that may be compressed.
pub fn open_archive<'a>(from: impl Read + Send + 'a, name: &str) -> Result<Box<dyn Read + Send + 'a>> {
    crate::compression::decompress(from, name)
}
