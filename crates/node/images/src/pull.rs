//! Pulling: from the store's own registry, other nodes, mirrors, and the registry itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::config::ConfigFile;
use crate::download::Download;
use crate::manifest::{DOCUMENT_BYTES_MAX, Descriptor, Document};
use crate::reference::Reference;
use crate::remote::{Failure, Fetched, Remote};
use crate::store::{Image, Store};
use crate::{Error, Result, io_error, verify};

/// Layers downloaded and unpacked at the same time, as containerd.
const LAYERS_AT_ONCE: usize = 3;
/// Nodes that are asked for one image.
const PEERS_MAX: usize = 16;
/// An index may point to an index; not for ever.
const INDEX_DEPTH_MAX: usize = 4;

/// How an image is pulled.
#[derive(Clone, Default)]
pub struct Pull<'a> {
    pub auth: Option<&'a cri::v1::AuthConfig>,
    /// A tag may be believed as another node knows it; otherwise the registry is asked what it means now.
    pub any_known: bool,
    pub progress: Option<Reporter>,
}

/// Is told what happens.
pub type Reporter = Arc<dyn Fn(Progress) + Send + Sync>;

/// One step of a pull or push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The manifest is known, and has so many layers.
    Resolved {
        digest: String,
        layers: usize,
    },
    /// So many bytes of a layer are here, or there.
    Moved {
        digest: String,
        bytes: u64,
        of: u64,
    },
    Unpacked {
        digest: String,
    },
    /// It was there before.
    Present {
        digest: String,
    },
}

/// What a reference means, and who may have its parts.
struct Found {
    /// The index or manifest that the reference leads to.
    root: Fetched,
    sources: Vec<Arc<Remote>>,
    private: bool,
}

impl Store {
    /// Brings an image onto the node: manifest for this machine, configuration, the layers that are missing. Every digest is verified. Pulls of
    /// one reference wait for each other; a built-in image is never looked for elsewhere.
    pub async fn pull(self: Arc<Self>, name: &str, auth: Option<&cri::v1::AuthConfig>) -> Result<Image> {
        self.pull_with(name, Pull { auth, ..Pull::default() }).await
    }

    pub async fn pull_with(self: Arc<Self>, name: &str, how: Pull<'_>) -> Result<Image> {
        let reference = Reference::parse(name)?;
        if let Some(image) = self.resolve(name).filter(|image| image.pinned) {
            return Ok(image);
        }
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        self.in_turn(&reference.to_string(), async { Box::pin(self.pull_now(&reference, &how)).await }).await
    }

    /// One after the other for the same key.
    async fn in_turn<T>(&self, key: &str, work: impl Future<Output = T>) -> T {
        let turn = self.inflight.lock().await.entry(key.to_owned()).or_default().clone();
        let result = {
            let _turn = turn.lock().await;
            work.await
        };
        let mut inflight = self.inflight.lock().await;
        if Arc::strong_count(&turn) == 2 {
            inflight.remove(key);
        }
        result
    }

