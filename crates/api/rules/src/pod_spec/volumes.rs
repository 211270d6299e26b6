//! Volumes of a pod, and the mounts of a container against them.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::{names, quantity};
use serde_json::Value;

use crate::checks::{Errors, one_of, sentences};
use crate::value::{at, flag, has, int, list, text};

const FILE_MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

pub fn validate(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, volume) in list(spec, "volumes").iter().enumerate() {
        let here = path.child("volumes").index(index);
        let name = text(volume, "name");
        errors.extend(source(volume, &here));
        if name.is_empty() {
            errors.push(Error::required(&here.child("name"), ""));
            continue;
        }
        errors.extend(sentences(&here.child("name"), name, names::dns1123_label(name)));
        if !seen.insert(name) {
            errors.push(Error::duplicate(&here.child("name"), name));
        }
    }
    errors
}

fn source(volume: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let kinds = volume.as_object().into_iter().flatten().filter(|(key, value)| *key != "name" && !value.is_null());
    let kinds: Vec<(&String, &Value)> = kinds.collect();
    if kinds.is_empty() {
        errors.push(Error::required(path, "must specify a volume type"));
    }
    for (position, (kind, source)) in kinds.into_iter().enumerate() {
        let here = path.child(kind);
        if position > 0 {
            errors.push(Error::forbidden(&here, "may not specify more than 1 volume type"));
            continue;
        }
        errors.extend(one_source(kind, source, &here));
    }
    errors
}

fn one_source(kind: &str, source: &Value, path: &Path) -> Errors {
    match kind {
        "emptyDir" => empty_dir(source, path),
        "hostPath" => host_path(source, path),
        "secret" => [required(source, path, "secretName"), file_modes(source, path)].concat(),
        "configMap" => [required(source, path, "name"), file_modes(source, path)].concat(),
        "downwardAPI" => [downward_items(source, path), mode(source, path, "defaultMode")].concat(),
        "projected" => projected(source, path),
        "persistentVolumeClaim" => required(source, path, "claimName"),
        "nfs" => [required(source, path, "server"), required(source, path, "path")].concat(),
        "csi" => required(source, path, "driver"),
        _ => Errors::new(),
    }
}

fn required(object: &Value, path: &Path, field: &str) -> Errors {
    if text(object, field).is_empty() { vec![Error::required(&path.child(field), "")] } else { Errors::new() }
}

fn empty_dir(source: &Value, path: &Path) -> Errors {
    let limit = at(source, "sizeLimit");
    match quantity::from_json(limit) {
        Some(size) if size.is_negative() => {
            vec![Error::forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity")]
        }
        _ => Errors::new(),
    }
}

fn host_path(source: &Value, path: &Path) -> Errors {
    let given = text(source, "path");
    let mut errors = required(source, path, "path");
    errors.extend(no_backsteps(given, &path.child("path")));
    if !text(source, "type").is_empty() {
        let types = ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
        errors.extend(one_of(source, path, "type", &types));
    }
    errors
}

fn no_backsteps(given: &str, path: &Path) -> Errors {
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

fn mode(source: &Value, path: &Path, field: &str) -> Errors {
    match int(source, field) {
        Some(mode) if !(0..=0o777).contains(&mode) => vec![Error::invalid(&path.child(field), mode, FILE_MODE)],
        _ => Errors::new(),
    }
}

/// `defaultMode` and `items` of a secret or config map.
fn file_modes(source: &Value, path: &Path) -> Errors {
    let mut errors = mode(source, path, "defaultMode");
    for (index, item) in list(source, "items").iter().enumerate() {
        let here = path.child("items").index(index);
        errors.extend(required(item, &here, "key"));
        errors.extend(item_path(item, &here));
        errors.extend(mode(item, &here, "mode"));
    }
    errors
}

fn item_path(item: &Value, path: &Path) -> Errors {
    let given = text(item, "path");
    let mut errors = required(item, path, "path");
    errors.extend(descending(given, &path.child("path")));
    if given.starts_with("..") && !given.starts_with("../") {
        errors.push(Error::invalid(&path.child("path"), given, "must not start with '..'"));
    }
    errors
}

fn downward_items(source: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, item) in list(source, "items").iter().enumerate() {
        let here = path.child("items").index(index);
        errors.extend(item_path(item, &here));
        errors.extend(mode(item, &here, "mode"));
        if has(item, "fieldRef") == has(item, "resourceFieldRef") {
            let both = has(item, "fieldRef");
            let sentence = if both {
                "fieldRef and resourceFieldRef can not be specified simultaneously"
            } else {
                "one of fieldRef and resourceFieldRef is required"
            };
            errors.push(if both { Error::invalid(&here, "resource", sentence) } else { Error::required(&here, sentence) });
        }
    }
    errors
}

fn projected(source: &Value, path: &Path) -> Errors {
    let mut errors = mode(source, path, "defaultMode");
    for (index, part) in list(source, "sources").iter().enumerate() {
        let here = path.child("sources").index(index);
        let kinds: Vec<(&String, &Value)> = part.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()).collect();
        for (position, (kind, part)) in kinds.into_iter().enumerate() {
            let here = here.child(kind);
            if position > 0 {
                errors.push(Error::forbidden(&here, "may not specify more than 1 volume type per source"));
            }
            match kind.as_str() {
                "secret" | "configMap" => {
                    errors.extend(required(part, &here, "name"));
                    errors.extend(file_modes(part, &here));
                }
                "downwardAPI" => errors.extend(downward_items(part, &here)),
                "serviceAccountToken" => errors.extend(token(part, &here)),
                _ => {}
            }
        }
    }
    errors
}

fn token(part: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let seconds = int(part, "expirationSeconds").unwrap_or(3600);
    if seconds < 600 {
        let sentence = "may not specify a duration less than 10 minutes";
        errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, sentence));
    }
    if seconds > 1 << 32 {
        let sentence = "may not specify a duration larger than 2^32 seconds";
        errors.push(Error::invalid(&path.child("expirationSeconds"), seconds, sentence));
    }
    errors.extend(item_path(part, path));
    errors
}

/// The mounts of one container, against the names of the pod's volumes.
pub fn mounts(container: &Value, volumes: &BTreeSet<&str>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut places = BTreeSet::new();
    for (index, mount) in list(container, "volumeMounts").iter().enumerate() {
        let here = path.child("volumeMounts").index(index);
        let (name, place) = (text(mount, "name"), text(mount, "mountPath"));
        errors.extend(required(mount, &here, "name"));
        if !volumes.contains(name) {
            errors.push(Error::not_found(&here.child("name"), name));
        }
        errors.extend(required(mount, &here, "mountPath"));
        if !places.insert(place) {
            errors.push(Error::invalid(&here.child("mountPath"), place, "must be unique"));
        }
        for field in ["subPath", "subPathExpr"] {
            let given = text(mount, field);
            errors.extend(if given.is_empty() { Errors::new() } else { descending(given, &here.child(field)) });
        }
        if has(mount, "subPath") && has(mount, "subPathExpr") && !text(mount, "subPath").is_empty() {
            errors.push(Error::invalid(
                &here.child("subPathExpr"),
                text(mount, "subPathExpr"),
                "subPathExpr and subPath are mutually exclusive",
            ));
        }
        if text(mount, "mountPropagation") == "Bidirectional" && !flag(container, "securityContext.privileged") {
            let sentence = "Bidirectional mount propagation is available only to privileged containers";
            errors.push(Error::forbidden(&here.child("mountPropagation"), sentence));
        }
    }
    errors
}
