//! Importing image archives: what `docker save` and `skopeo copy … oci-archive:` write.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::compression::decompress;
use crate::config::ConfigFile;
use crate::entries::Entries;
use crate::manifest::{self, DOCUMENT_BYTES_MAX, Descriptor, Document, architecture};
use crate::reference::Reference;
use crate::store::{Image, Store, hex};
use crate::unpack::{Hashing, Limits, unpack};
use crate::{Error, Result, io_error};

/// An index may point to an index; not for ever.
const INDEX_DEPTH_MAX: usize = 4;
/// Members of an archive; an image has three or four beside its layers.
const MEMBERS_MAX: usize = 100_000;

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

/// An archive's members on disk, by name.
struct Members {
    directory: tempdir::Directory,
    files: HashMap<String, Member>,
    links: HashMap<String, String>,
}

#[derive(Clone)]
struct Member {
    path: PathBuf,
    digest: String,
    size: u64,
}

pub(crate) mod tempdir {
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

/// Writes and hashes.
struct Sink {
    file: File,
    hash: Sha256,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.file.write(bytes)?;
        self.hash.update(bytes.get(..length).unwrap_or_default());
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Members {
    fn extract(reader: impl Read + Send, directory: PathBuf) -> Result<Self> {
        std::fs::create_dir_all(&directory).map_err(io_error("make the import directory"))?;
        let mut members = Self { directory: tempdir::Directory(directory), files: HashMap::new(), links: HashMap::new() };
        let mut entries = Entries::new(decompress(reader, "the archive")?);
        let (mut count, mut bytes) = (0_usize, 0_u64);
        while let Some(entry) = entries.next().map_err(io_error("read the archive"))? {
            (count, bytes) = (count + 1, bytes.saturating_add(entry.size));
            if count > MEMBERS_MAX || bytes > Limits::default().bytes {
                return Err(Error::TooLarge(format!(
                    "the archive has more than {MEMBERS_MAX} members or {} bytes",
                    Limits::default().bytes
                )));
            }
            let name = clean(&String::from_utf8_lossy(&entry.path));
            if entry.kind.is_file() {
                // Numbered, not named: a member's name never becomes a path.
                let path = members.directory.0.join(count.to_string());
                let file = File::create(&path).map_err(io_error("write the import directory"))?;
                let mut sink = Sink { file, hash: Sha256::new() };
                io::copy(&mut entries.body(), &mut sink).map_err(io_error(format!("extract {name}")))?;
                let digest = format!("sha256:{}", hex(&sink.hash.finalize()));
                members.files.insert(name, Member { path, digest, size: entry.size });
            } else if entry.kind.is_symlink() || entry.kind.is_hard_link() {
                let target = String::from_utf8_lossy(&entry.link).into_owned();
                let base = if entry.kind.is_symlink() { name.rsplit_once('/').map_or("", |(d, _)| d).to_owned() } else { String::new() };
                members.links.insert(name, clean(&format!("{base}/{target}")));
            }
        }
        Ok(members)
    }

    fn find(&self, name: &str) -> Result<&Member> {
        let name = clean(name);
        let name = self.links.get(&name).unwrap_or(&name);
        self.files.get(name).ok_or_else(|| Error::Archive(format!("{name} is missing")))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>> {
        let member = self.find(name)?;
        if member.size > DOCUMENT_BYTES_MAX {
            return Err(Error::Archive(format!("{name} has {} bytes", member.size)));
        }
        std::fs::read(&member.path).map_err(io_error(format!("read {name}")))
    }

    /// Content by its digest, which was taken when it was extracted.
    fn addressed(&self, digest: &str) -> Result<&Member> {
        let member = self.find(&blob_path(digest)?)?;
        if member.digest == digest {
            return Ok(member);
        }
        Err(Error::Digest { what: "content of the archive".into(), expected: digest.to_owned(), actual: member.digest.clone() })
    }

    fn document(&self, digest: &str) -> Result<Vec<u8>> {
        self.addressed(digest)?;
        self.read(&blob_path(digest)?)
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
        // An archive that is both says more in its index: the manifest's own digest.
        let index = members.find("index.json").is_ok() && members.find("oci-layout").is_ok();
        if members.find("manifest.json").is_ok() && !index {
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
        for described in manifests {
            let config = members.find(&described.config)?;
            let layers = described.layers.iter().map(|name| members.find(name).cloned()).collect::<Result<Vec<_>>>()?;
            let document = manifest_of(config, &layers)?;
            let bytes = serde_json::to_vec(&document).map_err(|e| Error::Archive(e.to_string()))?;
            let whole = Whole { bytes, document, config: members.read(&described.config)?, members: layers, config_member: config.clone() };
            imported.extend(self.import_image(whole, &described.repo_tags.unwrap_or_default())?);
        }
        Ok(imported)
    }

    fn import_oci(self: &Arc<Self>, members: &Members) -> Result<Vec<ImageRef>> {
        let index = Document::parse(&members.read("index.json")?)?;
        let mut imported = Vec::new();
        for descriptor in &index.manifests {
            let (bytes, document) = choose(members, descriptor, 0)?;
            let config = document.config.clone().ok_or_else(|| Error::Archive("a manifest without a configuration".into()))?;
            let layers = document.layers.iter().map(|layer| members.addressed(&layer.digest).cloned()).collect::<Result<Vec<_>>>()?;
            let name =
                ["io.containerd.image.name", "org.opencontainers.image.ref.name"].iter().find_map(|key| descriptor.annotations.get(*key));
            let config_member = members.addressed(&config.digest)?.clone();
            let whole = Whole { bytes, document, config: members.document(&config.digest)?, members: layers, config_member };
            imported.extend(self.import_image(whole, name.cloned().as_slice())?);
        }
        Ok(imported)
    }

    fn import_image(self: &Arc<Self>, whole: Whole, names: &[String]) -> Result<Vec<ImageRef>> {
        let file = ConfigFile::parse(&whole.config).map_err(|e| Error::Archive(format!("the image's configuration: {e}")))?;
        if !file.architecture.is_empty() && file.architecture != architecture() {
            return Err(Error::Archive(format!("the image is for {}/{}, not linux/{}", file.os, file.architecture, architecture())));
        }
        file.matches(whole.members.len()).map_err(Error::Archive)?;
        let references = names.iter().map(|name| Reference::parse(name)).collect::<Result<Vec<_>>>()?;
        let all = || whole.members.iter().chain([&whole.config_member]);
        let _hold = self.hold(all().map(|member| member.digest.clone()).chain(file.rootfs.diff_ids.iter().cloned()).collect());
        for member in all() {
            // Images of one archive share members: each finds them where they were extracted.
            if !self.has_blob(&member.digest) {
                self.link_blob(&member.path, &member.digest)?;
            }
        }
        let mut unpacked = Vec::new();
        for (diff_id, member) in file.rootfs.diff_ids.iter().zip(&whole.members) {
            unpacked.push(self.add_layer(diff_id, self.blob(&member.digest)?)?);
        }
        let manifest = self.add_document(&whole.bytes)?;
        let tags: BTreeSet<String> = references.iter().map(Reference::to_string).collect();
        let digests = references.iter().map(|reference| format!("{}@{manifest}", reference.name())).collect();
        let id = whole.config_member.digest.clone();
        let image = self.record(Image {
            id: id.clone(),
            config: file.config,
            layers: unpacked,
            size: all().map(|member| member.size).sum(),
            tags: tags.clone(),
            digests,
            blobs: whole.document.references().map(|referred| referred.digest.clone()).chain([manifest.clone()]).collect(),
            manifest: Some(manifest),
            ..Image::default()
        })?;
        for reference in &references {
            self.publish_own(&image, reference)?;
        }
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
        let limits = Limits::default();
        // What follows the archive's end is hashed, too, and must not go on for ever.
        let mut stream = Hashing::new(decompress(compressed, diff_id)?.take(limits.bytes.saturating_mul(2)));
        unpack(&mut stream, &temporary.0, limits)?;
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

/// An image with all its parts at hand.
struct Whole {
    bytes: Vec<u8>,
    document: Document,
    config: Vec<u8>,
    config_member: Member,
    members: Vec<Member>,
}

/// A docker archive has no manifest that registries know.
fn manifest_of(config: &Member, layers: &[Member]) -> Result<Document> {
    let describe = |member: &Member, media_type: &str| Descriptor {
        media_type: media_type.to_owned(),
        digest: member.digest.clone(),
        size: member.size,
        ..Descriptor::default()
    };
    let layers = layers.iter().map(|member| {
        let mut magic = [0_u8; 4];
        let read = File::open(&member.path).and_then(|mut file| file.read(&mut magic));
        read.map_err(io_error("read a layer"))?;
        Ok(describe(member, crate::compression::media_type(magic)))
    });
    Ok(Document {
        schema_version: 2,
        media_type: manifest::OCI_MANIFEST.into(),
        config: Some(describe(config, manifest::OCI_CONFIG)),
        layers: layers.collect::<Result<_>>()?,
        ..Document::default()
    })
}

/// Follows indexes to the manifest for this machine.
fn choose(members: &Members, descriptor: &Descriptor, depth: usize) -> Result<(Vec<u8>, Document)> {
    let bytes = members.document(&descriptor.digest)?;
    let document = Document::parse(&bytes)?;
    if !document.is_index() {
        return Ok((bytes, document));
    }
    if depth >= INDEX_DEPTH_MAX {
        return Err(Error::Archive("indexes that point to indexes".into()));
    }
    let next = document.ours().map_err(|_| Error::Archive(format!("no image for linux/{} in it", architecture())))?;
    choose(members, next, depth + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blobs::digest_of;

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
        digest_of(bytes)
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
    fn images_of_one_archive_share_their_layers_and_configurations() {
        let (_directory, store) = store();
        let layer = tarball(&[("hello", b"hi")]);
        let config = config(&[digest(&layer)]);
        let manifest =
            br#"[{"Config":"c.json","RepoTags":["app:1"],"Layers":["l.tar"]},{"Config":"c.json","RepoTags":["app:2"],"Layers":["l.tar"]}]"#;
        let docker = tarball(&[("l.tar", &layer), ("c.json", &config), ("manifest.json", manifest)]);
        assert_eq!(store.import(docker.as_slice()).unwrap().len(), 2);
        assert_eq!(store.import(docker.as_slice()).unwrap().len(), 2, "again, with everything there");
        let manifest = serde_json::json!({ "config": { "digest": digest(&config) }, "layers": [{ "digest": digest(&layer) }] }).to_string();
        let named = |name: &str| serde_json::json!({ "digest": digest(manifest.as_bytes()), "annotations": { "org.opencontainers.image.ref.name": name } });
        let index = serde_json::json!({ "manifests": [named("app:3"), named("app:4")] }).to_string();
        let blobs =
            [layer.as_slice(), &config, manifest.as_bytes()].map(|bytes| (format!("blobs/sha256/{}", hex(&Sha256::digest(bytes))), bytes));
        let mut files: Vec<(&str, &[u8])> = blobs.iter().map(|(name, bytes)| (name.as_str(), *bytes)).collect();
        files.push(("index.json", index.as_bytes()));
        let (_directory, store) = self::store();
        assert_eq!(store.import(tarball(&files).as_slice()).unwrap().len(), 2);
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
