use serde_json::{Value, json};

use crate::{Node, check, expressions, values};
use meta::field::Path;

fn node(schema: Value) -> Node {
    Node::read(&schema)
}

fn words(errors: &[meta::field::Error]) -> Vec<String> {
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn values_are_judged_in_go_openapis_words() {
    let schema = node(json!({"type": "object", "properties": {"spec": {"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 4, "pattern": "^[a-z]+$"},
        "n": {"type": "integer", "minimum": 1, "maximum": 5},
        "mode": {"type": "string", "enum": ["A", "B"]},
        "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
        "list": {"type": "array", "maxItems": 2, "items": {"type": "string"}},
        "when": {"type": "string", "format": "date-time"},
        "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}}, "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        "nul": {"type": "string", "nullable": true}
    }}}}));
    let cases = [
        (json!({"name": "ab"}), vec![]),
        (json!({}), vec!["spec.name: Required value"]),
        (json!({"name": 1}), vec!["spec.name: Invalid value: \"integer\": spec.name in body must be of type string: \"integer\""]),
        (json!({"name": "ab", "n": "x"}), vec!["spec.n: Invalid value: \"string\": spec.n in body must be of type integer: \"string\""]),
        (json!({"name": "ab", "n": 9}), vec!["spec.n: Invalid value: 9: spec.n in body should be less than or equal to 5"]),
        (json!({"name": "ab", "n": 0}), vec!["spec.n: Invalid value: 0: spec.n in body should be greater than or equal to 1"]),
        (json!({"name": "ab", "n": 2.0}), vec![]),
        (json!({"name": "a"}), vec!["spec.name: Invalid value: \"a\": spec.name in body should be at least 2 chars long"]),
        (json!({"name": "abcde"}), vec!["spec.name: Too long: may not be more than 4 bytes"]),
        (json!({"name": "AB"}), vec!["spec.name: Invalid value: \"AB\": spec.name in body should match '^[a-z]+$'"]),
        (json!({"name": "ab", "mode": "C"}), vec!["spec.mode: Unsupported value: \"C\": supported values: \"A\", \"B\""]),
        (json!({"name": "ab", "port": "80"}), vec![]),
        (json!({"name": "ab", "port": 80}), vec![]),
        (json!({"name": "ab", "list": ["a", "b", "c"]}), vec!["spec.list: Too many: 3: must have at most 2 items"]),
        (
            json!({"name": "ab", "list": ["a", 1]}),
            vec!["spec.list[1]: Invalid value: \"integer\": spec.list[1] in body must be of type string: \"integer\""],
        ),
        (
            json!({"name": "ab", "when": "no"}),
            vec!["spec.when: Invalid value: \"no\": spec.when in body must be of type date-time: \"no\""],
        ),
        (json!({"name": "ab", "one": {"a": "x"}}), vec![]),
        (
            json!({"name": "ab", "one": {"a": "x", "b": "y"}}),
            vec!["<nil>: Invalid value: \"\": \"spec.one\" must validate one and only one schema (oneOf). Found 2 valid alternatives"],
        ),
        (json!({"name": "ab", "nul": null}), vec![]),
    ];
    for (spec, wanted) in cases {
        let found = words(&values::validate(&schema, &json!({ "spec": spec })));
        assert_eq!(found, wanted, "{spec}");
    }
}

#[test]
fn what_did_not_change_is_not_judged_again() {
    let schema = node(json!({"type": "object", "properties": {
        "a": {"type": "string", "maxLength": 1}, "b": {"type": "string", "maxLength": 1},
        "l": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object",
            "required": ["k"], "properties": {"k": {"type": "string"}, "v": {"type": "integer", "maximum": 1}}}}
    }}));
    let old = json!({"a": "long", "b": "x", "l": [{"k": "one", "v": 9}]});
    let cases = [
        (json!({"a": "long", "b": "y", "l": [{"k": "two", "v": 1}, {"k": "one", "v": 9}]}), vec![]),
        (json!({"a": "longer", "b": "x"}), vec!["a: Too long: may not be more than 1 bytes"]),
        (json!({"l": [{"k": "one", "v": 8}]}), vec!["l[0].v: Invalid value: 8: l[0].v in body should be less than or equal to 1"]),
    ];
    for (new, wanted) in cases {
        assert_eq!(words(&values::validate_update(&schema, &new, &old)), wanted, "{new}");
    }
}

