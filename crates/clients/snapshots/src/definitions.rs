//! The CustomResourceDefinitions: upstream's fields, rules, columns and short names, for clusters to which nobody brought upstream's own.
//! Applying those later takes the place of these.

use serde_json::{Value, json};

const APPROVED: &str = "https://github.com/kubernetes-csi/external-snapshotter/pull/814";

/// All three.
pub fn all() -> Vec<Value> {
    vec![classes(), contents(), snapshots()]
}

fn definition(kind: &str, short: &[&str], scope: &str, schema: Value, status: bool, columns: &[(&str, &str, &str)]) -> Value {
    let singular = kind.to_lowercase();
    let plural = if singular.ends_with('s') { format!("{singular}es") } else { format!("{singular}s") };
    let mut columns: Vec<Value> = columns.iter().map(|(name, kind, path)| json!({"name": name, "type": kind, "jsonPath": path})).collect();
    columns.push(json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}));
    let subresources = if status { json!({"status": {}}) } else { json!({}) };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{}", crate::kinds::GROUP), "annotations": {"api-approved.kubernetes.io": APPROVED}},
        "spec": {
            "group": crate::kinds::GROUP,
            "scope": scope,
            "names": {"kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": singular, "shortNames": short},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": subresources,
                "additionalPrinterColumns": columns,
                "schema": {"openAPIV3Schema": schema},
            }],
        },
    })
}

fn object(properties: Value, required: &[&str]) -> Value {
    match required.is_empty() {
        true => json!({"type": "object", "properties": properties}),
        false => json!({"type": "object", "properties": properties, "required": required}),
    }
}

/// With the three that every object has.
fn root(mut properties: Value, required: &[&str], description: &str) -> Value {
    for (name, kind) in [("apiVersion", "string"), ("kind", "string"), ("metadata", "object")] {
        properties[name] = json!({"type": kind});
    }
    let mut schema = object(properties, required);
    schema["description"] = json!(description);
    schema
}

fn with_rules(mut schema: Value, rules: &[(&str, &str)]) -> Value {
    schema["x-kubernetes-validations"] = rules.iter().map(|(rule, message)| json!({"rule": rule, "message": message})).collect();
    schema
}

fn text(description: &str) -> Value {
    json!({"type": "string", "description": description})
}

fn fixed(name: &str, description: &str) -> Value {
    with_rules(text(description), &[("self == oldSelf", &format!("{name} is immutable"))])
}

/// Two names of which exactly one is given, and stays.
fn either(one: &str, one_is: &str, other: &str, other_is: &str) -> Value {
    let mut properties = json!({});
    properties[one] = fixed(one, one_is);
    properties[other] = fixed(other, other_is);
    let kept = |name: &str| (format!("!has(oldSelf.{name}) || has(self.{name})"), format!("{name} is required once set"));
    let only = (
        format!("(has(self.{one}) && !has(self.{other})) || (!has(self.{one}) && has(self.{other}))"),
        format!("exactly one of {one} and {other} must be set"),
    );
    let rules = [kept(other), kept(one), only];
    let rules: Vec<(&str, &str)> = rules.iter().map(|(rule, message)| (rule.as_str(), message.as_str())).collect();
    with_rules(object(properties, &[]), &rules)
}

fn error() -> Value {
    let mut schema = object(
        json!({"message": text("What went wrong; no secrets, as it may be logged."), "time": {"type": "string", "format": "date-time"}}),
        &[],
    );
    schema["description"] = json!("The last error, until the snapshot is there.");
    schema
}

fn policy() -> Value {
    json!({"type": "string", "enum": ["Delete", "Retain"], "description": "What becomes of the snapshot in the storage when its VolumeSnapshot is deleted."})
}

