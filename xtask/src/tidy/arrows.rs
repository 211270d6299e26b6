//! Who may import whom, and the picture of who does.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::Fault;

/// The picture, relative to the checkout.
pub const PICTURE: &str = "docs/dependencies.txt";

const HEAD: &str = "\
# Arrows between the workspace's crates, so that a new one shows in review: `crate -> what it imports`.
# `(tests)` are imports of tests only. Written by `cargo xtask tidy --write`.
";

/// Crates that decide or act through the API only.
const THROUGH_THE_API: [&str; 5] = ["scheduler", "controllers", "kubelet", "proxy", "dns"];
/// Libraries of node and network that know no kinds.
const NO_KINDS: [&str; 10] = ["cri", "images", "oci", "cgroups", "volumes", "runtime", "streaming", "cni", "nft", "store"];
/// The API server's side works on values and bytes.
const UNTYPED: [&str; 6] = ["meta", "schema", "rules", "admission", "auth", "apiserver"];
/// What assembles everything.
const ASSEMBLES: [&str; 5] = ["sternpost", "cluster", "sim", "race", "testkit"];

#[derive(Default)]
struct Imports {
    /// Folder below `crates/`: `node`.
    layer: String,
    own: BTreeSet<String>,
    own_in_tests: BTreeSet<String>,
    foreign: BTreeSet<String>,
}

/// The workspace's crates and what each imports directly.
pub struct Graph(BTreeMap<String, Imports>);

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    name: String,
    kind: Option<String>,
    path: Option<String>,
}

impl Graph {
    /// Asks cargo, without the network.
    pub fn read() -> anyhow::Result<Self> {
        let output = crate::cargo().args(["metadata", "--format-version=1", "--no-deps", "--offline"]).output()?;
        anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
        Ok(Self(metadata.packages.into_iter().map(|package| (package.name.clone(), imports(&package))).collect()))
    }

    pub fn picture(&self) -> String {
        let width = self.0.iter().map(|(name, imports)| imports.layer.len() + name.len() + 1).max().unwrap_or_default();
        let mut layers: Vec<(&String, &Imports)> = self.0.iter().collect();
        layers.sort_by_key(|(name, imports)| (&imports.layer, *name));
        let mut lines = HEAD.to_owned();
        for (name, imports) in layers {
            let tests = match imports.own_in_tests.is_empty() {
                true => String::new(),
                false => format!("  (tests) {}", words(&imports.own_in_tests)),
            };
            let place = if imports.layer.is_empty() { name.clone() } else { format!("{}/{name}", imports.layer) };
            lines += format!("{place:width$} -> {}{tests}", words(&imports.own)).trim_end();
            lines.push('\n');
        }
        lines
    }

    /// The forbidden arrows that exist.
    pub fn faults(&self) -> Vec<Fault> {
        self.0.iter().flat_map(|(name, imports)| broken(name, imports)).collect()
    }
}

fn imports(package: &Package) -> Imports {
    let folder = package.manifest_path.split("/crates/").nth(1).and_then(|path| path.split_once('/'));
    let layer = match folder {
        Some((layer, rest)) if rest.contains('/') => layer.to_owned(),
        _ => String::new(),
    };
    let mut imports = Imports { layer, ..Imports::default() };
    for dependency in &package.dependencies {
        let set = match (&dependency.path, dependency.kind.as_deref()) {
            (Some(_), None) => &mut imports.own,
            (Some(_), _) => &mut imports.own_in_tests,
            (None, None) => &mut imports.foreign,
            (None, _) => continue,
        };
        set.insert(dependency.name.clone());
    }
    imports
}

fn words(set: &BTreeSet<String>) -> String {
    set.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

/// Faults of one crate. A rule is what the design says of an arrow, in its own words.
fn broken(name: &str, imports: &Imports) -> Vec<Fault> {
    let base = |own: &str| ["stdx", "telemetry"].contains(&own);
    let mut faults = Vec::new();
    let mut forbid = |to: &str, why: &str| faults.push(Fault::new(name, format!("must not import {to}: {why}")));
    for to in imports.own.iter().map(String::as_str) {
        if imports.layer == "base" && !base(to) {
            forbid(to, "base is below everything");
        }
        if name == "store" && !base(to) {
            forbid(to, "the store knows bytes and revisions, no kinds");
        }
        if to == "store" && name != "apiserver" && !ASSEMBLES.contains(&name) {
            forbid(to, "only the API server talks to the store");
        }
        if THROUGH_THE_API.contains(&name) && (THROUGH_THE_API.contains(&to) || to == "apiserver") {
            forbid(to, "components meet only in the API");
        }
        if name == "kubelet" && ["runtime", "images", "oci", "cni"].contains(&to) {
            forbid(to, "the kubelet knows the CRI contract only");
        }
        if name == "rules" && !["schema", "meta", "cel", "structural"].contains(&to) {
            forbid(to, "rules know the schema and nothing that runs");
        }
        if imports.layer == "api" && !["meta", "schema", "rules", "descriptions", "cel", "structural", "stdx"].contains(&to) {
            forbid(to, "the words of the API depend on no component");
        }
        if NO_KINDS.contains(&name) && ["client", "reconcile", "apiserver", "schema", "rules"].contains(&to) {
            forbid(to, "it knows no kinds of the API");
        }
        if ASSEMBLES.contains(&to) && !ASSEMBLES.contains(&name) {
            forbid(to, "nothing imports what assembles everything");
        }
    }
    if imports.foreign.contains("k8s-openapi") && (NO_KINDS.contains(&name) || UNTYPED.contains(&name)) {
        forbid("k8s-openapi", "it works on bytes and values, not on typed kinds");
    }
    faults
}

/// A fault when the committed picture is not the present one.
pub fn compare(graph: &Graph) -> Option<Fault> {
    let committed = std::fs::read_to_string(crate::root().join(PICTURE)).unwrap_or_default();
    (committed != graph.picture()).then(|| Fault::new(PICTURE, "is out of date: run `cargo xtask tidy --write` and look at the new arrows"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn importing(layer: &str, own: &[&str], foreign: &[&str]) -> Imports {
        let set = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        Imports { layer: layer.into(), own: set(own), foreign: set(foreign), own_in_tests: BTreeSet::new() }
    }

    #[test]
    fn forbidden_arrows_are_named_with_their_reason() {
        let cases = [
            ("store", importing("control-plane", &["stdx", "meta"], &[]), "must not import meta"),
            ("controllers", importing("control-plane", &["store"], &[]), "only the API server"),
            ("scheduler", importing("control-plane", &["kubelet"], &[]), "meet only in the API"),
            ("kubelet", importing("node", &["cri", "runtime"], &[]), "CRI contract"),
            ("nft", importing("network", &[], &["k8s-openapi"]), "bytes and values"),
            ("stdx", importing("base", &["meta"], &[]), "below everything"),
            ("client", importing("clients", &["sternpost"], &[]), "assembles"),
        ];
        for (name, imports, wanted) in cases {
            let faults: Vec<String> = broken(name, &imports).iter().map(Fault::to_string).collect();
            assert!(faults.iter().any(|fault| fault.contains(wanted)), "{name}: {faults:?}");
        }
        assert_eq!(broken("kubelet", &importing("node", &["cri", "client", "reconcile"], &["k8s-openapi"])), []);
    }
}
