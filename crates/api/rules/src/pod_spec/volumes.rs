//! Volumes of a pod, and the mounts and devices of a container against them. The kinds of sources that PersistentVolumes have as well
//! are in [`sources`].

pub mod sources;

use std::collections::{BTreeMap, BTreeSet};

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::Context;
use super::containers::env;
use crate::checks::{Errors, label_selector, one_of, required, sentences, supported};
use crate::kinds::persistent_volume_claim;
use crate::value::{at, flag, has, int, list, text};

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The valid volumes of a pod by name: only these can be mounted.
pub type Known<'a> = BTreeMap<&'a str, &'a Value>;

/// The fields of a pod that the downward API offers to files.
const FILE_FIELDS: [&str; 5] = ["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// The order in which upstream looks for the source: the first is taken, others are too many.
const KINDS: [&str; 30] = [
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

pub fn validate<'a>(spec: &'a Value, context: &Context<'_>, path: &Path) -> (Known<'a>, Errors) {
    let (mut known, mut errors) = (Known::new(), Errors::new());
    let volumes = list(spec, "volumes");
    let made = |claim: &str| {
        let ephemeral = volumes.iter().filter(|volume| has(volume, "ephemeral"));
        !context.name.is_empty() && ephemeral.into_iter().any(|volume| format!("{}-{}", context.name, text(volume, "name")) == claim)
    };
    for (index, volume) in volumes.iter().enumerate() {
        let here = path.index(index);
        let name = text(volume, "name");
        let mut complaints = source(volume, context, &here);
        complaints.extend(required(volume, &here, "name"));
        complaints.extend(crate::checks::formed(volume, &here, "name", names::dns1123_label));
        if known.contains_key(name) {
            complaints.push(Error::duplicate(&here.child("name"), name));
        }
        if complaints.is_empty() {
            known.insert(name, volume);
        }
        errors.append(&mut complaints);
        let claim = text(volume, "persistentVolumeClaim.claimName");
        if made(claim) {
            let sentence = "must not reference a PVC that gets created for an ephemeral volume";
            errors.push(Error::invalid(&here.dotted("persistentVolumeClaim.claimName"), claim, sentence));
        }
    }
    (known, errors)
}

fn source(volume: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut given = KINDS.iter().filter(|kind| has(volume, kind)).peekable();
    if given.peek().is_none() {
        errors.push(Error::required(path, "must specify a volume type"));
    }
    for (position, kind) in given.enumerate() {
        let here = path.child(kind);
        if position > 0 {
            errors.push(Error::forbidden(&here, "may not specify more than 1 volume type"));
            continue;
        }
        errors.extend(one_source(kind, at(volume, kind), text(volume, "name"), context, path));
    }
    errors
}

fn one_source(kind: &str, source: &Value, name: &str, context: &Context<'_>, parent: &Path) -> Errors {
    let path = &parent.child(kind);
    match kind {
        "emptyDir" => sources::empty_dir(source, path),
        "secret" => [required(source, path, "secretName"), files(source, path)].concat(),
        "configMap" => [required(source, path, "name"), files(source, path)].concat(),
        "downwardAPI" => [mode(source, path, "defaultMode"), downward_files(source, path)].concat(),
        "projected" => projected(source, path),
        "persistentVolumeClaim" => required(source, path, "claimName"),
        "ephemeral" => ephemeral(source, name, context, parent),
        "image" => image(source, context, path),
        "gitRepo" => {
            let directory = descending(text(source, "directory"), &path.child("directory"));
            [required(source, path, "repository"), directory].concat()
        }
        // Upstream names some fields by what they were called inside.
        "gcePersistentDisk" => sources::validate(kind, source, true, &parent.child("persistentDisk")),
        _ => sources::validate(kind, source, true, path),
    }
}

fn image(source: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = if context.is_pod { required(source, path, "reference") } else { Errors::new() };
    errors.extend(one_of(source, path, "pullPolicy", &["Always", "IfNotPresent", "Never"]));
    errors
}

/// A claim that is made with the pod, under the pod's name and the volume's.
fn ephemeral(source: &Value, volume: &str, context: &Context<'_>, parent: &Path) -> Errors {
    let path = parent.child("ephemeral").child("volumeClaimTemplate");
    let template = at(source, "volumeClaimTemplate");
    if template.is_null() {
        return vec![Error::required(&path, "")];
    }
    let (meta, here) = (at(template, "metadata"), path.child("metadata"));
    let mut errors = crate::metadata::annotations(meta, &here.child("annotations"));
    errors.extend(crate::checks::labels(at(meta, "labels"), &here.child("labels")));
    let others = meta
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| !matches!(key.as_str(), "annotations" | "labels") && !value.is_null() && *value != "");
    errors.extend(others.map(|(key, _)| Error::forbidden(&here.child(key), "cannot be set")));
    errors.extend(persistent_volume_claim::validate_spec(at(template, "spec"), &path.child("spec")));
    if !context.name.is_empty() && !volume.is_empty() {
        let claim = format!("{}-{volume}", context.name);
        for complaint in names::dns1123_subdomain(&claim) {
            errors.push(Error::invalid(&parent.child("name"), volume, format!("PVC name {claim:?}: {complaint}")));
        }
    }
    errors
}