#[test]
fn rules_speak_of_self_and_of_what_was_before() {
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object",
    "x-kubernetes-validations": [
        {"rule": "self.min <= self.max", "message": "min must not exceed max"},
        {"rule": "self.max <= 100", "messageExpression": "'max is ' + string(self.max)", "reason": "FieldValueForbidden", "fieldPath": ".max"}
    ],
    "properties": {
        "min": {"type": "integer"}, "max": {"type": "integer"},
        "fixed": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "fixed is immutable"}]},
        "names": {"type": "array", "maxItems": 5, "items": {"type": "string", "maxLength": 10, "x-kubernetes-validations": [{"rule": "self.startsWith('x')"}]}}
    }}}});
    assert_eq!(words(&check::validate(&schema, &Path::new("s"))), Vec::<String>::new());
    let rules = expressions::compile(&node(schema)).unwrap();
    let cases = [
        (json!({"min": 1, "max": 2}), None, vec![]),
        (json!({"min": 3, "max": 2}), None, vec!["spec: Invalid value: min must not exceed max"]),
        (json!({"min": 3, "max": 200}), None, vec!["spec.max: Forbidden: max is 200"]),
        (json!({"min": 1, "max": 2, "fixed": "a"}), None, vec![]),
        (
            json!({"min": 1, "max": 2, "fixed": "b"}),
            Some(json!({"min": 1, "max": 2, "fixed": "a"})),
            vec!["spec.fixed: Invalid value: \"b\": fixed is immutable"],
        ),
        (json!({"min": 1, "max": 2, "names": ["y"]}), None, vec!["spec.names[0]: Invalid value: \"y\": failed rule: self.startsWith('x')"]),
        (json!({"max": 2}), None, vec!["spec: Invalid value: \"object\": no such key: min evaluating rule: min must not exceed max"]),
        (json!({"min": 3, "max": 2}), Some(json!({"min": 3, "max": 2})), vec![]),
    ];
    for (spec, old, wanted) in cases {
        let old = old.map(|old: Value| json!({ "spec": old }));
        assert_eq!(words(&expressions::validate(&rules, &json!({ "spec": spec }), old.as_ref())), wanted, "{spec}");
    }
}

#[test]
fn schemas_that_are_not_structural_are_refused() {
    let cases = [
        (
            json!({"type": "object", "properties": {"a": {}}}),
            "s.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (json!({"properties": {}}), "s.type: Required value: must not be empty at the root"),
        (json!({"type": "array", "items": {"type": "string"}}), "s.type: Invalid value: \"array\": must be object at the root"),
        (json!({"type": "object", "properties": {"a": {"type": "array"}}}), "s.properties[a].items: Required value: must be specified"),
        (
            json!({"type": "object", "properties": {"a": {"type": "object", "anyOf": [{"properties": {"b": {"minLength": 1}}}]}}}),
            "s.properties[a].properties[b]: Required value: because it is defined in s.properties[a].anyOf[0].properties[b]",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "anyOf": [{"type": "string"}]}}}),
            "s.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}}),
            "s.properties[a].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "string", "default": 1}}}),
            "s.properties[a].default: Invalid value: \"integer\":  in body must be of type string: \"integer\"",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == 'x'"}]}}}),
            "s.properties[a].x-kubernetes-validations[0].rule: Invalid value: {\"rule\":\"self == 'x'\"}: compilation failed: ERROR: <input>:1:6: found no matching overload for '_==_' applied to '(int, string)'\n | self == 'x'\n | .....^",
        ),
        (
            json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "array", "items": {"type": "string",
                "x-kubernetes-validations": [{"rule": "self.contains('x')"}]}}}}}),
            "s.properties[a].items.items.x-kubernetes-validations[0].rule: Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
        ),
    ];
    for (schema, wanted) in cases {
        let found = words(&check::validate(&schema, &Path::new("s")));
        assert!(found.iter().any(|found| found == wanted), "{schema}\n{found:#?}");
    }
}
