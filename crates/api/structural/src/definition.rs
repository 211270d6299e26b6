//! A CustomResourceDefinition itself: its defaults, and what it must be.
//!
//! Source: apiextensions `v1/defaults.go`, `pkg/apis/apiextensions/validation`, `pkg/registry/customresourcedefinition`.

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::jsonpath::{self, JsonPath};
use crate::node::Node;

/// What is absent.
pub fn default(crd: &mut Value) {
    let Some(spec) = crd.get_mut("spec").and_then(Value::as_object_mut) else { return };
    spec.entry("conversion").or_insert_with(|| json!({"strategy": "None"}));
    if let Some(conversion) = spec.get_mut("conversion").and_then(Value::as_object_mut) {
        conversion.entry("strategy").or_insert_with(|| "None".into());
        if let Some(service) =
            conversion.get_mut("webhook").and_then(|webhook| webhook.pointer_mut("/clientConfig/service")).and_then(Value::as_object_mut)
        {
            service.entry("port").or_insert_with(|| 443.into());
        }
    }
    if let Some(names) = spec.get_mut("names").and_then(Value::as_object_mut) {
        let kind = names.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
        let empty = |value: Option<&Value>| value.and_then(Value::as_str).is_none_or(str::is_empty);
        if empty(names.get("singular")) && !kind.is_empty() {
            names.insert("singular".into(), kind.to_lowercase().into());
        }
        if empty(names.get("listKind")) && !kind.is_empty() {
            names.insert("listKind".into(), format!("{kind}List").into());
        }
    }
}

/// What only the server says at creation.
pub fn prepare_create(crd: &mut Value) {
    let storage = storage_version(crd).map(str::to_owned);
    crd["status"] = json!({
        // Upstream says null, on which `kubectl wait` fails where it is faster than we are.
        "conditions": [],
        "acceptedNames": {"plural": "", "kind": ""},
        "storedVersions": storage.map_or(json!([]), |version| json!([version])),
    });
}

/// The version in which objects are stored.
pub fn storage_version(crd: &Value) -> Option<&str> {
    let versions = crd["spec"]["versions"].as_array()?;
    versions.iter().find(|version| version["storage"] == true)?["name"].as_str()
}

/// A new storage version is recorded with the update that makes it one.
pub fn prepare_update(new: &mut Value) {
    let Some(storage) = storage_version(new).map(str::to_owned) else { return };
    let stored = &mut new["status"]["storedVersions"];
    match stored.as_array_mut() {
        Some(stored) if stored.iter().any(|version| *version == storage) => {}
        Some(stored) => stored.push(storage.into()),
        None => *stored = json!([storage]),
    }
}

/// Complaints about a CRD. Schemas that `old` already had are not judged again.
pub fn validate(crd: &Value, old: Option<&Value>) -> Vec<Error> {
    let mut errors = Vec::new();
    let spec = &crd["spec"];
    let path = Path::new("spec");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (plural, group) = (text(&spec["names"]["plural"]), text(&spec["group"]));
    let wanted = format!("{plural}.{group}");
    let name = crd["metadata"]["name"].as_str().unwrap_or_default();
    if name != wanted {
        errors.push(Error::invalid(&Path::new("metadata").child("name"), name, "must be spec.names.plural+\".\"+spec.group"));
    }
    if group.is_empty() {
        errors.push(Error::required(&path.child("group"), ""));
    } else if let sentences @ [_, ..] = names::dns1123_subdomain(&group).as_slice() {
        errors.push(Error::invalid(&path.child("group"), group.as_str(), sentences.join(",")));
    } else if !group.contains('.') {
        errors.push(Error::invalid(&path.child("group"), group.as_str(), "should be a domain with at least one dot"));
    }
    match text(&spec["scope"]).as_str() {
        "Cluster" | "Namespaced" => {}
        "" => errors.push(Error::required(&path.child("scope"), "")),
        other => errors.push(Error::not_supported(&path.child("scope"), other, &["Cluster", "Namespaced"])),
    }
    if spec["preserveUnknownFields"] == true && old.is_none_or(|old| old["spec"]["preserveUnknownFields"] != true) {
        let why = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead";
        errors.push(Error::invalid(&path.child("preserveUnknownFields"), true, why));
    }
    versions(spec, old, &path, &mut errors);
    names_of(&spec["names"], &path.child("names"), &mut errors);
    conversion(&spec["conversion"], &path.child("conversion"), &mut errors);
    approved(crd, &group, &mut errors);
    stored(crd, &mut errors);
    errors
}

