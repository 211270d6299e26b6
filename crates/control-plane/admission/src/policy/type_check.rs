//! What the expressions of a ValidatingAdmissionPolicy have against the types that they will meet: warnings for its status. They never
//! change what the policy does.
//!
//! Source: apiserver `pkg/admission/plugin/policy/validating/typechecking.go`.

use std::collections::BTreeSet;

use cel::Type;
use meta::gvk::{GroupVersion, GroupVersionKind, GroupVersionResource};
use rules::value::{at, has, list, text};
use serde_json::{Value, json};

use crate::Lookup;
use crate::expressions::{self, Scope, Variables, anything};

/// Types that one rule is checked against at most.
const TYPES_MAX: usize = 10;

/// The `expressionWarnings` of a policy's status.
pub fn warnings(policy: &Value, lookup: &dyn Lookup) -> Vec<Value> {
    let params = has(policy, "spec.paramKind").then(|| params(policy, lookup));
    let types: Vec<_> = kinds(policy, lookup).into_iter().filter_map(|gvk| Some((lookup.type_of(&gvk)?, gvk))).collect();
    let mut warnings = Vec::new();
    for (index, validation) in list(policy, "spec.validations").iter().enumerate() {
        for field in ["expression", "messageExpression"] {
            let source = text(validation, field);
            let said: Vec<String> = types.iter().filter_map(|(ty, gvk)| check(policy, source, gvk, ty, params.as_ref())).collect();
            if !source.is_empty() && !said.is_empty() {
                warnings.push(json!({"fieldRef": format!("spec.validations[{index}].{field}"), "warning": said.join("\n")}));
            }
        }
    }
    warnings
}

/// What one expression has against one type.
fn check(policy: &Value, source: &str, gvk: &GroupVersionKind, object: &Type, params: Option<&Type>) -> Option<String> {
    let scope = Scope { params: params.is_some(), authorizer: true, patches: false, namespace: true };
    let env = expressions::typed_env(scope, object.clone(), params.cloned().unwrap_or(Type::Dyn));
    let (_, env) = Variables::compile(list(policy, "spec.variables"), env);
    let why = expressions::compile(&env, source, anything).program.err()?;
    // As Go prints the structure and its error.
    let why = why.strip_prefix("compilation failed: ").unwrap_or(&why);
    Some(format!("{}, Kind={}: {why}\n", gvk.group_version(), gvk.kind))
}

fn params(policy: &Value, lookup: &dyn Lookup) -> Type {
    let kind = at(policy, "spec.paramKind");
    let version = GroupVersion::parse(text(kind, "apiVersion"));
    let gvk = version.map(|version| GroupVersionKind::new(&version.group, &version.version, text(kind, "kind")));
    gvk.and_then(|gvk| lookup.type_of(&gvk)).unwrap_or(Type::Dyn)
}

/// The kinds that the policy's rules name without wildcards, in order.
fn kinds(policy: &Value, lookup: &dyn Lookup) -> Vec<GroupVersionKind> {
    let mut found = BTreeSet::new();
    for rule in list(policy, "spec.matchConstraints.resourceRules") {
        let words = |field: &str| -> Vec<String> {
            let mut words: Vec<String> = list(rule, field).iter().filter_map(|word| word.as_str().map(str::to_owned)).collect();
            words.sort();
            words
        };
        let (groups, versions, resources) = (words("apiGroups"), words("apiVersions"), words("resources"));
        if groups.iter().chain(&versions).any(|word| word.contains('*')) {
            continue;
        }
        let plain = || resources.iter().filter(|resource| !resource.contains(['*', '/']));
        let all = groups.iter().flat_map(|group| versions.iter().map(move |version| (group, version)));
        let all = all.flat_map(|(group, version)| plain().map(move |resource| GroupVersionResource::new(group, version, resource)));
        let kinds = all.filter_map(|gvr| lookup.equivalents(&gvr, "").into_iter().find(|(other, _)| *other == gvr).map(|(_, gvk)| gvk));
        found.extend(kinds.take(TYPES_MAX).map(|gvk| (gvk.group, gvk.version, gvk.kind)));
    }
    found.into_iter().map(|(group, version, kind)| GroupVersionKind::new(&group, &version, &kind)).collect()
}
