//! Whether a node can take a pod: upstream's default filter plugins that look at one node, a file each, in upstream's order.
//!
//! Those that look at the pods of the whole cluster are in [`crate::board`], those that look at volumes in [`crate::volumes`].

mod node_affinity;
mod node_ports;
mod node_resources;
mod node_unschedulable;
mod taint_toleration;

use std::borrow::Cow;

pub use node_affinity::matches_term;
pub(crate) use node_affinity::selects;
pub(crate) use node_resources::{fits, lacking};
pub use taint_toleration::tolerates;
pub(crate) use taint_toleration::{soft_taints, untolerated};

use crate::class::Class;
use crate::profile::{Plugin, Profile};
use crate::snapshot::{Slot, Snapshot};

/// Why a node cannot take a pod, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Objection {
    pub plugin: Plugin,
    /// Several where each is counted (resources).
    pub reasons: Vec<Cow<'static, str>>,
    /// No pod has to go for it: preemption cannot help (upstream: UnschedulableAndUnresolvable).
    pub unresolvable: bool,
}

impl Objection {
    pub fn resolvable(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, reasons: vec![reason.into()], unresolvable: false }
    }
    pub fn unresolvable(plugin: Plugin, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { plugin, reasons: vec![reason.into()], unresolvable: true }
    }
}

/// A filter that looks at a node and a class; `but` is a pod whose own nomination does not count.
pub struct Filter {
    pub plugin: Plugin,
    pub objection: fn(&Judged<'_>) -> Option<Objection>,
}

/// A class of pods before a node.
pub struct Judged<'a> {
    pub profile: &'a Profile,
    pub snapshot: &'a Snapshot,
    pub class: &'a Class,
    pub slot: Slot,
    /// The pod whose own nomination to the node does not count.
    pub but: Option<&'a reconcile::ObjectKey>,
}

/// The filters in upstream's order.
pub fn all() -> &'static [Filter] {
    &[
        Filter { plugin: Plugin::NodeUnschedulable, objection: node_unschedulable::objection },
        Filter { plugin: Plugin::TaintToleration, objection: taint_toleration::objection },
        Filter { plugin: Plugin::NodeAffinity, objection: node_affinity::objection },
        Filter { plugin: Plugin::NodePorts, objection: node_ports::objection },
        Filter { plugin: Plugin::NodeResourcesFit, objection: node_resources::objection },
    ]
}

/// The first objection to the node.
pub fn objection(judged: &Judged<'_>) -> Option<Objection> {
    all().iter().filter(|filter| judged.profile.filters.has(filter.plugin)).find_map(|filter| (filter.objection)(judged))
}

/// Whether the node itself, whoever is on it, may take the class.
pub(crate) fn accepts(profile: &Profile, snapshot: &Snapshot, class: &Class, slot: Slot) -> bool {
    let judged = Judged { profile, snapshot, class, slot, but: None };
    all()[..3].iter().all(|filter| !profile.filters.has(filter.plugin) || (filter.objection)(&judged).is_none())
}

/// Whether there is room for the class on the node now.
pub(crate) fn has_room(profile: &Profile, snapshot: &Snapshot, class: &Class, slot: Slot, but: Option<&reconcile::ObjectKey>) -> bool {
    let judged = Judged { profile, snapshot, class, slot, but };
    (!profile.filters.has(Plugin::NodeResourcesFit) || fits(&judged))
        && (!profile.filters.has(Plugin::NodePorts) || class.host_ports.is_empty() || node_ports::objection(&judged).is_none())
}
