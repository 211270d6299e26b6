//! Watches what the node has left, frees what nobody needs, and ends pods when that is not enough.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cri::v1;
use k8s_openapi::api::core::v1::Pod;
use reconcile::EventKind;

use crate::evict::{self, Level, Pressure, Storage, Threshold, Usage};
use crate::podspec;
use crate::worker::{Agent, Record, lock};
use crate::world::Verdict;

/// What is remembered between two looks.
#[derive(Debug, Default)]
struct Seen {
    /// Since when each threshold is met, by its place in the configuration.
    met: BTreeMap<usize, Instant>,
    /// When a threshold of each kind was last met: the condition stays for a while, so that it does not flap.
    last: BTreeMap<Pressure, Instant>,
}

impl Agent {
    pub async fn watch_pressure(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.config.eviction.interval);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = Seen::default();
        loop {
            ticks.tick().await;
            self.look(&mut seen).await;
            self.enforce_storage_limits().await;
        }
    }

    async fn look(&self, seen: &mut Seen) {
        let levels = self.levels().await;
        let now = Instant::now();
        let due = judge(&self.config.eviction, seen, &levels, now);
        let mut pressures: Vec<Pressure> = Vec::new();
        for (pressure, last) in &seen.last {
            if now.duration_since(*last) < self.config.eviction.transition
                || seen.met.keys().any(|at| self.threshold(*at) == Some(*pressure))
            {
                pressures.push(*pressure);
            }
        }
        let changed = std::mem::replace(&mut *lock(&self.pressures), pressures.clone()) != pressures;
        if changed {
            self.node_changed.notify_one();
        }
        let Some(threshold) = due else { return };
        if threshold.pressure() == Pressure::Disk {
            self.collect_images(u64::MAX).await;
            self.collect_dead().await;
            let levels = self.levels().await;
            if !threshold.is_met(&levels) {
                return;
            }
        }
        let level = levels.get(threshold.signal.as_str()).copied().unwrap_or_default();
        self.evict_one(&threshold, level).await;
    }

    /// What containers of pods that are done left on the disk (upstream: `DeleteAllUnusedContainers`); the API keeps how they ended.
    async fn collect_dead(&self) {
        let exited = v1::ContainerStateValue { state: v1::ContainerState::ContainerExited as i32 };
        let filter = Some(v1::ContainerFilter { state: Some(exited), ..Default::default() });
        let Ok(listed) = self.runtime.list_containers(v1::ListContainersRequest { filter }).await else { return };
        for container in listed.containers {
            let record = container.labels.get(crate::crispec::LABEL_UID).and_then(|uid| self.record(uid));
            let Some(pod) = record.map(|record| lock(&record.wish).pod.clone()).filter(|pod| podspec::is_terminal(pod)) else { continue };
            if let Err(error) = self.runtime.remove_container(v1::RemoveContainerRequest { container_id: container.id }).await {
                tracing::warn!(pod = podspec::name(&pod), %error, "remove a dead container");
            }
            if let Some(name) = container.metadata.map(|metadata| metadata.name) {
                let logs = crate::crispec::log_directory(&pod, &self.config).join(name);
                let _ = tokio::task::spawn_blocking(move || volumes::teardown::remove(&logs)).await;
            }
        }
    }

    fn threshold(&self, at: usize) -> Option<Pressure> {
        self.config.eviction.thresholds.get(at).map(Threshold::pressure)
    }

    /// What the node has of everything that it can be short of.
    async fn levels(&self) -> BTreeMap<&'static str, Level> {
        let (data, images) = (self.config.data_directory.clone(), self.config.image_directory.clone());
        tokio::task::spawn_blocking(move || levels(&data, &images)).await.unwrap_or_default()
    }

    async fn evict_one(&self, threshold: &Threshold, level: Level) {
        let mut pods = self.usages().await;
        if threshold.pressure() == Pressure::Disk {
            for (candidate, usage) in &mut pods {
                *usage = std::mem::take(usage).on_disk(self.storage(&candidate.pod).await);
            }
        }
        for (record, usage) in evict::rank(&pods, threshold.pressure()) {
            let verdict = evict::verdict(&record.pod, usage, threshold, level, self.config.eviction.grace_seconds_max);
            tracing::warn!(signal = threshold.signal, available = level.available, pod = podspec::name(&record.pod), "evicting a pod");
            if self.fail(&record.record, verdict) {
                return;
            }
        }
    }

    /// Every pod that runs here with what it uses.
    async fn usages(&self) -> Vec<(Candidate, Usage)> {
        let listed = self.runtime.list_pod_sandbox_stats(v1::ListPodSandboxStatsRequest::default()).await.map(|answer| answer.stats);
        let stats = listed.unwrap_or_default();
        let of = |uid: &str| stats.iter().find(|stats| uid_of(stats) == Some(uid)).map(usage).unwrap_or_default();
        let records: Vec<Arc<Record>> = lock(&self.records).values().cloned().collect();
        let running = records.into_iter().filter_map(|record| {
            let (pod, gone) = record.view();
            let ended = gone || podspec::is_terminal(&pod) || record.memory().verdict.is_some();
            (!ended).then(|| (Candidate { pod, record: record.clone() }, of(&record.uid)))
        });
        running.collect()
    }

    /// Ends a pod for good; false where it is ending already.
    pub fn fail(&self, record: &Arc<Record>, verdict: Verdict) -> bool {
        let (pod, gone) = record.view();
        let mut memory = record.memory();
        if gone || memory.verdict.is_some() || podspec::is_terminal(&pod) || pod.metadata.deletion_timestamp.is_some() {
            return false;
        }
        self.event(&reconcile::reference_to(&*pod), EventKind::Warning, &verdict.reason, verdict.message.clone());
        memory.verdict = Some(verdict);
        drop(memory);
        self.queue.add(record.uid.clone());
        true
    }

    /// Ends pods that use more local storage than they may (upstream: local storage capacity isolation).
    async fn enforce_storage_limits(&self) {
        let records: Vec<Arc<Record>> = lock(&self.records).values().cloned().collect();
        for record in records {
            let (pod, gone) = record.view();
            if gone || podspec::is_terminal(&pod) || !evict::limits_storage(&pod) || record.memory().verdict.is_some() {
                continue;
            }
            let used = self.storage(&pod).await;
            if let Some(verdict) = evict::storage_verdict(&pod, &used) {
                self.fail(&record, verdict);
            }
        }
    }

    async fn storage(&self, pod: &Arc<Pod>) -> Storage {
        let labels = [(crate::crispec::LABEL_UID.to_owned(), podspec::uid(pod).to_owned())].into();
        let filter = Some(v1::ContainerStatsFilter { label_selector: labels, ..Default::default() });
        let stats = self.runtime.list_container_stats(v1::ListContainerStatsRequest { filter }).await;
        let stats = stats.map(|answer| answer.stats).unwrap_or_default();
        let layers: Vec<(String, i64)> = stats
            .iter()
            .filter_map(|stats| {
                let name = stats.attributes.as_ref()?.labels.get(crate::crispec::LABEL_CONTAINER)?.clone();
                let bytes = stats.writable_layer.as_ref()?.used_bytes.as_ref()?.value;
                Some((name, i64::try_from(bytes).unwrap_or(i64::MAX)))
            })
            .collect();
        let logs = crate::crispec::log_directory(pod, &self.config);
        let volumes: Vec<(String, std::path::PathBuf)> = podspec::spec(pod)
            .volumes
            .iter()
            .flatten()
            .filter(|volume| volume.empty_dir.as_ref().is_some_and(|empty| empty.medium.as_deref().unwrap_or_default().is_empty()))
            .map(|volume| (volume.name.clone(), crate::mounts::volume_path(&self.config, pod, volume)))
            .collect();
        let measure = move || Storage {
            containers: layers.into_iter().map(|(name, bytes)| (name.clone(), bytes.saturating_add(size(&logs.join(name))))).collect(),
            volumes: volumes.into_iter().map(|(name, path)| (name, size(&path))).collect(),
        };
        tokio::task::spawn_blocking(measure).await.unwrap_or_default()
    }
}

