//! Selectors of devices (dynamic resource allocation): `device.driver`, `device.attributes["domain"].name`, `device.capacity["domain"].name`,
//! `device.allowMultipleAllocations`.
//!
//! Source: KEP-4381 and `resource.k8s.io/v1` CELDeviceSelector.

use std::sync::Arc;

use crate::library::{Opaque, Semver};
use crate::types::{Field, ObjectType, Type};
use crate::value::{Map, Value};
use crate::{Activation, Budget, CompileError, Env, EvalError, Program};

/// The one variable.
const DEVICE: &str = "device";

/// Compiles a selector, whose value must be true or false.
pub fn compile(expression: &str) -> Result<Program, Error> {
    let env = Env::new().with(DEVICE, Type::Object(Arc::new(DeviceType)));
    let program = env.compile(expression)?;
    match program.result_type() {
        Type::Bool | Type::Dyn => Ok(program),
        _ => Err(Error::NotBool),
    }
}

/// Whether the selector selects the device.
pub fn selects(program: &Program, device: &Value<'static>) -> Result<bool, EvalError> {
    let value = program.evaluate(&Activation::new().with(DEVICE, device.clone()), &mut Budget::default())?;
    value.as_bool().ok_or_else(|| EvalError::failed("CEL result could not be converted to bool"))
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("compilation failed: {0}")]
    Compile(#[from] CompileError),
    #[error("must evaluate to bool")]
    NotBool,
}

/// What a driver says of one property of a device.
pub enum Attribute<'a> {
    Bool(bool),
    Int(i64),
    String(&'a str),
    /// Of a semantic version.
    Version(&'a str),
}

/// Properties by their names; a name without a domain is in the driver's.
#[derive(Default)]
pub struct Properties {
    domains: Vec<(String, Vec<(Value<'static>, Value<'static>)>)>,
}

impl Properties {
    /// `false`: the value is not what it says it is.
    pub fn attribute(&mut self, driver: &str, name: &str, attribute: &Attribute<'_>) -> bool {
        let value = match attribute {
            Attribute::Bool(truth) => Value::Bool(*truth),
            Attribute::Int(number) => Value::Int(*number),
            Attribute::String(text) => Value::string(*text),
            Attribute::Version(text) => match Semver::parse(text, false) {
                Some(version) => Value::Opaque(Opaque::Semver(Arc::new(version))),
                None => return false,
            },
        };
        self.put(driver, name, value);
        true
    }

    pub fn quantity(&mut self, driver: &str, name: &str, quantity: meta::Quantity) {
        self.put(driver, name, Value::Opaque(Opaque::Quantity(quantity)));
    }

    fn put(&mut self, driver: &str, name: &str, value: Value<'static>) {
        let (domain, id) = name.split_once('/').unwrap_or((driver, name));
        let entry = (Value::string(id), value);
        match self.domains.iter_mut().find(|(known, _)| known == domain) {
            Some((_, entries)) => entries.push(entry),
            None => self.domains.push((domain.to_owned(), vec![entry])),
        }
    }

    fn value(self) -> Value<'static> {
        let domains = self.domains.into_iter().map(|(domain, entries)| (Value::string(domain), Value::map(entries)));
        Value::Map(Map::Forgiving(Arc::new(domains.collect())))
    }
}

/// The device as selectors see it.
pub fn value(driver: &str, attributes: Properties, capacity: Properties, allow_multiple_allocations: bool) -> Value<'static> {
    Value::map(vec![
        (Value::string("driver"), Value::string(driver)),
        (Value::string("attributes"), attributes.value()),
        (Value::string("capacity"), capacity.value()),
        (Value::string("allowMultipleAllocations"), Value::Bool(allow_multiple_allocations)),
    ])
}

#[derive(Debug)]
struct DeviceType;

impl ObjectType for DeviceType {
    fn name(&self) -> &str {
        "kubernetes.DRADevice"
    }
    fn field(&self, name: &str) -> Option<Field> {
        let by_domain = |value: Type| Type::map(Type::String, Type::map(Type::String, value));
        let ty = match name {
            "driver" => Type::String,
            "attributes" => by_domain(Type::Dyn),
            "capacity" => by_domain(Type::Opaque("kubernetes.Quantity")),
            "allowMultipleAllocations" => Type::Bool,
            _ => return None,
        };
        Some(Field { json: name.to_owned(), ty })
    }
    fn json_names(&self) -> Vec<String> {
        ["driver", "attributes", "capacity", "allowMultipleAllocations"].map(str::to_owned).to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Value<'static> {
        let mut attributes = Properties::default();
        assert!(attributes.attribute("gpu.example.com", "model", &Attribute::String("LATEST")));
        assert!(attributes.attribute("gpu.example.com", "other.io/version", &Attribute::Version("1.2.3")));
        assert!(attributes.attribute("gpu.example.com", "cores", &Attribute::Int(8)));
        assert!(!attributes.attribute("gpu.example.com", "wrong", &Attribute::Version("one")));
        let mut capacity = Properties::default();
        capacity.quantity("gpu.example.com", "memory", "10Gi".parse().unwrap());
        value("gpu.example.com", attributes, capacity, false)
    }

    #[test]
    fn a_selector_reads_attributes_and_capacity_by_domain() {
        let cases = [
            ("device.driver == 'gpu.example.com'", true),
            ("device.attributes['gpu.example.com'].model == 'LATEST'", true),
            ("device.attributes['other.io'].version.isGreaterThan(semver('1.2.0'))", true),
            ("device.attributes['gpu.example.com'].cores > 8", false),
            ("device.capacity['gpu.example.com'].memory.isGreaterThan(quantity('9Gi'))", true),
            ("'memory' in device.capacity['gpu.example.com']", true),
            // An unknown domain is empty, not an error.
            ("'model' in device.attributes['unknown.io']", false),
            ("'unknown.io' in device.attributes", false),
            ("has(device.attributes['unknown.io'].model)", false),
            ("device.attributes['unknown.io'].?model.orValue('none') == 'none'", true),
            ("cel.bind(gpu, device.attributes['gpu.example.com'], gpu.cores == 8 && gpu.model.startsWith('LA'))", true),
            ("device.allowMultipleAllocations", false),
        ];
        for (expression, expected) in cases {
            let program = compile(expression).unwrap_or_else(|error| panic!("{expression}: {error}"));
            assert_eq!(selects(&program, &gpu()).unwrap_or_else(|error| panic!("{expression}: {error}")), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_not_a_condition_on_a_device_is_refused() {
        for wrong in ["device.driver", "device.nothing == 1", "1 +", "other.driver == ''"] {
            assert!(compile(wrong).is_err(), "{wrong}");
        }
        let missing = compile("device.attributes['gpu.example.com'].missing == 1").unwrap();
        assert!(selects(&missing, &gpu()).is_err(), "an attribute that the device does not have");
    }
}