pub fn no_backsteps(given: &str, path: &Path) -> Errors {
    if given.split('/').any(|part| part == "..") { vec![Error::invalid(path, given, "must not contain '..'")] } else { Errors::new() }
}

/// A path inside a volume.
pub fn descending(given: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if given.starts_with('/') {
        errors.push(Error::invalid(path, given, "must be a relative path"));
    }
    errors.extend(no_backsteps(given, path));
    errors
}

/// A path inside a volume whose first part does not begin with two dots: kubelets keep their own files there.
pub fn local_path(given: &str, path: &Path) -> Errors {
    let mut errors = descending(given, path);
    if given.starts_with("..") && !given.starts_with("../") {
        errors.push(Error::invalid(path, given, "must not start with '..'"));
    }
    errors
}

fn mode(source: &Value, path: &Path, field: &str) -> Errors {
    match int(source, field) {
        Some(mode) if !(0..=0o777).contains(&mode) => vec![Error::invalid(&path.child(field), mode, FILE_MODE)],
        _ => Errors::new(),
    }
}

/// `defaultMode` and `items` of a secret or config map.
fn files(source: &Value, path: &Path) -> Errors {
    let mut errors = mode(source, path, "defaultMode");
    for (index, item) in list(source, "items").iter().enumerate() {
        let here = path.child("items").index(index);
        errors.extend(required(item, &here, "key"));
        errors.extend(required(item, &here, "path"));
        errors.extend(local_path(text(item, "path"), &here.child("path")));
        errors.extend(mode(item, &here, "mode"));
    }
    errors
}

/// The files of the downward API. Upstream does not name the item.
fn downward_files(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for file in list(source, "items") {
        errors.extend(required(file, path, "path"));
        errors.extend(local_path(text(file, "path"), &path.child("path")));
        let (field, resource) = (at(file, "fieldRef"), at(file, "resourceFieldRef"));
        if !field.is_null() {
            errors.extend(env::field_reference(field, &FILE_FIELDS, &path.child("fieldRef")));
            if !resource.is_null() {
                let sentence = "fieldRef and resourceFieldRef can not be specified simultaneously";
                errors.push(Error::invalid(path, "resource", sentence));
            }
        } else if !resource.is_null() {
            errors.extend(env::resource_reference(resource, true, &path.child("resourceFieldRef")));
        } else {
            errors.push(Error::required(path, "one of fieldRef and resourceFieldRef is required"));
        }
        errors.extend(mode(file, path, "mode"));
    }
    errors
}

fn projected(source: &Value, path: &Path) -> Errors {
    let mut errors = mode(source, path, "defaultMode");
    let mut taken = BTreeSet::new();
    let mut take = |file: &str, blamed: &str| {
        let free = file.is_empty() || taken.insert(file.to_owned());
        (!free).then(|| Error::invalid(path, blamed, "conflicting duplicate paths"))
    };
    for (index, part) in list(source, "sources").iter().enumerate() {
        let here = path.child("sources").index(index);
        for kind in ["secret", "configMap"].into_iter().filter(|kind| has(part, kind)) {
            let (part, here) = (at(part, kind), here.child(kind));
            errors.extend(required(part, &here, "name"));
            errors.extend(files(part, &here));
            errors.extend(list(part, "items").iter().filter_map(|item| take(text(item, "path"), text(part, "name"))));
        }
        if has(part, "downwardAPI") {
            let part = at(part, "downwardAPI");
            errors.extend(downward_files(part, &here.child("downwardAPI")));
            errors.extend(list(part, "items").iter().filter_map(|item| take(text(item, "path"), text(item, "path"))));
        }
        if has(part, "serviceAccountToken") {
            errors.extend(token(at(part, "serviceAccountToken"), &here.child("serviceAccountToken"), path));
        }
        if has(part, "clusterTrustBundle") {
            let part = at(part, "clusterTrustBundle");
            errors.extend(trust_bundle(part, &here.child("clusterTrustBundle")));
            errors.extend(take(text(part, "path"), text(part, "path")));
        }
        if has(part, "podCertificate") {
            errors.extend(pod_certificate(at(part, "podCertificate"), &here.child("podCertificate")));
        }
        if part.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()).count() > 1 {
            errors.push(Error::forbidden(&here, "may not specify more than 1 volume type per source"));
        }
    }
    errors
}

