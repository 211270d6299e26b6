//! Between the version in which a custom resource is stored and the one in which it is asked for.
//!
//! What is read is converted, pruned and defaulted by the served version's schema, whoever wrote it and when; what is written is converted
//! to the storage version. Source: apiextensions-apiserver `pkg/apiserver/conversion`, KEP-598.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use admission::Lookup;
use admission::webhook::transport::{Destination, Transport};
use bytes::Bytes;
use meta::Status;
use schema::decode::{self, Mode};
use schema::model::{Ref, Schema, Type};
use serde_json::{Value, json};

use crate::object::{self, Object};

/// As upstream waits for a conversion.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What a custom kind has beside what every kind has.
pub struct Form {
    /// `group/version` in the store, and of this kind.
    pub stored_as: String,
    pub served_as: String,
    /// Objects of a later revision were written under this very schema.
    pub since: u64,
    pub schema: Ref<Type>,
    pub strategy: Arc<Strategy>,
    pub scale: Option<Scale>,
    /// The schema as the CRD has it, as text: a tree of it takes many times the room and is needed for documents only.
    pub openapi: Box<[u8]>,
    /// The sentence that users of a deprecated version are told.
    pub deprecation: Option<String>,
}

/// The paths of the scale subresource, as names.
pub struct Scale {
    pub spec: Vec<String>,
    pub status: Vec<String>,
    pub selector: Option<Vec<String>>,
}

impl Scale {
    pub fn read(version: &Value) -> Option<Self> {
        let scale = version.pointer("/subresources/scale").filter(|scale| scale.is_object())?;
        let path = |name: &str| {
            let names = structural::jsonpath::plain(scale[name].as_str()?)?;
            Some(names.into_iter().map(str::to_owned).collect::<Vec<_>>())
        };
        Some(Self { spec: path("specReplicasPath")?, status: path("statusReplicasPath")?, selector: path("labelSelectorPath") })
    }
}

/// How versions become each other.
pub enum Strategy {
    /// Only the version's name differs.
    None,
    Webhook {
        destination: Result<Destination, String>,
        /// Versions of ConversionReview that the webhook understands.
        reviews: Vec<String>,
        transport: Transport,
        lookup: OnceLock<std::sync::Weak<dyn Lookup>>,
    },
}

impl Strategy {
    pub fn read(crd: &Value) -> Self {
        let conversion = &crd["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return Strategy::None;
        }
        let webhook = &conversion["webhook"];
        let reviews = webhook["conversionReviewVersions"].as_array().into_iter().flatten();
        Strategy::Webhook {
            destination: Destination::read(&webhook["clientConfig"]),
            reviews: reviews.filter_map(|version| version.as_str().map(str::to_owned)).collect(),
            transport: Transport::default(),
            lookup: OnceLock::new(),
        }
    }

    /// Who finds the addresses of Services.
    pub fn resolve_with(&self, lookup: &Arc<dyn Lookup>) {
        if let Strategy::Webhook { lookup: slot, .. } = self {
            // Set once: the server has one reader.
            let _ = slot.set(Arc::downgrade(lookup));
        }
    }
}

impl Form {
    /// Stored objects as this version shows them, in one question to the webhook where there is one. Those that need no change are the
    /// very objects that were given.
    pub fn present_all(&self, objects: Vec<Arc<Object>>) -> Result<Vec<Arc<Object>>, Status> {
        if objects.iter().all(|object| self.is_current(object)) {
            return Ok(objects);
        }
        let stale: Vec<usize> = (0..objects.len()).filter(|at| objects.get(*at).is_some_and(|object| !self.is_current(object))).collect();
        let values = stale.iter().filter_map(|at| objects.get(*at)).map(|object| object.value()).collect();
        let read = self.read(values)?;
        let mut objects = objects;
        for (at, value) in stale.into_iter().zip(read) {
            if let Some(slot) = objects.get_mut(at) {
                let bytes = object::encode(&value);
                if bytes != slot.bytes
                    && let Some(made) = Object::new(slot.key.clone(), bytes, slot.revision)
                {
                    *slot = Arc::new(made);
                }
            }
        }
        Ok(objects)
    }

    /// Versions differ by what a webhook says.
    pub fn asks_a_webhook(&self) -> bool {
        matches!(&*self.strategy, Strategy::Webhook { .. })
    }

    pub fn present(&self, object: &Arc<Object>) -> Result<Arc<Object>, Status> {
        let shown = self.present_all(vec![object.clone()])?;
        Ok(shown.into_iter().next().unwrap_or_else(|| object.clone()))
    }

    /// Written in this version and under this schema.
    fn is_current(&self, object: &Object) -> bool {
        object.revision > self.since && api_version(&object.bytes) == Some(self.served_as.as_bytes())
    }

    /// Stored values as this version shows them.
    pub fn read(&self, values: Vec<Value>) -> Result<Vec<Value>, Status> {
        let converted = self.convert(values, &self.served_as)?;
        Ok(converted.into_iter().map(|value| self.fitted(value)).collect())
    }

    /// The bytes to store.
    pub fn write(&self, value: &Value) -> Result<Bytes, Status> {
        if self.stored_as == self.served_as {
            return Ok(object::encode(value));
        }
        let converted = self.convert(vec![value.clone()], &self.stored_as)?;
        Ok(converted.first().map_or_else(|| object::encode(value), object::encode))
    }

    fn fitted(&self, value: Value) -> Value {
        let schema = Schema::Object(self.schema.clone());
        let mut value = match decode::decode(value.clone(), &schema, Mode::Ignore) {
            Ok((pruned, _)) => pruned,
            Err(_) => value,
        };
        schema::default::apply(&mut value, &schema);
        value
    }