/// Complaints about a written status.
pub fn validate_status(crd: &Value) -> Vec<Error> {
    let mut errors = Vec::new();
    stored(crd, &mut errors);
    errors
}

/// The annotation that says where a protected group's API was approved.
pub const APPROVED: &str = "api-approved.kubernetes.io";

/// A group of the Kubernetes community.
pub fn is_protected(group: &str) -> bool {
    let of = |domain: &str| group == domain || group.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
    of("k8s.io") || of("kubernetes.io")
}

/// Groups of the Kubernetes community are protected (KEP-1111).
fn approved(crd: &Value, group: &str, errors: &mut Vec<Error>) {
    const ANNOTATION: &str = APPROVED;
    if !is_protected(group) {
        return;
    }
    let path = Path::new("metadata").child("annotations").key(ANNOTATION);
    let given = crd["metadata"]["annotations"][ANNOTATION].as_str().unwrap_or_default();
    if given.is_empty() {
        let why = "protected groups must have approval annotation \"api-approved.kubernetes.io\", see https://github.com/kubernetes/enhancements/pull/1111";
        errors.push(Error::required(&path, why));
    } else if !given.starts_with("unapproved") && !given.contains("://") {
        let why = format!(
            "protected groups must have approval annotation \"api-approved.kubernetes.io\" with either a URL or a reason starting with \"unapproved\", see https://github.com/kubernetes/enhancements/pull/1111"
        );
        errors.push(Error::invalid(&path, given, why));
    }
}

fn stored(crd: &Value, errors: &mut Vec<Error>) {
    let path = Path::new("status").child("storedVersions");
    let Some(stored) = crd["status"]["storedVersions"].as_array() else { return };
    let known: Vec<&str> =
        crd["spec"]["versions"].as_array().into_iter().flatten().filter_map(|version| version["name"].as_str()).collect();
    for (at, version) in stored.iter().enumerate() {
        let version = version.as_str().unwrap_or_default();
        if !known.contains(&version) {
            let why = format!(
                "missing from spec.versions; {version} was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in {version} and removes {version} from status.storedVersions"
            );
            errors.push(Error::invalid(&path.index(at), version, why));
        }
    }
    match storage_version(crd) {
        _ if stored.is_empty() => errors.push(Error::invalid(&path, json!([]), "must have at least one stored version")),
        Some(storage) if !stored.iter().any(|version| version == storage) => {
            errors.push(Error::invalid(&path, json!(stored), format!("must have the storage version {storage}")));
        }
        _ => {}
    }
}

fn versions(spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Vec<Error>) {
    let list: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    let all = path.child("versions");
    let mut names: Vec<&str> = Vec::new();
    for (at, version) in list.iter().enumerate() {
        let here = all.index(at);
        let name = version["name"].as_str().unwrap_or_default();
        if let sentences @ [_, ..] = names::dns1035_label(name).as_slice() {
            errors.push(Error::invalid(&here.child("name"), name, sentences.join(",")));
        }
        names.push(name);
        self::version(version, spec, old, &here, errors);
    }
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    if unique.len() != names.len() {
        errors.push(Error::invalid(&all, spec["versions"].clone(), "must contain unique version names"));
    }
    if list.iter().filter(|version| version["storage"] == true).count() != 1 {
        errors.push(Error::invalid(&all, spec["versions"].clone(), "must have exactly one version marked as storage version"));
    }
}

