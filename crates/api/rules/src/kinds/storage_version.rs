//! internal.apiserver.k8s.io/v1alpha1 StorageVersion: in which version each API server stores a resource.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, sentences};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, list, text};

pub const STORAGE_VERSION: Plain = Plain {
    status_keeps_metadata: true,
    name,
    validate_update: |new, _, part| if part == Part::Status { status(at(new, "status"), &Path::new("status")) } else { Errors::new() },
    ..Plain::new(
        ("internal.apiserver.k8s.io", "v1alpha1", "StorageVersion"),
        &[
            NAME,
            shown("CommonEncodingVersion", "string", "Version that all servers store."),
            shown("StorageVersions", "string", "What each server stores."),
            AGE,
        ],
        |object, now| {
            let common = text(object, "status.commonEncodingVersion");
            let servers = list(object, "status.storageVersions").iter();
            let words: Vec<String> =
                servers.map(|server| format!("{}={}", text(server, "apiServerID"), text(server, "encodingVersion"))).collect();
            let common = if common.is_empty() { "<unset>" } else { common };
            vec![
                common.into(),
                if words.is_empty() { "<unset>".into() } else { printing::first_three(&words, "") },
                printing::age(object, now),
            ]
        },
    )
};

/// `<group>.<resource>`.
fn name(name: &str) -> Vec<String> {
    let Some((group, resource)) = name.rsplit_once('.') else {
        return vec!["name must be in the form of <group>.<resource>".into()];
    };
    let mut complaints: Vec<String> = names::dns1123_subdomain(group).iter().map(|why| format!("the group segment {why}")).collect();
    complaints.extend(names::dns1035_label(resource).iter().map(|why| format!("the resource segment {why}")));
    complaints
}

fn status(status: &Value, path: &Path) -> Errors {
    let servers = list(status, "storageVersions");
    let mut errors = Errors::new();
    for (index, server) in servers.iter().enumerate() {
        errors.extend(one_server(server, &path.child("storageVersions").index(index)));
    }
    errors.extend(common(servers, status, path));
    errors.extend(conditions(list(status, "conditions"), path));
    errors
}

fn one_server(server: &Value, path: &Path) -> Errors {
    let (id, encoding) = (text(server, "apiServerID"), text(server, "encodingVersion"));
    let mut errors = sentences(&path.child("apiServerID"), id, names::dns1123_subdomain(id));
    errors.extend(api_version(encoding, &path.child("encodingVersion")));
    let decodable = list(server, "decodableVersions");
    let here = path.child("decodableVersions");
    for (index, version) in decodable.iter().enumerate() {
        errors.extend(api_version(version.as_str().unwrap_or_default(), &here.index(index)));
    }
    if !decodable.iter().any(|version| *version == encoding) {
        let sentence = format!("decodableVersions must include encodingVersion {encoding}");
        errors.push(Error::invalid(&here, at(server, "decodableVersions").clone(), sentence));
    }
    errors
}

/// `v1` or `group/v1`; all complaints are one error.
fn api_version(given: &str, path: &Path) -> Option<Error> {
    let part = |what: &str, text: &str, check: fn(&str) -> Vec<String>| match text {
        "" => vec![format!("{what} part: must be non-empty")],
        _ => check(text).into_iter().map(|why| format!("{what} part: {why}")).collect(),
    };
    let parts: Vec<&str> = given.split('/').collect();
    let complaints = match parts[..] {
        [version] => part("version", version, names::dns1035_label),
        [group, version] => {
            let mut complaints = part("group", group, names::dns1123_subdomain);
            complaints.extend(part("version", version, names::dns1035_label));
            complaints
        }
        _ => {
            let label = "a DNS-1035 label, which must consist of lower case alphanumeric characters or '-', start with an alphabetic \
                         character, and end with an alphanumeric character";
            let form = names::regex_error(label, "[a-z]([-a-z0-9]*[a-z0-9])?", &["my-name", "abc-123"]);
            vec![format!("an apiVersion is {form} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyVersion')")]
        }
    };
    (!complaints.is_empty()).then(|| Error::invalid(path, given, complaints.join(",")))
}

/// The version on which all servers agree must be named, and no other.
fn common(servers: &[Value], status: &Value, path: &Path) -> Option<Error> {
    let encodings = || servers.iter().map(|server| text(server, "encodingVersion"));
    let agreed = encodings().next().filter(|first| encodings().all(|other| other == *first));
    let named = at(status, "commonEncodingVersion");
    let sentence = match (agreed, named.as_str()) {
        (None, None) => return None,
        (Some(agreed), Some(named)) if agreed == named => return None,
        (None, Some(_)) => {
            "should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet"
                .into()
        }
        (Some(agreed), None) => format!("the common encoding version is {agreed}"),
        (Some(agreed), Some(_)) => format!("the actual common encoding version is {agreed}"),
    };
    Some(Error::invalid(&path.child("commonEncodingVersion"), named.clone(), sentence))
}

fn conditions(conditions: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, condition) in conditions.iter().enumerate() {
        let (here, kind) = (path.index(index), text(condition, "type"));
        if let Some(other) = conditions[..index].iter().rposition(|other| text(other, "type") == kind) {
            let sentence = format!("the type of the condition is not unique, it also appears in conditions[{other}]");
            errors.push(Error::invalid(&here.child("type"), kind, sentence));
        }
        errors.extend(sentences(&here.child("type"), kind, names::qualified_name(kind)));
        errors.extend(sentences(&here.child("status"), kind, names::qualified_name(text(condition, "status"))));
        for field in ["reason", "message"] {
            if text(condition, field).is_empty() {
                errors.push(Error::required(&here.child(field), format!("{field} cannot be empty")));
            }
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn servers_that_agree_are_said_to() {
        let server = |encoding: &str| json!({"apiServerID": "a", "encodingVersion": encoding, "decodableVersions": [encoding]});
        for (given, expected) in [
            (json!({}), vec![]),
            (json!({"storageVersions": [server("apps/v1")], "commonEncodingVersion": "apps/v1"}), vec![]),
            (
                json!({"storageVersions": [server("apps/v1")]}),
                vec!["status.commonEncodingVersion: Invalid value: null: the common encoding version is apps/v1"],
            ),
            (
                json!({"storageVersions": [server("v1"), server("v2")], "commonEncodingVersion": "v1"}),
                vec![
                    "status.commonEncodingVersion: Invalid value: \"v1\": should be nil if servers do not agree on the same encoding version, or if there is no server reporting the supported versions yet",
                ],
            ),
            (
                json!({"storageVersions": [{"apiServerID": "a", "encodingVersion": "v1", "decodableVersions": ["v2"]}], "commonEncodingVersion": "v1"}),
                vec![
                    "status.storageVersions[0].decodableVersions: Invalid value: [\"v2\"]: decodableVersions must include encodingVersion v1",
                ],
            ),
        ] {
            let errors: Vec<_> = status(&given, &Path::new("status")).iter().map(ToString::to_string).collect();
            assert_eq!(errors, expected, "{given}");
        }
        assert_eq!(name("pods"), ["name must be in the form of <group>.<resource>"]);
        assert!(name("apps.deployments").is_empty());
    }
}
