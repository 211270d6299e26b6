//! How full volumes are: for `/stats/summary` and `kubelet_volume_stats_*`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use csi::v1;
use k8s_openapi::api::core::v1::Pod;
use volumes::{local_path, quota};

use super::Placed;
use crate::worker::{Agent, lock};
use crate::{mounts, podspec};

/// One volume of one pod; bytes and inodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub namespace: String,
    pub pod_uid: String,
    /// The volume's name in its pod.
    pub volume: String,
    pub claim: Option<String>,
    pub bytes: Level,
    pub inodes: Level,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Level {
    pub capacity: u64,
    pub available: u64,
    pub used: u64,
}

impl Agent {
    /// Every volume of every pod that runs here.
    pub async fn volume_usage(&self) -> Vec<Usage> {
        let records: Vec<_> = lock(&self.records).values().cloned().collect();
        let mut all = Vec::new();
        for record in records {
            let (pod, gone) = record.view();
            if gone || podspec::is_terminal(&pod) || !record.memory().volumes_ready {
                continue;
            }
            let placed = lock(&record.placed).clone();
            for volume in podspec::spec(&pod).volumes.iter().flatten() {
                let usage = match placed.get(&volume.name) {
                    Some(placed) => self.of_placed(placed).await,
                    None if volume.host_path.is_some() || volume.image.is_some() => None,
                    None => measured(mounts::volume_path(&self.config, &pod, volume)).await,
                };
                all.extend(usage.map(|(bytes, inodes)| named(&pod, &volume.name, placed.get(&volume.name), bytes, inodes)));
            }
        }
        all
    }

    async fn of_placed(&self, placed: &Placed) -> Option<(Level, Level)> {
        if let Some((driver, handle)) = &placed.driver {
            return self.storage.csi.usage(driver, handle, &placed.path).await.map(|usage| of_driver(&usage));
        }
        let path = placed.path.clone();
        let block = placed.block;
        let look = move || if block { None } else { file_system(&path) };
        tokio::task::spawn_blocking(look).await.ok().flatten()
    }
}

fn named(pod: &Arc<Pod>, volume: &str, placed: Option<&Placed>, bytes: Level, inodes: Level) -> Usage {
    Usage {
        namespace: podspec::namespace(pod).to_owned(),
        pod_uid: podspec::uid(pod).to_owned(),
        volume: volume.to_owned(),
        claim: placed.and_then(|placed| placed.claim.clone()),
        bytes,
        inodes,
    }
}

fn of_driver(usage: &[v1::VolumeUsage]) -> (Level, Level) {
    let amount = |amount: i64| u64::try_from(amount).unwrap_or(0);
    let level = |unit: i32| {
        let found = usage.iter().find(|usage| usage.unit == unit).cloned().unwrap_or_default();
        Level { capacity: amount(found.total), available: amount(found.available), used: amount(found.used) }
    };
    (level(v1::BYTES), level(v1::INODES))
}

/// What the file system says; of a volume with a quota, the quota.
fn file_system(path: &Path) -> Option<(Level, Level)> {
    let disk = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
    let mut space =
        Level { capacity: bytes(disk.f_blocks), available: bytes(disk.f_bavail), used: bytes(disk.f_blocks.saturating_sub(disk.f_bfree)) };
    if let Some((used, limit)) = quota::usage(path, local_path::project(path)) {
        space = Level { capacity: limit, available: limit.saturating_sub(used).min(space.available), used };
    }
    let inodes = Level { capacity: disk.f_files, available: disk.f_ffree, used: disk.f_files.saturating_sub(disk.f_ffree) };
    Some((space, inodes))
}

/// A directory of the node's own disk: the disk's room, and what is in the directory.
async fn measured(path: PathBuf) -> Option<(Level, Level)> {
    let look = move || {
        let (space, inodes) = file_system(&path)?;
        if volumes::empty_dir::is_mount_point(&path).ok()? {
            return Some((space, inodes));
        }
        let (used, count) = size(&path);
        Some((Level { used, ..space }, Level { used: count, ..inodes }))
    };
    tokio::task::spawn_blocking(look).await.ok().flatten()
}

/// Bytes and files below a directory, links not followed.
fn size(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return (0, 0) };
    let own = (metadata.blocks().saturating_mul(512), 1);
    if !metadata.is_dir() {
        return own;
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| size(&entry.path())).fold(own, |sum, more| (sum.0.saturating_add(more.0), sum.1 + more.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_speaks_of_bytes_and_inodes_in_any_order() {
        let usage = |unit, total| v1::VolumeUsage { unit, total, used: 1, available: total - 1 };
        let (bytes, inodes) = of_driver(&[usage(v1::INODES, 10), usage(v1::BYTES, 1000)]);
        assert_eq!((bytes.capacity, bytes.available, inodes.capacity), (1000, 999, 10));
    }

    #[test]
    fn a_directory_on_the_disk_has_the_disks_room_and_its_own_use() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), vec![1u8; 64 << 10]).unwrap();
        let (used, count) = size(root.path());
        assert!(used >= 64 << 10 && used < 1 << 20 && count == 2, "{used} {count}");
        assert!(file_system(root.path()).unwrap().0.capacity > used);
    }
}
