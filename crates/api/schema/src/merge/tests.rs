use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::model::Type;
use crate::table;

fn kind(group: &str, name: &str) -> &'static Type {
    table::by_gvk(group, "v1", name).unwrap()
}

fn strategic(group: &str, name: &str, mut target: Value, patch: Value) -> Result<Value, String> {
    let before = target.clone();
    match strategic_merge_patch(&mut target, &patch, kind(group, name)) {
        Ok(()) => Ok(target),
        Err(error) => {
            assert_eq!(target, before, "a failed patch leaves the object alone");
            Err(error.to_string())
        }
    }
}

#[track_caller]
fn pod_spec(target: Value, patch: Value, expected: Value) {
    let patched = strategic("", "Pod", json!({"spec": target}), json!({"spec": patch}));
    assert_eq!(patched, Ok(json!({"spec": expected})));
}

#[track_caller]
fn pod_spec_refused(target: Value, patch: Value, message: &str) {
    let patched = strategic("", "Pod", json!({"spec": target}), json!({"spec": patch}));
    assert_eq!(patched, Err(message.to_owned()));
}

#[test]
fn merge_patch_sets_replaces_and_removes() {
    let cases = [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b", "b": 1}), json!({"a": null}), json!({"b": 1})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
        (json!({"a": "x"}), json!({"a": [{"b": null}]}), json!({"a": [{}]})),
        (json!({"a": null}), json!({"a": {"b": null, "c": 1}}), json!({"a": {"c": 1}})),
    ];
    for (mut target, patch, expected) in cases {
        json_merge_patch(&mut target, &patch);
        assert_eq!(target, expected, "{patch}");
    }
}

#[test]
fn json_patch_carries_out_each_operation() {
    let cases = [
        (json!({"a": 1}), json!([{"op": "add", "path": "/b", "value": [1]}]), json!({"a": 1, "b": [1]})),
        (json!({"a": [1, 3]}), json!([{"op": "add", "path": "/a/1", "value": 2}]), json!({"a": [1, 2, 3]})),
        (json!({"a": [1]}), json!([{"op": "add", "path": "/a/-", "value": 2}]), json!({"a": [1, 2]})),
        (json!({"a": [1, 2]}), json!([{"op": "remove", "path": "/a/-1"}]), json!({"a": [1]})),
        (json!({"a": 1}), json!([{"op": "replace", "path": "/b", "value": 2}]), json!({"a": 1, "b": 2})),
        (json!({"a": {"b": 1}}), json!([{"op": "move", "from": "/a/b", "path": "/c"}]), json!({"a": {}, "c": 1})),
        (json!({"a": 1}), json!([{"op": "copy", "from": "/a", "path": "/b"}]), json!({"a": 1, "b": 1})),
        (json!({"a": 1}), json!([{"op": "test", "path": "/b", "value": null}]), json!({"a": 1})),
        (json!({"x/y~": 1}), json!([{"op": "remove", "path": "/x~1y~0"}]), json!({})),
    ];
    for (mut target, patch, expected) in cases {
        json_patch(&mut target, patch.to_string().as_bytes()).unwrap();
        assert_eq!(target, expected, "{patch}");
    }
}

#[test]
fn json_patch_that_does_not_apply_changes_nothing_and_says_so_as_422() {
    let patches = [
        json!([{"op": "add", "path": "/b", "value": 1}, {"op": "test", "path": "/a", "value": 2}]),
        json!([{"op": "remove", "path": "/missing"}]),
        json!([{"op": "replace", "path": "/l/7", "value": 1}]),
        json!([{"op": "add", "path": "/l/-9", "value": 1}]),
        json!([{"op": "add", "path": "/no/where", "value": 1}]),
        json!([{"op": "move", "from": "/a", "path": "/a/b"}]),
        json!([{"op": "what", "path": "/a"}]),
        json!([{"op": "add"}]),
    ];
    for patch in patches {
        let mut target = json!({"a": 1, "l": [1]});
        let error = json_patch(&mut target, patch.to_string().as_bytes()).unwrap_err();
        assert_eq!(target, json!({"a": 1, "l": [1]}), "{patch}");
        let status = error.status();
        assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"), "{patch}");
        assert_eq!(status.message, "the server rejected our request due to an error in our request");
    }
}

