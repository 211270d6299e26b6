//! Pods from files of this node, run without anybody's asking, and shown in the API as mirror pods.
//!
//! Each file of the folder holds one Pod as JSON or YAML. Its uid is the hash of what it says and of the node's name: a changed file is
//! another pod, which starts when the one before it is gone. The mirror is an object that the kubelet keeps beside its pod: made anew
//! when it is deleted or shows another pod, and never run itself. Source: upstream's `pkg/kubelet/config`, `pkg/kubelet/pod`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::DeleteParams;
use k8s_openapi::api::core::v1::{Pod, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use sha2::{Digest, Sha256};

use crate::podspec::{self, CONFIG_HASH, CONFIG_MIRROR, CONFIG_SOURCE};
use crate::worker::{Agent, Record, Wish, lock};

/// How often the folder is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A file larger than this is no pod.
const FILE_BYTES_MAX: u64 = 10 << 20;

/// Every pod of the folder by its uid; what is wrong with a file is said in the log, and the other files count.
pub fn read(folder: &Path, node_name: &str) -> BTreeMap<String, Arc<Pod>> {
    let mut pods = BTreeMap::new();
    let mut paths: Vec<_> = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
        if hidden || !path.is_file() {
            continue;
        }
        match read_file(&path).and_then(|text| parse(&text, node_name)) {
            Ok(pod) => drop(pods.insert(podspec::uid(&pod).to_owned(), Arc::new(pod))),
            Err(error) => tracing::error!(file = %path.display(), error, "a static pod's file cannot be used"),
        }
    }
    pods
}

