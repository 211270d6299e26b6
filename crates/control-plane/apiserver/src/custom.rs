//! The kinds that CustomResourceDefinitions add to the built-in ones.
//!
//! Read in this order: [`Kinds`] (what is served now), `kind` (a CRD's version as a [`Kind`]: facts, schema, rules), `rules` (validation,
//! columns, selectable fields of such a kind), `form` (between the stored version and the served one), `run` (the task that follows the
//! CRDs: names, conditions, deletion). Handlers and the registry know no second path: a custom kind is a kind.

mod form;
mod kind;
mod names;
mod rules;
mod run;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;

use crate::registry::catalog::Kind;

pub use form::Form;
pub use run::{begin_deletion, run};

/// The custom kinds that are served now. Readers take a snapshot; a change of a CRD replaces it whole.
#[derive(Default)]
pub struct Kinds {
    snapshot: ArcSwap<Snapshot>,
    /// Counts replacements.
    generation: AtomicU64,
}

#[derive(Default)]
pub struct Snapshot {
    /// By group, version and plural.
    by_path: HashMap<(String, String, String), Arc<Kind>>,
    /// In order of group, plural, version.
    all: Vec<Arc<Kind>>,
}

impl Kinds {
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let snapshot = self.snapshot.load();
        if snapshot.all.is_empty() {
            return None;
        }
        snapshot.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// The kind in the version in which it is stored, else in any.
    pub fn stored(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        let snapshot = self.snapshot.load();
        let of = |kind: &&Arc<Kind>| (kind.facts.group, kind.facts.plural) == (group, plural);
        let mut kinds = snapshot.all.iter().filter(of);
        let first = kinds.next()?;
        std::iter::once(first).chain(kinds).find(|kind| kind.facts.version == kind.facts.storage_version).or(Some(first)).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Kind>> {
        self.snapshot.load().all.clone()
    }

    /// Changes whenever what is served does.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn replace(&self, mut all: Vec<Arc<Kind>>) {
        all.sort_by_key(|kind| (kind.facts.group, kind.facts.plural, kind.facts.version));
        let path = |kind: &Arc<Kind>| (kind.facts.group.to_owned(), kind.facts.version.to_owned(), kind.facts.plural.to_owned());
        let by_path = all.iter().map(|kind| (path(kind), kind.clone())).collect();
        self.snapshot.store(Arc::new(Snapshot { by_path, all }));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}