fn token(part: &Value, path: &Path, volume: &Path) -> Errors {
    let mut errors = Errors::new();
    let seconds = int(part, "expirationSeconds").unwrap_or(3600);
    let here = path.child("expirationSeconds");
    if seconds < 600 {
        errors.push(Error::invalid(&here, seconds, "may not specify a duration less than 10 minutes"));
    }
    if seconds > 1 << 32 {
        errors.push(Error::invalid(&here, seconds, "may not specify a duration larger than 2^32 seconds"));
    }
    match text(part, "path") {
        "" => errors.push(Error::required(&volume.child("path"), "")),
        given => errors.extend(local_path(given, &volume.child("path"))),
    }
    errors
}

fn trust_bundle(part: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    match (at(part, "name").as_str(), at(part, "signerName").as_str()) {
        (Some(_), Some(_)) => errors.push(Error::invalid(path, part.clone(), "only one of name and signerName may be used")),
        (Some(name), None) => {
            if name.is_empty() {
                errors.push(Error::required(&path.child("name"), "must be a valid object name"));
            }
            let last = name.rsplit(':').next().unwrap_or(name);
            let complaints =
                names::dns1123_subdomain(last).into_iter().map(|complaint| format!("not a valid clustertrustbundlename: {complaint}"));
            errors.extend(sentences(&path.child("name"), name, complaints.collect()));
            if has(part, "labelSelector") {
                let sentence = "labelSelector must be unset if name is specified";
                errors.push(Error::invalid(&path.child("labelSelector"), at(part, "labelSelector").clone(), sentence));
            }
        }
        (None, Some(signer)) => {
            if signer.is_empty() {
                errors.push(Error::required(&path.child("signerName"), "must be a valid signer name"));
            }
            errors.extend(crate::checks::signer_name(signer, &path.child("signerName")));
            errors.extend(label_selector(at(part, "labelSelector"), &path.child("labelSelector")));
        }
        (None, None) => errors.push(Error::required(path, "either name or signerName must be specified")),
    }
    errors.extend(required(part, path, "path"));
    errors.extend(local_path(text(part, "path"), &path.child("path")));
    errors
}

/// A certificate for the pod itself (KEP-4317).
fn pod_certificate(part: &Value, path: &Path) -> Errors {
    let mut errors = crate::checks::signer_name(text(part, "signerName"), &path.child("signerName"));
    let keys = ["RSA3072", "RSA4096", "ECDSAP256", "ECDSAP384", "ECDSAP521", "ED25519"];
    if !keys.contains(&text(part, "keyType")) {
        errors.push(Error::not_supported(&path.child("keyType"), text(part, "keyType"), &keys));
    }
    if let Some(seconds) = int(part, "maxExpirationSeconds") {
        let here = path.child("maxExpirationSeconds");
        if seconds < 3600 {
            errors.push(Error::invalid(&here, seconds, "if provided, maxExpirationSeconds must be >= 3600"));
        } else if seconds > 91 * 86400 {
            errors.push(Error::invalid(&here, seconds, "if provided, maxExpirationSeconds must be <= 7862400"));
        }
    }
    let files = ["credentialBundlePath", "keyPath", "certificateChainPath"];
    if files.iter().all(|field| text(part, field).is_empty()) {
        let sentence = "specify at least one of credentialBundlePath, keyPath, and certificateChainPath";
        errors.push(Error::required(path, sentence));
    }
    for field in files {
        errors.extend(local_path(text(part, field), &path.child(field)));
    }
    errors
}

