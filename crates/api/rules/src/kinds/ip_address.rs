//! networking.k8s.io/v1 IPAddress: an address of a Service. Its name is the address.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use crate::checks::{Errors, formed, immutable, required_formed};
use crate::plain::Plain;
use crate::printing::{self, NAME, shown};
use crate::value::{at, text};

pub const IP_ADDRESS: Plain = Plain {
    name: names::canonical_ip,
    validate,
    validate_update: |new, old, _| immutable(&Path::new("spec").child("parentRef"), at(new, "spec.parentRef"), at(old, "spec.parentRef")),
    ..Plain::new(
        ("networking.k8s.io", "v1", "IPAddress"),
        &[NAME, shown("ParentRef", "string", "Object that has the address.")],
        |object, _| {
            let parent = at(object, "spec.parentRef");
            let word = |field: &str| Some(text(parent, field).to_owned()).filter(|word| !word.is_empty());
            let resource = [word("resource"), word("group")].into_iter().flatten().collect::<Vec<_>>().join(".").to_lowercase();
            let words: Vec<String> = [Some(resource), word("namespace"), word("name")].into_iter().flatten().collect();
            vec![printing::none_if_empty(words.join("/"))]
        },
    )
};

fn validate(object: &Value) -> Errors {
    let (parent, path) = (at(object, "spec.parentRef"), Path::new("spec").child("parentRef"));
    if parent.is_null() {
        return vec![Error::required(&path, "")];
    }
    let mut errors = formed(parent, &path, "group", names::dns1123_subdomain);
    errors.extend(required_formed(parent, &path, "resource", names::path_segment));
    errors.extend(required_formed(parent, &path, "name", names::path_segment));
    errors.extend(formed(parent, &path, "namespace", names::path_segment));
    errors
}
