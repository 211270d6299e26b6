//! Snapshots of volumes: VolumeSnapshots are bound to VolumeSnapshotContents, for whoever makes the snapshots themselves, and both are kept
//! from going too early (upstream: the snapshot controller of `kubernetes-csi/external-snapshotter`).
//!
//! The kinds are custom resources. Their definitions and a class of the built-in provisioner are made once in a cluster's life, as its
//! StorageClass is; where they are taken away, nothing here is done. Snapshots of the built-in provisioner's volumes are made by their nodes,
//! those of CSI drivers by the drivers' own snapshotters or ours.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, Error, Patch};
use http::Method;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use reconcile::{Cache, EventKind, EventRecorder, ObjectKey, Outcome, Queue, key_of, reference_to};
use serde_json::{Value, json};
use snapshots::{VolumeSnapshot, VolumeSnapshotClass, VolumeSnapshotContent, words};
use stdx::{Backoff, Drain};

use crate::context::Context;
use crate::local_path::{NODE_LABEL, PROVISIONER};

mod content;
mod snapshot;

pub(crate) const NAME: &str = "volume-snapshot-controller";
const WORKERS: usize = 2;
/// Remembers that definitions and class were made.
const MARK: &str = "sternpost-volume-snapshots";
const CLASS: &str = "local-path";
const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    Snapshot(ObjectKey),
    Content(String),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshot(key) => write!(f, "snapshot {key}"),
            Self::Content(name) => write!(f, "content {name}"),
        }
    }
}

struct Controller {
    client: Client,
    snapshots: Cache<VolumeSnapshot>,
    contents: Cache<VolumeSnapshotContent>,
    classes: Cache<VolumeSnapshotClass>,
    claims: Cache<PersistentVolumeClaim>,
    volumes: Cache<PersistentVolume>,
    nodes: Cache<Node>,
    recorder: EventRecorder,
}

pub(crate) async fn run(context: Context) {
    if context.config.local_path.is_none() {
        return;
    }
    let client = context.reader.as_account("kube-system", NAME);
    let installed = install(&client, &context.drain).await;
    if installed.is_none() {
        return;
    }
    let controller = Arc::new(Controller {
        snapshots: context.caches.of(),
        contents: context.caches.of(),
        classes: context.caches.of(),
        claims: context.caches.of(),
        volumes: context.caches.of(),
        nodes: context.caches.of(),
        recorder: EventRecorder::start(&client, "snapshot-controller", None, context.drain.clone()),
        client,
    });
    // Without the kinds these wait for ever: until somebody brings them, or the stop comes.
    let kinds = async { tokio::join!(controller.snapshots.synced(), controller.contents.synced(), controller.classes.synced()) };
    let others = async { tokio::join!(controller.claims.synced(), controller.volumes.synced(), controller.nodes.synced()) };
    if context.drain.run(async { tokio::join!(kinds, others) }).await.is_none() {
        return;
    }
    let queue = Queue::new();
    controller.wake(&queue);
    reconcile::run(NAME, queue, WORKERS, context.drain, move |key| controller.clone().reconcile(key)).await;
}

/// `None`: the stop came first.
async fn install(client: &Client, drain: &Drain) -> Option<()> {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
    loop {
        match drain.run(make_kinds(client)).await? {
            Ok(()) => return Some(()),
            // Frequent: the class waits until its kind is served.
            Err(error) => tracing::debug!(%error, "make the kinds of snapshots; will retry"),
        }
        drain.run(tokio::time::sleep(backoff.next_wait())).await?;
    }
}

async fn make_kinds(client: &Client) -> Result<(), Error> {
    match client.get::<ConfigMap>(Some("kube-system"), MARK).await {
        Ok(_) => return Ok(()),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(error),
    }
    for definition in snapshots::definitions::all() {
        let made = client.request_json::<Value>(Method::POST, DEFINITIONS, Some(definition.to_string().into())).await;
        client::ignore_already_exists(made)?;
    }
    let class = VolumeSnapshotClass {
        metadata: ObjectMeta {
            name: Some(CLASS.into()),
            annotations: Some([(words::DEFAULT_CLASS.to_owned(), "true".to_owned())].into()),
            ..ObjectMeta::default()
        },
        driver: PROVISIONER.into(),
        deletion_policy: "Delete".into(),
        ..VolumeSnapshotClass::default()
    };
    client::ignore_already_exists(client.create(&class).await)?;
    let metadata = ObjectMeta { namespace: Some("kube-system".into()), name: Some(MARK.into()), ..ObjectMeta::default() };
    let said = "The kinds of snapshot.storage.k8s.io and the VolumeSnapshotClass local-path were made once; delete this to have them made again at the next start.";
    let data = Some([("made".to_owned(), said.to_owned())].into());
    client::ignore_already_exists(client.create(&ConfigMap { metadata, data, ..ConfigMap::default() }).await)
}

