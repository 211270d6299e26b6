//! What is allowed but most likely not meant: sentences for `Warning:` headers (upstream: `pkg/api/pod/warnings.go`).

use std::collections::{BTreeMap, BTreeSet};

use meta::field::Path;
use meta::quantity;
use serde_json::Value;

use super::containers;
use crate::value::{at, entries, has, int, list, text};

/// Labels of nodes that were renamed, and what stands in their place.
const OLD_NODE_LABELS: [(&str, &str); 5] = [
    ("beta.kubernetes.io/arch", "deprecated since v1.14; use \"kubernetes.io/arch\" instead"),
    ("beta.kubernetes.io/os", "deprecated since v1.14; use \"kubernetes.io/os\" instead"),
    ("failure-domain.beta.kubernetes.io/region", "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"),
    ("failure-domain.beta.kubernetes.io/zone", "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"),
    ("beta.kubernetes.io/instance-type", "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"),
];

const OLD_ANNOTATIONS: [(&str, &str); 3] = [
    ("scheduler.alpha.kubernetes.io/critical-pod", "non-functional in v1.16+; use the \"priorityClassName\" field instead"),
    ("security.alpha.kubernetes.io/sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
    ("security.alpha.kubernetes.io/unsafe-sysctls", "non-functional in v1.11+; use the \"sysctls\" field instead"),
];

const OLD_VOLUMES: [(&str, &str); 9] = [
    ("photonPersistentDisk", "deprecated in v1.11, non-functional in v1.16+"),
    ("gitRepo", "deprecated in v1.11"),
    ("scaleIO", "deprecated in v1.16, non-functional in v1.22+"),
    ("flocker", "deprecated in v1.22, non-functional in v1.25+"),
    ("storageos", "deprecated in v1.22, non-functional in v1.25+"),
    ("quobyte", "deprecated in v1.22, non-functional in v1.25+"),
    ("glusterfs", "deprecated in v1.25, non-functional in v1.26+"),
    ("cephfs", "deprecated in v1.28, non-functional in v1.31+"),
    ("rbd", "deprecated in v1.28, non-functional in v1.31+"),
];

const NO_SELECTOR: &str = "a null labelSelector results in matching no pod";

/// Warnings about a pod (`path` empty) or a template (`path` is `spec.template`).
pub fn of(object: &Value, path: &Path) -> Vec<String> {
    let (spec, meta, here) = (at(object, "spec"), at(object, "metadata"), path.child("spec"));
    let mut found = Vec::new();
    placement(spec, &here, &mut found);
    let old_annotations = OLD_ANNOTATIONS.iter().filter(|(key, _)| at(meta, "annotations").get(*key).is_some());
    found.extend(old_annotations.map(|(key, sentence)| format!("{}: {sentence}", path.dotted("metadata.annotations").key(key))));
    volumes(spec, &here, &mut found);
    duplicates(spec, &here, &mut found);
    fractions(at(spec, "overhead"), &here.child("overhead"), &mut found);
    seccomp_annotations(object, path, &mut found);
    for (here, container) in containers::all(spec, &here) {
        of_container(container, &here, &mut found);
    }
    ports(spec, &here, &mut found);
    if int(spec, "terminationGracePeriodSeconds").is_some_and(|seconds| seconds < 0) {
        let here = here.child("terminationGracePeriodSeconds");
        found.push(format!("{here}: must be >= 0; negative values are invalid and will be treated as 1"));
    }
    null_selectors(spec, &here, &mut found);
    found
}

pub fn old_node_label(key: &str) -> Option<&'static str> {
    OLD_NODE_LABELS.iter().find(|(old, _)| *old == key).map(|(_, sentence)| *sentence)
}

/// Labels of nodes by their old names in a term of a node selector.
pub fn node_term(term: &Value, path: &Path, found: &mut Vec<String>) {
    for (index, expression) in list(term, "matchExpressions").iter().enumerate() {
        let key = text(expression, "key");
        if let Some(sentence) = old_node_label(key) {
            let here = path.child("matchExpressions").index(index).child("key");
            found.push(format!("{here}: {key} is {sentence}"));
        }
    }
}

