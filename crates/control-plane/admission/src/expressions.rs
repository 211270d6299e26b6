//! CEL expressions about a write: what they may refer to, and their evaluation under the request's budget.
//!
//! Source: apiserver `pkg/admission/plugin/cel`.

use std::sync::Arc;

use cel::library::authorizer::{self, Authorizer, Question};
use cel::{Activation, Budget, CompileError, Env, EvalError, Field, ObjectType, Program, StructTypes, Type, Value};
use serde_json::Value as Json;

use crate::matching::Invocation;
use crate::policy::types;
use crate::webhook::review::{self, Objects};
use crate::{Attributes, Lookup};

/// Which variables there are beside `object`, `oldObject`, `request` and `namespaceObject`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope {
    pub params: bool,
    pub authorizer: bool,
    /// `Object{…}` and `JSONPatch{…}` may be made.
    pub patches: bool,
    pub namespace: bool,
}

const REQUEST_RESOURCE: &str = "authorizer.requestResource";

pub fn env(scope: Scope) -> Env {
    typed_env(scope, Type::Dyn, Type::Dyn)
}

/// The same where the types of the objects and of the parameters are known.
pub fn typed_env(scope: Scope, object: Type, params: Type) -> Env {
    let mut env = Env::new().with("object", object.clone()).with("oldObject", object).with("request", types::request().clone());
    if scope.namespace {
        env = env.with("namespaceObject", types::namespace().clone());
    }
    if scope.params {
        env = env.with("params", params);
    }
    if scope.authorizer {
        env = env.with("authorizer", authorizer::TYPE).with(REQUEST_RESOURCE, authorizer::RESOURCE_TYPE);
    }
    if scope.patches {
        env = env.with_structs(Arc::new(Patches));
    }
    env
}

/// An expression that compiled, or why it did not.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub source: String,
    pub program: Result<Arc<Program>, String>,
}

/// What an expression must come to.
pub type Wanted = fn(&Type) -> Result<(), &'static str>;

pub fn boolean(found: &Type) -> Result<(), &'static str> {
    if matches!(found, Type::Bool | Type::Dyn) { Ok(()) } else { Err("must evaluate to bool") }
}
pub fn string(found: &Type) -> Result<(), &'static str> {
    if matches!(found, Type::String | Type::Dyn) { Ok(()) } else { Err("must evaluate to string") }
}
pub fn string_or_null(found: &Type) -> Result<(), &'static str> {
    if matches!(found, Type::String | Type::Null | Type::Dyn) { Ok(()) } else { Err("must evaluate to one of: [string null_type]") }
}
pub fn anything(_: &Type) -> Result<(), &'static str> {
    Ok(())
}
pub fn apply_configuration(found: &Type) -> Result<(), &'static str> {
    match found {
        Type::Dyn => Ok(()),
        Type::Object(object) if object.name() == "Object" => Ok(()),
        _ => Err("must evaluate to Object"),
    }
}
pub fn json_patch(found: &Type) -> Result<(), &'static str> {
    match found {
        Type::Dyn | Type::List(_) => Ok(()),
        _ => Err("must evaluate to list(JSONPatch)"),
    }
}

pub fn compile(env: &Env, source: &str, wanted: Wanted) -> Compiled {
    let source = source.trim().to_owned();
    let failed = |error: CompileError| format!("compilation failed: {error}");
    let program = env.compile(&source).map_err(failed).and_then(|program| match wanted(program.result_type()) {
        Ok(()) => Ok(Arc::new(program)),
        Err(why) => Err(why.to_owned()),
    });
    Compiled { source, program }
}

/// `Object`, `Object.spec.template` and `JSONPatch`, whose fields are checked when they are applied.
struct Patches;

impl StructTypes for Patches {
    fn find(&self, name: &str) -> Option<Arc<dyn ObjectType>> {
        let known = name == "Object" || name.starts_with("Object.") || name == "JSONPatch";
        known.then(|| Arc::new(Patch(name.to_owned())) as Arc<dyn ObjectType>)
    }
}

#[derive(Debug)]
struct Patch(String);

impl ObjectType for Patch {
    fn name(&self) -> &str {
        &self.0
    }
    fn field(&self, name: &str) -> Option<Field> {
        let ty = match (self.0.as_str(), name) {
            ("JSONPatch", "op" | "path" | "from") => Type::String,
            ("JSONPatch", "value") => Type::Dyn,
            ("JSONPatch", _) => return None,
            _ => Type::Dyn,
        };
        Some(Field { json: name.to_owned(), ty })
    }
    fn json_names(&self) -> Vec<String> {
        Vec::new()
    }
}

