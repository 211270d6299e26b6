use serde_json::{Value, json};

use super::*;
use crate::model::{Field, List, Map as MapSchema, Ref, Schema, Slice, Str, Topology};
use crate::table;

mod properties;

const T1: &str = "2026-01-01T00:00:01Z";
const T2: &str = "2026-01-01T00:00:02Z";

fn deployment_type() -> &'static Type {
    table::by_gvk("apps", "v1", "Deployment").unwrap()
}

fn by(name: &str) -> Manager<'_> {
    Manager { name, api_version: "apps/v1", time: T1, reset: &["status"], ..Manager::default() }
}

fn later(name: &str) -> Manager<'_> {
    Manager { time: T2, ..by(name) }
}

fn deployment(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"}, "spec": spec})
}

fn pod_template(spec: Value) -> Value {
    deployment(json!({"template": {"spec": spec}}))
}

fn applied(live: Option<&Value>, configuration: &Value, manager: Manager<'_>) -> Value {
    apply(live, configuration, &manager, false, deployment_type()).unwrap()
}

fn refused(live: Option<&Value>, configuration: &Value, manager: Manager<'_>) -> Error {
    apply(live, configuration, &manager, false, deployment_type()).unwrap_err()
}

/// As the API server does it: the object gets a uid, then its owners.
fn created(mut object: Value, manager: Manager<'_>) -> Value {
    update(None, &mut object, &manager, deployment_type());
    object["metadata"]["uid"] = json!("u");
    object
}

fn updated(old: &Value, change: impl FnOnce(&mut Value), manager: Manager<'_>) -> Value {
    let mut new = old.clone();
    change(&mut new);
    update(Some(old), &mut new, &manager, deployment_type());
    new
}

fn owners(object: &Value) -> Vec<String> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let name = |entry: &Value| format!("{} {}", entry["manager"].as_str().unwrap(), entry["operation"].as_str().unwrap());
    entries.into_iter().flatten().map(name).collect()
}

fn owned_by<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array).unwrap();
    entries.iter().find(|entry| entry["manager"] == manager).unwrap_or_else(|| panic!("{manager} owns nothing: {object}"))
}

fn paths(object: &Value, manager: &str) -> Vec<String> {
    let mut paths = Vec::new();
    decode(&owned_by(object, manager)["fieldsV1"]).unwrap().for_each_path(&mut |path| paths.push(path_text(path)));
    paths
}

#[test]
fn the_first_apply_creates_the_object_and_owns_what_it_says() {
    let configuration = pod_template(json!({"containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}]}]}));
    let object = applied(None, &configuration, by("me"));
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "apps/v1", "time": T1, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:template": {"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {
                ".": {}, "f:name": {}, "f:image": {},
                "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}},
            }}}}}},
        }])
    );
    assert_eq!(object["spec"], configuration["spec"]);
}

#[test]
fn applying_the_same_again_changes_nothing_not_even_the_time() {
    let configuration = deployment(json!({"replicas": 3, "paused": null, "template": {"spec": {"containers": [{"name": "a"}]}}}));
    let first = applied(None, &configuration, by("me"));
    assert_eq!(applied(Some(&first), &configuration, later("me")), first);
}