fn placement(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for (key, _) in entries(spec, "nodeSelector") {
        if let Some(sentence) = old_node_label(key) {
            found.push(format!("{}: {sentence}", path.child("nodeSelector").key(key)));
        }
    }
    let node = path.dotted("affinity.nodeAffinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms";
    for (index, term) in list(at(spec, "affinity.nodeAffinity"), required).iter().enumerate() {
        node_term(term, &node.dotted(required).index(index), found);
    }
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    for (index, term) in list(at(spec, "affinity.nodeAffinity"), preferred).iter().enumerate() {
        node_term(at(term, "preference"), &node.child(preferred).index(index).child("preference"), found);
    }
    for (index, constraint) in list(spec, "topologySpreadConstraints").iter().enumerate() {
        let here = path.child("topologySpreadConstraints").index(index);
        let key = text(constraint, "topologyKey");
        if let Some(sentence) = old_node_label(key) {
            found.push(format!("{}: {key} is {sentence}", here.child("topologyKey")));
        }
        if !has(constraint, "labelSelector") {
            found.push(format!("{}: {NO_SELECTOR}", here.child("labelSelector")));
        }
    }
}

fn null_selectors(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (affinity, here) = (at(at(spec, "affinity"), kind), path.child("affinity").child(kind));
        for (field, inner) in
            [("requiredDuringSchedulingIgnoredDuringExecution", ""), ("preferredDuringSchedulingIgnoredDuringExecution", "podAffinityTerm")]
        {
            for (index, term) in list(affinity, field).iter().enumerate() {
                let here = here.child(field).index(index);
                let (term, here) = if inner.is_empty() { (term, here) } else { (at(term, inner), here.child(inner)) };
                if !has(term, "labelSelector") {
                    found.push(format!("{}: {NO_SELECTOR}", here.child("labelSelector")));
                }
            }
        }
    }
}

fn volumes(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let tokens: BTreeSet<&str> = list(spec, "volumes")
        .iter()
        .flat_map(|volume| list(volume, "projected.sources"))
        .filter(|source| has(source, "serviceAccountToken"))
        .map(|source| text(source, "serviceAccountToken.path"))
        .collect();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let here = path.child("volumes").index(index);
        let old = OLD_VOLUMES.iter().filter(|(kind, _)| has(volume, kind));
        found.extend(old.map(|(kind, sentence)| {
            let shown = if *kind == "storageos" { "storageOS" } else { kind };
            format!("{}: {sentence}", here.child(shown))
        }));
        let claim = at(volume, "ephemeral.volumeClaimTemplate.spec");
        if !claim.is_null() {
            let here = here.dotted("ephemeral.volumeClaimTemplate.spec");
            found.extend(crate::kinds::persistent_volume_claim::spec_warnings(claim, &here));
        }
        for source in list(volume, "projected.sources").iter().filter(|_| !tokens.is_empty()) {
            let here = here.dotted("projected.sources");
            for (kind, shown) in [("configMap", "configMap"), ("secret", "secrets"), ("downwardAPI", "downwardAPI")] {
                for (index, item) in list(at(source, kind), "items").iter().enumerate() {
                    let given = text(item, "path");
                    if tokens.contains(given) {
                        found.push(format!("{}: has duplicated path with ServiceAccountToken {given:?}", here.child(shown).index(index)));
                    }
                }
            }
            let given = text(source, "clusterTrustBundle.path");
            if has(source, "clusterTrustBundle") && tokens.contains(given) {
                found.push(format!("{}: has duplicated path with ServiceAccountToken {given:?}", here.child("ClusterTrustBundle")));
            }
        }
    }
}

fn duplicates(spec: &Value, path: &Path, found: &mut Vec<String>) {
    for (field, key, word) in [("hostAliases", "ip", "ip"), ("imagePullSecrets", "name", "name")] {
        let mut seen = BTreeSet::new();
        for (index, item) in list(spec, field).iter().enumerate() {
            let given = text(item, key);
            if !seen.insert(given) {
                found.push(format!("{}: duplicate {word} {given:?}", path.child(field).index(index).child(key)));
            }
        }
    }
    for (index, secret) in list(spec, "imagePullSecrets").iter().enumerate() {
        if text(secret, "name").is_empty() {
            found.push(format!("{}: invalid empty name \"\"", path.child("imagePullSecrets").index(index).child("name")));
        }
    }
}

