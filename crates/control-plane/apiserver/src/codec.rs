//! Bodies into objects and objects into protobuf; what is wrong with a body in upstream's words.

use bytes::Bytes;
use meta::Status;
use schema::decode::{self, Error, Parsed, parse_json, parse_yaml};
use schema::model::{Ref, Schema, Type};
use schema::{cbor, protobuf, table};
use serde_json::Value;

use crate::context::{Context, WriteOptions};
use crate::negotiate::Media;
use crate::object::Object;
use crate::registry::catalog::Kind;

/// Reads a body as a tree, with no look at its type. `expected` is the kind that the endpoint takes.
pub fn parse(bytes: &[u8], media: Media, expected: &str) -> Result<Parsed, Status> {
    parse_as(bytes, media, expected, None)
}

/// The same where the type is known: a protobuf body need not say its kind.
pub fn parse_as(bytes: &[u8], media: Media, expected: &str, found: Option<&'static Type>) -> Result<Parsed, Status> {
    let parsed = match media {
        Media::Json => parse_json(bytes),
        Media::Yaml => parse_yaml(bytes),
        Media::Protobuf => return from_protobuf(bytes, expected, found).map(Parsed::from),
        Media::Cbor => return cbor::decode(bytes).map(Parsed::from).map_err(|error| unrecognized(expected, &error)),
    };
    parsed.map_err(|error| error.status(expected, "", expected, bytes))
}

/// From a body to an object of the kind in its stored version: typed, pruned, defaulted. Warnings go to the client.
pub fn object(context: &Context, kind: &Kind, bytes: &[u8], media: Media, options: &WriteOptions) -> Result<Value, Status> {
    let mut parsed = parse_as(bytes, media, kind.facts.kind, kind.table_type())?;
    expect_type(&mut parsed.value, kind.facts.kind, &kind.api_version())?;
    decode(context, kind, parsed, options)
}

/// The same for a tree that is already there (a patched object).
pub fn decode(context: &Context, kind: &Kind, parsed: impl Into<Parsed>, options: &WriteOptions) -> Result<Value, Status> {
    let mut object = typed(context, kind.schema.clone(), kind.facts.kind, kind.facts.version, parsed.into(), options)?;
    if kind.converts() {
        object = crate::convert::to_storage(kind, object);
    }
    default(kind, &mut object);
    Ok(object)
}

/// Only looks for what is wrong with a tree.
pub fn check(context: &Context, kind: &Kind, parsed: Parsed, options: &WriteOptions) -> Result<(), Status> {
    typed(context, kind.schema.clone(), kind.facts.kind, kind.facts.version, parsed, options).map(drop)
}

/// The paths of fields that the kind does not have; `None` where there are none (or where more is wrong, which others say).
pub fn unknown(kind: &Kind, parsed: &Parsed) -> Option<Vec<String>> {
    let (_, warnings) = decode::decode(parsed.value.clone(), &Schema::Object(kind.schema.clone()), decode::Mode::Warn).ok()?;
    let path = |warning: &String| Some(warning.strip_prefix("unknown field \"")?.strip_suffix('"')?.to_owned());
    Some(warnings.iter().filter_map(path).collect::<Vec<_>>()).filter(|paths| !paths.is_empty())
}

/// Sets what the stored version's table and rules say about absent fields.
pub fn default(kind: &Kind, object: &mut Value) {
    schema::default::apply(object, &Schema::Object(kind.storage.schema.clone()));
    kind.storage.rules.default(object);
}

/// The body of a deletion. Wrong types are refused, unknown fields are not looked at, as upstream.
pub fn delete_options(context: &Context, bytes: &[u8], media: Media) -> Result<Value, Status> {
    let Some(found) = table::by_gvk("", "v1", "DeleteOptions") else { return Ok(Value::Null) };
    let parsed = parse_as(bytes, media, "DeleteOptions", Some(found))?;
    let quiet = WriteOptions { validation: schema::decode::Mode::Ignore, ..WriteOptions::internal() };
    typed(context, Ref::Static(found), "DeleteOptions", "v1", parsed, &quiet)
}

/// An object that a subresource takes (`Binding`, `Scale`, `TokenRequest`), decoded.
pub fn other(context: &Context, schema: &'static Type, api_version: &str, kind: &str, bytes: &[u8], media: Media) -> Result<Value, Status> {
    other_of(context, schema, &[api_version], kind, bytes, media)
}