/// The snapshot that a content names.
fn snapshot_of(content: &VolumeSnapshotContent) -> ObjectKey {
    let reference = &content.spec.volume_snapshot_ref;
    ObjectKey::new(reference.namespace.clone().unwrap_or_default(), reference.name.clone().unwrap_or_default())
}

/// The content that a snapshot has, names, or will have.
fn content_of(snapshot: &VolumeSnapshot) -> String {
    let named = snapshot.spec.source.volume_snapshot_content_name.clone();
    snapshot.bound_content().map(str::to_owned).or(named).unwrap_or_else(|| snapshot.content_name())
}

impl Controller {
    fn wake(&self, queue: &Queue<Key>) {
        let by_snapshot = queue.clone();
        self.snapshots.on_change(move |old, new| {
            new.into_iter().for_each(|snapshot| by_snapshot.add(Key::Snapshot(key_of(&snapshot.metadata))));
            old.or(new).into_iter().for_each(|snapshot| by_snapshot.add(Key::Content(content_of(snapshot))));
        });
        let by_content = queue.clone();
        self.contents.on_change(move |old, new| {
            let Some(content) = new.or(old) else { return };
            by_content.add(Key::Content(content.metadata.name.clone().unwrap_or_default()));
            by_content.add(Key::Snapshot(snapshot_of(content)));
        });
        let (by_class, snapshots) = (queue.clone(), self.snapshots.clone());
        self.classes.on_change(move |_, _| {
            let waiting = snapshots.list().into_iter().filter(|snapshot| !snapshot.is_ready());
            waiting.for_each(|snapshot| by_class.add(Key::Snapshot(key_of(&snapshot.metadata))));
        });
        let (by_claim, snapshots) = (queue.clone(), self.snapshots.clone());
        self.claims.on_change(move |old, new| {
            let Some(claim) = new.or(old) else { return };
            let meta = &claim.metadata;
            let concerned = |snapshot: &Arc<VolumeSnapshot>| {
                let source = snapshot.spec.source.persistent_volume_claim_name == meta.name;
                snapshot.metadata.deletion_timestamp.is_some() || (source && !snapshot.is_ready())
            };
            let found = snapshots.by_namespace(meta.namespace.as_deref().unwrap_or_default());
            found.iter().filter(|snapshot| concerned(snapshot)).for_each(|one| by_claim.add(Key::Snapshot(key_of(&one.metadata))));
        });
        let (by_node, contents) = (queue.clone(), self.contents.clone());
        self.nodes.on_change(move |_, new| {
            if new.is_none() {
                let leaving = contents.list().into_iter().filter(|content| content.metadata.deletion_timestamp.is_some());
                leaving.for_each(|content| by_node.add(Key::Content(content.metadata.name.clone().unwrap_or_default())));
            }
        });
    }

    async fn reconcile(self: Arc<Self>, key: Key) -> Outcome {
        match &key {
            Key::Snapshot(key) => self.snapshot(key).await.into(),
            Key::Content(name) => self.content(name).await.into(),
        }
    }

    async fn snapshot(&self, key: &ObjectKey) -> Result<(), snapshot::Failed> {
        let Some(snapshot) = self.snapshots.get_key(key) else { return Ok(()) };
        let claim = snapshot.spec.source.persistent_volume_claim_name.as_deref().and_then(|name| self.claims.get(&key.namespace, name));
        let volume = claim.as_ref().and_then(|claim| self.volumes.get("", claim.spec.as_ref()?.volume_name.as_deref()?));
        let neighbours = self.snapshots.by_namespace(&key.namespace);
        let claims = self.claims.by_namespace(&key.namespace);
        let world = snapshot::World {
            snapshot: &snapshot,
            content: self.contents.get("", &content_of(&snapshot)),
            classes: &self.classes.list(),
            claim: claim.as_deref(),
            volume: volume.as_deref(),
            neighbours: &neighbours,
            claims: &claims,
        };
        let plan = snapshot::plan(&world);
        if plan.release_claim
            && let Some(claim) = &claim
        {
            self.hold_claim(claim, false).await?;
        }
        self.act(&snapshot, claim.as_deref(), plan.step).await
    }