#[test]
fn json_patch_is_limited_in_operations_copied_bytes_and_depth() {
    let many = vec![json!({"op": "test", "path": "/a", "value": 1}); OPERATIONS_MAX + 1];
    let error = json_patch(&mut json!({"a": 1}), Value::from(many).to_string().as_bytes()).unwrap_err();
    assert_eq!(error.to_string(), "The allowed maximum operations in a JSON patch is 10000, got 10001");
    assert_eq!(error.status().code, 413);

    let doubling: Vec<Value> = (0..40).map(|_| json!({"op": "copy", "from": "/a", "path": "/a/-"})).collect();
    let error = json_patch(&mut json!({"a": ["x".repeat(100)]}), Value::from(doubling).to_string().as_bytes());
    assert!(error.unwrap_err().to_string().starts_with("Unable to complete the copy"));

    let nesting: Vec<Value> = (0..5_000)
        .flat_map(|_| {
            [
                json!({"op": "add", "path": "/b", "value": {}}),
                json!({"op": "move", "from": "/a", "path": "/b/a"}),
                json!({"op": "move", "from": "/b", "path": "/a"}),
            ]
        })
        .take(OPERATIONS_MAX)
        .collect();
    assert!(json_patch(&mut json!({"a": {}}), Value::from(nesting).to_string().as_bytes()).is_err());
}

#[test]
fn lists_merge_by_their_key() {
    pod_spec(
        json!({"containers": [{"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "1"}]}),
        json!({"containers": [{"name": "b", "image": "2"}, {"name": "c", "image": "3", "command": null}]}),
        json!({"containers": [
            {"name": "a", "image": "1", "tty": true}, {"name": "b", "image": "2"}, {"name": "c", "image": "3", "command": null},
        ]}),
    );
    pod_spec(
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "x"}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": null}, {"containerPort": 81}]}]}),
        json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 81}]}]}),
    );
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    pod_spec(
        json!({"containers": [{"name": "a", "args": ["1", "2"]}]}),
        json!({"containers": [{"name": "a", "args": ["3"]}]}),
        json!({"containers": [{"name": "a", "args": ["3"]}]}),
    );
}

#[test]
fn patch_directives_delete_and_replace() {
    pod_spec(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"name": "a", "$patch": "delete"}]}),
        json!({"containers": [{"name": "b"}]}),
    );
    pod_spec(
        json!({"containers": [{"name": "a"}, {"name": "b"}]}),
        json!({"containers": [{"$patch": "replace"}, {"name": "c"}]}),
        json!({"containers": [{"name": "c"}]}),
    );
    pod_spec(
        json!({"securityContext": {"runAsUser": 1, "fsGroup": 2}}),
        json!({"securityContext": {"$patch": "replace", "runAsGroup": 3}}),
        json!({"securityContext": {"runAsGroup": 3}}),
    );
    pod_spec(
        json!({"securityContext": {"runAsUser": 1}}),
        json!({"securityContext": {"$patch": "delete"}}),
        json!({"securityContext": {}}),
    );
    // Nothing to delete: the directives leave no trace.
    pod_spec(
        json!({}),
        json!({"containers": [{"name": "a", "$patch": "delete"}, {"name": "b"}], "securityContext": {"$patch": "delete"}}),
        json!({"containers": [{"name": "b"}]}),
    );
}

