//! Ranges of the host's ids for pods that have a user namespace of their own (KEP-127).
//!
//! No two pods share a range. A pod's range lies beside its volumes, in the file that upstream's kubelet keeps it in
//! (`pods/<uid>/userns`), and is free again when that file is gone.

use std::collections::BTreeMap;
use std::sync::Mutex;

use cri::v1;
use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::worker::lock;

const FILE: &str = "userns";

/// The host's ids from `first` on are a pod's from 0 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    pub first: u32,
    pub length: u32,
}

impl IdRange {
    pub fn cri(self) -> v1::UserNamespace {
        let ids = vec![v1::IdMapping { host_id: self.first, container_id: 0, length: self.length }];
        v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mapping {
    host_id: u32,
    container_id: u32,
    length: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stored {
    uid_mappings: Vec<Mapping>,
    gid_mappings: Vec<Mapping>,
}

impl Stored {
    fn of(range: IdRange) -> Self {
        let mapping = || vec![Mapping { host_id: range.first, container_id: 0, length: range.length }];
        Self { uid_mappings: mapping(), gid_mappings: mapping() }
    }

    fn range(&self) -> Option<IdRange> {
        let [one] = self.uid_mappings.as_slice() else { return None };
        (one.container_id == 0 && one.host_id > 0).then_some(IdRange { first: one.host_id, length: one.length })
    }
}

/// Who holds which range; `None` until it was read from the disk.
#[derive(Debug, Default)]
pub struct Ranges(Mutex<Option<BTreeMap<String, IdRange>>>);

impl Ranges {
    /// The range of pod `uid`, given now if it has none.
    pub fn of(&self, config: &Config, uid: &str) -> Result<IdRange, String> {
        let mut held = lock(&self.0);
        let held = held.get_or_insert_with(|| stored(config));
        if let Some(range) = held.get(uid) {
            return Ok(*range);
        }
        let length = config.user_ids_per_pod;
        let taken = |first: u32| held.values().any(|range| first < range.first + range.length && range.first < first + length);
        let blocks = config.pods_max.min((u32::MAX / length).saturating_sub(1));
        let first = (1..=blocks).map(|block| block * length).find(|first| !taken(*first));
        let first = first.ok_or_else(|| format!("could not find an empty slot to allocate a user namespace, all {blocks} are taken"))?;
        let range = IdRange { first, length };
        let directory = config.pod_directory(uid);
        let text = serde_json::to_vec(&Stored::of(range)).map_err(|error| error.to_string())?;
        let written = std::fs::create_dir_all(&directory).and_then(|()| std::fs::write(directory.join(FILE), text));
        written.map_err(|error| format!("write the pod's range of user ids: {error}"))?;
        held.insert(uid.into(), range);
        Ok(range)
    }

    /// The pod and its file are gone.
    pub fn release(&self, uid: &str) {
        if let Some(held) = lock(&self.0).as_mut() {
            held.remove(uid);
        }
    }
}

fn stored(config: &Config) -> BTreeMap<String, IdRange> {
    let entries = std::fs::read_dir(config.data_directory.join("pods"));
    let of = |entry: std::fs::DirEntry| {
        let stored: Stored = serde_json::from_slice(&std::fs::read(entry.path().join(FILE)).ok()?).ok()?;
        Some((entry.file_name().into_string().ok()?, stored.range()?))
    };
    entries.into_iter().flatten().flatten().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_pods_share_ids_and_a_new_kubelet_knows_who_has_which() {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        config.data_directory = root.path().into();
        config.pods_max = 3;
        let ranges = Ranges::default();
        let first = |ranges: &Ranges, uid: &str| ranges.of(&config, uid).map(|range| range.first);
        assert_eq!((first(&ranges, "a"), first(&ranges, "b"), first(&ranges, "a")), (Ok(65_536), Ok(131_072), Ok(65_536)));
        let again = Ranges::default();
        assert_eq!((first(&again, "c"), first(&again, "b")), (Ok(196_608), Ok(131_072)));
        assert!(first(&again, "d").unwrap_err().contains("all 3 are taken"));
        std::fs::remove_dir_all(config.pod_directory("a")).unwrap();
        again.release("a");
        assert_eq!(first(&again, "d"), Ok(65_536));
    }
}
