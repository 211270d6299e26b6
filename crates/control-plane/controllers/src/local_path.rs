//! The built-in provisioner: claims of its classes get a directory of a node's disk, or a file that is shown as a block device.
//!
//! Here the PersistentVolumes are made, enlarged and deleted; what lies on a disk is its node's business, which finds its volumes by the
//! label [`NODE_LABEL`]: the kubelet makes the directory when it is first used, keeps its size, and removes it once the volume is
//! released, which it says with the reason [`DATA_REMOVED`] in the volume's status. Only then the object goes.
//!
//! The StorageClass `local-path` is made once in a cluster's life, as its default; who deletes it or takes the default away is heard: a
//! ConfigMap remembers that it was there.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Client, DeleteParams, Error};
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};

use snapshots::restore::{self, DataSource};
use snapshots::{VolumeSnapshot, VolumeSnapshotContent};

use crate::act;
use crate::context::Context;
use crate::volume_binder::PROVISIONED_BY;

mod claim;
mod volume;

pub(crate) const NAME: &str = "local-path-provisioner";
/// In StorageClasses.
pub(crate) const PROVISIONER: &str = "sternpost.io/local-path";
/// On volumes: whose disk they are on.
pub(crate) const NODE_LABEL: &str = "sternpost.io/local-path-node";
/// On volumes: the directory of their node that they begin as a copy of.
const FILLED_FROM: &str = "sternpost.io/local-path-source";
/// In a released volume's `status.reason`.
const DATA_REMOVED: &str = "DataRemoved";
/// As external provisioners have it: a volume's object outlives its data.
const FINALIZER: &str = "external-provisioner.volume.kubernetes.io/finalizer";
const CLASS: &str = "local-path";
/// Remembers that the class was made.
const MARK: &str = "sternpost-local-path";
const WORKERS: usize = 2;

/// A source that is not there may come.
const SOURCE_WAIT: std::time::Duration = std::time::Duration::from_secs(2);

/// What a volume is to begin as.
enum Source {
    None,
    Here(claim::Source),
    Refused(String),
    /// Somebody else fills such volumes, and makes them.
    Elsewhere,
}

struct Controller {
    client: Client,
    /// Where volumes lie on every node, unless their class has a parameter `folder`.
    folder: String,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    classes: Cache<StorageClass>,
    nodes: Cache<Node>,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    let Some(folder) = context.config.local_path.clone() else { return };
    let client = context.reader.as_account("kube-system", NAME);
    let controller = Arc::new(Controller {
        folder: folder.display().to_string(),
        claims: context.caches.of(),
        volumes: context.caches.of(),
        classes: context.caches.of(),
        nodes: context.caches.of(),
        recorder: EventRecorder::start(&client, &format!("{PROVISIONER}_provisioner"), None, context.drain.clone()),
        client,
    });
    let queue = Queue::new();
    controller.wake(&queue);
    tokio::join!(controller.claims.synced(), controller.volumes.synced(), controller.classes.synced(), controller.nodes.synced());
    // An empty key is the class.
    queue.add(ObjectKey::new("", ""));
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    fn wake(&self, queue: &Queue<ObjectKey>) {
        let by_claim = queue.clone();
        self.claims.on_change(move |_, new| new.into_iter().for_each(|claim| by_claim.add(key_of(&claim.metadata))));
        let by_volume = queue.clone();
        self.volumes.on_change(move |_, new| {
            let ours = new.filter(|volume| is_ours(volume));
            ours.into_iter().for_each(|volume| by_volume.add(key_of(&volume.metadata)));
        });
        // A claim may have waited for its class, a volume for the end of its node.
        let (by_class, claims) = (queue.clone(), self.claims.clone());
        self.classes.on_change(move |_, new| {
            let ours = new.filter(|class| class.provisioner == PROVISIONER);
            ours.into_iter().for_each(|_| claims.list().iter().for_each(|claim| by_class.add(key_of(&claim.metadata))));
        });
        let (by_node, volumes) = (queue.clone(), self.volumes.clone());
        self.nodes.on_change(move |_, new| {
            if new.is_none() {
                volumes.list().iter().filter(|volume| is_ours(volume)).for_each(|volume| by_node.add(key_of(&volume.metadata)));
            }
        });
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let done = match key.namespace() {
            Some(_) => return self.claim(&key).await.into(),
            None if key.name.is_empty() => self.make_class().await,
            None => self.volume(&key).await,
        };
        done.into()
    }

