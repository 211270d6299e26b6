use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::*;
use super::{T2, by, created, deployment_type};

/// JSON with the names of a Deployment, often of the right shape.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-1i64..3).prop_map(Value::from),
        Just(json!(1.5)),
        prop_oneof![Just("a"), Just("b"), Just("TCP")].prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("spec"),
        Just("template"),
        Just("containers"),
        Just("name"),
        Just("ports"),
        Just("containerPort"),
        Just("protocol"),
        Just("metadata"),
        Just("labels"),
        Just("finalizers"),
        Just("selector"),
        Just("managedFields"),
        Just("status"),
        Just("x"),
    ];
    leaf.prop_recursive(6, 48, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone().prop_map(str::to_owned), inner, 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn optional(fields: Vec<(&'static str, BoxedStrategy<Value>)>) -> BoxedStrategy<Value> {
    let fields: Vec<_> =
        fields.into_iter().map(|(name, value)| prop::option::weighted(0.6, value).prop_map(move |value| (name, value))).collect();
    fields
        .prop_map(|fields| fields.into_iter().filter_map(|(name, value)| value.map(|value| (name.to_owned(), value))).collect::<Value>())
        .boxed()
}

fn text() -> BoxedStrategy<Value> {
    prop_oneof![Just(json!("1")), Just(json!("2"))].boxed()
}

fn keyed(key: &'static str, names: &'static [&'static str], item: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    let names = prop::sample::subsequence(names, 0..=names.len()).prop_shuffle();
    (names, prop::collection::vec(item, 4))
        .prop_map(move |(names, mut items)| {
            for (item, name) in items.iter_mut().zip(&names) {
                item[key] = json!(name);
            }
            items.truncate(names.len());
            Value::from(items)
        })
        .boxed()
}

/// A configuration that fits the schema.
fn configuration() -> impl Strategy<Value = Value> {
    let labels = optional(vec![("a", text()), ("b", text())]);
    let env = keyed("name", &["E", "F", "G"], optional(vec![("value", text())]));
    let container = optional(vec![("image", text()), ("env", env), ("args", Just(json!(["x"])).boxed())]);
    let containers = keyed("name", &["c", "d", "e"], container);
    let finalizers =
        prop::sample::subsequence(vec![json!("f"), json!("g"), json!("h")], 0..=3).prop_shuffle().prop_map(Value::from).boxed();
    let template = optional(vec![("spec", optional(vec![("containers", containers), ("nodeName", text())]))]);
    let replicas = prop_oneof![Just(json!(1)), Just(json!(2))].boxed();
    let selector = optional(vec![("matchLabels", labels.clone())]);
    let spec = optional(vec![("template", template), ("replicas", replicas), ("selector", selector)]);
    let metadata = optional(vec![("labels", labels), ("finalizers", finalizers)]);
    (spec, metadata).prop_map(|(spec, mut metadata)| {
        metadata["name"] = json!("web");
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec})
    })
}

fn set_of(value: &Value) -> Set<'_> {
    fields::of(value, Node::root(deployment_type()))
}

/// Without nulls and emptied containers, as a decoder of Go structs sees it.
fn essence(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().map(|(name, value)| (name.clone(), essence(value)));
            let kept: Map<String, Value> = kept.filter(|(_, value)| !value.is_null()).collect();
            if kept.is_empty() { Value::Null } else { Value::Object(kept) }
        }
        Value::Array(items) if items.is_empty() => Value::Null,
        Value::Array(items) => items.iter().map(essence).collect(),
        scalar => scalar.clone(),
    }
}

proptest! {
    #[test]
    fn applying_twice_is_applying_once(live in configuration(), mine in configuration()) {
        let live = created(live, by("old"));
        let once = apply(Some(&live), &mine, &by("me"), true, deployment_type()).unwrap();
        let twice = apply(Some(&once), &mine, &Manager { time: T2, ..by("me") }, false, deployment_type()).unwrap();
        prop_assert_eq!(once, twice);
    }

    #[test]
    fn what_is_applied_is_there(live in configuration(), mine in configuration()) {
        let live = created(live, by("old"));
        let object = apply(Some(&live), &mine, &by("me"), true, deployment_type()).unwrap();
        let mut missing = Vec::new();
        set_of(&mine).difference(&set_of(&object)).for_each_path(&mut |path| missing.push(path_text(path)));
        // An empty list or map that is applied over a filled one takes nothing away.
        missing.retain(|path| !path.ends_with("labels") && !path.ends_with("matchLabels") && !path.ends_with(".spec") && !path.ends_with(".template"));
        prop_assert!(missing.is_empty(), "{:?}", missing);
    }

    #[test]
    fn a_sole_applier_gets_exactly_its_last_configuration(first in configuration(), second in configuration()) {
        let live = apply(None, &first, &by("me"), false, deployment_type()).unwrap();
        let mut object = apply(Some(&live), &second, &by("me"), false, deployment_type()).unwrap();
        strip(&mut object, &["metadata.managedFields"]);
        let (mut left, mut right) = (essence(&object), essence(&second));
        sort_lists(&mut left);
        sort_lists(&mut right);
        prop_assert_eq!(left, right);
    }

    #[test]
    fn sets_are_algebra_and_survive_fields_v1(left in configuration(), right in configuration()) {
        let (a, b) = (set_of(&left), set_of(&right));
        let encoded = encode(&a);
        prop_assert_eq!(&decode(&encoded).unwrap_or_default(), &a);
        let (common, only_a, only_b) = (a.intersection(&b), a.clone().difference(&b), b.clone().difference(&a));
        prop_assert_eq!(common.clone().union(only_a.clone()), a.clone());
        prop_assert_eq!(common.union(only_b).union(only_a), a.union(b));
    }

    #[test]
    fn no_input_panics(live in any_json(), applied in any_json(), mut new in any_json(), spec in any_json(), entries in any_json()) {
        let mut with = json!({"apiVersion": "apps/v1", "metadata": {"managedFields": entries, "uid": "u"}, "spec": spec});
        let configuration = json!({"apiVersion": "apps/v1", "spec": applied.clone()});
        for live in [None, Some(&live), Some(&with)] {
            let _ = apply(live, &applied, &by("me"), true, deployment_type());
            let _ = apply(live, &configuration, &by("kubectl"), false, deployment_type());
            update(live, &mut new, &by("me"), deployment_type());
        }
        update(Some(&live), &mut with, &by("me"), deployment_type());
        keep_times(&live, &mut with);
    }

    #[test]
    fn no_fields_v1_panics(key in "([fkvix.]:?.{0,8}|k:\\{.{0,12}\\})", value in any_json()) {
        let _ = decode(&json!({key: value}));
    }
}

fn sort_lists(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.values_mut().for_each(sort_lists),
        Value::Array(items) => {
            items.iter_mut().for_each(sort_lists);
            items.sort_by(element::compare);
        }
        _ => {}
    }
}