    async fn pull_now(self: &Arc<Self>, name: &Reference, how: &Pull<'_>) -> Result<Image> {
        let found = self.find(name, how).await?;
        let refuse = |reason: String| Error::Pull { reference: name.to_string(), reason, not_found: false };
        if let Some(folder) = &self.registries().verifiers {
            verify::verify(folder, name, &found.root.digest, &found.root.bytes).await?;
        }
        let root = found.root.digest.clone();
        let mut hold = vec![self.hold(vec![root.clone()])];
        let (documents, manifest) = self.manifest(name, &found).await?;
        hold.push(self.hold(manifest.references().map(|referred| referred.digest.clone()).chain(documents.clone()).collect()));
        let config = manifest.config.as_ref().ok_or_else(|| refuse("the manifest has no configuration: it is not an image".into()))?;
        let bytes = self.small(name, &found, config).await?;
        let file = ConfigFile::parse(&bytes).map_err(|e| refuse(format!("the image's configuration: {e}")))?;
        file.matches(manifest.layers.len()).map_err(refuse)?;
        if let Some(report) = &how.progress {
            report(Progress::Resolved { digest: root.clone(), layers: manifest.layers.len() });
        }
        hold.push(self.hold(file.rootfs.diff_ids.clone()));
        let pairs = manifest.layers.iter().zip(&file.rootfs.diff_ids);
        let work = pairs.map(|(layer, diff_id)| self.layer(name, &found, layer, diff_id, how)).collect::<Vec<_>>();
        let layers: Vec<PathBuf> = stream::iter(work).buffered(LAYERS_AT_ONCE).try_collect().await?;
        let tags = name.tag.iter().filter(|_| name.digest.is_none()).map(|tag| format!("{}:{tag}", name.name())).collect();
        // What the user named by digest is found again under that digest: the list's, if it was one.
        let digests = BTreeSet::from([format!("{}@{root}", name.name())]);
        let references = manifest.references().map(|referred| referred.digest.clone());
        self.record(Image {
            id: config.digest.clone(),
            size: manifest.references().map(|referred| referred.size).sum(),
            config: file.config,
            layers,
            tags,
            digests,
            blobs: references.chain(documents.iter().cloned()).collect(),
            manifest: documents.last().cloned(),
            private: found.private,
            ..Image::default()
        })
    }

    /// Who has it, in this order: the store's own registry; other nodes, where what they know will do; mirrors and the registry; other nodes
    /// again, where nothing outside could be reached.
    async fn find(self: &Arc<Self>, name: &Reference, how: &Pull<'_>) -> Result<Found> {
        let registries = self.registries();
        let connect = |endpoint| Arc::new(Remote::new(endpoint, registries.resolver.clone(), false));
        let mut peers: Vec<_> = (registries.peers)().into_iter().map(|peer| connect(peer.for_image(name))).collect();
        spread(&mut peers);
        let wanted = name.digest.as_ref().or(name.tag.as_ref()).cloned().unwrap_or_default();
        if self.is_own(name) {
            return self.find_own(name, &wanted, peers).await;
        }
        peers.truncate(PEERS_MAX);
        let outside: Vec<_> = registries.outside(name, how.auth)?.into_iter().map(connect).collect();
        let private = outside.iter().any(|remote| remote.endpoint.credentials.is_some());
        let sources = || peers.iter().chain(&outside).cloned().collect::<Vec<_>>();
        if !private
            && (how.any_known || name.digest.is_some())
            && let Some(root) = first(&peers, &wanted).await
        {
            return Ok(Found { root, sources: sources(), private });
        }
        let mut last = Failure::NotFound;
        for remote in &outside {
            match remote.manifest(&wanted).await {
                Ok(root) => return Ok(Found { root, sources: sources(), private }),
                Err(error) => {
                    tracing::debug!(image = %name, endpoint = remote.endpoint.base, %error, "not from there");
                    last = error;
                }
            }
        }
        if let (Failure::Unavailable(why), false) = (&last, private)
            && let Some(root) = first(&peers, &wanted).await
        {
            tracing::info!(image = %name, why, "the registry cannot be reached: taken as another node knows it");
            return Ok(Found { root, sources: sources(), private });
        }
        Err(fail(name, &format!("failed to resolve reference {:?}", name.to_string()), &last))
    }

    /// From the built-in registry, whose tags may have been pushed on any node: the newest push counts.
    async fn find_own(&self, name: &Reference, wanted: &str, peers: Vec<Arc<Remote>>) -> Result<Found> {
        let repository = self.repository(&name.repository).unwrap_or_default();
        let mut best = None;
        if let Some(digest) = repository.find(wanted) {
            let pushed = repository.tags.get(wanted).map_or(u64::MAX, |tag| tag.pushed);
            best = Some(Fetched { bytes: self.document(digest)?, digest: digest.to_owned(), pushed });
        }
        // A digest means the same everywhere.
        if name.digest.is_none() || best.is_none() {
            let asked = peers.iter().map(|peer| peer.manifest(wanted)).collect::<Vec<_>>();
            let answers: Vec<_> = stream::iter(asked).buffer_unordered(PEERS_MAX).collect().await;
            best = answers.into_iter().filter_map(std::result::Result::ok).chain(best).max_by_key(|answer| answer.pushed);
        }
        let step = format!("failed to resolve reference {:?}", name.to_string());
        let root = best.ok_or_else(|| fail(name, &step, &Failure::NotFound))?;
        Ok(Found { root, sources: peers, private: false })
    }