fn version(version: &Value, spec: &Value, old: Option<&Value>, path: &Path, errors: &mut Vec<Error>) {
    let schema = &version["schema"]["openAPIV3Schema"];
    let at = path.child("schema").child("openAPIV3Schema");
    let known = old.is_some_and(|old| {
        let versions = old["spec"]["versions"].as_array().into_iter().flatten();
        versions.into_iter().any(|before| before["schema"]["openAPIV3Schema"] == *schema)
    });
    if !schema.is_object() {
        errors.push(Error::required(&at, "schemas are required"));
    } else if !known {
        errors.extend(crate::check::validate(schema, &at));
        if spec["preserveUnknownFields"] == true && schema.to_string().contains("\"default\":") {
            errors.push(Error::invalid(
                &Path::new("spec").child("preserveUnknownFields"),
                true,
                "must be false in order to use defaults in the schema",
            ));
        }
    }
    if version["deprecationWarning"].is_string() && version["deprecated"] != true {
        let why = "can only be set for deprecated versions";
        errors.push(Error::invalid(&path.child("deprecationWarning"), version["deprecationWarning"].clone(), why));
    }
    scale(&version["subresources"]["scale"], &path.child("subresources"), errors);
    let columns = version["additionalPrinterColumns"].as_array().into_iter().flatten();
    for (number, column) in columns.enumerate() {
        self::column(column, &path.child("additionalPrinterColumns").index(number), errors);
    }
    selectable(version, &Node::read(schema), path, errors);
}

fn scale(scale: &Value, path: &Path, errors: &mut Vec<Error>) {
    if !scale.is_object() {
        return;
    }
    for (name, parents, why, required) in [
        ("specReplicasPath", ["spec", "spec"], "should be a json path under .spec", true),
        ("statusReplicasPath", ["status", "status"], "should be a json path under .status", true),
        ("labelSelectorPath", ["spec", "status"], "should be a json path under either .spec or .status", false),
    ] {
        let at = path.child(&format!("scale.{name}"));
        match scale[name].as_str().unwrap_or_default() {
            "" if required => errors.push(Error::required(&at, "")),
            "" => {}
            given => match jsonpath::plain(given) {
                None if !given.starts_with('.') => {
                    errors.push(Error::invalid(&at, given, "must be a simple json path starting with ."));
                }
                None => errors.push(Error::invalid(&at, given, "must be a json path in the dot notation")),
                Some(names) if names.len() < 2 || !parents.contains(names.first().unwrap_or(&"")) => {
                    errors.push(Error::invalid(&at, given, why));
                }
                Some(_) => {}
            },
        }
    }
}

fn column(column: &Value, path: &Path, errors: &mut Vec<Error>) {
    let text = |name: &str| column[name].as_str().unwrap_or_default();
    if text("name").is_empty() {
        errors.push(Error::required(&path.child("name"), ""));
    }
    let types = "must be one of boolean,date,integer,number,string";
    match text("type") {
        "" => errors.push(Error::required(&path.child("type"), types)),
        "boolean" | "date" | "integer" | "number" | "string" => {}
        other => errors.push(Error::invalid(&path.child("type"), other, types)),
    }
    if !matches!(text("format"), "" | "int32" | "int64" | "float" | "double" | "byte" | "date" | "date-time" | "password") {
        let why = "must be one of byte,date,date-time,double,float,int32,int64,password";
        errors.push(Error::invalid(&path.child("format"), text("format"), why));
    }
    match text("jsonPath") {
        "" => errors.push(Error::required(&path.child("JSONPath"), "")),
        given if !given.starts_with('.') && !given.starts_with('{') => {
            errors.push(Error::invalid(&path.child("jsonPath"), given, "must be a simple json path starting with ."));
        }
        given => {
            if let Err(error) = JsonPath::parse(given) {
                errors.push(Error::invalid(&path.child("jsonPath"), given, error));
            }
        }
    }
}

