//! Records of images, and the layers and blobs behind them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::reference::Reference;
use crate::registries::Registries;
use crate::registry::Repository;
use crate::{Error, ImageConfig, Result, io_error};

/// How long an uploaded blob waits for a manifest that names it.
const UPLOADS_KEPT: Duration = Duration::from_secs(3600);

/// One image on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// `sha256:<hex>` of the configuration.
    pub id: String,
    pub config: ImageConfig,
    /// Names of layer directories, the lowest first; absolute for a built-in image.
    pub(crate) layers: Vec<PathBuf>,
    /// Bytes of the compressed layers and the configuration.
    pub size: u64,
    /// References with a tag.
    pub tags: BTreeSet<String>,
    /// References with a digest.
    pub digests: BTreeSet<String>,
    /// Built in: never removed.
    pub pinned: bool,
    /// The digest of its manifest; `None` for a built-in image, which was never packed.
    #[serde(default)]
    pub manifest: Option<String>,
    /// Digests of what it came as: manifest, indexes above it, configuration, packed layers.
    #[serde(default)]
    pub(crate) blobs: BTreeSet<String>,
    /// Pulled with credentials: other nodes are not told of it by its name.
    #[serde(default)]
    pub(crate) private: bool,
    /// Removed for users, but a container still stands on its layers: the record keeps them, also over a restart.
    #[serde(default)]
    pub(crate) removed: bool,
}

impl Image {
    /// What a container's status shows as `imageRef`: a digest reference if there is one, else the id.
    pub fn reference(&self) -> String {
        self.digests.first().cloned().unwrap_or_else(|| self.id.clone())
    }
}

pub(crate) struct State {
    pub images: BTreeMap<String, Image>,
    /// What was pushed to the built-in registry, by repository.
    pub repositories: BTreeMap<String, Repository>,
    /// How many containers use an image.
    leases: HashMap<String, usize>,
    /// Blobs and layers that somebody is at work with.
    held: HashMap<String, usize>,
    /// Blobs that were uploaded for a manifest yet to come.
    pub uploaded: HashMap<String, Instant>,
}

/// All images, below one directory.
pub struct Store {
    pub(crate) directory: PathBuf,
    pub(crate) state: Mutex<State>,
    pub(crate) inflight: tokio::sync::Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    registries: RwLock<Registries>,
}

/// Keeps blobs and layers from being collected until it is dropped.
pub(crate) struct Hold {
    store: Arc<Store>,
    names: Vec<String>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        for name in &self.names {
            if let Some(count) = state.held.get_mut(name) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(name);
                }
            }
        }
    }
}

/// Keeps an image until it is dropped.
pub struct Lease {
    store: Arc<Store>,
    image: Image,
}

impl Lease {
    pub fn config(&self) -> &ImageConfig {
        &self.image.config
    }

    /// Directories for overlayfs, the lowest first.
    pub fn layers(&self) -> Vec<PathBuf> {
        self.image.layers.iter().map(|layer| self.store.layer_path(layer)).collect()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.store.lock();
        if let Some(count) = state.leases.get_mut(&self.image.id) {
            *count -= 1;
            if *count == 0 {
                state.leases.remove(&self.image.id);
                self.store.purge_removed(state);
            }
        }
    }
}