    async fn claim(&self, key: &ObjectKey) -> Result<Outcome, Error> {
        let Some(claim) = self.claims.get_key(key) else { return Ok(Outcome::Done) };
        let class = claim.spec.as_ref().and_then(|spec| self.classes.get("", spec.storage_class_name.as_deref()?));
        let Some(class) = class.filter(|class| class.provisioner == PROVISIONER) else { return Ok(Outcome::Done) };
        let source = match self.source(&claim, &class).await? {
            Source::Elsewhere => {
                let message = "Assuming an external populator will provision the volume";
                self.recorder.event(&reference_to(&*claim), EventKind::Normal, "Provisioning", message);
                return Ok(Outcome::Done);
            }
            Source::Refused(why) => {
                self.refuse(&claim, &class, why, false).await?;
                return Ok(Outcome::RequeueAfter(SOURCE_WAIT));
            }
            Source::None => None,
            Source::Here(source) => Some(source),
        };
        let world = claim::World { claim: &claim, class: &class, nodes: &self.nodes.list(), folder: &self.folder, source };
        match claim::plan(&world, |name| self.volumes.get("", name)) {
            claim::Plan::Nothing => {}
            claim::Plan::Make(volume) => self.make(&claim, *volume).await?,
            claim::Plan::Enlarge(volume, size) => self.enlarge(&claim, &volume, size).await?,
            claim::Plan::Refuse { message, reschedule } => self.refuse(&claim, &class, message, reschedule).await?,
        }
        Ok(Outcome::Done)
    }

