//! The kinds of volumes, of pods and of PersistentVolumes.

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::Value;

use super::no_backsteps;
use crate::checks::{Errors, formed, in_range, required, required_formed, supported};
use crate::value::{at, entries, flag, has, int, list, text};

/// Checks the source of the given kind. `of_pod`: written in a pod rather than in a PersistentVolume, whose references name a namespace.
/// Kinds that only pods have (`secret`, `projected`, …) are in the parent module.
pub fn validate(kind: &str, source: &Value, of_pod: bool, path: &Path) -> Errors {
    let need = |fields: &[&str]| -> Errors { fields.iter().flat_map(|field| required(source, path, field)).collect() };
    match kind {
        "hostPath" => host_path(source, path),
        "nfs" => nfs(source, path),
        "gcePersistentDisk" => [need(&["pdName"]), in_range(source, path, "partition", 0, 255)].concat(),
        "awsElasticBlockStore" => [need(&["volumeID"]), in_range(source, path, "partition", 0, 255)].concat(),
        "azureDisk" => azure_disk(source, path),
        "azureFile" => azure_file(source, of_pod, path),
        "cephfs" => monitors(source, path),
        "cinder" => [need(&["volumeID"]), secret_reference(source, "secretRef", of_pod, path)].concat(),
        "csi" => csi(source, of_pod, path),
        "fc" => fibre_channel(source, path),
        "flexVolume" => flex(source, path),
        "flocker" => flocker(source, path),
        "glusterfs" => glusterfs(source, path),
        "iscsi" => iscsi(source, path),
        "local" => local(source, path),
        "photonPersistentDisk" => need(&["pdID"]),
        "portworxVolume" => need(&["volumeID"]),
        "quobyte" => quobyte(source, path),
        "rbd" => [monitors(source, path), need(&["image"])].concat(),
        "scaleIO" => need(&["gateway", "system", "volumeName"]),
        "storageos" => storage_os(source, of_pod, path),
        "vsphereVolume" => need(&["volumePath"]),
        _ => Errors::new(),
    }
}