impl Store {
    /// Opens the store and removes what an interrupted pull left behind.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Arc<Self>> {
        let directory = directory.into();
        for folder in ["layers", "blobs/sha256"] {
            std::fs::create_dir_all(directory.join(folder)).map_err(io_error(format!("create {}/{folder}", directory.display())))?;
        }
        let directory = directory.canonicalize().map_err(io_error(format!("find {}", directory.display())))?;
        let ingest = directory.join("ingest");
        if ingest.exists() {
            std::fs::remove_dir_all(&ingest).map_err(io_error("remove partial downloads"))?;
        }
        std::fs::create_dir_all(&ingest).map_err(io_error("create the download directory"))?;
        let images = read_records(&directory, "images.json")?;
        let repositories = read_records(&directory, "registry.json")?;
        let (leases, held, uploaded) = Default::default();
        let state = Mutex::new(State { images, repositories, leases, held, uploaded });
        Ok(Arc::new(Self { directory, state, inflight: tokio::sync::Mutex::default(), registries: RwLock::default() }))
    }

    /// Says how registries are reached from now on.
    pub fn use_registries(&self, registries: Registries) {
        *self.registries.write().unwrap_or_else(PoisonError::into_inner) = registries;
    }

    pub(crate) fn registries(&self) -> Registries {
        self.registries.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a name is one of the built-in registry's.
    pub(crate) fn is_own(&self, name: &Reference) -> bool {
        self.registries().own.is_some_and(|own| own == name.registry)
    }

    pub(crate) fn hold(self: &Arc<Self>, names: Vec<String>) -> Hold {
        let mut state = self.lock();
        for name in &names {
            *state.held.entry(name.clone()).or_default() += 1;
        }
        Hold { store: self.clone(), names }
    }

    /// The image behind a reference, an id, or an id without `sha256:`.
    pub fn resolve(&self, name: &str) -> Option<Image> {
        let state = self.lock();
        let id = if name.starts_with("sha256:") { name.to_owned() } else { format!("sha256:{name}") };
        if let Some(image) = state.images.get(&id).filter(|image| !image.removed) {
            return Some(image.clone());
        }
        let whole = Reference::parse(name).ok()?;
        let whole = if whole.digest.is_some() { Reference { tag: None, ..whole } } else { whole }.to_string();
        state.images.values().find(|i| !i.removed && (i.tags.contains(&whole) || i.digests.contains(&whole))).cloned()
    }

    pub fn list(&self) -> Vec<Image> {
        self.lock().images.values().filter(|image| !image.removed).cloned().collect()
    }

    /// Keeps the image with this id while the lease lives; `None` when it is gone. An image that was removed under a container can be
    /// leased again for that container, after a restart.
    pub fn lease(self: &Arc<Self>, id: &str) -> Option<Lease> {
        let mut state = self.lock();
        let image = state.images.get(id)?.clone();
        *state.leases.entry(id.to_owned()).or_default() += 1;
        Some(Lease { store: self.clone(), image })
    }

    /// Removes one name of an image or, given an id or its last name, the image. An absent image is fine.
    pub fn remove(&self, name: &str) -> Result<()> {
        let Some(image) = self.resolve(name) else { return Ok(()) };
        if image.pinned {
            return Ok(());
        }
        let whole = Reference::parse(name).ok().map(|r| r.to_string());
        let mut state = self.lock();
        if let (Some(record), Some(whole)) = (state.images.get_mut(&image.id), whole)
            && record.tags.contains(&whole)
            && record.tags.len() > 1
        {
            record.tags.remove(&whole);
            return self.save(&state);
        }
        if let Some(record) = state.images.get_mut(&image.id) {
            record.removed = true;
            record.tags.clear();
            record.digests.clear();
        }
        self.save(&state)?;
        self.purge_removed(state);
        Ok(())
    }

    /// Gives an image one more name; in the built-in registry, too, where the name is one of its own.
    pub fn tag(&self, name: &str, new: &str) -> Result<Image> {
        let image = self.resolve(name).ok_or_else(|| Error::NoImage(name.to_owned()))?;
        let reference = Reference::parse(new)?;
        if reference.digest.is_some() {
            return Err(Error::Reference { reference: new.to_owned(), reason: "a digest cannot be given, it is".into() });
        }
        let tags = BTreeSet::from([reference.to_string()]);
        let image = self.record(Image { tags, private: image.private, ..image })?;
        self.publish_own(&image, &reference)?;
        Ok(image)
    }

    /// Removes what no image, no repository and no container needs. Called after a start, when every container has its lease back.
    pub fn collect_garbage(&self) {
        self.purge_removed(self.lock());
        let list = |folder: &str| -> Vec<String> {
            let all = std::fs::read_dir(self.directory.join(folder)).into_iter().flatten().flatten();
            all.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        };
        let (layers, blobs) = (list("layers"), list("blobs/sha256"));
        let layers: Vec<PathBuf> = layers.into_iter().map(PathBuf::from).collect();
        let blobs: Vec<String> = blobs.into_iter().map(|name| format!("sha256:{name}")).collect();
        self.remove_unused(&self.lock(), &layers, &blobs);
    }

    /// Drops removed images that no container uses any more, with the layers and blobs that only they had.
    fn purge_removed(&self, mut state: MutexGuard<'_, State>) {
        let (images, leases) = {
            let State { images, leases, .. } = &mut *state;
            (images, &*leases)
        };
        let (mut layers, mut blobs) = (Vec::new(), Vec::new());
        images.retain(|id, image| {
            let keep = !image.removed || leases.contains_key(id);
            if !keep {
                layers.append(&mut image.layers);
                blobs.extend(std::mem::take(&mut image.blobs));
            }
            keep
        });
        if layers.is_empty() && blobs.is_empty() {
            return;
        }
        if let Err(error) = self.save(&state) {
            tracing::warn!(%error, "cannot save the list of images");
        }
        // Under the lock: a pull must not find a layer present that is about to go.
        self.remove_unused(&state, &layers, &blobs);
    }

    /// Removes those of some layers and blobs that nobody needs.
    pub(crate) fn remove_unused(&self, state: &State, layers: &[PathBuf], blobs: &[String]) {
        let used: BTreeSet<&PathBuf> = state.images.values().flat_map(|image| &image.layers).collect();
        let held = |layer: &&PathBuf| state.held.contains_key(&format!("sha256:{}", layer.display()));
        let unused: Vec<PathBuf> = layers.iter().filter(|layer| !used.contains(layer) && !held(layer)).cloned().collect();
        self.remove_layers(&unused);
        let mut used: BTreeSet<&str> = state.images.values().flat_map(|image| &image.blobs).map(String::as_str).collect();
        used.extend(state.repositories.values().flat_map(Repository::digests));
        let waits = |digest: &str| state.uploaded.get(digest).is_some_and(|since| since.elapsed() < UPLOADS_KEPT);
        for digest in blobs.iter().filter(|digest| !used.contains(digest.as_str())) {
            if let Some(path) = self.blob_path(digest).filter(|_| !state.held.contains_key(digest) && !waits(digest))
                && let Err(error) = std::fs::remove_file(path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(digest, %error, "cannot remove a blob");
            }
        }
    }

    /// Registers an image whose only layer is the directory `rootfs`, under `name`. Registering again replaces it.
    pub fn add_builtin(&self, name: &str, config: ImageConfig, rootfs: &Path) -> Result<Image> {
        self.add_directory(name, config, rootfs, 0)
    }

    fn add_directory(&self, name: &str, config: ImageConfig, rootfs: &Path, size: u64) -> Result<Image> {
        let reference = Reference::parse(name)?.to_string();
        let rootfs = rootfs.canonicalize().map_err(io_error(format!("built-in image {name}")))?;
        let identity = format!("{reference}\n{}\n{}", rootfs.display(), serde_json::to_string(&config).unwrap_or_default());
        let id = format!("sha256:{}", hex(&Sha256::digest(identity)));
        let image = Image {
            id: id.clone(),
            config,
            layers: vec![rootfs],
            size,
            tags: BTreeSet::from([reference.clone()]),
            pinned: true,
            ..Image::default()
        };
        let mut state = self.lock();
        // An earlier one may have containers; its root goes with the last of them.
        for old in state.images.values_mut().filter(|old| old.tags.contains(&reference)) {
            (old.removed, old.pinned) = (true, false);
            old.tags.clear();
        }
        state.images.insert(id, image.clone());
        self.save(&state)?;
        Ok(image)
    }

    /// Registers an image made of one statically linked executable: `program` (such as `/toolbox`) beside the directories and users
    /// that every container expects, and `links` to it in `/bin`. A changed executable gets a new root, so that running containers keep theirs.
    pub fn add_executable(&self, name: &str, config: ImageConfig, executable: &Path, program: &str, links: &[&str]) -> Result<Image> {
        let source = executable.canonicalize().map_err(io_error(format!("find {}", executable.display())))?;
        let metadata = std::fs::metadata(&source).map_err(io_error(format!("find {}", source.display())))?;
        use std::os::unix::fs::MetadataExt;
        let version =
            format!("{program}-{}-{}-{}-{}", metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime_nsec() ^ metadata.mtime());
        let root = self.directory.join("builtin").join(hex(&Sha256::digest(version)));
        if !root.is_dir() {
            let temporary = self.temporary()?;
            build_root(&temporary, &source, program, links).map_err(io_error(format!("make the image {name}")))?;
            std::fs::create_dir_all(self.directory.join("builtin")).map_err(io_error("make the directory of built-in images"))?;
            std::fs::rename(&temporary, &root).map_err(io_error(format!("make the image {name}")))?;
        }
        self.add_directory(name, config, &root, metadata.size())
    }

    /// Adds or completes an image's record; a tag moves away from the image that had it.
    pub(crate) fn record(&self, image: Image) -> Result<Image> {
        let mut state = self.lock();
        for other in state.images.values_mut().filter(|other| other.id != image.id) {
            other.tags.retain(|tag| !image.tags.contains(tag));
        }
        let merged = state.images.entry(image.id.clone()).or_insert_with(|| image.clone());
        (merged.removed, merged.private) = (false, merged.private && image.private);
        (merged.layers, merged.manifest) = (image.layers, image.manifest);
        merged.blobs.extend(image.blobs);
        merged.tags.extend(image.tags);
        merged.digests.extend(image.digests);
        let merged = merged.clone();
        self.save(&state)?;
        Ok(merged)
    }

    pub(crate) fn layer_path(&self, layer: &Path) -> PathBuf {
        if layer.is_absolute() { layer.to_owned() } else { self.directory.join("layers").join(layer) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn save(&self, state: &State) -> Result<()> {
        write_records(&self.directory, "images.json", &state.images)
    }

    pub(crate) fn save_repositories(&self, state: &State) -> Result<()> {
        write_records(&self.directory, "registry.json", &state.repositories)
    }

    fn remove_layers(&self, layers: &[PathBuf]) {
        // A built-in image's directory is somebody else's, unless it was made here.
        for layer in layers.iter().filter(|layer| layer.is_relative() || layer.starts_with(self.directory.join("builtin"))) {
            let path = self.layer_path(layer);
            // Renamed first: a half-removed layer must never look like a whole one.
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let doomed = self.directory.join("ingest").join(format!("removed-{name}"));
            if std::fs::rename(&path, &doomed).is_ok()
                && let Err(error) = std::fs::remove_dir_all(&doomed)
            {
                tracing::warn!(layer = %layer.display(), %error, "cannot remove a layer");
            }
        }
    }
}

fn build_root(root: &Path, executable: &Path, program: &str, links: &[&str]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for (name, mode) in [("bin", 0o755), ("dev", 0o755), ("etc", 0o755), ("proc", 0o555), ("sys", 0o555), ("tmp", 0o1777), ("root", 0o700)]
    {
        std::fs::create_dir_all(root.join(name))?;
        std::fs::set_permissions(root.join(name), std::fs::Permissions::from_mode(mode))?;
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n")?;
    std::fs::write(root.join("etc/group"), "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n")?;
    for link in links {
        std::os::unix::fs::symlink(program, root.join("bin").join(link))?;
    }
    let target = root.join(program.trim_start_matches('/'));
    // A hard link shares the page cache with the running binary; another file system needs a copy.
    std::fs::hard_link(executable, &target).or_else(|_| std::fs::copy(executable, &target).map(drop))?;
    if std::fs::metadata(&target)?.permissions().mode() & 0o111 != 0o111 {
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

fn read_records<T: Default + serde::de::DeserializeOwned>(directory: &Path, name: &str) -> Result<T> {
    match std::fs::read(directory.join(name)) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| io_error(format!("read {name}"))(e.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(T::default()),
        Err(error) => Err(io_error(format!("read {name}"))(error)),
    }
}

fn write_records(directory: &Path, name: &str, records: &impl Serialize) -> Result<()> {
    let step = || format!("write {name}");
    let bytes = serde_json::to_vec(records).map_err(|e| io_error(step())(e.into()))?;
    // Most starts change nothing, and then need no room on a full disk.
    if std::fs::read(directory.join(name)).is_ok_and(|known| known == bytes) {
        return Ok(());
    }
    let temporary = directory.join(format!("{name}.new"));
    std::fs::write(&temporary, bytes).map_err(io_error(step()))?;
    std::fs::rename(&temporary, directory.join(name)).map_err(io_error(step()))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Arc<Store>) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        (directory, store)
    }

    fn image(store: &Store, id: char, tag: &str) -> Image {
        let layer = PathBuf::from(id.to_string());
        std::fs::create_dir_all(store.layer_path(&layer)).unwrap();
        let tags = BTreeSet::from([Reference::parse(tag).unwrap().to_string()]);
        let id = format!("sha256:{}", id.to_string().repeat(64));
        store.record(Image { id, layers: vec![layer], size: 1, tags, ..Image::default() }).unwrap()
    }

    #[test]
    fn a_tag_moves_to_the_newer_image() {
        let (_directory, store) = store();
        let old = image(&store, 'a', "app");
        let new = image(&store, 'b', "app");
        assert_eq!(store.resolve("app").unwrap().id, new.id);
        assert!(store.resolve(&old.id).unwrap().tags.is_empty());
    }

    #[test]
    fn layers_stay_while_a_container_uses_them_and_go_afterwards() {
        let (_directory, store) = store();
        let image = image(&store, 'a', "app");
        let lease = store.lease(&image.id).unwrap();
        let path = lease.layers().remove(0);
        store.remove("app").unwrap();
        assert!(store.resolve("app").is_none());
        assert!(path.is_dir());
        // Also over a restart, in which the container leases it again.
        let reopened = Store::open(store.directory.clone()).unwrap();
        let again = reopened.lease(&image.id).unwrap();
        reopened.collect_garbage();
        assert!(path.is_dir());
        assert!(reopened.list().is_empty());
        drop((again, lease));
        assert!(!path.exists());
    }

    #[test]
    fn an_executable_becomes_an_image_once() {
        let (directory, store) = store();
        let config = ImageConfig { entrypoint: vec!["/toolbox".into()], ..ImageConfig::default() };
        let add =
            || store.add_executable("sternpost.io/toolbox", config.clone(), Path::new("/proc/self/exe"), "/toolbox", &["cat"]).unwrap();
        let (first, again) = (add(), add());
        assert_eq!(first, again);
        assert_eq!(first.size, std::fs::metadata("/proc/self/exe").unwrap().len());
        let root = store.lease(&first.id).unwrap().layers().remove(0);
        assert!(std::fs::metadata(root.join("toolbox")).unwrap().len() > 0);
        assert!(store.resolve("sternpost.io/toolbox:latest").unwrap().pinned);
        store.remove("sternpost.io/toolbox").unwrap();
        assert_eq!(store.list().len(), 1);
        let other = directory.path().join("other");
        std::fs::copy("/proc/self/exe", &other).unwrap();
        store.add_executable("sternpost.io/toolbox", config.clone(), &other, "/toolbox", &[]).unwrap();
        assert_eq!(store.list().len(), 1);
        store.collect_garbage();
        assert_eq!(std::fs::read_dir(directory.path().join("builtin")).unwrap().count(), 1);
        assert!(!root.exists());
    }

    #[test]
    fn a_reopened_store_knows_its_images() {
        let (directory, store) = store();
        image(&store, 'a', "app:1");
        drop(store);
        std::fs::create_dir_all(directory.path().join("ingest/half")).unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert!(store.resolve("docker.io/library/app:1").is_some());
        assert!(!directory.path().join("ingest/half").exists());
    }
}
