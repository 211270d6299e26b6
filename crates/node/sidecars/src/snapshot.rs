//! Snapshots made and deleted by the driver (upstream: external-snapshotter's `csi-snapshotter`).

use std::time::Duration;

use client::Patch;
use cri::Code;
use csi::v1;
use jiff::Timestamp;
use reconcile::{EventKind, Outcome, reference_to};
use serde_json::{Value, json};
use snapshots::{VolumeSnapshotClass, VolumeSnapshotContent, words};

use crate::Error;
use crate::driver::{Controller, annotation};
use crate::provision::for_driver;

/// How often a driver is asked whether a snapshot can be used by now.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// After these the driver may still be at it.
fn is_final(error: &cri::Error) -> bool {
    !matches!(error.code, Code::DeadlineExceeded | Code::Unavailable | Code::ResourceExhausted | Code::Aborted)
}

impl Controller {
    pub async fn content(&self, content: &VolumeSnapshotContent) -> Result<Outcome, Error> {
        if content.leaves() {
            return self.let_go(content).await.map(|()| Outcome::Done);
        }
        if content.metadata.deletion_timestamp.is_some() || content.is_ready() {
            return Ok(Outcome::Done);
        }
        let source = &content.spec.source;
        let (tried, reason, doing) = match (&source.volume_handle, &source.snapshot_handle) {
            (Some(volume), None) => {
                let doing = format!("Failed to create snapshot: failed to take snapshot of the volume {volume}");
                (self.take(content, volume).await, "SnapshotCreationFailed", doing)
            }
            (None, Some(handle)) => {
                let doing = "Failed to check and update snapshot content".to_owned();
                (self.look(content, handle).await, "SnapshotContentCheckandUpdateFailed", doing)
            }
            _ => return Ok(Outcome::Done),
        };
        match tried {
            Ok(ready) => Ok(if ready { Outcome::Done } else { Outcome::RequeueAfter(LOOK_EVERY) }),
            Err(error) => self.failed(content, reason, format!("{doing}: {:?}", error.to_string())).await.and(Err(error)),
        }
    }

    /// Whether it can be used already.
    async fn take(&self, content: &VolumeSnapshotContent, volume: &str) -> Result<bool, Error> {
        if !self.can(v1::controller::CREATE_DELETE_SNAPSHOT) {
            let lacks = "CSI driver does not support snapshots: controller CREATE_DELETE_SNAPSHOT capability is not reported";
            return Err(Error::Refused(lacks.into()));
        }
        let class = match &content.spec.volume_snapshot_class_name {
            Some(name) => self.client.get::<VolumeSnapshotClass>(None, name).await?,
            None => {
                let name = content.metadata.name.as_deref().unwrap_or_default();
                return Err(Error::Refused(format!("failed to take snapshot {name} without a snapshot class")));
            }
        };
        let request = v1::CreateSnapshotRequest {
            source_volume_id: volume.to_owned(),
            name: format!("snapshot-{}", content.spec.volume_snapshot_ref.uid.as_deref().unwrap_or_default()),
            secrets: self.snapshot_secret(content).await?,
            parameters: for_driver(&class.parameters),
        };
        // Until the driver has answered, the content must not go: nobody would know of the snapshot.
        self.begun(content, true).await?;
        let answer = match self.driver.create_snapshot(&request).await {
            Ok(answer) => answer.snapshot.unwrap_or_default(),
            Err(error) => {
                if is_final(&error) {
                    self.begun(content, false).await?;
                }
                return Err(error.into());
            }
        };
        if answer.snapshot_id.is_empty() {
            return Err(Error::Refused("the driver made a snapshot without an id".into()));
        }
        let ready = self.found(content, &answer).await?;
        self.begun(content, false).await?;
        Ok(ready)
    }

