//! scheduling.k8s.io/v1beta1 Workload: the templates from which groups of pods are made.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, fixed, formed, required_formed, union_of};
use crate::devices::each_once;
use crate::groups::{self, Members};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME};
use crate::value::{at, has, int, list, text};

const TEMPLATES_MAX: usize = 8;
/// Of templates in templates.
const DEPTH_MAX: usize = 4;
const PODS: &str = "podGroupTemplates";
const GROUPS: &str = "compositePodGroupTemplates";

pub const WORKLOAD: Plain = Plain {
    validate: |object| validate(at(object, "spec"), &Path::new("spec")),
    validate_update: |new, old, _| update(at(new, "spec"), at(old, "spec"), &Path::new("spec")),
    ..Plain::new(("scheduling.k8s.io", "v1beta1", "Workload"), &[NAME, AGE], |object, now| vec![printing::age(object, now)])
};

fn validate(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if has(spec, "controllerRef") {
        let (controller, path) = (at(spec, "controllerRef"), path.child("controllerRef"));
        errors.extend(formed(controller, &path, "apiGroup", names::dns1123_subdomain));
        errors.extend(required_formed(controller, &path, "kind", names::path_segment));
        errors.extend(required_formed(controller, &path, "name", names::path_segment));
    }
    // An empty list is none: upstream's union asks for a member that holds something.
    let filled = |field: &&str| !list(spec, field).is_empty();
    let mut given = Value::Object(Default::default());
    for field in [PODS, GROUPS].iter().filter(|field| filled(field)) {
        given[*field] = true.into();
    }
    errors.extend(union_of(&given, path, &[PODS, GROUPS]));
    errors.extend(templates(spec, path, 1));
    let own = list(spec, PODS).iter().map(|template| text(template, "name")).collect();
    errors.extend(names_once(list(spec, GROUPS), &path.child(GROUPS), &mut { own }));
    let mut priorities = Vec::new();
    collect_priorities(spec, &mut priorities);
    if priorities.iter().any(|priority| *priority != priorities[0]) {
        let sentence = "all priority and priorityClassName values must be identical, detected multiple values";
        errors.push(Error::invalid(path, Value::Null, sentence));
    }
    errors
}

/// The templates directly in `holder`, and those in them.
fn templates(holder: &Value, path: &Path, depth: usize) -> Errors {
    let named = |template: &Value, path: &Path| required_formed(template, path, "name", names::dns1123_label);
    let mut errors = each_once(holder, path, PODS, TEMPLATES_MAX, "name", |template, path| {
        let mut errors = named(template, path);
        errors.extend(groups::validate(template, path, Members::Pods));
        errors
    });
    errors.extend(each_once(holder, path, GROUPS, TEMPLATES_MAX, "name", |template, path| {
        if depth == DEPTH_MAX {
            let sentence = format!("maximum template hierarchy depth is {DEPTH_MAX}");
            return vec![Error::invalid_unprinted(path, sentence)];
        }
        let mut errors = named(template, path);
        errors.extend(groups::validate(template, path, Members::Groups));
        if list(template, PODS).is_empty() && list(template, GROUPS).is_empty() {
            let sentence = "must have at least one child PodGroupTemplate or CompositePodGroupTemplate";
            errors.push(Error::invalid(path, text(template, "name"), sentence));
        }
        errors.extend(templates(template, path, depth + 1));
        errors
    }));
    errors
}

/// No name may stand in two lists; twice in one is found there.
fn names_once<'a>(composites: &'a [Value], path: &Path, seen: &mut BTreeSet<&'a str>) -> Errors {
    let mut errors = one_list(composites, path, seen);
    for (index, composite) in composites.iter().enumerate() {
        let here = path.index(index);
        errors.extend(one_list(list(composite, PODS), &here.child(PODS), seen));
        errors.extend(names_once(list(composite, GROUPS), &here.child(GROUPS), seen));
    }
    errors
}

fn one_list<'a>(items: &'a [Value], path: &Path, seen: &mut BTreeSet<&'a str>) -> Errors {
    let names = || items.iter().map(|item| text(item, "name"));
    let twice = names().enumerate().filter(|(_, name)| seen.contains(name));
    let errors = twice.map(|(index, name)| Error::duplicate(&path.index(index).child("name"), name)).collect();
    seen.extend(names());
    errors
}

