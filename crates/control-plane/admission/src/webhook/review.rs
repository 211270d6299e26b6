//! `AdmissionReview` (`admission.k8s.io/v1` and `v1beta1`): the question and what an answer must be like.
//!
//! Source: apiserver `pkg/admission/plugin/webhook/request`.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use meta::gvk::{GroupVersionKind, GroupVersionResource};
use meta::status::Status;
use rules::value::{at, flag, list, text};
use serde::Serialize;
use serde_json::Value;

use crate::Attributes;
use crate::matching::Invocation;

const KIND: &str = "AdmissionReview";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    kind: &'static str,
    api_version: &'a str,
    request: Request<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    uid: &'a str,
    kind: KindName<'a>,
    resource: ResourceName<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    sub_resource: &'a str,
    request_kind: KindName<'a>,
    request_resource: ResourceName<'a>,
    #[serde(skip_serializing_if = "str::is_empty")]
    request_sub_resource: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    namespace: &'a str,
    operation: &'static str,
    user_info: &'a auth::UserInfo,
    object: Option<&'a Value>,
    old_object: Option<&'a Value>,
    dry_run: bool,
    options: Option<&'a Value>,
}

#[derive(Serialize)]
pub struct KindName<'a> {
    group: &'a str,
    version: &'a str,
    kind: &'a str,
}

#[derive(Serialize)]
pub struct ResourceName<'a> {
    group: &'a str,
    version: &'a str,
    resource: &'a str,
}

impl<'a> From<&'a GroupVersionKind> for KindName<'a> {
    fn from(gvk: &'a GroupVersionKind) -> Self {
        Self { group: &gvk.group, version: &gvk.version, kind: &gvk.kind }
    }
}

impl<'a> From<&'a GroupVersionResource> for ResourceName<'a> {
    fn from(gvr: &'a GroupVersionResource) -> Self {
        Self { group: &gvr.group, version: &gvr.version, resource: &gvr.resource }
    }
}

/// The objects of a write in the version that a webhook wants.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub new: Option<Value>,
    pub old: Option<Value>,
}

/// A question that was put; its answer is checked against it.
pub struct Question {
    uid: String,
    version: &'static str,
    pub body: Vec<u8>,
}

/// The request as CEL expressions see it: without the objects, and without what does not apply.
pub fn request(attributes: &Attributes, invocation: &Invocation) -> Value {
    let mut value = serde_json::to_value(of(attributes, invocation, "", &Objects::default())).unwrap_or_default();
    if let Some(members) = value.as_object_mut() {
        members.retain(|name, member| !matches!(name.as_str(), "uid" | "object" | "oldObject") && !member.is_null());
    }
    value
}

fn of<'a>(attributes: &'a Attributes, invocation: &'a Invocation, uid: &'a str, objects: &'a Objects) -> Request<'a> {
    Request {
        uid,
        kind: (&invocation.gvk).into(),
        resource: (&invocation.gvr).into(),
        sub_resource: &attributes.subresource,
        request_kind: (&attributes.gvk).into(),
        request_resource: (&attributes.gvr).into(),
        request_sub_resource: &attributes.subresource,
        name: &attributes.name,
        namespace: &attributes.namespace,
        operation: attributes.operation.word(),
        user_info: &attributes.user,
        object: objects.new.as_ref(),
        old_object: objects.old.as_ref(),
        dry_run: attributes.dry_run,
        options: Some(&attributes.options).filter(|options| !options.is_null()),
    }
}

/// `versions` are those that the webhook understands, the dearest first.
pub fn ask(attributes: &Attributes, invocation: &Invocation, objects: &Objects, versions: &[String]) -> Result<Question, String> {
    let known = versions.iter().find_map(|version| match version.as_str() {
        "v1" => Some("admission.k8s.io/v1"),
        "v1beta1" => Some("admission.k8s.io/v1beta1"),
        _ => None,
    });
    let version = known.ok_or("webhook does not accept known AdmissionReview versions (v1, v1beta1)")?;
    let uid = meta::names::uid();
    let request = of(attributes, invocation, &uid, objects);
    let body = serde_json::to_vec(&Review { kind: KIND, api_version: version, request }).map_err(|error| error.to_string())?;
    Ok(Question { uid, version, body })
}