/// A pod that may have to go.
struct Candidate {
    pod: Arc<Pod>,
    record: Arc<Record>,
}

impl AsRef<Pod> for Candidate {
    fn as_ref(&self) -> &Pod {
        &self.pod
    }
}

/// Notes which thresholds are met; the first one for which a pod must go.
fn judge(config: &crate::config::Eviction, seen: &mut Seen, levels: &BTreeMap<&'static str, Level>, now: Instant) -> Option<Threshold> {
    let mut due: Option<&Threshold> = None;
    for (at, threshold) in config.thresholds.iter().enumerate() {
        if !threshold.is_met(levels) {
            seen.met.remove(&at);
            continue;
        }
        let since = *seen.met.entry(at).or_insert(now);
        seen.last.insert(threshold.pressure(), now);
        let lasted = threshold.grace.is_none_or(|grace| now.duration_since(since) >= grace);
        // Memory first, and hard thresholds before soft ones, in the order of the configuration.
        if lasted && due.is_none_or(|other| (threshold.pressure(), threshold.grace.is_some()) < (other.pressure(), other.grace.is_some())) {
            due = Some(threshold);
        }
    }
    due.cloned()
}

fn uid_of(stats: &v1::PodSandboxStats) -> Option<&str> {
    stats.attributes.as_ref()?.metadata.as_ref().map(|metadata| metadata.uid.as_str())
}

