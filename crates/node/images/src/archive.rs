//! Importing image archives: what `docker save` and `skopeo copy … oci-archive:` write.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::config::ConfigFile;
use crate::reference::Reference;
use crate::store::{Image, Store, hex};
use crate::unpack::{Hashing, decompress, unpack};
use crate::{Error, Result, io_error};

/// Manifests, indexes and configurations are small; a larger one is an attack.
const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// An index may point to an index; not for ever.
const INDEX_DEPTH_MAX: usize = 4;

/// One image that an import has brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// `None` when the archive does not name it.
    pub name: Option<String>,
    /// `sha256:<hex>`.
    pub id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
}

/// An index or a manifest: whichever fields are there.
#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// This machine's architecture in Go's words, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Platform {
    fn is_ours(&self) -> bool {
        self.os == "linux" && self.architecture == architecture()
    }
}

/// An archive's members on disk, by name.
struct Members {
    directory: tempdir::Directory,
    files: HashMap<String, PathBuf>,
    links: HashMap<String, String>,
}

mod tempdir {
    //! A directory that goes with its owner.
    pub struct Directory(pub std::path::PathBuf);
    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

impl Members {
    fn extract(reader: impl Read + Send, directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory).map_err(io_error("make the import directory"))?;
        let mut members = Self { directory: tempdir::Directory(directory), files: HashMap::new(), links: HashMap::new() };
        let mut archive = tar::Archive::new(decompress(reader, "the archive")?);
        for (number, entry) in archive.entries().map_err(io_error("read the archive"))?.enumerate() {
            let mut entry = entry.map_err(io_error("read the archive"))?;
            let name = clean(&String::from_utf8_lossy(&entry.path_bytes()));
            let kind = entry.header().entry_type();
            if kind.is_file() {
                // Numbered, not named: a member's name never becomes a path.
                let path = members.directory.0.join(number.to_string());
                let mut file = File::create(&path).map_err(io_error("write the import directory"))?;
                io::copy(&mut entry, &mut file).map_err(io_error(format!("extract {name}")))?;
                members.files.insert(name, path);
            } else if let (true, Some(target)) = (kind.is_symlink() || kind.is_hard_link(), entry.link_name_bytes()) {
                let target = String::from_utf8_lossy(&target).into_owned();
                let base = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(d, _)| d).to_owned() } else { String::new() };
                members.links.insert(name, clean(&format!("{base}/{target}")));
            }
        }
        Ok(members)
    }

    fn find(&self, name: &str) -> Result<&PathBuf> {
        let name = clean(name);
        let name = self.links.get(&name).unwrap_or(&name);
        self.files.get(name).ok_or_else(|| Error::Archive(format!("{name} is missing")))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let file = File::open(self.find(name)?).map_err(io_error(format!("read {name}")))?;
        file.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(io_error(format!("read {name}")))?;
        Ok(bytes)
    }

    /// A content-addressed document, checked.
    fn blob(&self, digest: &str) -> Result<Vec<u8>> {
        let bytes = self.read(&blob_path(digest)?)?;
        let actual = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        if actual != digest {
            return Err(Error::Digest { what: "a document of the archive".into(), expected: digest.to_owned(), actual });
        }
        Ok(bytes)
    }
}

fn blob_path(digest: &str) -> Result<String> {
    match digest.split_once(':') {
        Some((algorithm, hex)) if crate::reference::is_digest(digest) => Ok(format!("blobs/{algorithm}/{hex}")),
        _ => Err(Error::Archive(format!("{digest:?} is not a SHA-256 digest"))),
    }
}

fn parse<'de, T: Deserialize<'de>>(name: &str, bytes: &'de [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::Archive(format!("{name}: {e}")))
}

impl Store {
    /// Imports every image of an OCI or Docker archive, compressed or not. Blocking.
    pub fn import(self: &Arc<Self>, reader: impl Read + Send) -> Result<Vec<ImageRef>> {
        let members = Members::extract(reader, self.temporary()?)?;
        if members.find("manifest.json").is_ok() {
            return self.import_docker(&members);
        }
        if members.find("index.json").is_ok() {
            return self.import_oci(&members);
        }
        Err(Error::Archive("neither manifest.json (docker save) nor index.json (OCI layout) is in it".into()))
    }

    fn import_docker(self: &Arc<Self>, members: &Members) -> Result<Vec<ImageRef>> {
        let bytes = members.read("manifest.json")?;
        let manifests: Vec<DockerManifest> = parse("manifest.json", &bytes)?;
        let mut imported = Vec::new();
        for manifest in manifests {
            let config = members.read(&manifest.config)?;
            let layers = manifest.layers.iter().map(|name| members.find(name).cloned()).collect::<Result<Vec<_>>>()?;
            let tags = manifest.repo_tags.unwrap_or_default();
            imported.extend(self.import_image(&config, &layers, &tags)?);
        }
        Ok(imported)
    }