/// The same where older versions of the kind, of the same fields, are taken too. The first of `api_versions` is what it is decoded as.
pub fn other_of(
    context: &Context,
    schema: &'static Type,
    api_versions: &[&str],
    kind: &str,
    bytes: &[u8],
    media: Media,
) -> Result<Value, Status> {
    let mut parsed = parse_as(bytes, media, kind, Some(schema))?;
    let api_version = api_versions.first().copied().unwrap_or_default();
    if parsed.value["apiVersion"].as_str().is_some_and(|given| api_versions.contains(&given)) {
        parsed.value["apiVersion"] = api_version.into();
    }
    expect_type(&mut parsed.value, kind, api_version)?;
    let namespace = crate::object::meta(&parsed.value, "namespace");
    if !namespace.is_empty() && namespace != context.info.namespace {
        return Err(Status::bad_request("the namespace of the provided object does not match the namespace sent on the request"));
    }
    let options = context.write_options()?;
    typed(context, Ref::Static(schema), kind, api_version.rsplit('/').next().unwrap_or_default(), parsed, &options)
}

/// The same for a tree that is already there (a patched object).
pub fn patched(context: &Context, schema: &'static Type, api_version: &str, kind: &str, object: Value) -> Result<Value, Status> {
    let options = context.write_options()?;
    typed(context, Ref::Static(schema), kind, api_version.rsplit('/').next().unwrap_or_default(), object.into(), &options)
}

fn typed(context: &Context, schema: Ref<Type>, kind: &str, version: &str, parsed: Parsed, options: &WriteOptions) -> Result<Value, Status> {
    match decode::decode(parsed, &Schema::Object(schema), options.validation) {
        Ok((object, warnings)) => {
            warnings.into_iter().for_each(|warning| context.warn(warning));
            Ok(object)
        }
        Err(error @ Error::Strict(_)) => {
            Err(Status::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}")))
        }
        Err(error) => Err(error.status(kind, version, kind, b"")),
    }
}

/// kind and apiVersion of the body are those of the path; absent ones are filled in.
pub fn expect_type(object: &mut Value, kind: &str, api_version: &str) -> Result<(), Status> {
    let Some(members) = object.as_object_mut() else { return Ok(()) };
    let given = |name: &str| members.get(name).and_then(Value::as_str).unwrap_or_default();
    let (given_version, given_kind) = (given("apiVersion"), given("kind"));
    if !given_version.is_empty() && given_version != api_version {
        let message = format!("the API version in the data ({given_version}) does not match the expected API version ({api_version})");
        return Err(Status::bad_request(message));
    }
    if !given_kind.is_empty() && given_kind != kind {
        let version = api_version.rsplit('/').next().unwrap_or_default();
        let why = format!("converting ({given_kind}) to ({kind}): unknown conversion");
        return Err(Status::bad_request(format!("{given_kind} in version {version:?} cannot be handled as a {kind}: {why}")));
    }
    members.insert("apiVersion".into(), api_version.into());
    members.insert("kind".into(), kind.into());
    Ok(())
}

/// The table's type of an object that says what it is.
fn type_of(value: &Value) -> Option<&'static Type> {
    // The document under `/api` names no version.
    let (api_version, kind) = (value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str()?);
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    // Status, APIResourceList and their like belong to every group.
    table::by_gvk(group, version, kind).or_else(|| table::find(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{kind}")))
}

/// `None` where the kind has no protobuf form.
pub fn to_protobuf(value: &Value) -> Option<Vec<u8>> {
    type_of(value).map(|found| protobuf::encode(value, found))
}

fn from_protobuf(bytes: &[u8], expected: &str, found: Option<&'static Type>) -> Result<Value, Status> {
    protobuf::decode(bytes, found).map(|object| object.value).map_err(|error| unrecognized(expected, &error))
}

fn unrecognized(expected: &str, error: &dyn std::fmt::Display) -> Status {
    Status::bad_request(format!("the object provided is unrecognized (must be of type {expected}): {error}"))
}

/// The served object as a message of type `found`: the kind's own, or one that has but its metadata.
pub fn object_message(kind: &Kind, object: &Object, found: &Type) -> Vec<u8> {
    // Stored bytes are sent without a tree of values in between, unless they have to be converted or nest beyond serde_json's bound.
    let direct = || protobuf::encode_message_json(&object.json(), found).filter(|_| !kind.converts());
    direct().unwrap_or_else(|| protobuf::encode_message(&crate::views::served(kind, object), found))
}

/// The served object as a protobuf body; `None` for custom resources.
pub fn object_body(kind: &Kind, object: &Object) -> Option<Vec<u8>> {
    let message = object_message(kind, object, kind.table_type()?);
    Some(protobuf::envelope(&kind.api_version(), kind.facts.kind, &message))
}

/// One frame of a protobuf watch stream; `None` where the object has no protobuf form.
pub fn watch_frame(word: &str, object: &Value) -> Option<Bytes> {
    to_protobuf(object).map(|body| protobuf::watch_frame(word, &body).into())
}