/// Bytes are whole.
pub fn fractions(amounts: &Value, path: &Path, found: &mut Vec<String>) {
    for name in ["memory", "ephemeral-storage"] {
        let Some(amount) = amounts.get(name).and_then(quantity::from_json) else { continue };
        if amount.milli_value() % 1000 != 0 {
            let printed = amount.to_string();
            found.push(format!("{}: fractional byte value {printed:?} is invalid, must be an integer", path.key(name)));
        }
    }
}

fn seccomp_annotations(object: &Value, path: &Path, found: &mut Vec<String>) {
    let annotations = at(object, "metadata.annotations");
    if annotations.is_null() {
        return;
    }
    let mut warn = |key: String, field_given: bool, sentence: &str| {
        if !field_given && annotations.get(&key).is_some() {
            found.push(format!("{}: {sentence}", path.dotted("metadata.annotations").key(&key)));
        }
    };
    let pod = at(object, "spec.securityContext");
    let seccomp = "non-functional in v1.27+; use the \"seccompProfile\" field instead";
    warn("seccomp.security.alpha.kubernetes.io/pod".into(), has(pod, "seccompProfile"), seccomp);
    let is_template = *path != Path::root();
    for (_, container) in containers::all(at(object, "spec"), path) {
        let (name, context) = (text(container, "name"), at(container, "securityContext"));
        warn(format!("container.seccomp.security.alpha.kubernetes.io/{name}"), has(context, "seccompProfile"), seccomp);
        let given = !is_template || has(pod, "appArmorProfile") || has(context, "appArmorProfile");
        let app_armor = "deprecated since v1.30; use the \"appArmorProfile\" field instead";
        warn(format!("container.apparmor.security.beta.kubernetes.io/{name}"), given, app_armor);
    }
}

fn of_container(container: &Value, path: &Path, found: &mut Vec<String>) {
    for kind in ["limits", "requests"] {
        fractions(at(at(container, "resources"), kind), &path.child("resources").child(kind), found);
    }
    let mut seen = BTreeSet::new();
    for (index, variable) in list(container, "env").iter().enumerate() {
        let name = text(variable, "name");
        // A value that builds on the one before it is meant.
        let reference = format!("$({name})");
        let value = text(variable, "value");
        let hides = has(variable, "valueFrom") || value == reference || !value.contains(&reference);
        if !seen.insert(name) && hides {
            let here = path.child("env").index(index);
            found.push(format!("{here}: hides previous definition of {name:?}, which may be dropped when using apply"));
        }
    }
}

/// The same port of two containers.
fn ports(spec: &Value, path: &Path, found: &mut Vec<String>) {
    let mut all: BTreeMap<(i64, &str), Vec<(Path, &str, i64)>> = BTreeMap::new();
    for (here, container) in containers::all(spec, path) {
        for (index, port) in list(container, "ports").iter().enumerate() {
            let here = here.child("ports").index(index);
            let (host, ip) = (int(port, "hostPort").unwrap_or(0), text(port, "hostIP"));
            let (number, protocol) = (int(port, "containerPort").unwrap_or(0), text(port, "protocol"));
            if !ip.is_empty() && host == 0 {
                let name = text(port, "name");
                let printed = format!("{{Name:{name} HostPort:0 ContainerPort:{number} Protocol:{protocol} HostIP:{ip}}}");
                found.push(format!("{here}: hostIP set without hostPort: {printed}"));
            }
            let others = all.entry((number, protocol)).or_default();
            for (other, other_ip, other_host) in others.iter() {
                let how = match () {
                    () if (ip, host) == (*other_ip, *other_host) => "duplicate",
                    () if host == 0 || *other_host == 0 => "overlapping",
                    () if host == *other_host && ip.is_empty() != other_ip.is_empty() => "dangerously ambiguous",
                    () => continue,
                };
                found.push(format!("{here}: {how} port definition with {other}"));
            }
            others.push((here, ip, host));
        }
    }
}
