//! The kinds that CustomResourceDefinitions add to the built-in ones.

use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::registry::catalog::Kind;

/// The custom kinds that are served now. Readers take a snapshot; a change of a CRD replaces it whole.
#[derive(Default)]
pub struct Kinds(ArcSwap<Snapshot>);

#[derive(Default)]
pub struct Snapshot {
    /// By group, version and plural.
    by_path: HashMap<(String, String, String), Arc<Kind>>,
    /// In order of group, plural, version.
    all: Vec<Arc<Kind>>,
}

impl Kinds {
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        let snapshot = self.0.load();
        if snapshot.all.is_empty() {
            return None;
        }
        snapshot.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// The kind in the version in which it is stored.
    pub fn stored(&self, group: &str, plural: &str) -> Option<Arc<Kind>> {
        let snapshot = self.0.load();
        let of = |kind: &&Arc<Kind>| (kind.facts.group, kind.facts.plural) == (group, plural);
        let mut kinds = snapshot.all.iter().filter(of);
        let first = kinds.next()?;
        std::iter::once(first).chain(kinds).find(|kind| kind.facts.version == kind.facts.storage_version).or(Some(first)).cloned()
    }

    pub fn all(&self) -> Vec<Arc<Kind>> {
        self.0.load().all.clone()
    }
}
