use serde_json::json;

use super::*;
use crate::model::{Field, List, Slice, Str};
use crate::table;

fn kind(group: &str, version: &str, kind: &str) -> &'static Type {
    table::by_gvk(group, version, kind).unwrap()
}

fn read(found: &'static Type, value: Value, mode: Mode) -> Result<(Value, Vec<Warning>), Error> {
    decode_type(value, found, mode)
}

#[test]
fn wrong_types_are_refused_in_gos_words() {
    let deployment = kind("apps", "v1", "Deployment");
    let cases = [
        (
            json!({"spec": {"replicas": "3"}}),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"replicas": 1.5}}),
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            json!({"spec": {"replicas": 3_000_000_000_i64}}),
            "json: cannot unmarshal number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (json!({"spec": []}), "json: cannot unmarshal array into Go struct field Deployment.spec of type v1.DeploymentSpec"),
        (
            json!({"metadata": {"labels": {"a": 1}}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels of type string",
        ),
        (
            json!({"metadata": {"labels": "x"}}),
            "json: cannot unmarshal string into Go struct field ObjectMeta.metadata.labels of type map[string]string",
        ),
        (
            json!({"metadata": {"creationTimestamp": 1}}),
            "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.creationTimestamp of type string",
        ),
        (
            json!({"metadata": {"creationTimestamp": "abc"}}),
            "parsing time \"abc\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"abc\" as \"2006\"",
        ),
        (json!("x"), "json: cannot unmarshal string into Go value of type v1.Deployment"),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"env": [{"value": 1}]}]}}}}),
            "json: cannot unmarshal number into Go struct field EnvVar.spec.template.spec.containers.env.value of type string",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": {}}}}}),
            "json: cannot unmarshal object into Go struct field PodSpec.spec.template.spec.containers of type []v1.Container",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"imagePullPolicy": 1}]}}}}),
            "json: cannot unmarshal number into Go struct field Container.spec.template.spec.containers.imagePullPolicy of type v1.PullPolicy",
        ),
        (
            json!({"spec": {"template": {"spec": {"containers": [{"resources": {"limits": {"cpu": "x"}}}]}}}}),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ];
    for (value, message) in cases {
        assert_eq!(read(deployment, value.clone(), Mode::Warn).unwrap_err().to_string(), message, "{value}");
    }
    let error = read(kind("", "v1", "Secret"), json!({"data": {"a": "%"}}), Mode::Warn).unwrap_err();
    assert_eq!(error.to_string(), "illegal base64 data at input byte 0");
}

#[test]
fn unknown_fields_are_errors_warnings_or_nothing() {
    let pod = json!({"spec": {"containers": [{"name": "a", "imag": "b"}], "foo": 1}, "metadata": {"x": {}}});
    let found = ["unknown field \"metadata.x\"", "unknown field \"spec.containers[0].imag\"", "unknown field \"spec.foo\""];
    let (value, warnings) = read(kind("", "v1", "Pod"), pod.clone(), Mode::Warn).unwrap();
    assert_eq!(warnings, found);
    assert!(value["spec"].get("foo").is_none() && value["spec"]["containers"][0].get("imag").is_none());
    let error = read(kind("", "v1", "Pod"), pod.clone(), Mode::Strict).unwrap_err();
    assert_eq!(error.to_string(), format!("strict decoding error: {}", found.join(", ")));
    let status = error.status("Pod", "v1", "Pod", b"{}");
    assert!(status.message.starts_with("Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field"));
    assert!(read(kind("", "v1", "Pod"), pod, Mode::Ignore).unwrap().1.is_empty());
}

