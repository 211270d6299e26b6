//! What makes a custom kind itself: its schema's validation, its columns, its selectable fields.

use meta::field::{Error, Path};
use rules::{Column, Part, Rules};
use schema::resources::Resource;
use serde_json::Value;
use structural::expressions;
use structural::jsonpath::{self, JsonPath};
use structural::{Node, lists, values};

use super::names;
use crate::object::meta;

pub struct CustomRules {
    facts: &'static Resource,
    node: Node,
    expressions: Option<expressions::Rules>,
    columns: Vec<Column>,
    /// What stands in each column after the name, with the column's type.
    cells: Vec<(Option<JsonPath>, String)>,
    selectable: Vec<(&'static str, Vec<String>)>,
    selectable_names: Vec<&'static str>,
}

const NAME: &str = "Name must be unique within a namespace. Is required when creating resources, although some resources may allow a client to request the generation of an appropriate name automatically. Name is primarily intended for creation idempotence and configuration definition. Cannot be updated.";
const AGE: &str = "CreationTimestamp is a timestamp representing the server time when this object was created. It is not guaranteed to be set in happens-before order across separate operations. Clients may not set this value. It is represented in RFC3339 form and is in UTC.";

impl CustomRules {
    /// `versions` are all of the CRD: the cache asks for the fields of any of them once.
    pub fn new(facts: &'static Resource, version: &Value, versions: &[Value], node: Node, expressions: Option<expressions::Rules>) -> Self {
        let mut columns = vec![names::column("Name", "string", "name", NAME, 0)];
        let mut cells = Vec::new();
        let given: Vec<&Value> = version["additionalPrinterColumns"].as_array().into_iter().flatten().collect();
        for column in &given {
            let text = |field: &str| column[field].as_str().unwrap_or_default();
            let description = match text("description") {
                "" => format!("Custom resource definition column (in JSONPath format): {}", text("jsonPath")),
                given => given.to_owned(),
            };
            let priority = column["priority"].as_i64().and_then(|priority| i32::try_from(priority).ok()).unwrap_or(0);
            columns.push(names::column(text("name"), text("type"), text("format"), &description, priority));
            cells.push((JsonPath::parse(text("jsonPath")).ok(), text("type").to_owned()));
        }
        if given.is_empty() {
            columns.push(names::column("Age", "date", "", AGE, 0));
            cells.push((JsonPath::parse(".metadata.creationTimestamp").ok(), "date".into()));
        }
        let mut selectable: Vec<(&'static str, Vec<String>)> = Vec::new();
        for path in versions.iter().flat_map(selectable_paths) {
            let name = names::text(path.trim_start_matches('.'));
            if let Some(steps) = jsonpath::plain(path).filter(|_| !selectable.iter().any(|(known, _)| *known == name)) {
                selectable.push((name, steps.into_iter().map(str::to_owned).collect()));
            }
        }
        let selectable_names = selectable_paths(version).map(|path| names::text(path.trim_start_matches('.'))).collect();
        Self { facts, node, expressions, columns, cells, selectable, selectable_names }
    }

    fn judge(&self, object: &Value, old: Option<&Value>) -> Vec<Error> {
        let mut errors = match old {
            Some(old) => values::validate_update(&self.node, object, old),
            None => values::validate(&self.node, object),
        };
        let duplicates = lists::validate(&self.node, object);
        // Duplicates that were there before are not the writer's fault.
        if old.is_none_or(|old| lists::validate(&self.node, old).is_empty()) {
            errors.extend(duplicates);
        }
        errors.extend(structural::embedded::validate(&self.node, object));
        let Some(rules) = &self.expressions else { return errors };
        use meta::field::Type;
        let blocking = |error: &Error| matches!(error.kind, Type::Required | Type::TooLong | Type::TooMany | Type::TypeInvalid);
        if errors.iter().any(blocking) {
            let why =
                "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation";
            errors.push(Error::invalid(&Path::root(), Value::Null, why));
        } else {
            errors.extend(expressions::validate(rules, object, old));
        }
        errors
    }
}

fn selectable_paths(version: &Value) -> impl Iterator<Item = &str> {
    version["selectableFields"].as_array().into_iter().flatten().filter_map(|field| field["jsonPath"].as_str())
}

impl Rules for CustomRules {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        (self.facts.group, self.facts.version, self.facts.kind)
    }
    fn status_keeps_metadata(&self) -> bool {
        true
    }
    fn validate_create(&self, object: &Value) -> Vec<Error> {
        self.judge(object, None)
    }
    fn validate_update(&self, new: &Value, old: &Value, _part: Part) -> Vec<Error> {
        self.judge(new, Some(old))
    }
    fn counts_generation(&self) -> bool {
        true
    }
    fn unconditional_update(&self) -> bool {
        false
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let value = |steps: &[String]| {
            let found = steps.iter().try_fold(object, |value, step| value.get(step));
            found.map_or_else(String::new, |value| value.as_str().map_or_else(|| value.to_string(), str::to_owned))
        };
        self.selectable.iter().map(|(name, steps)| (*name, value(steps))).collect()
    }
    fn selectable_field_names(&self) -> &[&'static str] {
        &self.selectable_names
    }
    fn columns(&self) -> &[Column] {
        &self.columns
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let cell =
            |(path, kind): &(Option<JsonPath>, String)| path.as_ref().map_or(Value::Null, |path| jsonpath::cell(path, kind, object, now));
        std::iter::once(meta(object, "name").into()).chain(self.cells.iter().map(cell)).collect()
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        ::meta::names::dns1123_subdomain(name)
    }
}
