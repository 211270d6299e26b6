//! Types of the table as types of CEL: what `object`, `params`, `request` and `namespaceObject` look like to the checker.
//!
//! Source: apiserver `pkg/cel/common/schemas.go`, `pkg/admission/plugin/cel/compile.go`.

use std::sync::{Arc, LazyLock};

use cel::Type;
use cel::types::{Field, ListType, ObjectType, Topology, escape};
use schema::model::{Ref, Schema};

/// A struct of the table.
#[derive(Debug)]
struct Struct(Ref<schema::model::Type>);

impl ObjectType for Struct {
    fn name(&self) -> &str {
        &self.0.name
    }
    fn field(&self, name: &str) -> Option<Field> {
        // Upstream's checker wants `__namespace__` where its values want `namespace`: both are right here.
        let found = self.0.fields.iter().find(|field| *field.json == *name || escape(&field.json).as_deref() == Some(name))?;
        Some(Field { json: found.json.to_string(), ty: of_schema(&found.schema) })
    }
    fn json_names(&self) -> Vec<String> {
        self.0.fields.iter().map(|field| field.json.to_string()).collect()
    }
}

/// Fields are looked up one by one: types that contain themselves have no end.
pub fn of(found: Ref<schema::model::Type>) -> Type {
    if found.fields.is_empty() { Type::Dyn } else { Type::Object(Arc::new(Struct(found))) }
}

fn of_schema(schema: &Schema) -> Type {
    match schema {
        Schema::String | Schema::Duration => Type::String,
        Schema::Bool => Type::Bool,
        Schema::Int32 | Schema::Int64 => Type::Int,
        Schema::Float64 => Type::Double,
        Schema::Bytes => Type::Bytes,
        Schema::Time | Schema::MicroTime => Type::Timestamp,
        // Numbers or texts: nothing is known before the value is there.
        Schema::Quantity | Schema::IntOrString | Schema::Any => Type::Dyn,
        Schema::Object(found) => of(found.clone()),
        Schema::Map(map) => Type::map(Type::String, of_schema(&map.values)),
        Schema::List(list) => {
            let topology = match &list.topology {
                schema::model::Topology::Atomic => Topology::Atomic,
                schema::model::Topology::Set => Topology::Set,
                schema::model::Topology::Map(keys) => Topology::Map(keys.iter().map(ToString::to_string).collect()),
            };
            Type::List(Arc::new(ListType { items: of_schema(&list.items), topology }))
        }
    }
}

/// A struct of a few fields, for what has no schema of its own.
#[derive(Debug)]
struct Made {
    name: &'static str,
    fields: Vec<(&'static str, Type)>,
}

impl ObjectType for Made {
    fn name(&self) -> &str {
        self.name
    }
    fn field(&self, name: &str) -> Option<Field> {
        let (json, ty) = self.fields.iter().find(|(json, _)| *json == name)?;
        Some(Field { json: (*json).to_owned(), ty: ty.clone() })
    }
    fn json_names(&self) -> Vec<String> {
        self.fields.iter().map(|(json, _)| (*json).to_owned()).collect()
    }
}

fn made(name: &'static str, fields: Vec<(&'static str, Type)>) -> Type {
    Type::Object(Arc::new(Made { name, fields }))
}

fn texts(names: &[&'static str]) -> Vec<(&'static str, Type)> {
    names.iter().map(|name| (*name, Type::String)).collect()
}

/// `request`: an AdmissionRequest without its objects.
pub fn request() -> &'static Type {
    static TYPE: LazyLock<Type> = LazyLock::new(admission_request);
    &TYPE
}

fn admission_request() -> Type {
    let kind = made("kubernetes.GroupVersionKind", texts(&["group", "version", "kind"]));
    let resource = made("kubernetes.GroupVersionResource", texts(&["group", "version", "resource"]));
    let mut user = texts(&["username", "uid"]);
    user.push(("groups", Type::list(Type::String)));
    user.push(("extra", Type::map(Type::String, Type::list(Type::String))));
    let mut fields = texts(&["subResource", "requestSubResource", "name", "namespace", "operation"]);
    fields.extend([("kind", kind.clone()), ("requestKind", kind), ("resource", resource.clone()), ("requestResource", resource)]);
    fields.extend([("userInfo", made("kubernetes.UserInfo", user)), ("dryRun", Type::Bool), ("options", Type::Dyn)]);
    made("kubernetes.AdmissionRequest", fields)
}

/// `namespaceObject`: a Namespace without what only its controllers care about.
pub fn namespace() -> &'static Type {
    static TYPE: LazyLock<Type> = LazyLock::new(namespace_object);
    &TYPE
}

fn namespace_object() -> Type {
    let labels = || Type::map(Type::String, Type::String);
    let mut condition = texts(&["status", "type", "message", "reason"]);
    condition.push(("lastTransitionTime", Type::Timestamp));
    let mut metadata = texts(&["name", "generateName", "namespace", "uid", "UID", "resourceVersion"]);
    metadata.extend([("labels", labels()), ("annotations", labels()), ("finalizers", Type::list(Type::String))]);
    metadata.extend([("creationTimestamp", Type::Timestamp), ("deletionTimestamp", Type::Timestamp)]);
    metadata.extend([("generation", Type::Int), ("deletionGracePeriodSeconds", Type::Int)]);
    let conditions = Type::list(made("kubernetes.NamespaceCondition", condition));
    let status = made("kubernetes.NamespaceStatus", vec![("conditions", conditions), ("phase", Type::String)]);
    let spec = made("kubernetes.NamespaceSpec", vec![("finalizers", Type::list(Type::String))]);
    let metadata = made("kubernetes.NamespaceMetadata", metadata);
    made("kubernetes.Namespace", vec![("metadata", metadata), ("spec", spec), ("status", status)])
}