/// `variables`: each may use those before it.
#[derive(Clone, Debug, Default)]
pub struct Variables {
    all: Vec<(String, Compiled)>,
}

#[derive(Debug)]
struct VariablesType(Vec<(String, Type)>);

impl ObjectType for VariablesType {
    fn name(&self) -> &str {
        "kubernetes.variables"
    }
    fn field(&self, name: &str) -> Option<Field> {
        let (_, ty) = self.0.iter().find(|(known, _)| known == name)?;
        Some(Field { json: name.to_owned(), ty: ty.clone() })
    }
    fn json_names(&self) -> Vec<String> {
        self.0.iter().map(|(name, _)| name.clone()).collect()
    }
}

impl Variables {
    /// The variables, and the environment in which they are known.
    pub fn compile(variables: &[Json], env: Env) -> (Self, Env) {
        let (mut all, mut types): (Vec<(String, Compiled)>, Vec<(String, Type)>) = Default::default();
        let with = |types: &[(String, Type)]| env.clone().with("variables", Type::Object(Arc::new(VariablesType(types.to_vec()))));
        for variable in variables {
            let name = rules::value::text(variable, "name").to_owned();
            let compiled = compile(&with(&types), rules::value::text(variable, "expression"), anything);
            types.push((name.clone(), compiled.program.as_ref().map_or(Type::Dyn, |program| program.result_type().clone())));
            all.push((name, compiled));
        }
        (Self { all }, with(&types))
    }

    pub fn all(&self) -> &[(String, Compiled)] {
        &self.all
    }

    /// Those that the programs use, directly or through others.
    fn used<'p>(&self, programs: impl Iterator<Item = &'p Program>) -> Vec<bool> {
        let mut used = vec![false; self.all.len()];
        let mark = |program: &Program, used: &mut Vec<bool>| {
            for name in program.fields_of("variables") {
                if let Some(at) = self.all.iter().position(|(known, _)| *known == name) {
                    used[at] = true;
                }
            }
        };
        programs.for_each(|program| mark(program, &mut used));
        // A variable only uses earlier ones.
        for at in (0..self.all.len()).rev() {
            if used[at]
                && let Ok(program) = &self.all[at].1.program
            {
                mark(program, &mut used);
            }
        }
        used
    }
}

/// The values that expressions see.
pub struct Inputs {
    objects: Objects,
    request: Json,
    namespace: Json,
    authorizer: Arc<dyn Authorizer>,
    resource: Question,
}

static NULL: Json = Json::Null;

impl Inputs {
    pub fn new(attributes: &Attributes, invocation: &Invocation, objects: Objects, namespace: Option<&Json>, lookup: &dyn Lookup) -> Self {
        let resource = Question {
            group: attributes.gvr.group.clone(),
            resource: attributes.gvr.resource.clone(),
            subresource: attributes.subresource.clone(),
            namespace: attributes.namespace.clone(),
            name: attributes.name.clone(),
            ..Question::default()
        };
        Self {
            objects,
            request: review::request(attributes, invocation),
            namespace: namespace.cloned().unwrap_or(Json::Null),
            authorizer: lookup.authorizer(&attributes.user),
            resource,
        }
    }

    /// The object as mutations made it.
    pub fn set_object(&mut self, object: Option<Json>) {
        self.objects.new = object;
    }
    pub fn object(&self) -> Option<&Json> {
        self.objects.new.as_ref()
    }
}

/// One evaluation after the other, on one budget.
pub struct Evaluator<'a> {
    activation: Activation<'a>,
    /// Why a variable has no value.
    failed: Vec<(String, String)>,
    budget: Budget<'a>,
}

impl<'a> Evaluator<'a> {
    /// `programs` are those that will be evaluated: only the variables that they use are.
    pub fn new(
        inputs: &'a Inputs,
        params: Option<&'a Json>,
        variables: &'a Variables,
        programs: impl Iterator<Item = &'a Program>,
        budget: u64,
    ) -> Self {
        let json = |json: &'a Option<Json>| Value::json(json.as_ref().unwrap_or(&NULL), &Type::Dyn);
        let activation = Activation::new()
            .with("object", json(&inputs.objects.new))
            .with("oldObject", json(&inputs.objects.old))
            .with("request", Value::json(&inputs.request, types::request()))
            .with("namespaceObject", Value::json(&inputs.namespace, types::namespace()))
            .with("params", Value::json(params.unwrap_or(&NULL), &Type::Dyn))
            .with("authorizer", authorizer::authorizer(inputs.authorizer.clone()))
            .with(REQUEST_RESOURCE, authorizer::request_resource(inputs.authorizer.clone(), inputs.resource.clone()));
        let mut made = Self { activation, failed: Vec::new(), budget: Budget::new(budget) };
        made.evaluate_variables(variables, &variables.used(programs));
        made
    }

