use std::borrow::Cow;

use super::{Judged, Objection};
use crate::class::{Class, Resources};
use crate::profile::{Plugin, Profile};
use crate::snapshot::Details;

/// What is asked for must be free; nothing asked for always fits, even on an overcommitted node.
pub(super) fn objection(judged: &Judged<'_>) -> Option<Objection> {
    if fits(judged) {
        return None;
    }
    let node = &judged.snapshot.details[judged.slot];
    let (mut requested, mut pods) = (node.requested.clone(), node.pods.len() as i64);
    for other in judged.snapshot.nominated(judged.slot, judged.class.priority, judged.but) {
        requested.add(&other.class.requests);
        pods += 1;
    }
    lacking(judged.profile, judged.class, node, &requested, pods)
}

/// What is missing on a node on which `requested` and `pods` are taken.
pub(crate) fn lacking(profile: &Profile, class: &Class, node: &Details, requested: &Resources, pods: i64) -> Option<Objection> {
    let allocatable = &node.facts.allocatable;
    let mut found = Objection { plugin: Plugin::NodeResourcesFit, reasons: Vec::new(), unresolvable: false };
    if pods >= node.facts.pods_max {
        found.reasons.push("Too many pods".into());
    }
    let mut lack = |reason: Cow<'static, str>, wanted: i64, allocatable: i64, requested: i64| {
        if wanted > 0 && wanted > allocatable - requested {
            found.reasons.push(reason);
            found.unresolvable |= wanted > allocatable;
        }
    };
    let asked = &class.requests;
    lack("Insufficient cpu".into(), asked.milli_cpu, allocatable.milli_cpu, requested.milli_cpu);
    lack("Insufficient memory".into(), asked.memory, allocatable.memory, requested.memory);
    lack("Insufficient ephemeral-storage".into(), asked.ephemeral_storage, allocatable.ephemeral_storage, requested.ephemeral_storage);
    for (name, wanted) in asked.extended.iter().filter(|(name, _)| !profile.ignores(name)) {
        lack(format!("Insufficient {name}").into(), *wanted, allocatable.get(name), requested.get(name));
    }
    (!found.reasons.is_empty()).then_some(found)
}

/// Whether nothing is lacking: the quick form.
pub(crate) fn fits(judged: &Judged<'_>) -> bool {
    let row = &judged.snapshot.rows[judged.slot];
    let (mut cpu, mut memory, mut storage, mut pods) = (row.free_milli_cpu, row.free_memory, row.free_storage, row.free_pods);
    let asked = &judged.class.requests;
    let node = &judged.snapshot.details[judged.slot];
    if row.nominated {
        for other in judged.snapshot.nominated(judged.slot, judged.class.priority, judged.but) {
            let theirs = &other.class.requests;
            cpu -= theirs.milli_cpu;
            memory -= theirs.memory;
            storage -= theirs.ephemeral_storage;
            pods -= 1;
        }
    }
    let enough = |asked: i64, free: i64| asked <= 0 || asked <= free;
    pods >= 1
        && enough(asked.milli_cpu, cpu)
        && enough(asked.memory, memory)
        && enough(asked.ephemeral_storage, storage)
        && asked.extended.iter().filter(|(name, _)| !judged.profile.ignores(name)).all(|(name, wanted)| {
            let nominated: i64 = match row.nominated {
                true => judged
                    .snapshot
                    .nominated(judged.slot, judged.class.priority, judged.but)
                    .map(|other| other.class.requests.get(name))
                    .sum(),
                false => 0,
            };
            enough(*wanted, node.facts.allocatable.get(name) - node.requested.get(name) - nominated)
        })
}