    /// For clients of the built-in registry on this node: a manifest that was pushed on another one.
    pub(crate) async fn ask_peers(&self, repository: &str, wanted: &str) -> Option<(Vec<u8>, String)> {
        let (name, peers) = self.own_peers(repository)?;
        let found = self.find_own(&name.with(wanted), wanted, peers).await.ok()?;
        Some((found.root.bytes, found.root.digest))
    }

    /// The same for a blob, which is here afterwards.
    pub(crate) async fn blob_from_peers(self: &Arc<Self>, repository: &str, digest: &str) -> bool {
        let Some((_, peers)) = self.own_peers(repository) else { return false };
        for peer in peers {
            let Ok(Some(size)) = peer.blob_size(digest).await else { continue };
            let descriptor = Descriptor { digest: digest.to_owned(), size, ..Descriptor::default() };
            let work = async {
                let Ok(mut download) = Download::open(self, &descriptor, None) else { return false };
                download.from(&peer).await.is_ok() && download.keep(self).await.is_ok()
            };
            if self.has_blob(digest) || self.in_turn(digest, work).await {
                self.lock().uploaded.insert(digest.to_owned(), std::time::Instant::now());
                return true;
            }
        }
        false
    }

    fn own_peers(&self, repository: &str) -> Option<(Reference, Vec<Arc<Remote>>)> {
        let registries = self.registries();
        let name = Reference { registry: registries.own?, repository: repository.to_owned(), tag: None, digest: None };
        let peers =
            (registries.peers)().into_iter().map(|peer| Arc::new(Remote::new(peer.for_image(&name), registries.resolver.clone(), false)));
        let peers: Vec<_> = peers.collect();
        (!peers.is_empty()).then_some((name, peers))
    }

    /// Follows indexes to this machine's manifest; the digests on the way, the manifest's last.
    async fn manifest(self: &Arc<Self>, name: &Reference, found: &Found) -> Result<(Vec<String>, Document)> {
        let refuse = |error: Error| Error::Pull { reference: name.to_string(), reason: error.to_string(), not_found: false };
        let (mut bytes, mut way) = (found.root.bytes.clone(), Vec::new());
        for _ in 0..=INDEX_DEPTH_MAX {
            let document = Document::parse(&bytes).map_err(refuse)?;
            way.push(self.add_document(&bytes)?);
            if !document.is_index() {
                return Ok((way, document));
            }
            let next = document.ours().map_err(refuse)?.digest.clone();
            if way.contains(&next) {
                return Err(refuse(Error::Manifest("the index points to itself".into())));
            }
            bytes = match self.document(&next) {
                Ok(bytes) => bytes,
                Err(_) => self.document_from(name, found, &next).await?,
            };
        }
        Err(refuse(Error::Manifest(format!("more than {INDEX_DEPTH_MAX} indexes, one behind the other"))))
    }

    async fn document_from(&self, name: &Reference, found: &Found, digest: &str) -> Result<Vec<u8>> {
        let mut last = Failure::NotFound;
        for remote in &found.sources {
            match remote.manifest(digest).await {
                Ok(fetched) => return Ok(fetched.bytes),
                Err(error) => last = error,
            }
        }
        Err(fail(name, &format!("failed to fetch manifest {digest}"), &last))
    }