#[test]
fn retain_keys_drops_what_is_not_listed() {
    let patched = strategic(
        "apps",
        "Deployment",
        json!({"spec": {"replicas": 1, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
        json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate", "rollingUpdate": null}}}),
    );
    assert_eq!(patched, Ok(json!({"spec": {"replicas": 1, "strategy": {"type": "Recreate"}}})));
    let refused = strategic(
        "apps",
        "Deployment",
        json!({"spec": {"strategy": {"type": "RollingUpdate"}}}),
        json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}}),
    );
    assert_eq!(refused, Err("invalid patch format of retainKeys".to_owned()));
    pod_spec(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/x"}}]}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/x"}}]}),
    );
}

#[test]
fn set_element_order_orders_and_keeps_what_only_the_server_has() {
    let named = |names: &str| Value::from(names.chars().map(|name| json!({"name": name.to_string()})).collect::<Vec<_>>());
    pod_spec(json!({"containers": named("abc")}), json!({"$setElementOrder/containers": named("ca")}), json!({"containers": named("bca")}));
    pod_spec(
        json!({"containers": named("abc")}),
        json!({"$setElementOrder/containers": named("dcba"), "containers": named("d")}),
        json!({"containers": named("dcba")}),
    );
    pod_spec(
        json!({"containers": named("sabc")}),
        json!({"$setElementOrder/containers": named("ac"), "containers": [{"name": "b", "$patch": "delete"}]}),
        json!({"containers": named("sac")}),
    );
    pod_spec_refused(
        json!({"containers": named("ab")}),
        json!({"$setElementOrder/containers": named("ab"), "containers": named("ba")}),
        "The order in patch list:\n[map[name:b] map[name:a]]\n doesn't match $setElementOrder list:\n[map[name:a] map[name:b]]\n",
    );
}

#[test]
fn what_is_added_takes_the_place_of_what_is_deleted_among_items_of_the_server() {
    let named = |names: &str| Value::from(names.chars().map(|name| json!({"name": name.to_string()})).collect::<Vec<_>>());
    pod_spec(
        json!({"containers": named("ebas")}),
        json!({
            "$setElementOrder/containers": named("bde"),
            "containers": [{"name": "a", "$patch": "delete"}, {"name": "d"}],
        }),
        json!({"containers": named("bsde")}),
    );
}

#[test]
fn big_lists_merge_in_reasonable_time() {
    let finalizers = |from: usize| Value::from((from..from + 100_000).map(|number| number.to_string()).collect::<Vec<_>>());
    let patched =
        strategic("", "Pod", json!({"metadata": {"finalizers": finalizers(0)}}), json!({"metadata": {"finalizers": finalizers(50_000)}}));
    assert_eq!(patched.unwrap().pointer("/metadata/finalizers").and_then(Value::as_array).map(Vec::len), Some(150_000));
}

#[test]
fn primitive_lists_merge_as_sets_and_shrink_by_the_parallel_list() {
    let meta = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
    let patched = strategic("", "Pod", meta(json!(["a", "b"])), meta(json!(["c", "a"])));
    assert_eq!(patched, Ok(meta(json!(["c", "a", "b"]))));
    let patch = json!({"metadata": {
        "$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"],
    }});
    let patched = strategic("", "Pod", meta(json!(["a", "b"])), patch);
    assert_eq!(patched, Ok(meta(json!(["c", "b"]))));
}

#[test]
fn a_patch_that_contradicts_the_schema_is_refused_in_upstreams_words() {
    let target = || json!({"containers": [{"name": "a"}]});
    let cases = [
        (json!({"containers": [{"image": "x"}]}), "map: map[image:x] does not contain declared merge key: name"),
        (json!({"containers": ["x"]}), "list element types are not identical: [[map[name:a]] [x]]"),
        (json!({"containers": [["x"]]}), "list element types are not identical: [[map[name:a]] [[x]]]"),
        (json!({"containers": [{"name": "a", "$patch": "merge"}]}), "merging lists cannot yet be specified in the patch"),
        (json!({"containers": [{"name": "a", "$patch": "x"}]}), "unknown patch type: x in map: map[$patch:x name:a]"),
        (json!({"$setElementOrder/containers": 1}), "expected a []interface {}, but received a int64"),
        (json!({"$setElementOrder": []}), "invalid patch format of setElementOrder list"),
        (json!({"$deleteFromPrimitiveList": []}), "invalid patch format of primitive list"),
        (json!({"$setElementOrder/nope": []}), "unable to find api field in struct PodSpec for the json field \"nope\""),
    ];
    for (patch, message) in cases {
        pod_spec_refused(target(), patch, message);
    }
}