    /// The same of one that was there before.
    async fn look(&self, content: &VolumeSnapshotContent, handle: &str) -> Result<bool, Error> {
        let mut seen = v1::Snapshot { snapshot_id: handle.to_owned(), ready_to_use: true, ..Default::default() };
        if self.can(v1::controller::LIST_SNAPSHOTS) {
            let request = v1::ListSnapshotsRequest { snapshot_id: handle.to_owned(), ..Default::default() };
            let listed = self.driver.list_snapshots(&request).await?.entries;
            let found = listed.into_iter().filter_map(|entry| entry.snapshot).find(|found| found.snapshot_id == handle);
            seen = found.ok_or_else(|| Error::Refused(format!("can not find snapshot for snapshotID {handle}")))?;
        }
        self.found(content, &seen).await
    }

    async fn found(&self, content: &VolumeSnapshotContent, snapshot: &v1::Snapshot) -> Result<bool, Error> {
        let told = snapshot.creation_time.clone().map(|at| at.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(at.nanos)));
        let known = content.status.as_ref().and_then(|status| status.creation_time);
        let now = || i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(0);
        let mut status = json!({
            "snapshotHandle": snapshot.snapshot_id, "readyToUse": snapshot.ready_to_use, "error": null,
            "creationTime": known.or(told.filter(|at| *at > 0)).unwrap_or_else(now),
        });
        if snapshot.size_bytes > 0 {
            status["restoreSize"] = json!(snapshot.size_bytes);
        }
        self.tell(content, status).await.map(|()| snapshot.ready_to_use)
    }

    async fn let_go(&self, content: &VolumeSnapshotContent) -> Result<(), Error> {
        if let Some(handle) = content.handle().filter(|_| content.deletes()) {
            let request = v1::DeleteSnapshotRequest { snapshot_id: handle.to_owned(), secrets: self.snapshot_secret(content).await? };
            if let Err(error) = self.driver.delete_snapshot(&request).await {
                self.recorder.event(&reference_to(content), EventKind::Warning, "SnapshotDeleteError", "Failed to delete snapshot");
                return Err(error.into());
            }
            let nothing = json!({"snapshotHandle": null, "creationTime": null, "restoreSize": null, "readyToUse": null});
            // What that changes wakes us again.
            return self.tell(content, nothing).await;
        }
        let mut next = content.clone();
        let finalizers = next.metadata.finalizers.get_or_insert_default();
        finalizers.retain(|name| name != words::CONTENT_FINALIZER);
        if next.metadata.finalizers == content.metadata.finalizers {
            return Ok(());
        }
        Ok(client::ignore_not_found(self.client.replace(&next).await)?)
    }

    async fn snapshot_secret(&self, content: &VolumeSnapshotContent) -> Result<std::collections::BTreeMap<String, String>, Error> {
        let named = |what: &str| annotation(&content.metadata, what).map(str::to_owned);
        self.secret(named(words::DELETION_SECRET_NAMESPACE).zip(named(words::DELETION_SECRET_NAME))).await
    }

    /// Notes that the driver owes an answer, or that it does not.
    async fn begun(&self, content: &VolumeSnapshotContent, begun: bool) -> Result<(), Error> {
        let value = if begun { json!("yes") } else { Value::Null };
        let patch = Patch::Merge(json!({"metadata": {"annotations": {words::BEING_CREATED: value}}}));
        let name = content.metadata.name.as_deref().unwrap_or_default();
        Ok(client::ignore_not_found(self.client.patch::<VolumeSnapshotContent>(None, name, &patch, "").await)?)
    }

    async fn tell(&self, content: &VolumeSnapshotContent, status: Value) -> Result<(), Error> {
        let patch = Patch::Merge(json!({ "status": status }));
        let name = content.metadata.name.as_deref().unwrap_or_default();
        Ok(client::ignore_not_found(self.client.patch::<VolumeSnapshotContent>(None, name, &patch, "status").await)?)
    }

    /// Said once.
    async fn failed(&self, content: &VolumeSnapshotContent, reason: &str, message: String) -> Result<(), Error> {
        let told = content.status.as_ref().and_then(|status| status.error.as_ref()?.message.as_deref());
        if told == Some(message.as_str()) {
            return Ok(());
        }
        self.recorder.event(&reference_to(content), EventKind::Warning, reason, message.clone());
        let error = json!({"message": message, "time": meta::time::seconds(Timestamp::now())});
        self.tell(content, json!({"readyToUse": false, "error": error})).await
    }
}