    async fn act(
        &self,
        snapshot: &VolumeSnapshot,
        claim: Option<&PersistentVolumeClaim>,
        step: snapshot::Step,
    ) -> Result<(), snapshot::Failed> {
        use snapshot::Step;
        let about = reference_to(snapshot);
        match step {
            Step::Nothing => Ok(()),
            Step::Wait { reason, message } => {
                self.recorder.event(&about, EventKind::Warning, reason, message.clone());
                Err(snapshot::Failed::Refused(message))
            }
            Step::Refuse { reason, message, unready } => self.refuse(snapshot, reason, message, unready).await,
            Step::SetClass(name) => {
                let patch = Patch::Merge(json!({"spec": {"volumeSnapshotClassName": name}}));
                let (namespace, name) = (snapshot.metadata.namespace.as_deref(), snapshot.metadata.name.as_deref().unwrap_or_default());
                self.client.patch::<VolumeSnapshot>(namespace, name, &patch, "").await.map(drop).map_err(Into::into)
            }
            Step::Finalizers(finalizers) => {
                let mut next = snapshot.clone();
                next.metadata.finalizers = Some(finalizers);
                Ok(client::ignore_not_found(self.client.replace(&next).await)?)
            }
            Step::Make(content) => {
                if let Some(claim) = claim {
                    self.hold_claim(claim, true).await?;
                }
                client::ignore_already_exists(self.client.create(&*content).await)?;
                let message = format!("Waiting for a snapshot {} to be created by the CSI driver.", key_of(&snapshot.metadata));
                self.recorder.event(&about, EventKind::Normal, "CreatingSnapshot", message);
                Ok(())
            }
            Step::Replace(content) => Ok(self.client.replace(&*content).await.map(drop)?),
            Step::Delete(content) => {
                let name = content.metadata.name.as_deref().unwrap_or_default();
                let params = DeleteParams::of_uid(content.metadata.uid.as_deref().unwrap_or_default());
                Ok(client::ignore_not_found(self.client.delete::<VolumeSnapshotContent>(None, name, &params).await)?)
            }
            Step::Status { status, events } => {
                let next = VolumeSnapshot { status: Some(*status), ..snapshot.clone() };
                self.client.replace_status(&next).await?;
                events.into_iter().for_each(|(reason, message)| self.recorder.event(&about, EventKind::Normal, reason, message));
                Ok(())
            }
        }
    }

    /// Said once; tried again until it can be done.
    async fn refuse(
        &self,
        snapshot: &VolumeSnapshot,
        reason: &'static str,
        message: String,
        unready: bool,
    ) -> Result<(), snapshot::Failed> {
        let mut status = snapshot.status.clone().unwrap_or_default();
        let told = status.error.as_ref().and_then(|error| error.message.as_deref()) == Some(message.as_str());
        if !told {
            status.error = Some(snapshot::error(&message));
            if unready {
                status.ready_to_use = Some(false);
            }
            let next = VolumeSnapshot { status: Some(status), ..snapshot.clone() };
            self.client.replace_status(&next).await?;
            self.recorder.event(&reference_to(snapshot), EventKind::Warning, reason, message.clone());
        }
        Err(snapshot::Failed::Refused(message))
    }

    /// While a snapshot is being made of it, a claim stays.
    async fn hold_claim(&self, claim: &PersistentVolumeClaim, hold: bool) -> Result<(), Error> {
        let held = claim.metadata.finalizers.iter().flatten().any(|name| name == words::CLAIM_FINALIZER);
        if held == hold {
            return Ok(());
        }
        let mut next = claim.clone();
        let finalizers = next.metadata.finalizers.get_or_insert_default();
        finalizers.retain(|name| name != words::CLAIM_FINALIZER);
        if hold {
            finalizers.push(words::CLAIM_FINALIZER.into());
        }
        client::ignore_not_found(self.client.replace(&next).await)
    }

    async fn content(&self, name: &str) -> Result<(), Error> {
        let Some(content) = self.contents.get("", name) else { return Ok(()) };
        let node = content.metadata.labels.as_ref().and_then(|labels| labels.get(NODE_LABEL));
        let has_node = node.is_some_and(|node| self.nodes.get("", node).is_some());
        let snapshot = self.snapshots.get_key(&snapshot_of(&content));
        match content::plan(&content, snapshot.as_deref(), has_node) {
            Some(next) => client::ignore_not_found(self.client.replace(&next).await),
            None => Ok(()),
        }
    }
}
