//! MutatingAdmissionPolicy: CEL expressions that change a write (KEP-3962).
//!
//! Source: apiserver `pkg/admission/plugin/policy/mutating`.

use meta::status::Status;
use rules::value::name;
use serde_json::{Map, Value, json};

use super::validating_admission_policy::bound;
use crate::expressions::{Evaluator, Inputs};
use crate::matching::{Invocation, is_exempt};
use crate::policy::source::{Binding, Mutation, Policy, Source};
use crate::policy::{namespace, params};
use crate::webhook::call;
use crate::{Attributes, Lookup, Plugin, Verdict};

pub struct MutatingAdmissionPolicy(Source);

impl Default for MutatingAdmissionPolicy {
    fn default() -> Self {
        Self(Source::new("mutating"))
    }
}

impl Plugin for MutatingAdmissionPolicy {
    fn name(&self) -> &'static str {
        "MutatingAdmissionPolicy"
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(async move {
            let policies = self.0.policies(lookup).await?;
            if policies.1.is_empty() || is_exempt(attributes) {
                return Ok(());
            }
            let again = attributes.reinvocation.again;
            attributes.reinvocation.policies.begin(again, attributes.object.as_ref());
            for policy in &policies.1 {
                apply(policy, attributes, lookup).await?;
            }
            attributes.reinvocation.policies.end(attributes.object.as_ref());
            Ok(())
        })
    }
}

/// A policy that cannot be evaluated refuses the write, unless it says otherwise.
fn broken(policy: &Policy, binding: Option<&Binding>, why: &str, attributes: &Attributes) -> Result<(), Status> {
    if policy.ignores_failure {
        return Ok(());
    }
    let with = binding.map(|binding| format!(" with binding '{}'", binding.name)).unwrap_or_default();
    let message = format!("policy '{}'{with} denied request: {why}", policy.name);
    let mut status = attributes.forbidden("admission request denied by policy");
    status.reason = "Invalid".into();
    status.details.get_or_insert_default().causes.push(meta::status::Cause { message: message.clone(), ..Default::default() });
    status.message = message;
    Err(status)
}

async fn apply(policy: &Policy, attributes: &mut Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let invocation = match policy.criteria.matches(attributes, lookup).await {
        Ok(Some(invocation)) => invocation,
        Ok(None) => return Ok(()),
        Err(status) => return broken(policy, None, &format!("failed to configure policy: {}", status.message), attributes),
    };
    for binding in &policy.bindings {
        let configured = |why: String| format!("failed to configure binding: {why}");
        match bound(binding, attributes, lookup).await {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                broken(policy, Some(binding), &configured(why), attributes)?;
                continue;
            }
        }
        let params = match params::collect(policy.params.as_ref(), binding.params.as_ref(), attributes, lookup).await {
            Ok(params) => params,
            Err(why) => {
                broken(policy, Some(binding), &configured(why), attributes)?;
                continue;
            }
        };
        for params in params {
            mutate(policy, binding, &invocation, params.as_deref(), attributes, lookup).await?;
        }
    }
    Ok(())
}

/// One policy with one binding and one set of parameters.
async fn mutate(
    policy: &Policy,
    binding: &Binding,
    invocation: &Invocation,
    params: Option<&Value>,
    attributes: &mut Attributes,
    lookup: &dyn Lookup,
) -> Result<(), Status> {
    let namespace = namespace(attributes, lookup).await?;
    let objects = call::objects(attributes, &invocation.gvk, lookup).await?;
    let mut inputs = Inputs::new(attributes, invocation, objects, namespace.as_deref(), lookup);
    match policy.conditions.hold(&inputs, params, &policy.variables) {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(why) => return broken(policy, Some(binding), &why, attributes),
    }
    let id = format!("{}/{}/{}", policy.name, binding.name, params.map(name).unwrap_or_default());
    if attributes.reinvocation.again && !attributes.reinvocation.policies.is_due(&id) {
        return Ok(());
    }
    let before = attributes.object.clone();
    for mutation in &policy.mutations {
        let changed = match patched(policy, mutation, &inputs, params, invocation, lookup).await {
            Ok(changed) => changed,
            Err(why) => {
                broken(policy, Some(binding), &why, attributes)?;
                continue;
            }
        };
        let Some(changed) = changed else { continue };
        let restored = call::restored(attributes, changed, &invocation.gvk, lookup).await?;
        attributes.object = Some(restored);
        inputs.set_object(call::objects(attributes, &invocation.gvk, lookup).await?.new);
    }
    if before != attributes.object {
        attributes.reinvocation.policies.require();
        attributes.reinvocation.needed = true;
    }
    if policy.reinvoked {
        attributes.reinvocation.policies.remember(&id);
    }
    Ok(())
}

/// The object with one mutation; `None` where it changes nothing.
async fn patched(
    policy: &Policy,
    mutation: &Mutation,
    inputs: &Inputs,
    params: Option<&Value>,
    invocation: &Invocation,
    lookup: &dyn Lookup,
) -> Result<Option<Value>, String> {
    let Some(object) = inputs.object() else { return Ok(None) };
    match mutation {
        Mutation::JsonPatch(compiled) => {
            let patch = evaluated(policy, compiled, inputs, params)?;
            let operations: Vec<Value> = patch.as_array().into_iter().flatten().map(operation).collect();
            let mut object = object.clone();
            match schema::merge::json_patch(&mut object, Value::from(operations).to_string().as_bytes()) {
                Ok(()) => Ok(Some(object)),
                // A test that fails says that there is nothing to do.
                Err(error) if error.to_string().contains("test") => Ok(None),
                Err(error) => Err(format!("JSON Patch: {error}")),
            }
        }
        Mutation::Apply(compiled) => {
            let mut wanted = evaluated(policy, compiled, inputs, params)?;
            for field in ["apiVersion", "kind"] {
                wanted[field] = object[field].clone();
            }
            let merged = lookup.merge(object.clone(), wanted, &invocation.gvk).await;
            merged.map(Some).map_err(|status| format!("error applying patch: {}", status.message))
        }
    }
}

