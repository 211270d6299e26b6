//! A kind whose rules are plain functions: most kinds beside the workloads need no more.

use meta::field::Error;
use meta::names;
use serde_json::Value;

use crate::{Column, Part, Rules, printing};

/// The functions of a kind. A kind's file makes one with [`Plain::new`] and sets what is its own.
pub struct Plain {
    pub gvk: (&'static str, &'static str, &'static str),
    /// The first is the name.
    pub columns: &'static [Column],
    /// The cells after the name.
    pub cells: fn(&Value, i64) -> Vec<Value>,
    pub name: fn(&str) -> Vec<String>,
    pub default: fn(&mut Value),
    pub prepare_create: fn(&mut Value),
    pub prepare_update: fn(&mut Value, &Value, Part),
    pub validate: fn(&Value) -> Vec<Error>,
    pub validate_create: fn(&Value) -> Vec<Error>,
    pub validate_update: fn(&Value, &Value, Part) -> Vec<Error>,
    pub warnings: fn(&Value, Option<&Value>) -> Vec<String>,
    pub counts_generation: bool,
    pub keeps_status_at_creation: bool,
    pub status_keeps_metadata: bool,
    pub create_on_update: bool,
    pub unconditional_update: bool,
    pub fields: &'static [&'static str],
}

impl Plain {
    /// Columns, and a DNS subdomain as name; everything else generic.
    pub const fn new(
        gvk: (&'static str, &'static str, &'static str),
        columns: &'static [Column],
        cells: fn(&Value, i64) -> Vec<Value>,
    ) -> Self {
        Self {
            gvk,
            columns,
            cells,
            name: names::dns1123_subdomain,
            default: |_| {},
            prepare_create: |_| {},
            prepare_update: |_, _, _| {},
            validate: |_| Vec::new(),
            validate_create: |_| Vec::new(),
            validate_update: |_, _, _| Vec::new(),
            warnings: |_, _| Vec::new(),
            counts_generation: false,
            keeps_status_at_creation: false,
            status_keeps_metadata: false,
            create_on_update: false,
            unconditional_update: true,
            fields: &[],
        }
    }
}

impl Rules for Plain {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        self.gvk
    }
    fn default(&self, object: &mut Value) {
        (self.default)(object);
    }
    fn prepare_create(&self, object: &mut Value) {
        (self.prepare_create)(object);
    }
    fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        (self.prepare_update)(new, old, part);
    }
    fn validate(&self, object: &Value) -> Vec<Error> {
        (self.validate)(object)
    }
    fn validate_create(&self, object: &Value) -> Vec<Error> {
        (self.validate_create)(object)
    }
    fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Vec<Error> {
        (self.validate_update)(new, old, part)
    }
    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        (self.warnings)(object, old)
    }
    fn counts_generation(&self) -> bool {
        self.counts_generation
    }
    fn keeps_status_at_creation(&self) -> bool {
        self.keeps_status_at_creation
    }
    fn status_keeps_metadata(&self) -> bool {
        self.status_keeps_metadata
    }
    fn create_on_update(&self) -> bool {
        self.create_on_update
    }
    fn unconditional_update(&self) -> bool {
        self.unconditional_update
    }
    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        self.fields.iter().map(|field| (*field, crate::value::text(object, field).to_owned())).collect()
    }
    fn selectable_field_names(&self) -> &'static [&'static str] {
        self.fields
    }
    fn columns(&self) -> &'static [Column] {
        self.columns
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let mut cells = vec![printing::name(object)];
        cells.extend((self.cells)(object, now));
        cells
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        (self.name)(name)
    }
}