/// An answer in order.
#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub allowed: bool,
    /// A JSON patch; empty where there is none.
    pub patch: Vec<u8>,
    pub result: Option<Status>,
    pub warnings: Vec<String>,
    pub annotations: Vec<(String, String)>,
}

/// Why an answer is none.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Malformed {
    /// It is no object of the API at all.
    #[error("failed to call webhook: {0}")]
    Undecodable(String),
    #[error("received invalid webhook response: {0}")]
    Invalid(String),
}

impl Question {
    pub fn read(&self, bytes: &[u8], mutating: bool) -> Result<Answer, Malformed> {
        let review = decode(bytes)?;
        let invalid = |why: &str| Err(Malformed::Invalid(why.to_owned()));
        let response = at(&review, "response");
        if response.is_null() {
            return invalid("webhook response was absent");
        }
        let strict = self.version == "admission.k8s.io/v1";
        if strict {
            self.check(&review, response)?;
        }
        let patch_type = response.get("patchType").filter(|value| !value.is_null()).map(|value| value.as_str().unwrap_or_default());
        let patch = match text(response, "patch") {
            "" => Vec::new(),
            encoded => STANDARD
                .decode(encoded)
                .map_err(|error| Malformed::Undecodable(format!("illegal base64 data in response.patch: {error}")))?,
        };
        match (mutating, patch.is_empty(), patch_type) {
            (true, false, None) if strict => return invalid("webhook returned response.patch but not response.patchType"),
            (true, true, Some(_)) if strict => return invalid("webhook returned response.patchType but not response.patch"),
            (true, _, Some("")) if strict => return invalid("webhook returned invalid response.patchType of \"\""),
            (true, false, Some(other)) if other != "JSONPatch" && strict => return invalid(&format!("unsupported patch type {other:?}")),
            (false, false, _) if strict => return invalid("validating webhook may not return response.patch"),
            (false, _, Some(_)) if strict => return invalid("validating webhook may not return response.patchType"),
            _ => {}
        }
        let annotations = at(response, "auditAnnotations").as_object().into_iter().flatten();
        Ok(Answer {
            allowed: flag(response, "allowed"),
            patch: if mutating { patch } else { Vec::new() },
            result: response.get("status").or(response.get("result")).filter(|status| status.is_object()).and_then(result),
            warnings: list(response, "warnings").iter().filter_map(|warning| warning.as_str().map(str::to_owned)).collect(),
            annotations: annotations.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect(),
        })
    }

    fn check(&self, review: &Value, response: &Value) -> Result<(), Malformed> {
        let uid = text(response, "uid");
        if uid != self.uid {
            return Err(Malformed::Invalid(format!("expected response.uid={:?}, got {uid:?}", self.uid)));
        }
        let (version, kind) = (text(review, "apiVersion"), text(review, "kind"));
        if version != self.version || kind != KIND {
            let expected = self.version;
            return Err(Malformed::Invalid(format!("expected webhook response of {expected}, Kind={KIND}, got {version}, Kind={kind}")));
        }
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Result<Value, Malformed> {
    let undecodable = |why: String| Malformed::Undecodable(why);
    let parsed = schema::decode::parse_json(bytes);
    let review = parsed.map_err(|error| undecodable(format!("couldn't get version/kind; json parse error: {error}")))?.value;
    let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(1_000)]).into_owned();
    if !review.is_object() {
        let word = schema::merge::json_type(&review);
        let why = format!("json: cannot unmarshal {word} into Go value of type struct {{ APIVersion string; Kind string }}");
        return Err(undecodable(format!("couldn't get version/kind; json parse error: {why}")));
    }
    match (text(&review, "kind"), text(&review, "apiVersion")) {
        ("", _) => Err(undecodable(format!("Object 'Kind' is missing in '{}'", shown()))),
        (_, "") => Err(undecodable(format!("Object 'apiVersion' is missing in '{}'", shown()))),
        ("Status", "v1") => Err(undecodable(text(&review, "message").to_owned())),
        _ => Ok(review),
    }
}

fn result(status: &Value) -> Option<Status> {
    serde_json::from_value(status.clone()).ok()
}