    fn import_oci(self: &Arc<Self>, members: &Members) -> Result<Vec<ImageRef>> {
        let bytes = members.read("index.json")?;
        let index: Document = parse("index.json", &bytes)?;
        let mut imported = Vec::new();
        for descriptor in &index.manifests {
            let manifest = choose(members, descriptor, 0)?;
            let config = manifest.config.as_ref().ok_or_else(|| Error::Archive("a manifest without a configuration".into()))?;
            let layers = manifest.layers.iter().map(|l| members.find(&blob_path(&l.digest)?).cloned()).collect::<Result<Vec<_>>>()?;
            let name =
                ["io.containerd.image.name", "org.opencontainers.image.ref.name"].iter().find_map(|key| descriptor.annotations.get(*key));
            imported.extend(self.import_image(&members.blob(&config.digest)?, &layers, name.cloned().as_slice())?);
        }
        Ok(imported)
    }

    fn import_image(self: &Arc<Self>, config: &[u8], layers: &[PathBuf], names: &[String]) -> Result<Vec<ImageRef>> {
        let file: ConfigFile = parse("the image's configuration", config)?;
        if !file.architecture.is_empty() && file.architecture != architecture() {
            return Err(Error::Archive(format!("the image is for {}/{}, not linux/{}", file.os, file.architecture, architecture())));
        }
        if file.rootfs.diff_ids.len() != layers.len() {
            return Err(Error::Archive(format!("{} layers, but {} diff ids", layers.len(), file.rootfs.diff_ids.len())));
        }
        let tags = names.iter().map(|name| Ok(Reference::parse(name)?.to_string())).collect::<Result<BTreeSet<_>>>()?;
        let mut size = config.len() as u64;
        let mut unpacked = Vec::new();
        for (diff_id, path) in file.rootfs.diff_ids.iter().zip(layers) {
            let layer = File::open(path).map_err(io_error("open a layer"))?;
            size += layer.metadata().map_or(0, |m| m.len());
            unpacked.push(self.add_layer(diff_id, layer)?);
        }
        let id = format!("sha256:{}", hex(&Sha256::digest(config)));
        let image = Image {
            id: id.clone(),
            config: file.config,
            layers: unpacked,
            size,
            tags: tags.clone(),
            digests: BTreeSet::new(),
            pinned: false,
            removed: false,
        };
        self.record(image)?;
        if tags.is_empty() {
            return Ok(vec![ImageRef { name: None, id }]);
        }
        Ok(tags.into_iter().map(|name| ImageRef { name: Some(name), id: id.clone() }).collect())
    }

    /// Unpacks a layer unless it is there; its name among the layers. The stream may be compressed; its content must have the digest `diff_id`.
    pub(crate) fn add_layer(&self, diff_id: &str, compressed: impl Read + Send) -> Result<PathBuf> {
        let Some(name) = diff_id.strip_prefix("sha256:").filter(|_| crate::reference::is_digest(diff_id)) else {
            return Err(Error::Archive(format!("diff id {diff_id:?} is not a SHA-256 digest")));
        };
        let layer = PathBuf::from(name);
        let path = self.layer_path(&layer);
        if path.is_dir() {
            return Ok(layer);
        }
        let temporary = tempdir::Directory(self.temporary()?);
        std::fs::create_dir_all(&temporary.0).map_err(io_error("make a layer directory"))?;
        let mut stream = Hashing::new(decompress(io::BufReader::with_capacity(256 << 10, compressed), diff_id)?);
        unpack(&mut stream, &temporary.0)?;
        let actual = stream.finish().map_err(io_error("read the layer"))?;
        if actual != diff_id {
            return Err(Error::Digest { what: "an unpacked layer".into(), expected: diff_id.to_owned(), actual });
        }
        // A layer that has its name must survive a power loss whole.
        let directory = File::open(&temporary.0).map_err(io_error("open the layer"))?;
        rustix::fs::syncfs(&directory).map_err(|e| io_error("sync the layer")(e.into()))?;
        match std::fs::rename(&temporary.0, &path) {
            Err(_) if path.is_dir() => Ok(layer),
            other => other.map(|()| layer).map_err(io_error("name the layer")),
        }
    }

    /// A fresh name for something unfinished.
    pub(crate) fn temporary(&self) -> Result<PathBuf> {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Ok(self.directory.join("ingest").join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))))
    }
}

