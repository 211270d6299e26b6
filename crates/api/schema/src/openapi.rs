//! OpenAPI documents of whatever is served: v3 for a group and version, v2 for everything (JSON, and gnostic's protobuf).
//!
//! Read in this order: [`Kind`] (what a document is about), `definitions` (types as JSON schemas), `operations` (what each path can do),
//! then the two renderings. Descriptions are not in the table: the caller passes a function that knows them, or [`undescribed`].
//! What clients rely on: kubectl looks for the `fieldValidation` parameter and the media types of PATCH, for
//! `x-kubernetes-group-version-kind` and for merge keys.

use serde_json::{Value, json};

use crate::model::Type;
use crate::resources::Resource;
use crate::table;

mod custom;
mod definitions;
mod gnostic;
pub mod merge;
mod operations;
pub mod v2;
pub mod v3;

/// Gives the description of a definition (empty field) or of one of its fields.
pub type Describe<'a> = &'a dyn Fn(&str, &str) -> Option<String>;

/// The [`Describe`] that knows nothing.
pub fn undescribed(_definition: &str, _field: &str) -> Option<String> {
    None
}

/// The release that documents and `/version` speak of.
pub const VERSION: &str = "v1.37.0";

/// One resource in one version, as the documents need it.
#[derive(Clone, Debug)]
pub struct Kind {
    pub group: String,
    pub version: String,
    pub kind: String,
    /// Empty where there is no list.
    pub list_kind: String,
    pub plural: String,
    pub namespaced: bool,
    pub verbs: Vec<String>,
    pub subresources: Vec<Sub>,
    /// A deletion answers with the object instead of a Status.
    pub deletion_returns_object: bool,
    pub form: Form,
}

/// A subresource and the kind it takes.
#[derive(Clone, Debug)]
pub struct Sub {
    pub name: String,
    pub group: String,
    pub version: String,
    pub kind: String,
    pub verbs: Vec<String>,
    /// Query parameters of its own.
    pub params: Vec<String>,
}

/// Where the kind's fields stand.
#[derive(Clone, Debug)]
pub enum Form {
    Table(&'static Type),
    /// A CRD's `openAPIV3Schema`.
    Custom(Value),
}

impl Kind {
    /// A built-in resource; `None` where the table lacks its kind.
    pub fn built_in(resource: &Resource) -> Option<Self> {
        let found = table::by_gvk(resource.group, resource.version, resource.kind)?;
        let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let subresources = resource.subresources.iter().map(|sub| Sub {
            name: sub.name.into(),
            group: sub.group.into(),
            version: sub.version.into(),
            kind: sub.kind.into(),
            verbs: owned(sub.verbs),
            params: owned(sub.params),
        });
        Some(Self {
            group: resource.group.into(),
            version: resource.version.into(),
            kind: resource.kind.into(),
            list_kind: resource.list_kind.into(),
            plural: resource.plural.into(),
            namespaced: resource.namespaced,
            verbs: owned(resource.verbs),
            subresources: subresources.collect(),
            deletion_returns_object: resource.deletion_returns_object(),
            form: Form::Table(found),
        })
    }

    /// Every built-in resource that is served by default.
    pub fn all_built_in() -> Vec<Self> {
        crate::resources::all().iter().filter(|resource| resource.served).filter_map(Self::built_in).collect()
    }

    /// The name of the kind's definition: the table's, or the CRD's group turned round (`com.example.v1.CronTab`).
    pub fn definition(&self) -> String {
        match &self.form {
            Form::Table(found) => found.name.to_string(),
            Form::Custom(_) => self.custom_name(&self.kind),
        }
    }
    fn list_definition(&self) -> Option<String> {
        match &self.form {
            _ if self.list_kind.is_empty() => None,
            Form::Table(_) => table::by_gvk(&self.group, &self.version, &self.list_kind).map(|found| found.name.to_string()),
            Form::Custom(_) => Some(self.custom_name(&self.list_kind)),
        }
    }
    fn custom_name(&self, kind: &str) -> String {
        let mut parts: Vec<&str> = self.group.split('.').rev().collect();
        parts.extend([self.version.as_str(), kind]);
        parts.join(".")
    }
    fn built_in_form(&self) -> bool {
        matches!(self.form, Form::Table(_))
    }
    /// `/api/v1` or `/apis/apps/v1`.
    fn prefix(&self) -> String {
        match self.group.as_str() {
            "" => format!("/api/{}", self.version),
            group => format!("/apis/{group}/{}", self.version),
        }
    }
    fn gvk(&self) -> Value {
        gvk(&self.group, &self.version, &self.kind)
    }
}

fn gvk(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

/// The two documents differ in how a reference is written and in what a schema may say.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    V2,
    V3,
}

impl Style {
    fn reference(self, definition: &str) -> Value {
        match self {
            Style::V2 => json!({"$ref": format!("#/definitions/{definition}")}),
            Style::V3 => json!({"$ref": format!("#/components/schemas/{definition}")}),
        }
    }
}

#[cfg(test)]
mod tests;