    /// The configuration.
    async fn small(self: &Arc<Self>, name: &Reference, found: &Found, descriptor: &Descriptor) -> Result<Vec<u8>> {
        if descriptor.size > DOCUMENT_BYTES_MAX {
            let reason = format!("the image's configuration has {} bytes", descriptor.size);
            return Err(Error::Pull { reference: name.to_string(), reason, not_found: false });
        }
        self.fetch(name, found, descriptor, &Pull::default()).await?;
        self.document(&descriptor.digest)
    }

    /// One layer: downloaded to a file, hashed on the way, unpacked on a blocking thread.
    async fn layer(
        self: &Arc<Self>,
        name: &Reference,
        found: &Found,
        descriptor: &Descriptor,
        diff_id: &str,
        how: &Pull<'_>,
    ) -> Result<PathBuf> {
        let report = |progress| how.progress.as_ref().into_iter().for_each(|report: &Reporter| report(Progress::clone(&progress)));
        self.fetch(name, found, descriptor, how).await?;
        if let Some(present) = self.present(diff_id) {
            report(Progress::Present { digest: descriptor.digest.clone() });
            return Ok(present);
        }
        let (store, id, packed) = (self.clone(), diff_id.to_owned(), self.blob(&descriptor.digest)?);
        let unpacked = tokio::task::spawn_blocking(move || store.add_layer(&id, packed)).await;
        let unpacked = unpacked.map_err(|e| io_error("unpack a layer")(std::io::Error::other(e)))?;
        let layer = unpacked.map_err(|e| Error::Pull {
            reference: name.to_string(),
            reason: format!("failed to extract layer {}: {e}", descriptor.digest),
            not_found: false,
        })?;
        report(Progress::Unpacked { digest: descriptor.digest.clone() });
        Ok(layer)
    }

    /// Makes sure that a blob is here.
    async fn fetch(self: &Arc<Self>, name: &Reference, found: &Found, descriptor: &Descriptor, how: &Pull<'_>) -> Result<()> {
        let digest = &descriptor.digest;
        // Images share layers: two pulls must not write one file.
        let work = async {
            if self.has_blob(digest) {
                return Ok(());
            }
            let mut download = Download::open(self, descriptor, how.progress.clone()).map_err(io_error("write a layer"))?;
            let mut last = Failure::NotFound;
            for remote in &found.sources {
                match download.from(remote).await {
                    Ok(()) => return download.keep(self).await,
                    Err(error) => last = error,
                }
            }
            Err(fail(name, &format!("failed to fetch layer {digest}"), &last))
        };
        self.in_turn(digest, work).await
    }

    pub(crate) fn present(&self, diff_id: &str) -> Option<PathBuf> {
        let layer = PathBuf::from(diff_id.strip_prefix("sha256:").filter(|_| crate::reference::is_digest(diff_id))?);
        self.layer_path(&layer).is_dir().then_some(layer)
    }
}

async fn first(remotes: &[Arc<Remote>], wanted: &str) -> Option<Fetched> {
    for remote in remotes {
        if let Ok(found) = remote.manifest(wanted).await {
            return Some(found);
        }
    }
    None
}

/// Not all nodes ask the same one first.
fn spread<T>(all: &mut [T]) {
    let mut bytes = [0_u8; 4];
    if !all.is_empty() && getrandom::fill(&mut bytes).is_ok() {
        all.rotate_left(u32::from_le_bytes(bytes) as usize % all.len());
    }
}

/// Upstream's words for what people meet most: no such image, no access, no connection.
pub(crate) fn fail(name: &Reference, step: &str, failure: &Failure) -> Error {
    let not_found = matches!(failure, Failure::NotFound);
    let reason = if not_found { format!("{step}: {name}: not found") } else { format!("{step}: {failure}") };
    Error::Pull { reference: name.to_string(), reason, not_found }
}

impl ConfigFile {
    pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// Whether it is of an image of so many layers.
    pub(crate) fn matches(&self, layers: usize) -> std::result::Result<(), String> {
        if self.rootfs.diff_ids.len() == layers {
            return Ok(());
        }
        Err(format!("{layers} layers, but {} diff ids", self.rootfs.diff_ids.len()))
    }
}