    fn convert(&self, values: Vec<Value>, to: &str) -> Result<Vec<Value>, Status> {
        match &*self.strategy {
            Strategy::None => Ok(values.into_iter().map(|value| renamed(value, to)).collect()),
            Strategy::Webhook { destination, reviews, transport, lookup } => {
                let (mut all, mut asked) = (values, Vec::new());
                for (at, value) in all.iter().enumerate() {
                    if value["apiVersion"] != to {
                        asked.push(at);
                    }
                }
                if asked.is_empty() {
                    return Ok(all);
                }
                let objects: Vec<Value> = asked.iter().filter_map(|at| all.get(*at).cloned()).collect();
                let what = objects.first().map(described).unwrap_or_default();
                let fail = |why: String| Status::failure(500, "", format!("conversion webhook for {what} failed: {why}"));
                let destination = destination.as_ref().map_err(|why| fail(why.clone()))?;
                let lookup = lookup.get().and_then(std::sync::Weak::upgrade).ok_or_else(|| fail("the server stops".into()))?;
                let answer = wait(ask(destination, transport, &*lookup, reviews, &objects, to)).map_err(fail)?;
                for ((at, original), converted) in asked.into_iter().zip(&objects).zip(answer) {
                    let converted = checked(original, converted, to).map_err(fail)?;
                    if let Some(slot) = all.get_mut(at) {
                        *slot = converted;
                    }
                }
                Ok(all)
            }
        }
    }
}

/// `group/version, Kind=Kind`.
fn described(value: &Value) -> String {
    format!("{}, Kind={}", value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str().unwrap_or_default())
}

fn renamed(mut value: Value, to: &str) -> Value {
    if let Some(members) = value.as_object_mut() {
        members.insert("apiVersion".into(), to.into());
    }
    value
}

/// The `apiVersion` of bytes in the stored form.
fn api_version(bytes: &[u8]) -> Option<&[u8]> {
    const NAME: &[u8] = b"\"apiVersion\":\"";
    let head = bytes.get(..bytes.len().min(512))?;
    let at = head.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let rest = bytes.get(at..)?;
    rest.get(..rest.iter().position(|byte| *byte == b'"')?)
}

/// Puts one ConversionReview.
async fn ask(
    destination: &Destination,
    transport: &Transport,
    lookup: &dyn Lookup,
    reviews: &[String],
    objects: &[Value],
    to: &str,
) -> Result<Vec<Value>, String> {
    let version = reviews.iter().find(|version| matches!(version.as_str(), "v1" | "v1beta1"));
    let version = version.ok_or("no supported ConversionReview version is offered")?;
    let uid = meta::names::uid();
    let review = json!({
        "kind": "ConversionReview",
        "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": to, "objects": objects},
    });
    let answer =
        transport.post(destination, review.to_string().into(), TIMEOUT, lookup).await.map_err(|failure| failure.why().to_owned())?;
    let answer: Value = serde_json::from_slice(&answer).map_err(|error| error.to_string())?;
    let response = answer.get("response").filter(|response| response.is_object()).ok_or("no response provided")?;
    if version == "v1" && response["uid"] != uid {
        return Err(format!("expected response.uid={uid:?}, got {:?}", response["uid"].as_str().unwrap_or_default()));
    }
    if response["result"]["status"] != "Success" {
        let message = response["result"]["message"].as_str().filter(|message| !message.is_empty());
        return Err(message.unwrap_or("response.result.status was not 'Success'").to_owned());
    }
    let converted = response["convertedObjects"].as_array().cloned().unwrap_or_default();
    if converted.len() != objects.len() {
        let (wanted, got) = (objects.len(), converted.len());
        return Err(format!("webhook returned {got} objects, expected {wanted}"));
    }
    Ok(converted)
}

/// A webhook may change labels and annotations, but nothing else of the metadata, and not what the object is.
fn checked(original: &Value, mut converted: Value, to: &str) -> Result<Value, String> {
    let given = converted["apiVersion"].as_str().unwrap_or_default();
    if given != to {
        return Err(format!("invalid converted object: expected apiVersion {to}, got {given}"));
    }
    if converted["kind"] != original["kind"] {
        return Err(format!("invalid converted object: expected kind {}, got {}", original["kind"], converted["kind"]));
    }
    if !converted["metadata"].is_object() {
        return Err("invalid metadata: missing metadata in converted object".into());
    }
    for name in ["name", "namespace", "uid"] {
        if converted["metadata"][name] != original["metadata"][name] {
            return Err(format!("metadata.{name} must not be changed by a conversion"));
        }
    }
    let mut metadata = original["metadata"].clone();
    for name in ["labels", "annotations"] {
        match converted["metadata"].get(name).filter(|value| !value.is_null()) {
            Some(value) => metadata[name] = value.clone(),
            None => {
                metadata.as_object_mut().map(|members| members.remove(name));
            }
        }
    }
    converted["metadata"] = metadata;
    Ok(converted)
}

/// Conversions are needed in the midst of writes and of streams, which are no places to wait in: the thread does, and gives its other work
/// away.
fn wait<T>(question: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let Ok(handle) = tokio::runtime::Handle::try_current() else { return Err("no runtime".into()) };
    if handle.runtime_flavor() != tokio::runtime::RuntimeFlavor::MultiThread {
        return Err("conversion webhooks need a runtime of several threads".into());
    }
    tokio::task::block_in_place(|| handle.block_on(question))
}