fn snapshots() -> Value {
    let source = either(
        "volumeSnapshotContentName",
        "The VolumeSnapshotContent of a snapshot that is already there.",
        "persistentVolumeClaimName",
        "The claim in this namespace of whose volume a snapshot is made.",
    );
    let class = with_rules(
        text("Without a name, the default class of the volume's driver is taken."),
        &[("size(self) > 0", "volumeSnapshotClassName must not be the empty string when set")],
    );
    let size = json!({
        "description": "The least size of a volume made from the snapshot.",
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
        "x-kubernetes-int-or-string": true,
    });
    let status = object(
        json!({
            "boundVolumeSnapshotContentName": text("The content; the binding holds where both name each other."),
            "creationTime": {"type": "string", "format": "date-time", "description": "The moment that the snapshot shows."},
            "error": error(),
            "readyToUse": {"type": "boolean", "description": "Volumes can be made from the snapshot."},
            "restoreSize": size,
            "volumeGroupSnapshotName": text("The group that it was made with."),
        }),
        &[],
    );
    let spec = object(json!({"source": source, "volumeSnapshotClassName": class}), &["source"]);
    let schema = root(json!({"spec": spec, "status": status}), &["spec"], "A wish for a snapshot of a volume.");
    let columns = [
        ("ReadyToUse", "boolean", ".status.readyToUse"),
        ("SourcePVC", "string", ".spec.source.persistentVolumeClaimName"),
        ("SourceSnapshotContent", "string", ".spec.source.volumeSnapshotContentName"),
        ("RestoreSize", "string", ".status.restoreSize"),
        ("SnapshotClass", "string", ".spec.volumeSnapshotClassName"),
        ("SnapshotContent", "string", ".status.boundVolumeSnapshotContentName"),
        ("CreationTime", "date", ".status.creationTime"),
    ];
    definition("VolumeSnapshot", &["vs"], "Namespaced", schema, true, &columns)
}

fn contents() -> Value {
    let source = either(
        "volumeHandle",
        "How the driver names the volume of which a snapshot is made.",
        "snapshotHandle",
        "How the driver names a snapshot that is already there.",
    );
    let fields = ["apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid"];
    let fields: serde_json::Map<String, Value> = fields.into_iter().map(|name| (name.to_owned(), json!({"type": "string"}))).collect();
    let mut reference = with_rules(
        object(Value::Object(fields), &[]),
        &[(
            "has(self.name) && has(self.__namespace__)",
            "both spec.volumeSnapshotRef.name and spec.volumeSnapshotRef.namespace must be set",
        )],
    );
    reference["x-kubernetes-map-type"] = json!("atomic");
    let spec = object(
        json!({
            "deletionPolicy": policy(),
            "driver": text("The driver whose snapshot it is."),
            "source": source,
            "sourceVolumeMode": fixed("sourceVolumeMode", "Filesystem or Block."),
            "volumeSnapshotClassName": text("The class that it was made with, which may have changed since."),
            "volumeSnapshotRef": reference,
        }),
        &["deletionPolicy", "driver", "source", "volumeSnapshotRef"],
    );
    let spec =
        with_rules(spec, &[("!has(oldSelf.sourceVolumeMode) || has(self.sourceVolumeMode)", "sourceVolumeMode is required once set")]);
    let status = object(
        json!({
            "creationTime": {"type": "integer", "format": "int64", "description": "The moment that the snapshot shows, in nanoseconds since 1970."},
            "error": error(),
            "readyToUse": {"type": "boolean", "description": "Volumes can be made from the snapshot."},
            "restoreSize": {"type": "integer", "format": "int64", "minimum": 0, "description": "Bytes of the whole snapshot."},
            "snapshotHandle": text("How the driver names the snapshot."),
            "volumeGroupSnapshotHandle": text("How the driver names the group that it was made with."),
        }),
        &[],
    );
    let schema = root(json!({"spec": spec, "status": status}), &["spec"], "What a snapshot is in the storage.");
    let columns = [
        ("ReadyToUse", "boolean", ".status.readyToUse"),
        ("RestoreSize", "integer", ".status.restoreSize"),
        ("DeletionPolicy", "string", ".spec.deletionPolicy"),
        ("Driver", "string", ".spec.driver"),
        ("VolumeSnapshotClass", "string", ".spec.volumeSnapshotClassName"),
        ("VolumeSnapshot", "string", ".spec.volumeSnapshotRef.name"),
        ("VolumeSnapshotNamespace", "string", ".spec.volumeSnapshotRef.namespace"),
    ];
    definition("VolumeSnapshotContent", &["vsc", "vscs"], "Cluster", schema, true, &columns)
}

fn classes() -> Value {
    let parameters = json!({"type": "object", "additionalProperties": {"type": "string"}, "description": "For the driver."});
    let properties = json!({"deletionPolicy": policy(), "driver": text("Who makes the snapshots."), "parameters": parameters});
    let schema = root(properties, &["deletionPolicy", "driver"], "How snapshots are made.");
    let columns = [("Driver", "string", ".driver"), ("DeletionPolicy", "string", ".deletionPolicy")];
    definition("VolumeSnapshotClass", &["vsclass", "vsclasses"], "Cluster", schema, false, &columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_have_upstreams_names() {
        let names: Vec<String> = all().iter().map(|one| one["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        let expected = ["volumesnapshotclasses", "volumesnapshotcontents", "volumesnapshots"]
            .map(|plural| format!("{plural}.snapshot.storage.k8s.io"));
        assert_eq!(names, expected);
    }
}