#[test]
fn config_map_data_merges_key_by_key() {
    let patched = strategic(
        "",
        "ConfigMap",
        json!({"data": {"a": "1", "b": "2"}}),
        json!({"data": {"a": null, "c": "3"}, "binaryData": {"x": "AA==", "y": null}}),
    );
    assert_eq!(patched, Ok(json!({"data": {"b": "2", "c": "3"}, "binaryData": {"x": "AA=="}})));
}

/// Any JSON, with the names that a Pod and the directives have.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..3).prop_map(Value::from),
        prop_oneof![Just("delete"), Just("replace"), Just("merge"), Just("a"), Just("b"), Just("name")].prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("spec"),
        Just("containers"),
        Just("name"),
        Just("ports"),
        Just("containerPort"),
        Just("metadata"),
        Just("finalizers"),
        Just("labels"),
        Just("$patch"),
        Just("$retainKeys"),
        Just("$setElementOrder/containers"),
        Just("$setElementOrder/finalizers"),
        Just("$deleteFromPrimitiveList/finalizers"),
        Just("$setElementOrder"),
    ];
    leaf.prop_recursive(5, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// The merge patch that makes `from` into `to`.
fn diff(from: &Value, to: &Value) -> Value {
    let (Value::Object(from), Value::Object(to)) = (from, to) else { return to.clone() };
    let mut patch = serde_json::Map::new();
    for (key, value) in to {
        match from.get(key) {
            Some(old) if old == value => {}
            Some(old) => drop(patch.insert(key.clone(), diff(old, value))),
            None => drop(patch.insert(key.clone(), value.clone())),
        }
    }
    patch.extend(from.keys().filter(|key| !to.contains_key(*key)).map(|key| (key.clone(), Value::Null)));
    Value::Object(patch)
}

fn object() -> impl Strategy<Value = Value> {
    any_json().prop_map(|value| if value.is_object() { without_nulls(&value) } else { json!({}) })
}

proptest! {
    #[test]
    fn a_merge_patch_made_by_diff_reproduces_the_target(from in object(), to in object()) {
        let mut patched = from.clone();
        json_merge_patch(&mut patched, &diff(&from, &to));
        prop_assert_eq!(patched, to);
    }

    #[test]
    fn no_patch_panics(target in any_json(), patch in any_json()) {
        let mut merged = target.clone();
        json_merge_patch(&mut merged, &patch);
        let mut merged = target.clone();
        let _ = strategic_merge_patch(&mut merged, &patch, kind("", "Pod"));
        let mut merged = target.clone();
        let _ = strategic_merge_patch(&mut merged, &json!({"spec": patch}), kind("", "Pod"));
    }

    #[test]
    fn no_json_patch_panics(
        target in any_json(),
        operations in prop::collection::vec(
            ("(add|remove|replace|move|copy|test)", "(/(spec|a|containers|0|-1|-|~0)){0,3}", "(/(spec|0)){0,2}", any_json()),
            0..6,
        ),
    ) {
        let operations: Vec<Value> = operations
            .into_iter()
            .map(|(op, path, from, value)| json!({"op": op, "path": path, "from": from, "value": value}))
            .collect();
        let mut patched = target.clone();
        if json_patch(&mut patched, Value::from(operations).to_string().as_bytes()).is_err() {
            prop_assert_eq!(patched, target);
        }
    }
}
