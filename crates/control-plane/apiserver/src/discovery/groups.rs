//! The served groups with their versions and resources, whoever serves them.

use std::collections::BTreeMap;

use schema::resources::{Resource, Subresource};

use crate::Inner;

/// A group; its preferred version stands first.
#[derive(Clone, Debug)]
pub struct Group {
    /// Empty for the core group.
    pub name: String,
    pub versions: Vec<Version>,
}

#[derive(Clone, Debug)]
pub struct Version {
    pub version: String,
    /// In order of their names.
    pub resources: Vec<Entry>,
    /// Another server has it and does not answer: what is told is old.
    pub stale: bool,
}

/// What discovery says of one resource.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    pub plural: String,
    pub singular: String,
    pub kind: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    /// Of the version in which objects are stored; `None` where nothing is stored.
    pub storage_version_hash: Option<String>,
    pub subresources: Vec<Sub>,
}

#[derive(Clone, Debug)]
pub struct Sub {
    pub name: String,
    pub kind: String,
    /// Group and version of that kind where they are not the resource's own.
    pub other: Option<(String, String)>,
    pub verbs: Vec<String>,
}

/// Every served group in the order of `/apis`, the core group first; those of CRDs come after the built-in ones, by name.
pub fn all(server: &Inner) -> Vec<Group> {
    let mut groups = own(server);
    server.aggregator.extend(server, &mut groups);
    groups
}

/// Those that this server has itself.
pub fn own(server: &Inner) -> Vec<Group> {
    let mut by_order: BTreeMap<(usize, &str), Group> = BTreeMap::new();
    let custom = server.registry.custom.all();
    for facts in server.served.resources().chain(custom.iter().map(|kind| kind.facts)) {
        let group = by_order
            .entry((facts.group_order, facts.group))
            .or_insert_with(|| Group { name: facts.group.to_owned(), versions: Vec::new() });
        group.version(facts.version).resources.push(Entry::built_in(facts));
    }
    let mut groups: Vec<Group> = by_order.into_values().collect();
    groups.iter_mut().for_each(Group::sort);
    groups
}

impl Group {
    /// The version of this name, made where it is absent.
    pub fn version(&mut self, name: &str) -> &mut Version {
        let at = self.versions.iter().position(|version| version.version == name).unwrap_or_else(|| {
            self.versions.push(Version { version: name.to_owned(), resources: Vec::new(), stale: false });
            self.versions.len() - 1
        });
        &mut self.versions[at]
    }

    /// Versions by preference, resources by name.
    pub fn sort(&mut self) {
        self.versions.sort_by_key(|version| std::cmp::Reverse(priority(&version.version)));
        for version in &mut self.versions {
            version.resources.sort_by(|a, b| a.plural.cmp(&b.plural));
        }
    }
}

impl Entry {
    fn built_in(facts: &Resource) -> Self {
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Self {
            plural: facts.plural.into(),
            singular: facts.singular.into(),
            kind: facts.kind.into(),
            namespaced: facts.namespaced,
            verbs: owned(facts.verbs),
            short_names: owned(facts.short_names),
            categories: owned(facts.categories),
            storage_version_hash: facts.verbs.contains(&"watch").then(|| facts.storage_version_hash()),
            subresources: facts.subresources.iter().map(|sub| Sub::built_in(facts, sub)).collect(),
        }
    }
}

impl Sub {
    fn built_in(facts: &Resource, sub: &Subresource) -> Self {
        let own = (sub.group, sub.version) == (facts.group, facts.version);
        Self {
            name: sub.name.into(),
            kind: sub.kind.into(),
            other: (!own).then(|| (sub.group.into(), sub.version.into())),
            verbs: sub.verbs.iter().map(|verb| (*verb).to_owned()).collect(),
        }
    }
}

/// GA before beta before alpha, then the higher number; other names come last (upstream's kube-aware version order).
fn priority(version: &str) -> (u8, u32, u32) {
    let number = |text: &str| (!text.is_empty() && !text.starts_with('0')).then(|| text.parse::<u32>().ok()).flatten();
    let parse = || {
        let rest = version.strip_prefix('v')?;
        let (major, stage, minor) = match rest.split_once("beta").map(|(major, minor)| (major, 2, minor)) {
            Some(parts) => parts,
            None => rest.split_once("alpha").map_or((rest, 3, ""), |(major, minor)| (major, 1, minor)),
        };
        let minor = if stage == 3 { 0 } else { number(minor)? };
        Some((stage, number(major)?, minor))
    };
    parse().unwrap_or((0, 0, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_preferred_as_upstream_does() {
        let mut versions = ["v1alpha1", "foo", "v11beta2", "v2", "v10", "v1beta1", "v12alpha1", "v1"];
        versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v11beta2", "v1beta1", "v12alpha1", "v1alpha1", "foo"]);
    }
}