/// The failure that the client of a denied write gets.
pub fn denial(webhook: &str, result: Option<Status>) -> Status {
    let mut status = result.unwrap_or_default();
    status.kind = "Status".into();
    status.api_version = "v1".into();
    status.code = status.code.max(400);
    if status.status.is_empty() || status.status == "Success" {
        status.status = "Failure".into();
    }
    let said = if status.message.is_empty() { &status.reason } else { &status.message };
    let why = if said.is_empty() { " without explanation".to_owned() } else { format!(": {said}") };
    status.message = format!("admission webhook {webhook:?} denied the request{why}");
    status
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Operation;
    use crate::fixture::write;

    fn question() -> Question {
        Question { uid: "u".into(), version: "admission.k8s.io/v1", body: Vec::new() }
    }

    fn answer(response: Value) -> Vec<u8> {
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}).to_string().into_bytes()
    }

    #[test]
    fn the_question_shows_the_write() {
        let mut attributes = write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "n"}}));
        attributes.dry_run = true;
        let invocation = Invocation { gvr: attributes.gvr.clone(), gvk: attributes.gvk.clone() };
        let objects = Objects { new: attributes.object.clone(), old: None };
        let question = ask(&attributes, &invocation, &objects, &["v2".into(), "v1".into()]).expect("a question");
        let review: Value = serde_json::from_slice(&question.body).expect("JSON");
        let request = &review["request"];
        assert_eq!((&review["kind"], &review["apiVersion"]), (&json!("AdmissionReview"), &json!("admission.k8s.io/v1")));
        assert_eq!(request["uid"], question.uid);
        assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "Pod"}));
        assert_eq!(request["requestResource"], json!({"group": "", "version": "v1", "resource": "pods"}));
        assert_eq!((&request["operation"], &request["dryRun"], &request["oldObject"]), (&json!("CREATE"), &json!(true), &Value::Null));
        assert_eq!(request["userInfo"]["username"], "admin");
        assert!(request.get("subResource").is_none());
        let none = ask(&attributes, &invocation, &objects, &["v2".into()]).err();
        assert_eq!(none.as_deref(), Some("webhook does not accept known AdmissionReview versions (v1, v1beta1)"));
    }

    #[test]
    fn nonsense_is_no_answer() {
        let invalid = |why: &str| Malformed::Invalid(why.to_owned()).to_string();
        let cases = [
            (
                b"<html>".to_vec(),
                true,
                "failed to call webhook: couldn't get version/kind; json parse error: invalid character '<' looking for beginning of value"
                    .to_owned(),
            ),
            (b"{}".to_vec(), true, "failed to call webhook: Object 'Kind' is missing in '{}'".to_owned()),
            (answer(Value::Null), true, invalid("webhook response was absent")),
            (answer(json!({"uid": "x"})), true, invalid("expected response.uid=\"u\", got \"x\"")),
            (answer(json!({"uid": "u", "patch": "W10="})), true, invalid("webhook returned response.patch but not response.patchType")),
            (
                answer(json!({"uid": "u", "patchType": "JSONPatch"})),
                true,
                invalid("webhook returned response.patchType but not response.patch"),
            ),
            (
                answer(json!({"uid": "u", "patch": "W10=", "patchType": "JSONPatch"})),
                false,
                invalid("validating webhook may not return response.patch"),
            ),
            (answer(json!({"uid": "u", "patch": "W10=", "patchType": "Merge"})), true, invalid("unsupported patch type \"Merge\"")),
        ];
        for (bytes, mutating, why) in cases {
            let found = question().read(&bytes, mutating).expect_err("no answer").to_string();
            assert_eq!(found, why, "{}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_denial_says_who_and_why() {
        let cases = [
            (json!({"message": "no", "code": 403, "reason": "Forbidden"}), 403, "admission webhook \"w\" denied the request: no"),
            (json!({"reason": "because"}), 400, "admission webhook \"w\" denied the request: because"),
            (json!({"code": 200, "status": "Success"}), 400, "admission webhook \"w\" denied the request without explanation"),
        ];
        for (status, code, message) in cases {
            let response = json!({"uid": "u", "allowed": false, "status": status, "warnings": ["careful"], "auditAnnotations": {"k": "v"}});
            let answer = question().read(&answer(response), false).expect("an answer");
            assert_eq!((answer.warnings.as_slice(), answer.annotations.len()), (&["careful".to_owned()][..], 1));
            let denied = denial("w", answer.result);
            assert_eq!((denied.code, denied.message.as_str(), denied.status.as_str()), (code, message, "Failure"));
        }
        assert_eq!(denial("w", None).message, "admission webhook \"w\" denied the request without explanation");
    }
}