fn evaluated(policy: &Policy, compiled: &crate::expressions::Compiled, inputs: &Inputs, params: Option<&Value>) -> Result<Value, String> {
    let programs = compiled.program.as_deref().into_iter();
    let mut evaluator = Evaluator::new(inputs, params, &policy.variables, programs, cel::REQUEST_BUDGET);
    let value = evaluator.run(compiled)?;
    check_names(&value)?;
    value.to_json().ok_or_else(|| format!("unsupported return type of expression '{}'", compiled.source))
}

/// `Object.spec{…}` belongs into the field `spec` of an `Object`.
fn check_names(value: &cel::Value<'_>) -> Result<(), String> {
    match value {
        cel::Value::Struct(made) if made.0 != "JSONPatch" => {
            made.1.iter().try_for_each(|(field, value)| check_below(&format!("{}.{field}", made.0), value))
        }
        cel::Value::Struct(made) => made.1.iter().try_for_each(|(_, value)| check_names(value)),
        cel::Value::List(list) => list.iter().try_for_each(|item| check_names(&item)),
        _ => Ok(()),
    }
}

fn check_below(path: &str, value: &cel::Value<'_>) -> Result<(), String> {
    match value {
        cel::Value::Struct(made) if made.0 != path => {
            let why = format!("unexpected type name {:?}, expected {path:?}, which matches field name path from root Object type", made.0);
            Err(format!("type mismatch: {why}"))
        }
        cel::Value::Struct(_) => check_names(value),
        cel::Value::List(list) => list.iter().try_for_each(|item| check_below(path, &item)),
        _ => Ok(()),
    }
}

/// A `JSONPatch{…}` as RFC 6902 has it.
fn operation(made: &Value) -> Value {
    let mut operation = Map::new();
    for field in ["op", "path", "from", "value"] {
        match made.get(field) {
            Some(value) if field != "from" || *value != json!("") => drop(operation.insert(field.into(), value.clone())),
            _ => {}
        }
    }
    Value::Object(operation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, run, write};

    async fn mutated(mutations: Value, more: Value) -> Result<Value, String> {
        let rule = json!({"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]});
        let mut spec = json!({"matchConstraints": {"resourceRules": [rule]}, "mutations": mutations});
        spec.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        let objects = Objects::default()
            .with("namespaces", json!({"metadata": {"name": "a"}}))
            .with("mutatingadmissionpolicies", json!({"metadata": {"name": "p"}, "spec": spec}))
            .with("mutatingadmissionpolicybindings", json!({"metadata": {"name": "b"}, "spec": {"policyName": "p"}}));
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "namespace": "a", "labels": {"app": "web"}}});
        let mut attributes = write(Operation::Create, "pods", "Pod", object);
        run(MutatingAdmissionPolicy::default(), objects, &mut attributes).await?;
        Ok(attributes.object.unwrap_or_default()["metadata"]["labels"].clone())
    }

    fn json_patch(expression: &str) -> Value {
        json!({"patchType": "JSONPatch", "jsonPatch": {"expression": expression}})
    }

    #[tokio::test]
    async fn mutations_run_in_order_each_on_the_outcome_of_the_last() {
        let add = json_patch("[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('a/b'), value: object.metadata.name}]");
        let copy = json_patch("[JSONPatch{op: 'add', path: '/metadata/labels/c', value: object.metadata.labels['a/b'] + '!'}]");
        let apply = json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.metadata{labels: {'d': 'e'}}}"}});
        let found = mutated(json!([add, copy, apply]), json!({})).await;
        assert_eq!(found, Ok(json!({"app": "web", "a/b": "x", "c": "x!", "d": "e"})));
        let guarded = json_patch(
            "[JSONPatch{op: 'test', path: '/metadata/labels/app', value: 'db'}, JSONPatch{op: 'remove', path: '/metadata/labels'}]",
        );
        assert_eq!(mutated(json!([guarded]), json!({})).await, Ok(json!({"app": "web"})));
    }

    #[tokio::test]
    async fn what_cannot_be_applied_refuses_the_write_unless_the_policy_ignores_it() {
        let cases = [
            ("[JSONPatch{op: 'remove', path: '/metadata/none'}]", "policy 'p' with binding 'b' denied request: JSON Patch: "),
            ("[JSONPatch{op: 'add', path: '/a', value: object.none}]", "policy 'p' with binding 'b' denied request: expression "),
        ];
        for (expression, head) in cases {
            let refused = mutated(json!([json_patch(expression)]), json!({})).await.expect_err("refused");
            assert!(refused.starts_with(head), "{refused}");
            assert!(mutated(json!([json_patch(expression)]), json!({"failurePolicy": "Ignore"})).await.is_ok());
        }
        let apply = json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{metadata: Object.spec{x: 1}}"}});
        let refused = mutated(json!([apply]), json!({})).await.expect_err("refused");
        assert!(refused.contains("type mismatch: unexpected type name \"Object.spec\", expected \"Object.metadata\""), "{refused}");
    }
}
