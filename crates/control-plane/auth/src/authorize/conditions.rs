//! `matchConditions` of an authorizing webhook: expressions over a SubjectAccessReview, which all must be true for it to be asked.

use std::collections::HashSet;
use std::sync::Arc;

use cel::{Activation, Budget, Env, Field, ObjectType, Program, Type};
use meta::field::{Error, Path};
use serde_json::Value;

const CONDITIONS_MAX: usize = 64;

#[derive(Debug, Default)]
pub struct Conditions {
    programs: Vec<Program>,
}

impl Conditions {
    pub fn compile(path: &Path, sources: &[String]) -> Result<Self, Vec<Error>> {
        if sources.len() > CONDITIONS_MAX {
            return Err(vec![Error::too_many(path, sources.len(), CONDITIONS_MAX)]);
        }
        let env = Env::new().with("request", Type::Object(Arc::new(REVIEW)));
        let (mut programs, mut errors, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for (index, source) in sources.iter().enumerate() {
            let at = path.index(index).child("expression");
            if source.trim().is_empty() {
                errors.push(Error::required(&at, ""));
            } else if !seen.insert(source) {
                errors.push(Error::duplicate(&at, source.as_str()));
            } else {
                match env.compile(source) {
                    Err(error) => errors.push(Error::invalid(&at, source.as_str(), format!("compilation failed: {error}"))),
                    Ok(program) if matches!(program.result_type(), Type::Bool) => programs.push(program),
                    Ok(program) => {
                        let detail = format!("must evaluate to bool but got {}", program.result_type());
                        errors.push(Error::invalid(&at, source.as_str(), detail));
                    }
                }
            }
        }
        if errors.is_empty() { Ok(Self { programs }) } else { Err(errors) }
    }

    pub fn is_empty(&self) -> bool {
        self.programs.is_empty()
    }

    /// `false` where any is false, also when another cannot be evaluated; the failures' sentences otherwise.
    pub fn hold(&self, review: &Value) -> Result<bool, String> {
        let (mut budget, mut failures) = (Budget::new(cel::MATCH_CONDITIONS_BUDGET), Vec::new());
        for program in &self.programs {
            let activation = Activation::new().with("request", cel::Value::json(review, &Type::Object(Arc::new(REVIEW))));
            match program.evaluate(&activation, &mut budget).map(|value| value.as_bool()) {
                Ok(Some(true)) => {}
                Ok(Some(false)) => return Ok(false),
                Ok(None) => failures.push(format!("cel evaluation error: expression '{}' is no bool", program.source())),
                Err(error) => failures.push(format!("cel evaluation error: expression '{}' resulted in error: {error}", program.source())),
            }
        }
        match failures.as_slice() {
            [] => Ok(true),
            [one] => Err(one.clone()),
            many => Err(format!("[{}]", many.join(", "))),
        }
    }
}

/// A struct of the review, as the expressions see it.
#[derive(Clone, Copy, Debug)]
struct Shape {
    name: &'static str,
    fields: &'static [(&'static str, Of)],
}

#[derive(Debug, Clone, Copy)]
enum Of {
    Text,
    Texts,
    /// Text to texts.
    Table,
    One(&'static Shape),
    Many(&'static Shape),
}

impl Of {
    fn ty(self) -> Type {
        let object = |shape: &'static Shape| Type::Object(Arc::new(*shape));
        match self {
            Of::Text => Type::String,
            Of::Texts => Type::list(Type::String),
            Of::Table => Type::map(Type::String, Type::list(Type::String)),
            Of::One(shape) => object(shape),
            Of::Many(shape) => Type::list(object(shape)),
        }
    }
}

impl ObjectType for Shape {
    fn name(&self) -> &str {
        self.name
    }
    fn field(&self, name: &str) -> Option<Field> {
        let (_, of) = self.fields.iter().find(|(known, _)| *known == name)?;
        Some(Field { json: name.to_owned(), ty: of.ty() })
    }
    fn json_names(&self) -> Vec<String> {
        self.fields.iter().map(|(name, _)| (*name).to_owned()).collect()
    }
}

static REQUIREMENT: Shape =
    Shape { name: "kubernetes.SelectorRequirement", fields: &[("key", Of::Text), ("operator", Of::Text), ("values", Of::Texts)] };
static SELECTOR: Shape =
    Shape { name: "kubernetes.SelectorAttributes", fields: &[("rawSelector", Of::Text), ("requirements", Of::Many(&REQUIREMENT))] };
static RESOURCE: Shape = Shape {
    name: "kubernetes.ResourceAttributes",
    fields: &[
        ("namespace", Of::Text),
        ("verb", Of::Text),
        ("group", Of::Text),
        ("version", Of::Text),
        ("resource", Of::Text),
        ("subresource", Of::Text),
        ("name", Of::Text),
        ("fieldSelector", Of::One(&SELECTOR)),
        ("labelSelector", Of::One(&SELECTOR)),
    ],
};
static NON_RESOURCE: Shape = Shape { name: "kubernetes.NonResourceAttributes", fields: &[("path", Of::Text), ("verb", Of::Text)] };
const REVIEW: Shape = Shape {
    name: "kubernetes.SubjectAccessReviewSpec",
    fields: &[
        ("resourceAttributes", Of::One(&RESOURCE)),
        ("nonResourceAttributes", Of::One(&NON_RESOURCE)),
        ("user", Of::Text),
        ("groups", Of::Texts),
        ("extra", Of::Table),
        ("uid", Of::Text),
    ],
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_look_at_the_whole_review() {
        let pods = json!({"user": "ann", "groups": ["devs"], "uid": "", "extra": {},
            "resourceAttributes": {"namespace": "a", "verb": "list", "group": "", "version": "v1", "resource": "pods", "subresource": "", "name": "",
                "labelSelector": {"requirements": [{"key": "app", "operator": "In", "values": ["web"]}]}}});
        let path =
            json!({"user": "ann", "groups": [], "uid": "", "extra": {}, "nonResourceAttributes": {"path": "/version", "verb": "get"}});
        let cases: &[(&[&str], &Value, Result<bool, &str>)] = &[
            (&[], &pods, Ok(true)),
            (&["has(request.resourceAttributes)", "request.resourceAttributes.namespace == 'a'"], &pods, Ok(true)),
            (&["has(request.resourceAttributes)"], &path, Ok(false)),
            (&["'devs' in request.groups && request.user != 'joe'"], &pods, Ok(true)),
            (&["request.resourceAttributes.labelSelector.requirements.exists(r, r.key == 'app')"], &pods, Ok(true)),
            (&["request.resourceAttributes.namespace == 'a'"], &path, Err("no such key: resourceAttributes")),
            (&["request.resourceAttributes.namespace == 'a'", "request.user == 'joe'"], &path, Ok(false)),
        ];
        for (sources, review, expected) in cases {
            let sources: Vec<String> = sources.iter().map(|source| (*source).to_owned()).collect();
            let found = Conditions::compile(&Path::new("c"), &sources).unwrap().hold(review);
            match expected {
                Ok(expected) => assert_eq!(found.as_ref(), Ok(expected), "{sources:?}"),
                Err(words) => assert!(found.as_ref().is_err_and(|why| why.contains(words)), "{sources:?}: {found:?}"),
            }
        }
    }
}