pub fn empty_dir(source: &Value, path: &Path) -> Errors {
    match quantity::from_json(at(source, "sizeLimit")) {
        Some(size) if size.is_negative() => {
            vec![Error::forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity")]
        }
        _ => Errors::new(),
    }
}

fn host_path(source: &Value, path: &Path) -> Errors {
    let mut errors = required(source, path, "path");
    if !errors.is_empty() {
        return errors;
    }
    errors.extend(no_backsteps(text(source, "path"), &path.child("path")));
    let types = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    errors.extend(supported(source, path, "type", &types));
    errors
}

fn local(source: &Value, path: &Path) -> Errors {
    let errors = required(source, path, "path");
    if errors.is_empty() { no_backsteps(text(source, "path"), &path.child("path")) } else { errors }
}

fn nfs(source: &Value, path: &Path) -> Errors {
    let mut errors = required(source, path, "server");
    errors.extend(required(source, path, "path"));
    if !text(source, "path").starts_with('/') {
        errors.push(Error::invalid(&path.child("path"), text(source, "path"), "must be an absolute path"));
    }
    errors
}

fn monitors(source: &Value, path: &Path) -> Errors {
    if list(source, "monitors").is_empty() { vec![Error::required(&path.child("monitors"), "")] } else { Errors::new() }
}

/// Where there is a reference, it has a name, and outside of pods a namespace.
fn secret_reference(source: &Value, field: &str, of_pod: bool, path: &Path) -> Errors {
    if !has(source, field) {
        return Errors::new();
    }
    let (reference, here) = (at(source, field), path.child(field));
    let mut errors = required(reference, &here, "name");
    if !of_pod {
        errors.extend(required(reference, &here, "namespace"));
    }
    errors
}

/// The name of a CSI driver.
pub fn driver_name(name: &str, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if name.is_empty() {
        errors.push(Error::required(path, ""));
    }
    if name.len() > 63 {
        errors.push(Error::too_long(path, 63));
    }
    errors.extend(crate::checks::sentences(path, name, names::dns1123_subdomain(&name.to_lowercase())));
    errors
}

fn csi(source: &Value, of_pod: bool, path: &Path) -> Errors {
    let mut errors = driver_name(text(source, "driver"), &path.child("driver"));
    if of_pod {
        if has(source, "nodePublishSecretRef") {
            let (reference, here) = (at(source, "nodePublishSecretRef"), path.child("nodePublishSecretRef"));
            errors.extend(required(reference, &here, "name"));
            errors.extend(formed(reference, path, "name", names::dns1123_subdomain));
        }
        return errors;
    }
    errors.extend(required(source, path, "volumeHandle"));
    for field in ["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"] {
        if has(source, field) {
            let (reference, here) = (at(source, field), path.child(field));
            errors.extend(required_formed(reference, &here, "name", names::dns1123_subdomain));
            errors.extend(required_formed(reference, &here, "namespace", names::dns1123_label));
        }
    }
    errors
}

fn azure_file(source: &Value, of_pod: bool, path: &Path) -> Errors {
    let mut errors = required(source, path, "secretName");
    errors.extend(required(source, path, "shareName"));
    if !of_pod && at(source, "secretNamespace") == "" {
        errors.push(Error::required(&path.child("secretNamespace"), ""));
    }
    errors
}

fn azure_disk(source: &Value, path: &Path) -> Errors {
    let mut errors = required(source, path, "diskName");
    errors.extend(required(source, path, "diskURI"));
    errors.extend(supported(source, path, "cachingMode", &["None", "ReadOnly", "ReadWrite"]));
    errors.extend(supported(source, path, "kind", &["Dedicated", "Managed", "Shared"]));
    let (kind, uri) = (text(source, "kind"), text(source, "diskURI"));
    let managed = "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}";
    let blob = "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd";
    if kind == "Managed" && !uri.starts_with("/subscriptions/") {
        errors.push(Error::not_supported(&path.child("diskURI"), uri, &[managed]));
    } else if !matches!(kind, "" | "Managed") && !uri.starts_with("https://") {
        errors.push(Error::not_supported(&path.child("diskURI"), uri, &[blob]));
    }
    errors
}

fn fibre_channel(source: &Value, path: &Path) -> Errors {
    let (names, ids) = (list(source, "targetWWNs"), list(source, "wwids"));
    let here = path.child("targetWWNs");
    let mut errors = Errors::new();
    match (names.is_empty(), ids.is_empty()) {
        (true, true) => errors.push(Error::required(&here, "must specify either targetWWNs or wwids, but not both")),
        (false, false) => {
            errors.push(Error::invalid(&here, names.to_vec(), "targetWWNs and wwids can not be specified simultaneously"));
        }
        _ => {}
    }
    if !names.is_empty() {
        match int(source, "lun") {
            None => errors.push(Error::required(&path.child("lun"), "lun is required if targetWWNs is specified")),
            Some(_) => errors.extend(in_range(source, path, "lun", 0, 255)),
        }
    }
    errors
}

fn flex(source: &Value, path: &Path) -> Errors {
    let mut errors = required(source, path, "driver");
    for (key, _) in entries(source, "options") {
        let namespace = format!(".{}", key.split_once('/').map_or(key.as_str(), |(namespace, _)| namespace).to_lowercase());
        if namespace.ends_with(".kubernetes.io") || namespace.ends_with(".k8s.io") {
            let sentence = "kubernetes.io and k8s.io namespaces are reserved";
            errors.push(Error::invalid(&path.child("options").key(key), key.clone(), sentence));
        }
    }
    errors
}

fn flocker(source: &Value, path: &Path) -> Errors {
    let (name, id) = (text(source, "datasetName"), text(source, "datasetUUID"));
    let mut errors = Errors::new();
    match (name.is_empty(), id.is_empty()) {
        (true, true) => errors.push(Error::required(path, "one of datasetName and datasetUUID is required")),
        (false, false) => {
            errors.push(Error::invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously"));
        }
        _ => {}
    }
    if name.contains('/') {
        errors.push(Error::invalid(&path.child("datasetName"), name, "must not contain '/'"));
    }
    errors
}

fn glusterfs(source: &Value, path: &Path) -> Errors {
    let mut errors = required(source, path, "endpoints");
    errors.extend(required(source, path, "path"));
    if let Some(namespace) = at(source, "endpointsNamespace").as_str() {
        let here = path.child("endpointsNamespace");
        match namespace {
            "" => {
                let sentence = "if the endpointnamespace is set, it must be a valid namespace name";
                errors.push(Error::invalid(&here, namespace, sentence));
            }
            _ => errors.extend(crate::checks::sentences(&here, namespace, names::dns1123_label(namespace))),
        }
    }
    errors
}

fn iscsi(source: &Value, path: &Path) -> Errors {
    let mut errors = required(source, path, "targetPortal");
    match text(source, "iqn") {
        "" => errors.push(Error::required(&path.child("iqn"), "")),
        name => errors.extend(initiator(name, &path.child("iqn"))),
    }
    errors.extend(in_range(source, path, "lun", 0, 255));
    if (flag(source, "chapAuthDiscovery") || flag(source, "chapAuthSession")) && !has(source, "secretRef") {
        errors.push(Error::required(&path.child("secretRef"), ""));
    }
    if let Some(name) = at(source, "initiatorName").as_str() {
        errors.extend(initiator(name, &path.child("initiatorname")));
    }
    errors
}

/// The name of an iSCSI node: `iqn.2026-01.com.example:disk`, `eui.` and 16 characters, `naa.` and 32.
fn initiator(name: &str, path: &Path) -> Option<Error> {
    let characters = |rest: Option<&str>, count: usize| {
        rest.is_some_and(|rest| {
            rest.len() == count + 1 && rest.is_char_boundary(1) && rest[1..].bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
    };
    let fine = match name.get(..3) {
        Some("iqn") => is_iqn(name),
        Some("eui") => characters(name.strip_prefix("eui"), 16),
        Some("naa") => characters(name.strip_prefix("naa"), 32),
        _ => return Some(Error::invalid(path, name, "must be valid format starting with iqn, eui, or naa")),
    };
    (!fine).then(|| Error::invalid(path, name, "must be valid format"))
}

fn is_iqn(name: &str) -> bool {
    let Some((head, target)) = name.split_once(':') else { return false };
    let mut parts = head.splitn(3, '.');
    let (iqn, date, authority) = (parts.next(), parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let digits = |text: &str, count: usize| text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit());
    let dated = date.split_once('-').is_some_and(|(year, month)| digits(year, 4) && digits(month, 2));
    let named = !authority.is_empty() && authority.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-.".contains(&byte));
    let target = !target.is_empty() && !target.contains([',', ';', '*', '&', '$', '|']) && !target.contains(char::is_whitespace);
    iqn == Some("iqn") && dated && named && target
}

fn quobyte(source: &Value, path: &Path) -> Errors {
    const PAIRS: &str = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(source, "registry");
    let mut errors = Errors::new();
    if registry.is_empty() {
        errors.push(Error::required(&path.child("registry"), PAIRS));
    } else if text(source, "tenant").len() >= 65 {
        let sentence = "must be a UUID and may not exceed a length of 64 characters";
        errors.push(Error::required(&path.child("tenant"), sentence));
    } else {
        let bad = registry.split(',').filter(|pair| pair.rsplit_once(':').is_none());
        errors.extend(bad.map(|_| Error::invalid(&path.child("registry"), registry, PAIRS)));
    }
    errors.extend(required(source, path, "volume"));
    errors
}

fn storage_os(source: &Value, of_pod: bool, path: &Path) -> Errors {
    let mut errors = required_formed(source, path, "volumeName", names::dns1123_label);
    errors.extend(formed(source, path, "volumeNamespace", names::dns1123_label));
    errors.extend(secret_reference(source, "secretRef", of_pod, path));
    errors
}
