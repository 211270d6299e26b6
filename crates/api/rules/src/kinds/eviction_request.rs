//! lifecycle.k8s.io/v1alpha1 EvictionRequest (KEP-4563).

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::Part;
use crate::checks::{Errors, at_least, conditions, fixed, one_of, required, required_formed, sentences, union_of};
use crate::plain::Plain;
use crate::printing::{self, AGE, NAME};
use crate::value::{at, has, int, list, text};

pub const EVICTION_REQUEST: Plain = Plain {
    status_keeps_metadata: true,
    validate: |object| validate(at(object, "spec"), &Path::new("spec")),
    validate_update: |new, old, part| match part {
        Part::Status => status(at(new, "status"), at(old, "status")),
        _ => {
            let (new, old) = (at(new, "spec"), at(old, "spec"));
            ["target", "requester"]
                .iter()
                .flat_map(|field| fixed(&Path::new("spec").child(field), at(new, field), at(old, field)))
                .collect()
        }
    },
    counts_generation: true,
    ..Plain::new(("lifecycle.k8s.io", "v1alpha1", "EvictionRequest"), &[NAME, AGE], |object, now| vec![printing::age(object, now)])
};

fn validate(spec: &Value, path: &Path) -> Errors {
    let (target, here) = (at(spec, "target"), path.child("target"));
    let mut errors = union_of(target, &here, &["pod"]);
    if has(target, "pod") {
        let (pod, here) = (at(target, "pod"), here.child("pod"));
        errors.extend(required_formed(pod, &here, "name", names::dns1123_subdomain));
        errors.extend(required(pod, &here, "uid"));
        let uid = text(pod, "uid");
        if !uid.is_empty() && !is_uuid(uid) {
            let sentence = "must be a lowercase UUID in 8-4-4-4-12 format";
            errors.push(Error::invalid(&here.child("uid"), uid, sentence));
        }
    }
    errors.extend(required(spec, path, "requester"));
    let requester = text(spec, "requester");
    if !requester.is_empty() {
        let here = path.child("requester");
        errors.extend(sentences(&here, requester, names::qualified_name(requester)));
        if !requester.contains('/') {
            errors.push(Error::invalid(&here, requester, "must include a prefix (e.g. 'example.com/key')"));
        }
    }
    errors.extend(one_of(spec, path, "intent", &["Eviction", "Withdrawn"]));
    errors
}

fn is_uuid(text: &str) -> bool {
    let lengths = text.split('-').map(str::len);
    lengths.eq([8, 4, 4, 4, 12]) && text.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

fn status(new: &Value, old: &Value) -> Errors {
    let path = Path::new("status");
    let mut errors = match list(new, "conditions") {
        many if many.len() > 100 => vec![Error::too_many(&path.child("conditions"), many.len(), 100)],
        few => conditions(few, &path.child("conditions")),
    };
    errors.extend(at_least(new, &path, "observedGeneration", 1));
    let here = path.child("observedGeneration");
    match (int(old, "observedGeneration"), int(new, "observedGeneration")) {
        (Some(_), None) => errors.push(Error::invalid(&here, Value::Null, "field cannot be cleared once set")),
        (Some(before), Some(after)) if after < before => {
            errors.push(Error::invalid(&here, after, format!("must be greater than or equal to {before}")));
        }
        _ => {}
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rules;
    use serde_json::json;

    #[test]
    fn a_request_names_one_pod_by_its_uid_and_who_asks() {
        let pod = json!({"pod": {"name": "p", "uid": "0b6d7bf0-6ca6-4f0f-b9a5-c4e5f6a7b8c9"}});
        let good = json!({"spec": {"target": pod, "requester": "example.com/drain", "intent": "Eviction"}});
        assert_eq!(EVICTION_REQUEST.validate(&good), []);
        let bad = json!({"spec": {"target": {}, "requester": "drain", "intent": "Maybe"}});
        assert_eq!(
            EVICTION_REQUEST.validate(&bad).iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "spec.target: Invalid value: \"\": must specify one of: `pod`",
                "spec.requester: Invalid value: \"drain\": must include a prefix (e.g. 'example.com/key')",
                "spec.intent: Unsupported value: \"Maybe\": supported values: \"Eviction\", \"Withdrawn\"",
            ]
        );
        let mut other = good.clone();
        other["spec"]["requester"] = "example.com/other".into();
        other["spec"]["intent"] = "Withdrawn".into();
        let errors = EVICTION_REQUEST.validate_update(&other, &good, Part::Main);
        assert_eq!(errors.iter().map(ToString::to_string).collect::<Vec<_>>(), ["spec.requester: Invalid value: null: field is immutable"]);
    }
}