#[test]
fn repeated_fields_are_reported_beside_unknown_ones() {
    let parsed = parse_json(br#"{"spec": {"replicas": 1, "replicas": 2, "x": 1}}"#).unwrap();
    let (value, warnings) = decode_type(parsed, kind("apps", "v1", "Deployment"), Mode::Warn).unwrap();
    assert_eq!(warnings, ["duplicate field \"spec.replicas\"", "unknown field \"spec.x\""]);
    assert_eq!(value["spec"]["replicas"], 2);
    let parsed =
        parse_json(br#"{"spec": {"x": 1, "replicas": 1, "template": {"spec": {"containers": [{"y": 1}]}}, "replicas": 2}}"#).unwrap();
    let (_, warnings) = decode_type(parsed, kind("apps", "v1", "Deployment"), Mode::Warn).unwrap();
    let unknown = ["unknown field \"spec.x\"", "unknown field \"spec.template.spec.containers[0].y\""];
    assert_eq!(warnings, [unknown[0], unknown[1], "duplicate field \"spec.replicas\""], "as the document has them");
}

#[test]
fn objects_come_out_as_go_writes_them() {
    let given = json!({
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {"name": "web", "creationTimestamp": null, "labels": {}, "generation": 0, "namespace": ""},
        "spec": {
            "replicas": 0, "paused": false, "minReadySeconds": 0, "selector": null,
            "template": {"spec": {"hostNetwork": false, "nodeSelector": {}, "securityContext": {}, "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "a", "command": [], "resources": {"limits": {"cpu": 1, "memory": "1024Mi"}, "requests": {"cpu": "0.5"}}}, null]}}
        }
    });
    let expected = json!({
        "kind": "Deployment", "apiVersion": "apps/v1",
        "metadata": {"name": "web"},
        "spec": {
            "replicas": 0, "selector": null, "strategy": {},
            "template": {"metadata": {}, "spec": {"securityContext": {}, "terminationGracePeriodSeconds": 0,
                "containers": [
                    {"name": "a", "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}},
                    {"name": "", "resources": {}},
                ]}}
        },
        "status": {}
    });
    assert_eq!(read(kind("apps", "v1", "Deployment"), given, Mode::Strict).unwrap().0, expected);
}

#[test]
fn zeros_of_pointers_stay_and_quirks_of_go_are_kept() {
    let claim = json!({"spec": {"storageClassName": "", "accessModes": []}});
    let (claim, _) = read(kind("", "v1", "PersistentVolumeClaim"), claim, Mode::Strict).unwrap();
    assert_eq!(claim, json!({"metadata": {}, "spec": {"storageClassName": "", "resources": {}}, "status": {}}));
    let (service, _) = read(kind("", "v1", "Service"), json!({"spec": {"ports": [{"port": 80}]}}), Mode::Strict).unwrap();
    assert_eq!(service["spec"]["ports"][0], json!({"port": 80, "targetPort": 0}));
    let (role, _) = read(kind("rbac.authorization.k8s.io", "v1", "Role"), json!({}), Mode::Strict).unwrap();
    assert_eq!(role, json!({"metadata": {}, "rules": null}));
    let (map, _) = read(kind("", "v1", "ConfigMap"), json!({"data": {"a": null, "b": ""}}), Mode::Strict).unwrap();
    assert_eq!(map["data"], json!({"a": "", "b": ""}));
    let (lease, _) =
        read(kind("coordination.k8s.io", "v1", "Lease"), json!({"spec": {"renewTime": "2026-01-01T02:00:00+01:00"}}), Mode::Strict)
            .unwrap();
    assert_eq!(lease["spec"]["renewTime"], "2026-01-01T01:00:00.000000Z");
}

#[test]
fn decoding_twice_changes_nothing() {
    for ((_, _, name), found) in table::kinds() {
        let (once, _) = read(found, json!({}), Mode::Strict).unwrap();
        let (twice, warnings) = read(found, once.clone(), Mode::Strict).unwrap();
        assert!(once == twice && warnings.is_empty(), "{name}: {once} {twice}");
    }
}

#[test]
fn custom_types_are_pruned_and_nothing_else() {
    let item = Type {
        name: Str::Owned("item".into()),
        fields: Slice::Owned([Field::new("a", Schema::Int32)].into()),
        atomic: false,
        preserve_unknown: false,
        embedded_resource: false,
        unions: Slice::Static(&[]),
    };
    let list = List { items: Schema::Object(Ref::Owned(item.into())), topology: crate::model::Topology::Atomic };
    let fields = [
        Field::new("metadata", Schema::Object(Ref::Static(table::find("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").unwrap()))),
        Field::new("list", Schema::List(Ref::Owned(list.into()))),
    ];
    let crd = Type {
        name: Str::Owned("Crontab".into()),
        fields: Slice::Owned(fields.into()),
        atomic: false,
        preserve_unknown: false,
        embedded_resource: false,
        unions: Slice::Static(&[]),
    };
    let schema = Schema::Object(Ref::Owned(crd.into()));
    let given = json!({"metadata": {"name": "a", "z": 1}, "list": [{"a": "no number", "b": 1}, null], "c": 1});
    let (value, warnings) = decode(given, &schema, Mode::Warn).unwrap();
    assert_eq!(value, json!({"metadata": {"name": "a"}, "list": [{"a": "no number"}, null]}));
    assert_eq!(warnings, ["unknown field \"c\"", "unknown field \"list[0].b\"", "unknown field \"metadata.z\""]);
}

#[test]
fn bodies_that_are_no_objects_are_called_unrecognized() {
    let error = parse_json(b"kind: Pod").unwrap_err();
    let status = error.status("", "", "Pod", b"kind: Pod");
    assert_eq!(
        status.message,
        "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: \
         invalid character 'k' looking for beginning of value (6b696e643a20506f64)"
    );
}