/// Follows indexes to the manifest for this machine.
fn choose(members: &Members, descriptor: &Descriptor, depth: usize) -> Result<Document> {
    let bytes = members.blob(&descriptor.digest)?;
    let document: Document = parse("a manifest", &bytes)?;
    if document.manifests.is_empty() {
        return Ok(document);
    }
    let ours = document.manifests.iter().find(|m| m.platform.as_ref().is_some_and(Platform::is_ours));
    match ours.or(document.manifests.first().filter(|m| m.platform.is_none())) {
        Some(next) if depth < INDEX_DEPTH_MAX => choose(members, next, depth + 1),
        _ => Err(Error::Archive(format!("no image for linux/{} in it", architecture()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tarball(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o755);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn digest(bytes: &[u8]) -> String {
        format!("sha256:{}", hex(&Sha256::digest(bytes)))
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut encoder, bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn config(diff_ids: &[String]) -> Vec<u8> {
        serde_json::json!({ "architecture": architecture(), "os": "linux", "config": { "Cmd": ["/hello"] }, "rootfs": { "type": "layers", "diff_ids": diff_ids } })
            .to_string()
            .into_bytes()
    }

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    #[test]
    fn a_docker_archive_is_imported_with_its_names() {
        let (_directory, store) = store();
        let layer = tarball(&[("hello", b"hi")]);
        let config = config(&[digest(&layer)]);
        let manifest = br#"[{"Config":"c.json","RepoTags":["app:1","other/app:2"],"Layers":["l/layer.tar"]}]"#;
        let archive = tarball(&[("l/layer.tar", &layer), ("c.json", &config), ("manifest.json", manifest)]);
        let names: Vec<_> = store.import(gzip(&archive).as_slice()).unwrap().into_iter().filter_map(|i| i.name).collect();
        assert_eq!(names, ["docker.io/library/app:1", "docker.io/other/app:2"]);
        let image = store.resolve("app:1").unwrap();
        assert_eq!((image.id.clone(), image.config.cmd.clone()), (digest(&config), vec!["/hello".to_owned()]));
        let layers = store.lease(&image.id).unwrap().layers();
        assert_eq!(std::fs::read_to_string(layers[0].join("hello")).unwrap(), "hi");
        assert_eq!(std::fs::read_dir(store.directory.join("ingest")).unwrap().count(), 0);
    }

    #[test]
    fn an_oci_archive_gives_the_image_of_this_machine() {
        let (_directory, store) = store();
        let layer = tarball(&[("hello", b"hi")]);
        let (packed, config) = (gzip(&layer), config(&[digest(&layer)]));
        let manifest =
            serde_json::json!({ "config": { "digest": digest(&config) }, "layers": [{ "digest": digest(&packed) }] }).to_string();
        let platforms = serde_json::json!({ "manifests": [
            { "digest": digest(b"elsewhere"), "platform": { "os": "linux", "architecture": "s390x" } },
            { "digest": digest(manifest.as_bytes()), "platform": { "os": "linux", "architecture": architecture() } }] })
        .to_string();
        let index = serde_json::json!({ "manifests": [
            { "digest": digest(platforms.as_bytes()), "annotations": { "org.opencontainers.image.ref.name": "app:3" } }] })
        .to_string();
        let blobs: Vec<(String, &[u8])> = [&packed, &config, manifest.as_bytes(), platforms.as_bytes()]
            .into_iter()
            .map(|bytes| (format!("blobs/sha256/{}", hex(&Sha256::digest(bytes))), bytes))
            .collect();
        let mut files: Vec<(&str, &[u8])> = blobs.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        files.push(("index.json", index.as_bytes()));
        let imported = store.import(tarball(&files).as_slice()).unwrap();
        assert_eq!(imported, [ImageRef { name: Some("docker.io/library/app:3".into()), id: digest(&config) }]);
    }

    #[test]
    fn a_layer_with_another_digest_is_refused_and_leaves_nothing() {
        let (_directory, store) = store();
        let layer = tarball(&[("hello", b"hi")]);
        let config = config(&[digest(b"something else")]);
        let manifest = br#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["layer.tar"]}]"#;
        let archive = tarball(&[("layer.tar", &layer), ("c.json", &config), ("manifest.json", manifest)]);
        assert!(matches!(store.import(archive.as_slice()), Err(Error::Digest { .. })));
        assert!(store.list().is_empty());
        for place in ["ingest", "layers"] {
            assert_eq!(std::fs::read_dir(store.directory.join(place)).unwrap().count(), 0, "{place}");
        }
    }

    #[test]
    fn what_is_no_image_archive_says_so() {
        let (_directory, store) = store();
        let error = store.import(tarball(&[("readme", b"x")]).as_slice()).unwrap_err();
        assert!(error.to_string().contains("index.json"), "{error}");
    }
}