    /// What a claim without a volume is to be made from. Asked of the API server: a snapshot may have become ready just now.
    async fn source(&self, claim: &PersistentVolumeClaim, class: &StorageClass) -> Result<Source, Error> {
        let bound = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).is_some_and(|name| !name.is_empty());
        if bound || claim.metadata.deletion_timestamp.is_some() || self.volumes.get("", &claim::volume_name(claim)).is_some() {
            return Ok(Source::None);
        }
        let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
        let found = match restore::data_source(claim) {
            Err(why) => return Ok(Source::Refused(why)),
            Ok(None) => return Ok(Source::None),
            Ok(Some(DataSource::Other(_))) => return Ok(Source::Elsewhere),
            Ok(Some(DataSource::Snapshot(name))) => {
                let snapshot = client::found(self.client.get::<VolumeSnapshot>(Some(namespace), &name).await)?;
                let content = match snapshot.as_ref().and_then(VolumeSnapshot::bound_content) {
                    Some(content) => client::found(self.client.get::<VolumeSnapshotContent>(None, content).await)?,
                    None => None,
                };
                restore::from_snapshot(claim, class, &name, snapshot.as_ref(), content.as_ref())
                    .and_then(claim::Source::of_handle)
                    .map_err(|why| format!("error getting handle for DataSource Type VolumeSnapshot by Name {name}: {why}"))
            }
            Ok(Some(DataSource::Claim(name))) => {
                let source = self.claims.get(namespace, &name);
                let volume = source.as_ref().and_then(|source| self.volumes.get("", source.spec.as_ref()?.volume_name.as_deref()?));
                let same = volume.as_ref().is_some_and(|volume| is_ours(volume));
                restore::from_claim(claim, &name, source.as_deref(), volume.as_deref(), same)
                    .and_then(|()| claim::Source::of_volume(volume.as_deref()))
                    .map_err(|why| format!("error getting handle for DataSource Type PersistentVolumeClaim by Name {name}: {why}"))
            }
        };
        Ok(found.map_or_else(Source::Refused, Source::Here))
    }

    async fn make(&self, claim: &PersistentVolumeClaim, volume: PersistentVolume) -> Result<(), Error> {
        let about = reference_to(claim);
        let key = key_of(&claim.metadata);
        let provisioning = format!("External provisioner is provisioning volume for claim \"{key}\"");
        self.recorder.event(&about, EventKind::Normal, "Provisioning", provisioning);
        match self.client.create(&volume).await {
            Err(error) if error.is_already_exists() => return Ok(()),
            other => drop(other?),
        }
        let name = volume.metadata.name.unwrap_or_default();
        self.recorder.event(&about, EventKind::Normal, "ProvisioningSucceeded", format!("Successfully provisioned volume {name}"));
        Ok(())
    }

    async fn refuse(&self, claim: &PersistentVolumeClaim, class: &StorageClass, why: String, reschedule: bool) -> Result<(), Error> {
        let class = class.metadata.name.as_deref().unwrap_or_default();
        let message = format!("failed to provision volume with StorageClass {class:?}: {why}");
        self.recorder.event(&reference_to(claim), EventKind::Warning, "ProvisioningFailed", message);
        if !reschedule {
            return Ok(());
        }
        // The scheduler chooses again.
        let mut next = claim.clone();
        next.metadata.annotations.get_or_insert_default().remove(claim::SELECTED_NODE);
        client::ignore_not_found(self.client.replace(&next).await)
    }

    /// The volume is larger from here on; its node makes it so and then says it in the claim.
    async fn enlarge(&self, claim: &PersistentVolumeClaim, volume: &PersistentVolume, size: String) -> Result<(), Error> {
        let mut next = volume.clone();
        let name = volume.metadata.name.clone().unwrap_or_default();
        next.spec.get_or_insert_default().capacity = Some(BTreeMap::from([("storage".into(), quantity(&size))]));
        self.client.replace(&next).await?;
        let message = format!("External resizer is resizing volume {name}");
        self.recorder.event(&reference_to(claim), EventKind::Normal, "Resizing", message);
        let pending = claim::file_system_resize_pending(claim);
        act::write_status(&self.client, &pending).await?;
        let message = "Require file system resize of volume on node";
        self.recorder.event(&reference_to(claim), EventKind::Normal, "FileSystemResizeRequired", message);
        Ok(())
    }

    async fn volume(&self, key: &ObjectKey) -> Result<(), Error> {
        let Some(volume) = self.volumes.get_key(key).filter(|volume| is_ours(volume)) else { return Ok(()) };
        let node = volume::node_of(&volume).and_then(|name| self.nodes.get("", name));
        let plan = volume::plan(&volume, node.is_some());
        if plan.release {
            let mut next = PersistentVolume::clone(&volume);
            next.metadata.finalizers.get_or_insert_default().retain(|name| name != FINALIZER);
            client::ignore_not_found(self.client.replace(&next).await)?;
        }
        if plan.delete {
            let params = DeleteParams::of_uid(volume.metadata.uid.as_deref().unwrap_or_default());
            client::ignore_not_found(self.client.delete::<PersistentVolume>(None, &key.name, &params).await)?;
        }
        Ok(())
    }

    async fn make_class(&self) -> Result<(), Error> {
        match self.client.get::<ConfigMap>(Some("kube-system"), MARK).await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
        // A class that somebody calls the default already stays the only one.
        let taken = self.classes.list().iter().any(|class| annotation(&class.metadata, claim::DEFAULT_CLASS) == Some("true"));
        client::ignore_already_exists(self.client.create(&claim::class(CLASS, !taken)).await)?;
        let metadata = ObjectMeta { namespace: Some("kube-system".into()), name: Some(MARK.into()), ..ObjectMeta::default() };
        let said = "The StorageClass local-path was made once; delete this to have it made again at the next start.";
        let data = BTreeMap::from([("made".to_owned(), said.to_owned())]);
        client::ignore_already_exists(self.client.create(&ConfigMap { metadata, data: Some(data), ..ConfigMap::default() }).await)
    }
}

fn annotation<'a>(meta: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(name).map(String::as_str)
}

fn quantity(text: &str) -> k8s_openapi::apimachinery::pkg::api::resource::Quantity {
    k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned())
}

fn is_ours(volume: &PersistentVolume) -> bool {
    annotation(&volume.metadata, PROVISIONED_BY) == Some(PROVISIONER)
}