fn usage(stats: &v1::PodSandboxStats) -> Usage {
    let value = |value: Option<&v1::UInt64Value>| value.map_or(0, |value| i64::try_from(value.value).unwrap_or(i64::MAX));
    let Some(linux) = &stats.linux else { return Usage::default() };
    let memory = |memory: &Option<v1::MemoryUsage>| value(memory.as_ref().and_then(|memory| memory.working_set_bytes.as_ref()));
    let name = |stats: &v1::ContainerStats| stats.attributes.as_ref()?.metadata.as_ref().map(|metadata| metadata.name.clone());
    Usage {
        memory: memory(&linux.memory),
        disk: linux.containers.iter().map(|c| value(c.writable_layer.as_ref().and_then(|layer| layer.used_bytes.as_ref()))).sum(),
        pids: value(linux.process.as_ref().and_then(|process| process.process_count.as_ref())),
        containers: linux.containers.iter().filter_map(|stats| Some((name(stats)?, memory(&stats.memory)))).collect(),
    }
}

fn levels(data: &Path, images: &Path) -> BTreeMap<&'static str, Level> {
    let mut levels = BTreeMap::new();
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kibibytes = |key: &str| {
        let line = memory.lines().find_map(|line| line.strip_prefix(key))?;
        line.split_whitespace().next()?.parse::<i64>().ok()
    };
    if let (Some(available), Some(total)) = (kibibytes("MemAvailable:"), kibibytes("MemTotal:")) {
        levels.insert("memory.available", Level { available: available * 1024, capacity: total * 1024 });
    }
    for (path, bytes, inodes) in [
        (data, "nodefs.available", "nodefs.inodesFree"),
        (images, "imagefs.available", "imagefs.inodesFree"),
        (images, "containerfs.available", "containerfs.inodesFree"),
    ] {
        let Ok(disk) = rustix::fs::statvfs(path) else { continue };
        let amount = |blocks: u64| i64::try_from(blocks.saturating_mul(disk.f_frsize)).unwrap_or(i64::MAX);
        levels.insert(bytes, Level { available: amount(disk.f_bavail), capacity: amount(disk.f_blocks) });
        // Some file systems have no fixed number of inodes and say zero.
        if disk.f_files > 0 {
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            levels.insert(inodes, Level { available: count(disk.f_favail), capacity: count(disk.f_files) });
        }
    }
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<i64>().ok());
    let running = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let running = running.split_whitespace().nth(3).and_then(|pair| pair.split_once('/')).and_then(|(_, all)| all.parse::<i64>().ok());
    if let (Some(most), Some(running)) = (number("/proc/sys/kernel/pid_max"), running) {
        let most = number("/proc/sys/kernel/threads-max").map_or(most, |threads| threads.min(most));
        levels.insert("pid.available", Level { available: most - running, capacity: most });
    }
    levels
}

/// Bytes below a directory, links not followed.
fn size(path: &Path) -> i64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    let own = i64::try_from(metadata.blocks().saturating_mul(512)).unwrap_or(i64::MAX);
    if !metadata.is_dir() {
        return own;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.fold(0_i64, |sum, entry| sum.saturating_add(size(&entry.path())))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::Eviction;

    #[test]
    fn a_soft_threshold_must_last_and_a_hard_one_acts_at_once() {
        let soft = Threshold::parse("memory.available", "2Gi", Some(Duration::from_secs(60))).unwrap();
        let hard = Threshold::parse("memory.available", "1Gi", None).unwrap();
        let config = Eviction { thresholds: vec![soft.clone(), hard.clone()], ..Eviction::default() };
        let level = |mebibytes: i64| BTreeMap::from([("memory.available", Level { available: mebibytes << 20, capacity: 8 << 30 })]);
        let (mut seen, start) = (Seen::default(), Instant::now());
        assert_eq!(judge(&config, &mut seen, &level(3000), start), None);
        assert!(seen.last.is_empty());
        assert_eq!(judge(&config, &mut seen, &level(1500), start), None);
        assert!(seen.last.contains_key(&Pressure::Memory));
        assert_eq!(judge(&config, &mut seen, &level(1500), start + Duration::from_secs(61)), Some(soft));
        assert_eq!(judge(&config, &mut seen, &level(500), start + Duration::from_secs(62)), Some(hard));
    }

    #[test]
    fn the_machine_tells_all_its_levels() {
        let found = levels(Path::new("/"), Path::new("/"));
        for signal in ["memory.available", "nodefs.available", "imagefs.available", "pid.available"] {
            let level = found[signal];
            assert!(level.available > 0 && level.available <= level.capacity, "{signal}: {level:?}");
        }
    }
}