/// The mounts of one container, against the pod's volumes and the container's devices.
pub fn mounts(container: &Value, volumes: &Known<'_>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut places = BTreeSet::new();
    let path = path.child("volumeMounts");
    let devices = list(container, "volumeDevices");
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let here = path.index(index);
        let (name, place) = (text(mount, "name"), text(mount, "mountPath"));
        errors.extend(required(mount, &here, "name"));
        if !volumes.contains_key(name) {
            errors.push(Error::not_found(&here.child("name"), name));
        }
        errors.extend(required(mount, &here, "mountPath"));
        if !places.insert(place) {
            errors.push(Error::invalid(&here.child("mountPath"), place, "must be unique"));
        }
        if devices.iter().any(|device| text(device, "name") == name) {
            errors.push(Error::invalid(&here.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|device| text(device, "devicePath") == place) {
            let sentence = "must not already exist as a path in volumeDevices";
            errors.push(Error::invalid(&here.child("mountPath"), place, sentence));
        }
        errors.extend(sub_paths(mount, &path));
        if has(mount, "subPath") && !text(mount, "subPath").is_empty() && !text(mount, "subPathExpr").is_empty() {
            let sentence = "subPathExpr and subPath are mutually exclusive";
            errors.push(Error::invalid(&here.child("subPathExpr"), text(mount, "subPathExpr"), sentence));
        }
        errors.extend(supported(mount, &path, "mountPropagation", &["Bidirectional", "HostToContainer", "None"]));
        if text(mount, "mountPropagation") == "Bidirectional" && !flag(container, "securityContext.privileged") {
            let sentence = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(Error::forbidden(&path.child("mountPropagation"), sentence));
        }
        errors.extend(recursive_read_only(mount, &path.child("recursiveReadOnly")));
    }
    errors
}

/// Upstream does not name the mount here.
fn sub_paths(mount: &Value, path: &Path) -> Errors {
    let given = ["subPath", "subPathExpr"].into_iter().map(|field| (field, text(mount, field))).filter(|(_, given)| !given.is_empty());
    given.flat_map(|(field, given)| descending(given, &path.child(field))).collect()
}

fn recursive_read_only(mount: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    match at(mount, "recursiveReadOnly").as_str() {
        None | Some("Disabled") => {}
        Some("Enabled" | "IfPossible") => {
            if !flag(mount, "readOnly") {
                errors.push(Error::forbidden(path, "may only be specified when readOnly is true"));
            }
            if !matches!(text(mount, "mountPropagation"), "" | "None") {
                errors.push(Error::forbidden(path, "may only be specified when mountPropagation is None or not specified"));
            }
        }
        Some(other) => errors.push(Error::not_supported(path, other, &["Disabled", "Enabled", "IfPossible"])),
    }
    errors
}

/// The block devices of one container: only claims can be given as such.
pub fn devices(container: &Value, volumes: &Known<'_>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (mut taken, mut places) = (BTreeSet::new(), BTreeSet::new());
    let path = path.child("volumeDevices");
    let mounts = list(container, "volumeMounts");
    for (index, device) in list(container, "volumeDevices").iter().enumerate() {
        let (name, place) = (text(device, "name"), text(device, "devicePath"));
        let (of_name, of_place) = (path.index(index).child("name"), path.index(index).child("devicePath"));
        errors.extend(required(device, &path.index(index), "name"));
        if !name.is_empty() && !taken.insert(name) {
            errors.push(Error::invalid(&of_name, name, "must be unique"));
        }
        match volumes.get(name) {
            None => errors.push(Error::not_found(&of_name, name)),
            Some(volume) if !has(volume, "persistentVolumeClaim") && !has(volume, "ephemeral") => {
                let sentence = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(Error::invalid(&of_name, name, sentence));
            }
            Some(_) => {}
        }
        errors.extend(required(device, &path.index(index), "devicePath"));
        if places.contains(place) {
            errors.push(Error::invalid(&of_place, place, "must be unique"));
        }
        if no_backsteps(place, &of_place).is_empty() {
            places.insert(place);
        } else {
            errors.push(Error::invalid(&of_place, place, "can not contain backsteps ('..')"));
        }
        if mounts.iter().any(|mount| text(mount, "name") == name) {
            errors.push(Error::invalid(&of_name, name, "must not already exist in volumeMounts"));
        }
        if mounts.iter().any(|mount| text(mount, "mountPath") == place) {
            errors.push(Error::invalid(&of_place, place, "must not already exist as a path in volumeMounts"));
        }
    }
    errors
}
