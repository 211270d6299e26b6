//! CustomResourceDefinitions as knowledge: what their schemas may say, what objects of them must fulfil, how they print.
//!
//! Read in this order: [`node`] (a schema as a tree), [`model`] (the tree as the server's own schema model: pruning, defaulting and apply
//! work from that), [`values`] (validation of objects in go-openapi's words), [`lists`] (sets and associative lists), [`expressions`]
//! (`x-kubernetes-validations`), [`check`] (which schemas are structural), [`definition`] (defaults and validation of a CRD itself),
//! [`jsonpath`] (printer columns, selectable fields, scale). Pure; no I/O, no tasks.
//!
//! Source: apiextensions-apiserver `pkg/apiserver/schema`, `pkg/apis/apiextensions/validation`; kube-openapi `pkg/validation`.

pub mod check;
pub mod definition;
pub mod embedded;
pub mod expressions;
mod formats;
pub mod jsonpath;
pub mod lists;
pub mod model;
pub mod node;
pub mod values;

pub use node::Node;

#[cfg(test)]
mod tests;
