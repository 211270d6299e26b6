//! From JSON to typed objects, as forgiving as Go's clients are.
//!
//! A Go server writes a time that was never set as `null` and reads `null` for anything as "not set"; the generated types
//! refuse both where a field is required (`lastTransitionTime` of a condition). One such object must not stop a cache of
//! all the others, so that what does not decode at once is read again without its nulls.

use meta::scan;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What Go's `time.Time{}` is written as, where it is not written as `null`.
const UNSET: &str = "0001-01-01T00:00:00Z";

/// `bytes` as `T`.
///
/// # Errors
/// That of the first reading, if the second one failed as well.
pub(crate) fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_slice(bytes).or_else(|error| {
        let Ok(mut value) = serde_json::from_slice::<Value>(bytes) else { return Err(error) };
        strip(&mut value);
        serde_json::from_value(value).map_err(|_| error)
    })
}

/// [`object`] without `metadata.managedFields`: a third of a pod's text, and a tree of its own where it is read.
pub(crate) fn unowned<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    match without_owners(bytes).map(|short| object(&short)) {
        Some(Ok(decoded)) => Ok(decoded),
        // Nothing to leave out, or text that is not as compact as servers write it.
        _ => object(bytes),
    }
}

fn without_owners(object: &[u8]) -> Option<Vec<u8>> {
    let metadata = scan::find(object, &["metadata"])?;
    let (name, value) = scan::members(metadata).find(|(name, _)| *name == b"managedFields")?;
    let offset = |part: &[u8]| part.as_ptr() as usize - object.as_ptr() as usize;
    let (mut from, mut to) = (offset(name).checked_sub(1)?, offset(value) + value.len());
    match (object.get(from.checked_sub(1)?)?, object.get(to)?) {
        (_, b',') => to += 1,
        (b',', _) => from -= 1,
        _ => {}
    }
    Some([object.get(..from)?, object.get(to..)?].concat())
}

/// Takes out the fields that are `null`; a condition's time becomes the one that means "not set".
fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if let Some(time) = fields.get_mut("lastTransitionTime").filter(|time| time.is_null()) {
                *time = Value::from(UNSET);
            }
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(strip);
        }
        Value::Array(items) => items.iter_mut().for_each(strip),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;

    use super::*;

    #[test]
    fn a_condition_without_a_time_does_not_hide_its_object() {
        let text = br#"{"metadata":{"name":"a","creationTimestamp":null},"status":{"conditions":[
            {"type":"Foo","status":"True","reason":"","message":"","lastTransitionTime":null}]}}"#;
        let service: Service = object(text).unwrap();
        let conditions = service.status.and_then(|status| status.conditions).unwrap_or_default();
        assert_eq!(conditions.first().map(|condition| condition.last_transition_time.0.to_string()), Some(UNSET.into()));
        assert!(service.metadata.creation_timestamp.is_none());
    }

    #[test]
    fn objects_are_read_without_their_owners_wherever_those_stand() {
        let owners = r#""managedFields":[{"manager":"a]},\"","fieldsV1":{"f:x":{}}}]"#;
        for metadata in [format!("{{{owners}}}"), format!("{{\"name\":\"a\",{owners}}}"), format!("{{{owners},\"name\":\"a\"}}")] {
            let text = format!("{{\"kind\":\"Service\",\"metadata\":{metadata},\"spec\":{{\"type\":\"ClusterIP\"}}}}");
            let short: Value = serde_json::from_slice(&without_owners(text.as_bytes()).unwrap()).unwrap();
            let mut whole: Value = serde_json::from_str(&text).unwrap();
            whole["metadata"].as_object_mut().unwrap().remove("managedFields");
            assert_eq!(short, whole);
            assert_eq!(unowned::<Service>(text.as_bytes()).unwrap(), serde_json::from_value(whole).unwrap());
        }
        assert_eq!(without_owners(br#"{"metadata":{"name":"a"},"spec":{"managedFields":[]}}"#), None);
        assert!(unowned::<Service>(br#"{ "metadata": { "managedFields": [ ] } }"#).is_ok());
    }

    #[test]
    fn what_is_wrong_for_another_reason_keeps_its_error() {
        let error = object::<Service>(br#"{"metadata":{"name":7,"creationTimestamp":null}}"#).unwrap_err();
        assert!(error.to_string().contains("expected a string"), "{error}");
    }
}