#[test]
fn what_the_applier_leaves_out_goes_away_if_it_alone_owned_it() {
    let mut first = deployment(json!({"replicas": 3, "template": {"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}}));
    first["metadata"]["labels"] = json!({"x": "1", "y": "2"});
    let mut second = deployment(json!({"template": {"spec": {"containers": [{"name": "b"}]}}}));
    second["metadata"]["labels"] = json!({"y": "2"});
    let live = applied(None, &first, by("me"));
    let object = applied(Some(&live), &second, later("me"));
    assert_eq!(object["spec"], second["spec"]);
    assert_eq!(object["metadata"]["labels"], json!({"y": "2"}));
    assert_eq!(owned_by(&object, "me")["time"], T2);
}

#[test]
fn what_others_own_too_stays() {
    let both = deployment(json!({"replicas": 3, "paused": true}));
    let live = applied(None, &both, by("a"));
    let live = applied(Some(&live), &deployment(json!({"replicas": 3})), by("b"));
    let object = applied(Some(&live), &deployment(json!({"minReadySeconds": 1})), later("a"));
    assert_eq!(object["spec"], json!({"replicas": 3, "minReadySeconds": 1}));
    assert_eq!(paths(&object, "b"), [".spec.replicas"]);
    assert_eq!(paths(&object, "a"), [".spec.minReadySeconds"]);
}

#[test]
fn a_co_owner_that_changes_nothing_has_no_time() {
    let live = applied(None, &deployment(json!({"replicas": 3})), by("a"));
    let object = applied(Some(&live), &deployment(json!({"replicas": 3})), later("b"));
    assert_eq!(object["spec"], live["spec"]);
    assert_eq!(owned_by(&object, "b").get("time"), None);
}

#[test]
fn changing_what_an_updater_owns_is_a_conflict_in_upstreams_words() {
    let live = created(deployment(json!({"replicas": 1})), by("kubectl-client-side-apply"));
    let Error::Conflicts(conflicts) = refused(Some(&live), &deployment(json!({"replicas": 2})), by("me")) else { panic!() };
    let status = conflicts.status();
    assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.replicas");
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    let cause = &status.details.unwrap().causes[0];
    assert_eq!(cause.reason, "FieldManagerConflict");
    assert_eq!(cause.message, "conflict with \"kubectl-client-side-apply\" using apps/v1");
    assert_eq!(cause.field, ".spec.replicas");
}

#[test]
fn many_conflicts_are_listed_by_owner() {
    let live = applied(None, &deployment(json!({"replicas": 1, "paused": true})), by("b"));
    let live = updated(&live, |object| object["spec"]["minReadySeconds"] = json!(1), Manager { subresource: "scale", ..by("a") });
    let configuration = deployment(json!({"replicas": 2, "paused": false, "minReadySeconds": 2}));
    assert_eq!(
        refused(Some(&live), &configuration, by("me")).to_string(),
        "Apply failed with 3 conflicts: conflicts with \"a\" with subresource \"scale\" using apps/v1:\n\
         - .spec.minReadySeconds\nconflicts with \"b\":\n- .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn force_takes_the_field_over() {
    let live = created(deployment(json!({"replicas": 1, "paused": true})), by("old"));
    let object = apply(Some(&live), &deployment(json!({"replicas": 2})), &later("me"), true, deployment_type()).unwrap();
    assert_eq!(object["spec"], json!({"replicas": 2, "paused": true}));
    assert_eq!(paths(&object, "old"), [".spec.paused"]);
    assert_eq!(paths(&object, "me"), [".spec.replicas"]);
}

#[test]
fn the_same_value_is_no_conflict_and_is_shared() {
    let live = created(deployment(json!({"replicas": 1})), by("old"));
    let object = applied(Some(&live), &deployment(json!({"replicas": 1})), later("me"));
    assert_eq!(owners(&object), ["me Apply", "old Update"]);
}

#[test]
fn a_configuration_that_does_not_fit_the_schema_is_refused_in_upstreams_words() {
    let prefix = "failed to create typed patch object (default/web; apps/v1, Kind=Deployment): ";
    let container = ".spec.template.spec.containers[name=\"a\"]";
    let cases = [
        (deployment(json!({"foo": 1})), ".spec.foo: field not declared in schema".to_owned()),
        (deployment(json!({"replicas": "3"})), ".spec.replicas: expected numeric (int or float), got string".to_owned()),
        (deployment(json!({"paused": "x"})), ".spec.paused: expected boolean, got &{x}".to_owned()),
        (deployment(json!([])), ".spec: expected map, got &{[]}".to_owned()),
        (
            pod_template(json!({"containers": [{"name": "a"}, {"name": "a"}]})),
            ".spec.template.spec.containers: duplicate entries for key [name=\"a\"]".to_owned(),
        ),
        (
            pod_template(json!({"containers": {"name": "a"}})),
            ".spec.template.spec.containers: expected list, got &{map[name:a]}".to_owned(),
        ),
        (
            pod_template(json!({"containers": [null]})),
            ".spec.template.spec.containers: element 0: associative list with keys may not have a null element".to_owned(),
        ),
        (
            pod_template(json!({"containers": [{"name": "a", "env": [{"name": "E", "value": 1}]}]})),
            format!("{container}.env[name=\"E\"].value: expected string, got &value.valueUnstructured{{Value:1}}"),
        ),
        (
            pod_template(
                json!({"containers": [{"name": "a", "ports": [{"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}]}]}),
            ),
            format!("{container}.ports: duplicate entries for key [containerPort=80,protocol=\"TCP\"]"),
        ),
        (
            pod_template(json!({"containers": [{"name": "a", "image": 1, "tty": 1}]})),
            format!(
                "errors:\n  {container}.image: expected string, got &value.valueUnstructured{{Value:1}}\n  {container}.tty: expected boolean, got &{{1}}"
            ),
        ),
    ];
    for (configuration, message) in cases {
        let error = refused(None, &configuration, by("me"));
        assert_eq!(error.to_string(), format!("{prefix}{message}"));
        assert_eq!(error.status().code, 400);
    }
}

#[test]
fn a_configuration_for_another_version_or_with_owners_is_a_bad_request() {
    let mut other = deployment(json!({}));
    other["apiVersion"] = json!("apps/v1beta1");
    let message = "Incorrect version specified in apply patch. Specified patch version: apps/v1beta1, expected: apps/v1";
    assert_eq!(refused(None, &other, by("me")), Error::BadRequest(message.to_owned()));
    let mut owned = deployment(json!({}));
    owned["metadata"]["managedFields"] = json!([]);
    assert_eq!(refused(None, &owned, by("me")), Error::BadRequest("metadata.managedFields must be nil".to_owned()));
}

#[test]
fn lists_keep_their_order_and_follow_the_configuration_where_it_reorders() {
    let names = |text: &str| {
        let list: Vec<Value> = text.chars().map(|name| json!({"name": name.to_string()})).collect();
        pod_template(json!({"containers": list}))
    };
    let cases =
        [("abc", "b", "abc"), ("abc", "d", "abcd"), ("abc", "cb", "acb"), ("abc", "xb", "axbc"), ("ab", "ba", "ba"), ("", "ab", "ab")];
    for (live, applied_names, expected) in cases {
        let live = created(names(live), by("old"));
        let object = applied(Some(&live), &names(applied_names), by("me"));
        assert_eq!(object["spec"], names(expected)["spec"], "{applied_names}");
    }
}

#[test]
fn sets_grow_and_shrink_by_value() {
    let with = |finalizers: Value| {
        let mut object = deployment(json!({}));
        object["metadata"]["finalizers"] = finalizers;
        object
    };
    let live = created(with(json!(["a"])), by("old"));
    let live = applied(Some(&live), &with(json!(["b", "c"])), by("me"));
    assert_eq!(live["metadata"]["finalizers"], json!(["a", "b", "c"]));
    assert_eq!(paths(&live, "me"), [".spec", ".metadata.finalizers[=\"b\"]", ".metadata.finalizers[=\"c\"]"]);
    let live = applied(Some(&live), &with(json!(["c"])), by("me"));
    assert_eq!(live["metadata"]["finalizers"], json!(["a", "c"]));
}

#[test]
fn atomic_parts_are_owned_and_replaced_as_a_whole() {
    let selector = |labels: Value| deployment(json!({"selector": {"matchLabels": labels}}));
    let live = applied(None, &selector(json!({"a": "1"})), by("me"));
    assert_eq!(paths(&live, "me"), [".spec.selector"]);
    let object = applied(Some(&live), &selector(json!({"b": "2"})), by("me"));
    assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"b": "2"}}));
}

#[test]
fn duplicates_in_the_live_object_are_replaced_by_the_applied_item() {
    let env = |list: Value| pod_template(json!({"containers": [{"name": "a", "env": list}]}));
    let live = created(env(json!([{"name": "E", "value": "1"}, {"name": "F"}, {"name": "E", "value": "2"}])), by("old"));
    assert!(paths(&live, "old").contains(&".spec.template.spec.containers[name=\"a\"].env[name=\"E\"]".to_owned()));
    let configuration = env(json!([{"name": "E", "value": "3"}]));
    let object = apply(Some(&live), &configuration, &by("me"), true, deployment_type()).unwrap();
    assert_eq!(object["spec"], env(json!([{"name": "E", "value": "3"}, {"name": "F"}]))["spec"]);
}

#[test]
fn who_resolves_duplicates_owns_the_item_that_is_left() {
    let mut object = deployment(json!({}));
    object["metadata"]["finalizers"] = json!(["x", "x"]);
    let live = created(object, by("old"));
    let live = updated(&live, |object| object["metadata"]["finalizers"] = json!(["x"]), later("new"));
    assert_eq!(paths(&live, "old"), [".metadata.finalizers"]);
    assert_eq!(paths(&live, "new"), [".metadata.finalizers[=\"x\"]"]);
}

#[test]
fn creation_makes_the_creator_owner_of_what_is_not_go_zero() {
    let mut object = deployment(json!({
        "replicas": 1, "selector": {"matchLabels": {"app": "x"}}, "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
        "template": {"metadata": {"creationTimestamp": null, "labels": {"app": "x"}}, "spec": {"containers": [{"name": "a", "resources": {}}]}},
    }));
    object["status"] = json!({});
    let object = created(object, by("kubectl-create"));
    assert_eq!(
        owned_by(&object, "kubectl-create")["fieldsV1"],
        json!({"f:spec": {
            "f:replicas": {}, "f:selector": {},
            "f:strategy": {"f:rollingUpdate": {".": {}, "f:maxSurge": {}}, "f:type": {}},
            "f:template": {
                "f:metadata": {"f:creationTimestamp": {}, "f:labels": {".": {}, "f:app": {}}},
                "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:name": {}, "f:resources": {}}}},
            },
        }})
    );
}

#[test]
fn an_update_takes_changed_fields_and_drops_owners_left_with_nothing() {
    let live = applied(None, &deployment(json!({"replicas": 1})), by("a"));
    let live = updated(&live, |object| object["spec"]["replicas"] = json!(2), later("b"));
    assert_eq!(owners(&live), ["b Update"]);
    let live = updated(&live, |object| drop(object["spec"].as_object_mut().unwrap().remove("replicas")), later("c"));
    assert_eq!(owners(&live), Vec::<String>::new());
}

#[test]
fn an_update_without_change_keeps_owners_and_times() {
    let live = created(deployment(json!({"replicas": 1})), by("a"));
    assert_eq!(updated(&live, |_| {}, later("b")), live);
    // A client that does not know managedFields does not delete them.
    assert_eq!(updated(&live, |object| drop(take_managed_fields(object)), later("b")), live);
}

#[test]
fn updates_of_one_manager_through_different_subresources_are_different_owners() {
    let live = created(deployment(json!({"replicas": 1})), by("a"));
    let status = Manager { subresource: "status", reset: &["spec", "metadata"], ..later("a") };
    let live = updated(&live, |object| object["status"] = json!({"replicas": 1}), status);
    assert_eq!(owners(&live), ["a Update", "a Update"]);
    assert_eq!(live["metadata"]["managedFields"][1]["subresource"], "status");
    assert_eq!(live["metadata"]["managedFields"][1]["fieldsV1"], json!({"f:status": {".": {}, "f:replicas": {}}}));
}

#[test]
fn owners_are_forgotten_on_request_and_unreadable_ones_ignored() {
    let live = created(deployment(json!({"replicas": 1})), by("a"));
    for reset in [json!([]), json!([{}])] {
        let object = updated(&live, |object| object["metadata"]["managedFields"] = reset, by("b"));
        assert_eq!(owners(&object), Vec::<String>::new());
        // Once forgotten, updates do not start again; the first apply does.
        let object = updated(&object, |object| object["spec"]["replicas"] = json!(2), by("b"));
        assert_eq!(owners(&object), Vec::<String>::new());
        let object = applied(Some(&object), &deployment(json!({"paused": true})), by("me"));
        assert_eq!(owners(&object), ["me Apply", "before-first-apply Update"]);
    }
    let object = updated(&live, |object| object["metadata"]["managedFields"] = json!([{"manager": "x"}]), by("b"));
    assert_eq!(owners(&object), ["a Update"]);
}

#[test]
fn more_than_ten_updaters_are_merged_from_the_oldest() {
    let mut live = created(deployment(json!({"replicas": 0})), by("m0"));
    for number in 1..=12 {
        let name = format!("m{number}");
        let time = format!("2026-01-01T00:01:{number:02}Z");
        let manager = Manager { time: &time, ..by(&name) };
        let set = |object: &mut Value| object["metadata"]["labels"][&name] = json!("x");
        live = updated(&live, set, manager);
    }
    let names = owners(&live);
    assert_eq!(names.len(), 10, "{names:?}");
    assert_eq!(names[0], "ancient-changes Update");
    assert_eq!(
        paths(&live, "ancient-changes"),
        [".metadata.labels", ".metadata.labels.m1", ".metadata.labels.m2", ".metadata.labels.m3", ".spec.replicas"]
    );
    assert_eq!(owned_by(&live, "ancient-changes")["time"], "2026-01-01T00:01:03Z");
}

#[test]
fn server_side_kubectl_takes_over_from_client_side_kubectl() {
    let annotation = "kubectl.kubernetes.io/last-applied-configuration";
    let mut object = deployment(json!({"replicas": 1, "paused": true}));
    let last = deployment(json!({"replicas": 1, "paused": false}));
    object["metadata"]["annotations"] = json!({annotation: last.to_string()});
    let live = created(object, by("kubectl-client-side-apply"));
    let configuration = deployment(json!({"replicas": 2}));
    let object = applied(Some(&live), &configuration, later("kubectl"));
    assert_eq!(object["spec"]["replicas"], 2);
    assert_eq!(object["metadata"]["annotations"][annotation], format!("{configuration}\n"));
    // Somebody changed `paused` since: that conflict stands.
    let conflict = refused(Some(&live), &deployment(json!({"replicas": 2, "paused": false})), later("kubectl"));
    assert_eq!(
        conflict.to_string(),
        "Apply failed with 1 conflict: conflict with \"kubectl-client-side-apply\" using apps/v1: .spec.paused"
    );
}

#[test]
fn owners_of_parts_that_have_become_atomic_own_the_whole() {
    let mut live = created(deployment(json!({"selector": {"matchLabels": {"a": "1"}}})), by("old"));
    let granular = json!({"f:spec": {"f:selector": {"f:matchLabels": {".": {}, "f:a": {}}}}});
    live["metadata"]["managedFields"][0]["fieldsV1"] = granular;
    let conflict = refused(Some(&live), &deployment(json!({"selector": {"matchLabels": {"a": "2"}}})), by("me"));
    assert_eq!(conflict.to_string(), "Apply failed with 1 conflict: conflict with \"old\" using apps/v1: .spec.selector");
}

#[test]
fn the_fields_of_the_built_in_table_are_sorted() {
    for schema in table::all() {
        assert!(schema.fields.is_sorted_by(|left, right| *left.json < *right.json), "{}", &*schema.name);
    }
}

#[test]
fn times_alone_are_no_change() {
    let old = created(deployment(json!({"replicas": 1})), by("a"));
    let mut new = old.clone();
    new["metadata"]["managedFields"][0]["time"] = json!(T2);
    let mut changed = new.clone();
    keep_times(&old, &mut new);
    assert_eq!(new, old);
    changed["spec"]["replicas"] = json!(2);
    let before = changed.clone();
    keep_times(&old, &mut changed);
    assert_eq!(changed, before);
}

#[test]
fn strip_removes_dotted_paths() {
    let mut object = json!({"status": {}, "metadata": {"labels": {}, "name": "x"}});
    strip(&mut object, &["status", "metadata.labels", "spec.nothing", "metadata.name.x"]);
    assert_eq!(object, json!({"metadata": {"name": "x"}}));
}

/// The type of a CRD: a keyed list with defaults, an open struct, a nullable field, a granular map and any JSON.
fn widget() -> Type {
    fn object(name: &str, fields: Vec<Field>) -> Type {
        Type {
            name: Str::Owned(name.into()),
            fields: Slice::Owned(fields.into()),
            atomic: false,
            preserve_unknown: false,
            embedded_resource: false,
            unions: Slice::Static(&[]),
        }
    }
    let text = |name: &str| Field::new(name, Schema::String);
    let kind = Field { default: Some(Str::Static("\"A\"")), ..text("kind") };
    let part = object("part", vec![text("id"), kind, text("note")]);
    let keys = Topology::Map(Slice::Owned(vec![Str::Static("id"), Str::Static("kind")].into()));
    let parts = List { items: Schema::Object(Ref::Owned(part.into())), topology: keys };
    let open = Type { preserve_unknown: true, ..object("open", vec![text("known")]) };
    let numbers = MapSchema { values: Schema::Int64, atomic: false };
    let spec = object(
        "spec",
        vec![
            Field::new("parts", Schema::List(Ref::Owned(parts.into()))),
            Field::new("open", Schema::Object(Ref::Owned(open.into()))),
            Field { nullable: true, ..text("maybe") },
            Field::new("numbers", Schema::Map(Ref::Owned(numbers.into()))),
            Field::new("any", Schema::Any),
        ],
    );
    object("widget", vec![Field::new("spec", Schema::Object(Ref::Owned(spec.into())))])
}

fn widget_of(spec: Value) -> Value {
    json!({"apiVersion": "x.io/v1", "kind": "Widget", "metadata": {"name": "w", "labels": {"a": "b"}}, "spec": spec})
}

fn crd_by(name: &str) -> Manager<'_> {
    Manager { api_version: "x.io/v1", ..by(name) }
}

#[test]
fn custom_resources_follow_their_structural_schema() {
    let schema = widget();
    let configuration = widget_of(json!({
        "parts": [{"id": "1"}, {"id": "1", "kind": "B"}], "open": {"known": "k", "more": {"x": [1], "y": {}}},
        "maybe": null, "numbers": {"n": 1}, "any": {"deep": {"er": 1}},
    }));
    let live = apply(None, &configuration, &crd_by("me"), false, &schema).unwrap();
    assert_eq!(
        paths(&live, "me"),
        [
            ".metadata.labels.a",
            ".spec.maybe",
            ".spec.any.deep",
            ".spec.any.deep.er",
            ".spec.numbers.n",
            ".spec.open.known",
            ".spec.open.more",
            ".spec.open.more.x",
            ".spec.open.more.y",
            ".spec.parts[id=\"1\",kind=\"A\"]",
            ".spec.parts[id=\"1\",kind=\"B\"]",
            ".spec.parts[id=\"1\",kind=\"A\"].id",
            ".spec.parts[id=\"1\",kind=\"B\"].id",
            ".spec.parts[id=\"1\",kind=\"B\"].kind",
        ]
    );
    let less = widget_of(json!({"parts": [{"id": "1", "kind": "A"}], "any": {"deep": {"other": 2}}, "open": {"more": {"y": {}}}}));
    let object = apply(Some(&live), &less, &crd_by("me"), false, &schema).unwrap();
    assert_eq!(object["spec"], json!({"parts": [{"id": "1", "kind": "A"}], "any": {"deep": {"other": 2}}, "open": {"more": {"y": {}}}}));
    let unknown = apply(None, &widget_of(json!({"nope": 1})), &crd_by("me"), false, &schema).unwrap_err();
    assert!(unknown.to_string().ends_with(".spec.nope: field not declared in schema"), "{unknown}");
    let keyless = apply(None, &widget_of(json!({"numbers": {"n": "x"}})), &crd_by("me"), false, &schema).unwrap_err();
    assert!(keyless.to_string().ends_with(".spec.numbers.n: expected numeric (int or float), got string"), "{keyless}");
}

#[test]
fn creating_a_custom_resource_owns_its_spec_as_a_part() {
    let mut object = widget_of(json!({"numbers": {"n": 1}}));
    update(None, &mut object, &crd_by("me"), &widget());
    assert_eq!(
        owned_by(&object, "me")["fieldsV1"],
        json!({"f:metadata": {"f:labels": {".": {}, "f:a": {}}}, "f:spec": {".": {}, "f:numbers": {".": {}, "f:n": {}}}})
    );
}