    fn evaluate_variables(&mut self, variables: &'a Variables, used: &[bool]) {
        let mut values: Vec<(Value<'a>, Value<'a>)> = Vec::new();
        for ((name, compiled), _) in variables.all.iter().zip(used).filter(|(_, used)| **used) {
            let outcome = match &compiled.program {
                Ok(program) => self.evaluate(program).map_err(|error| error.to_string()),
                Err(why) => Err(why.clone()),
            };
            match outcome {
                Ok(value) => values.push((Value::string(name.as_str()), value)),
                Err(why) => self.failed.push((name.clone(), format!("composited variable {name:?} fails to evaluate: {why}"))),
            }
            self.activation = std::mem::take(&mut self.activation).with("variables", Value::map(values.clone()));
        }
    }

    pub fn evaluate(&mut self, program: &'a Program) -> Result<Value<'a>, EvalError> {
        program.evaluate(&self.activation, &mut self.budget).map_err(|error| {
            let EvalError::Failed(why) = &error else { return error };
            // A variable without a value is missed where it is used.
            let missing = self.failed.iter().find(|(name, _)| *why == format!("no such key: {name}"));
            missing.map_or(error.clone(), |(_, why)| EvalError::Failed(why.clone()))
        })
    }

    /// In upstream's words.
    pub fn run(&mut self, compiled: &'a Compiled) -> Result<Value<'a>, String> {
        let program = compiled.program.as_ref().map_err(Clone::clone)?;
        self.evaluate(program).map_err(|error| match error {
            EvalError::BudgetExceeded => {
                "validation failed due to running out of cost budget, no further validation rules will be run".into()
            }
            other => format!("expression '{}' resulted in error: {other}", compiled.source),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects as Fixture, write};

    fn evaluate(expression: &str) -> Result<Json, String> {
        let env = env(Scope { params: true, authorizer: true, patches: true, namespace: true });
        let variables = json!([
            {"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "double", "expression": "variables.replicas * 2"},
            {"name": "broken", "expression": "object.spec.nothing"},
        ]);
        let (variables, env) = Variables::compile(variables.as_array().expect("list"), env);
        let compiled = compile(&env, expression, anything);
        let program = compiled.program.clone()?;
        let object = json!({"metadata": {"name": "d", "namespace": "a"}, "spec": {"replicas": 3}});
        let attributes = write(Operation::Create, "deployments", "Deployment", object.clone());
        let invocation = Invocation { gvr: attributes.gvr.clone(), gvk: attributes.gvk.clone() };
        let lookup = Fixture::default().allowing(&["delete deployments d"]);
        let namespace = json!({"metadata": {"labels": {"team": "t"}}});
        let inputs = Inputs::new(&attributes, &invocation, Objects { new: Some(object), old: None }, Some(&namespace), &lookup);
        let params = json!({"max": 5});
        let programs = std::iter::once(&*program);
        let mut evaluator = Evaluator::new(&inputs, Some(&params), &variables, programs, cel::REQUEST_BUDGET);
        evaluator.run(&compiled).map(|value| value.to_json().unwrap_or_default())
    }

    #[test]
    fn expressions_see_the_write_and_its_surroundings() {
        let cases = [
            ("object.spec.replicas <= params.max", Ok(json!(true))),
            ("oldObject == null", Ok(json!(true))),
            ("variables.double", Ok(json!(6))),
            ("request.operation == 'CREATE' && request.resource.resource == 'deployments'", Ok(json!(true))),
            ("has(request.subResource)", Ok(json!(false))),
            ("namespaceObject.metadata.labels.team", Ok(json!("t"))),
            ("authorizer.requestResource.check('delete').allowed()", Ok(json!(true))),
            ("authorizer.group('').resource('pods').check('list').allowed()", Ok(json!(false))),
            ("Object{spec: Object.spec{replicas: 4}}", Ok(json!({"spec": {"replicas": 4}}))),
            ("[JSONPatch{op: 'remove', path: '/spec'}]", Ok(json!([{"op": "remove", "path": "/spec"}]))),
            ("false && variables.broken", Ok(json!(false))),
            (
                "variables.broken == 1",
                Err(
                    "expression 'variables.broken == 1' resulted in error: composited variable \"broken\" fails to evaluate: no such key: nothing",
                ),
            ),
            ("object.nothing", Err("expression 'object.nothing' resulted in error: no such key: nothing")),
        ];
        for (expression, expected) in cases {
            assert_eq!(evaluate(expression), expected.map_err(str::to_owned), "{expression}");
        }
        assert!(evaluate("variables.unknown").expect_err("unknown").contains("undefined field 'unknown'"));
    }
}