fn collect_priorities<'a>(holder: &'a Value, all: &mut Vec<(&'a str, Option<i64>)>) {
    let of = |template: &'a Value| (text(template, "priorityClassName"), int(template, "priority"));
    all.extend(list(holder, PODS).iter().map(of));
    for composite in list(holder, GROUPS) {
        all.push(of(composite));
        collect_priorities(composite, all);
    }
}

fn update(new: &Value, old: &Value, path: &Path) -> Errors {
    let mut errors = fixed(&path.child("controllerRef"), at(new, "controllerRef"), at(old, "controllerRef"));
    errors.extend(update_templates(new, old, path));
    errors
}

/// The same templates as before, by name, each with what may not change in it.
fn update_templates(new: &Value, old: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (field, members) in [(PODS, Members::Pods), (GROUPS, Members::Groups)] {
        let (after, before, path) = (list(new, field), list(old, field), path.child(field));
        let find = |items: &'_ [Value], name: &str| items.iter().position(|item| text(item, "name") == name);
        for (index, template) in after.iter().enumerate() {
            let here = path.index(index);
            match find(before, text(template, "name")) {
                None => errors.push(Error::forbidden(&here, "item may not be added")),
                Some(at) => {
                    errors.extend(groups::validate_update(template, &before[at], &here, members));
                    errors.extend(update_templates(template, &before[at], &here));
                }
            }
        }
        let removed = before.iter().filter(|template| find(after, text(template, "name")).is_none());
        errors.extend(removed.map(|_| Error::forbidden(&path, "item may not be removed")));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Part, Rules};
    use serde_json::json;

    fn lines(errors: Errors) -> Vec<String> {
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn templates_are_named_once_and_of_one_priority() {
        let basic = json!({"basic": {}});
        let pods = json!({"name": "a", "schedulingPolicy": basic});
        let nested = json!({"name": "g", "schedulingPolicy": basic, "podGroupTemplates": [pods]});
        for (spec, expected) in [
            (json!({"podGroupTemplates": [pods]}), vec![]),
            (json!({"compositePodGroupTemplates": [nested]}), vec![]),
            (json!({}), vec!["spec: Invalid value: \"\": must specify one of: `podGroupTemplates`, `compositePodGroupTemplates`"]),
            (json!({"podGroupTemplates": [pods, pods]}), vec!["spec.podGroupTemplates[1]: Duplicate value: \"a\""]),
            (
                json!({"compositePodGroupTemplates": [nested, {"name": "h", "schedulingPolicy": basic, "podGroupTemplates": [pods]}]}),
                vec!["spec.compositePodGroupTemplates[1].podGroupTemplates[0].name: Duplicate value: \"a\""],
            ),
            (
                json!({"compositePodGroupTemplates": [{"name": "h", "schedulingPolicy": basic}]}),
                vec![
                    "spec.compositePodGroupTemplates[0]: Invalid value: \"h\": must have at least one child PodGroupTemplate or CompositePodGroupTemplate",
                ],
            ),
            (
                json!({"podGroupTemplates": [pods, {"name": "b", "schedulingPolicy": basic, "priority": 7}]}),
                vec!["spec: Invalid value: null: all priority and priorityClassName values must be identical, detected multiple values"],
            ),
            (
                json!({"podGroupTemplates": [pods], "controllerRef": {"apiGroup": "batch", "name": "a/b"}}),
                vec!["spec.controllerRef.kind: Required value", "spec.controllerRef.name: Invalid value: \"a/b\": may not contain '/'"],
            ),
        ] {
            assert_eq!(lines(WORKLOAD.validate(&json!({"spec": spec}))), expected, "{spec}");
        }
    }

    #[test]
    fn templates_stay() {
        let one = |name: &str, minimum: i64| json!({"spec": {"podGroupTemplates": [{"name": name, "schedulingPolicy": {"gang": {"minCount": minimum}}}]}});
        let update = |new: &Value| lines(WORKLOAD.validate_update(new, &one("a", 1), Part::Main));
        assert_eq!(update(&one("a", 2)), Vec::<String>::new());
        let renamed =
            ["spec.podGroupTemplates[0]: Forbidden: item may not be added", "spec.podGroupTemplates: Forbidden: item may not be removed"];
        assert_eq!(update(&one("b", 1)), renamed);
    }
}