fn read_file(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > FILE_BYTES_MAX {
        return Err(format!("{length} bytes are too many for a pod"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

/// The pod of one file, with what the kubelet adds to it.
fn parse(text: &str, node_name: &str) -> Result<Pod, String> {
    let value: serde_json::Value = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    if value["kind"] != "Pod" || value["apiVersion"] != "v1" {
        return Err(format!("it holds {}/{} where a v1 Pod was expected", value["apiVersion"], value["kind"]));
    }
    let mut pod: Pod = serde_json::from_value(value).map_err(|error| error.to_string())?;
    let Some(spec) = pod.spec.as_mut().filter(|spec| !spec.containers.is_empty()) else { return Err("the pod has no containers".into()) };
    spec.node_name = Some(node_name.into());
    let anything = Toleration { operator: Some("Exists".into()), effect: Some("NoExecute".into()), ..Toleration::default() };
    spec.tolerations.get_or_insert_default().push(anything);
    pod.status = None;
    let name = pod.metadata.name.clone().filter(|name| !name.is_empty()).ok_or("the pod has no name")?;
    let digest = Sha256::digest(format!("{node_name}\0{text}"));
    let hash: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let metadata = &mut pod.metadata;
    metadata.name = Some(format!("{name}-{}", node_name.to_lowercase()));
    metadata.namespace.get_or_insert_with(|| "default".into());
    metadata.uid = Some(metadata.uid.clone().filter(|uid| !uid.is_empty()).unwrap_or_else(|| hash.clone()));
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(CONFIG_HASH.into(), hash);
    annotations.insert(CONFIG_SOURCE.into(), "file".into());
    Ok(pod)
}

/// Is the object only the picture of a static pod?
pub fn is_mirror(pod: &Pod) -> bool {
    pod.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(CONFIG_MIRROR))
}

fn hash(pod: &Pod, key: &str) -> Option<String> {
    pod.metadata.annotations.as_ref()?.get(key).cloned()
}

/// The object that shows `pod` in the API.
fn mirror_of(pod: &Pod, node_name: &str, node_uid: &str) -> Pod {
    let mut mirror = pod.clone();
    mirror.status = None;
    let metadata = &mut mirror.metadata;
    (metadata.uid, metadata.resource_version, metadata.creation_timestamp) = (None, None, None);
    let annotations = metadata.annotations.get_or_insert_default();
    let hash = annotations.get(CONFIG_HASH).cloned().unwrap_or_default();
    annotations.insert(CONFIG_MIRROR.into(), hash);
    metadata.owner_references = Some(vec![OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node_name.into(),
        uid: node_uid.into(),
        controller: Some(true),
        block_owner_deletion: None,
    }]);
    mirror
}

impl Agent {
    /// Takes over what the folder says now; called once before anything runs, and then by [`Agent::watch_static_pods`].
    pub fn load_static_pods(&self) {
        let Some(folder) = &self.config.static_pods else { return };
        let wanted = read(folder, &self.config.node_name);
        let mut records = lock(&self.records);
        for record in records.values() {
            let mut wish = lock(&record.wish);
            if podspec::is_static(&wish.pod) && !wish.gone && !wanted.contains_key(&record.uid) {
                let mut ending = (*wish.pod).clone();
                ending.metadata.deletion_grace_period_seconds = Some(podspec::grace_seconds(&ending));
                *wish = Wish { pod: Arc::new(ending), gone: true };
                self.queue.add(record.uid.clone());
            }
        }
        for (uid, pod) in wanted {
            let same_name = |record: &&Arc<Record>| {
                let other = lock(&record.wish).pod.clone();
                podspec::is_static(&other)
                    && podspec::name(&other) == podspec::name(&pod)
                    && podspec::namespace(&other) == podspec::namespace(&pod)
            };
            // The one of the same name ends first.
            if records.contains_key(&uid) || records.values().any(|record| same_name(&record)) {
                continue;
            }
            records.insert(uid.clone(), Arc::new(Record::new(&uid, pod, false)));
            self.queue.add(uid);
        }
    }

    pub async fn watch_static_pods(self: Arc<Self>) {
        if self.config.static_pods.is_none() {
            return;
        }
        let mut ticks = tokio::time::interval(LOOK_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let agent = self.clone();
            let _ = tokio::task::spawn_blocking(move || agent.load_static_pods()).await;
            self.keep_mirrors().await;
        }
    }

    /// The API's word on a mirror changed; a mirror of nothing here is deleted by [`Agent::keep_mirrors`].
    pub fn on_mirror(&self, pod: &Arc<Pod>, gone: bool) {
        let key = (podspec::namespace(pod).to_owned(), podspec::name(pod).to_owned());
        let mut mirrors = lock(&self.mirrors);
        match gone {
            true => drop(mirrors.remove(&key)),
            false => drop(mirrors.insert(key, pod.clone())),
        }
        drop(mirrors);
        let records: Vec<Arc<Record>> = lock(&self.records).values().cloned().collect();
        for record in records {
            let own = lock(&record.wish).pod.clone();
            if podspec::is_static(&own) && podspec::name(&own) == podspec::name(pod) && podspec::namespace(&own) == podspec::namespace(pod)
            {
                *lock(&record.mirror) = (!gone).then(|| pod.clone());
                self.queue.add(record.uid.clone());
            }
        }
    }

    /// Makes the mirrors that lack, and deletes those that show nothing that is here.
    async fn keep_mirrors(&self) {
        let Some(node_uid) = lock(&self.node_uid).clone() else { return };
        let pods: Vec<Arc<Pod>> = lock(&self.records)
            .values()
            .map(|record| lock(&record.wish).clone())
            .filter(|wish| podspec::is_static(&wish.pod) && !wish.gone)
            .map(|wish| wish.pod)
            .collect();
        let mut mirrors = lock(&self.mirrors).clone();
        for pod in pods {
            let key = (podspec::namespace(&pod).to_owned(), podspec::name(&pod).to_owned());
            match mirrors.remove(&key) {
                Some(mirror) if mirror.metadata.deletion_timestamp.is_none() && hash(&mirror, CONFIG_MIRROR) == hash(&pod, CONFIG_HASH) => {
                }
                Some(mirror) => self.delete_mirror(&mirror).await,
                None => match self.client.create(&mirror_of(&pod, &self.config.node_name, &node_uid)).await {
                    Ok(_) => {}
                    Err(error) if error.is_already_exists() => {}
                    Err(error) => tracing::warn!(pod = podspec::format_pod(&pod), %error, "make a mirror pod; will retry"),
                },
            }
        }
        for mirror in mirrors.values() {
            self.delete_mirror(mirror).await;
        }
    }

    async fn delete_mirror(&self, mirror: &Pod) {
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::of_uid(podspec::uid(mirror)) };
        match self.client.delete::<Pod>(Some(podspec::namespace(mirror)), podspec::name(mirror), &params).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => tracing::warn!(pod = podspec::format_pod(mirror), %error, "delete a mirror pod; will retry"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec: {containers: [{name: c, image: i}]}\n";

    #[test]
    fn a_folder_gives_its_pods_and_skips_what_is_none() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in
            [("web.yaml", POD), (".hidden.yaml", POD), ("broken.yaml", "a: ["), ("service.yaml", "kind: Service\napiVersion: v1")]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let pods = read(folder.path(), "Node-1");
        assert_eq!(pods.len(), 1);
        let pod = pods.values().next().unwrap();
        assert_eq!((podspec::name(pod), podspec::namespace(pod)), ("web-node-1", "default"));
        assert!(podspec::is_static(pod) && !is_mirror(pod));
        let changed = parse(&POD.replace("image: i", "image: j"), "Node-1").unwrap();
        assert_ne!(podspec::uid(&changed), podspec::uid(pod));
    }

    #[test]
    fn a_mirror_belongs_to_the_node_and_names_the_pod_that_it_shows() {
        let pod = parse(POD, "n").unwrap();
        let mirror = mirror_of(&pod, "n", "u");
        assert!(is_mirror(&mirror) && mirror.metadata.uid.is_none());
        assert_eq!(hash(&mirror, CONFIG_MIRROR), hash(&pod, CONFIG_HASH));
        assert_eq!(mirror.metadata.owner_references.unwrap()[0].kind, "Node");
    }
}