fn selectable(version: &Value, schema: &Node, path: &Path, errors: &mut Vec<Error>) {
    const MANY: usize = 8;
    let list: Vec<&Value> = version["selectableFields"].as_array().into_iter().flatten().collect();
    let all = path.child("selectableFields");
    if list.len() > MANY {
        errors.push(Error::too_many(&all, list.len(), MANY));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (at, field) in list.iter().enumerate() {
        let here = all.index(at).child("jsonPath");
        let given = field["jsonPath"].as_str().unwrap_or_default();
        if given.is_empty() {
            errors.push(Error::required(&here, ""));
            continue;
        }
        let Some(names) = jsonpath::plain(given) else {
            errors.push(Error::invalid(&here, given, "is an invalid path: expected [ or . but got: ".to_owned() + given));
            continue;
        };
        let found = names.iter().try_fold(schema, |node, name| Some(&**node.properties.get(*name)?));
        match found {
            _ if names.first() == Some(&"metadata") => {
                errors.push(Error::invalid(&here, given, "must not point to fields in metadata"));
            }
            None => errors.push(Error::invalid(&here, given, "is an invalid path: does not refer to a valid field")),
            Some(node) if !matches!(node.ty.as_str(), "string" | "boolean" | "integer") => {
                let why =
                    "must point to a field of type string, boolean or integer. Enum string fields and strings with formats are allowed.";
                errors.push(Error::invalid(&here, given, why));
            }
            Some(_) => {}
        }
        if seen.contains(&given) {
            errors.push(Error::duplicate(&here, given));
        }
        seen.push(given);
    }
}

fn names_of(names: &Value, path: &Path, errors: &mut Vec<Error>) {
    let text = |name: &str| names[name].as_str().unwrap_or_default();
    for name in ["plural", "singular", "kind", "listKind"] {
        if text(name).is_empty() {
            errors.push(Error::required(&path.child(name), ""));
            continue;
        }
        let given = text(name);
        let mixed = matches!(name, "kind" | "listKind");
        let sentences = names::dns1035_label(&if mixed { given.to_lowercase() } else { given.to_owned() });
        if !sentences.is_empty() {
            let prefix = if mixed { "may have mixed case, but should otherwise match: " } else { "" };
            errors.push(Error::invalid(&path.child(name), given, format!("{prefix}{}", sentences.join(","))));
        }
    }
    if text("kind") == text("listKind") && !text("kind").is_empty() {
        errors.push(Error::invalid(&path.child("listKind"), text("listKind"), "kind and listKind may not be the same"));
    }
    for list in ["shortNames", "categories"] {
        for (at, word) in names[list].as_array().into_iter().flatten().enumerate() {
            let word = word.as_str().unwrap_or_default();
            let sentences = names::dns1035_label(word);
            if !sentences.is_empty() {
                errors.push(Error::invalid(&path.child(list).index(at), word, sentences.join(",")));
            }
        }
    }
}

fn conversion(conversion: &Value, path: &Path, errors: &mut Vec<Error>) {
    let webhook = &conversion["webhook"];
    match conversion["strategy"].as_str().unwrap_or_default() {
        "Webhook" => {
            let config = &webhook["clientConfig"];
            let at = path.child("webhookClientConfig");
            if !config.is_object() {
                errors.push(Error::required(&at, "required when strategy is set to Webhook"));
            } else if config["url"].is_string() == config["service"].is_object() {
                errors.push(Error::required(&at, "exactly one of url or service is required"));
            }
            if let Some(url) = config["url"].as_str().filter(|url| !url.starts_with("https://")) {
                let why = format!("'https' is the only allowed URL scheme; desired format: https://host[/path]");
                errors.push(Error::invalid(&at.child("url"), url, why));
            }
            let reviews: Vec<&str> =
                webhook["conversionReviewVersions"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let at = path.child("conversionReviewVersions");
            if reviews.is_empty() {
                errors.push(Error::required(&at, ""));
            } else if !reviews.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
                errors.push(Error::invalid(&at, json!(reviews), "must include at least one of v1, v1beta1"));
            }
        }
        "None" => {
            if webhook.is_object() {
                errors.push(Error::forbidden(&path.child("webhookClientConfig"), "should not be set when strategy is not set to Webhook"));
            }
        }
        "" => errors.push(Error::required(&path.child("strategy"), "")),
        other => errors.push(Error::not_supported(&path.child("strategy"), other, &["None", "Webhook"])),
    }
}

/// What an update may not change once objects may exist.
pub fn validate_update(new: &Value, old: &Value) -> Vec<Error> {
    let established = condition(old, "Established") == Some("True");
    let mut errors = Vec::new();
    if !established {
        return errors;
    }
    for (path, at) in [
        ("/spec/group", "spec.group"),
        ("/spec/scope", "spec.scope"),
        ("/spec/names/kind", "spec.names.kind"),
        ("/spec/names/plural", "spec.names.plural"),
    ] {
        let (given, before) = (new.pointer(path), old.pointer(path));
        if given != before {
            errors.push(Error::invalid(&Path::new(at), given.cloned().unwrap_or(Value::Null), "field is immutable"));
        }
    }
    errors
}

/// The status of a condition.
pub fn condition<'c>(crd: &'c Value, kind: &str) -> Option<&'c str> {
    let conditions = crd["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)?["status"].as_str()
}
