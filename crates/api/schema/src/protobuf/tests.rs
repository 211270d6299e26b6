use serde_json::json;

use super::*;

fn kind(group: &str, version: &str, name: &str) -> &'static Type {
    table::by_gvk(group, version, name).unwrap()
}

/// Encodes and decodes again, after the object went through the decoder.
fn round(group: &str, version: &str, value: Value) -> Value {
    let name = value["kind"].as_str().unwrap().to_owned();
    let found = kind(group, version, &name);
    let (value, _) = decode::decode_type(value, found, Mode::Strict).unwrap();
    let read = decode(&encode(&value, found), None).unwrap();
    assert_eq!(read.kind, name);
    assert_eq!(read.value, value);
    read.value
}

#[test]
fn pointers_keep_their_zeros_and_plain_fields_lose_them() {
    let deployment = round(
        "apps",
        "v1",
        json!({"kind": "Deployment", "apiVersion": "apps/v1", "spec": {"replicas": 0, "paused": false, "template": {"spec": {"containers": [{"name": "a", "livenessProbe": {"grpc": {"port": 0, "service": ""}}}]}}}}),
    );
    assert_eq!(deployment["spec"]["replicas"], 0);
    let claim =
        round("", "v1", json!({"kind": "PersistentVolumeClaim", "apiVersion": "v1", "spec": {"storageClassName": "", "volumeName": ""}}));
    assert_eq!(claim["spec"]["storageClassName"], "");
}

#[test]
fn a_go_client_that_sends_every_empty_string_gets_them_dropped() {
    // A Pod with metadata { name: "a", generateName: "", namespace: "" } and an empty spec and status.
    let message = b"\x0a\x07\x0a\x01a\x12\x00\x1a\x00\x12\x00\x1a\x00";
    let value = decode(&envelope("v1", "Pod", message), None).unwrap().value;
    assert_eq!(value, json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"containers": null}, "status": {}}));
}

#[test]
fn empty_strings_inside_a_schemas_items_are_dropped_too() {
    let props = table::find("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
    let number = |name: &str| props.field(name).unwrap().pb;
    let tag = |number: u32| {
        let key = number << 3 | 2;
        if key < 0x80 { vec![key as u8] } else { vec![key as u8 | 0x80, (key >> 7) as u8] }
    };
    let field = |number: u32, content: &[u8]| [tag(number), vec![content.len() as u8], content.to_vec()].concat();
    // { items: { schema: { id: "", type: "string" } } }
    let inner = [field(number("id"), b""), field(number("type"), b"string")].concat();
    let message = field(number("items"), &field(1, &inner));
    assert_eq!(read::object(&message, props, 0).unwrap(), json!({"items": {"type": "string"}}));
}

#[test]
fn a_body_without_a_kind_is_of_the_callers_type() {
    let message = encode_message(&json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "x"}}), kind("", "v1", "DeleteOptions"));
    let object = decode(&envelope("", "", &message), Some(kind("", "v1", "DeleteOptions"))).unwrap();
    assert_eq!(object.value, json!({"gracePeriodSeconds": 0, "preconditions": {"uid": "x"}}));
    assert!(matches!(decode(&envelope("", "", &message), None), Err(Error::Unknown { .. })));
    assert!(matches!(decode(&envelope("example.com/v1", "CronTab", &message), None), Err(Error::Unknown { .. })));
}

#[test]
fn schemas_of_schemas_survive() {
    let schema = json!({"type": "object", "properties": {
        "a": {"type": "array", "items": {"type": "string", "enum": ["x", 1, {"y": null}], "default": "x"}},
        "b": {"items": [{"type": "string"}], "additionalItems": false},
        "c": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0.5}, "x-kubernetes-preserve-unknown-fields": true},
        "d": {"dependencies": {"x": ["y"], "z": {"type": "string"}}, "additionalProperties": true, "maxLength": 0}
    }});
    let crd = json!({"kind": "CustomResourceDefinition", "apiVersion": "apiextensions.k8s.io/v1", "spec": {"group": "g", "scope": "Cluster", "names": {"plural": "p", "kind": "K"}, "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    round("apiextensions.k8s.io", "v1", crd);
}

#[test]
fn lists_are_spliced_from_messages_and_events_are_framed() {
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}, "spec": {"containers": []}});
    let message = encode_message(&pod, kind("", "v1", "Pod"));
    let body = list("v1", "PodList", &json!({"resourceVersion": "7"}), [message.as_slice(), message.as_slice()]);
    let value = decode(&body, None).unwrap().value;
    assert_eq!(value["metadata"]["resourceVersion"], "7");
    assert_eq!(value["items"][1]["metadata"]["name"], "a");
    let frame = watch_frame("ADDED", &encode(&pod, kind("", "v1", "Pod")));
    let (head, event) = frame.split_at(4);
    assert_eq!(u32::from_be_bytes(head.try_into().unwrap()) as usize, event.len());
    let event = decode_message(event, kind("", "v1", "WatchEvent")).unwrap();
    assert_eq!((&event["type"], &event["object"]["metadata"]["name"]), (&json!("ADDED"), &json!("a")));
}

#[test]
fn times_before_the_epoch_and_fractions_survive() {
    round(
        "coordination.k8s.io",
        "v1",
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"creationTimestamp": "1960-02-03T04:05:06Z"}, "spec": {"renewTime": "1969-12-31T23:59:59.250000Z"}}),
    );
}

#[test]
fn hostile_bytes_are_errors() {
    let pod = encode(
        &json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "abc"}, "spec": {"containers": [{"name": "x", "resources": {"limits": {"cpu": "1"}}}]}}),
        kind("", "v1", "Pod"),
    );
    for end in 0..pod.len() {
        let _ = decode(&pod[..end], None);
        let mut flipped = pod.clone();
        flipped[end] ^= 0xff;
        let _ = decode(&flipped, None);
    }
    assert_eq!(decode(b"k8s", None), Err(Error::Magic));
    assert_eq!(decode(b"k8s\0\x12\xff\xff\xff\xff\x0f", None), Err(Error::End));
    let mut nested = Vec::new();
    for _ in 0..5_000 {
        let mut outer = wire::Writer::default();
        outer.nested(12, |out| out.raw(&nested));
        nested = outer.finish();
        if nested.len() > 20_000 {
            break;
        }
    }
    let props = table::find("io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps").unwrap();
    let _ = decode_message(&nested, props);
}

proptest::proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
        let _ = decode(&[&MAGIC[..], &bytes].concat(), Some(kind("", "v1", "Pod")));
        let _ = decode_message(&bytes, kind("", "v1", "Pod"));
    }
}
