//! node.k8s.io/v1 RuntimeClass.

use std::collections::BTreeSet;

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use crate::checks::{Errors, immutable, labels, sentences};
use crate::plain::Plain;
use crate::pod_spec::scheduling;
use crate::printing::{self, AGE, NAME, shown};
use crate::resources;
use crate::value::{at, has, list, text};

pub const RUNTIME_CLASS: Plain = Plain {
    validate,
    validate_update: |new, old, _| immutable(&Path::new("handler"), at(new, "handler"), at(old, "handler")),
    create_on_update: true,
    unconditional_update: false,
    ..Plain::new(
        ("node.k8s.io", "v1", "RuntimeClass"),
        &[NAME, shown("Handler", "string", "Runtime that the node asks for."), AGE],
        |object, now| vec![text(object, "handler").into(), printing::age(object, now)],
    )
};

fn validate(object: &Value) -> Errors {
    let handler = text(object, "handler");
    let mut errors = sentences(&Path::new("handler"), handler, names::dns1123_label(handler));
    if has(object, "overhead") {
        let limits = json!({"limits": at(object, "overhead.podFixed")});
        errors.extend(resources::of_container(&limits, &BTreeSet::new(), &Path::new("overhead").child("podFixed")));
    }
    if has(object, "scheduling") {
        let (given, path) = (at(object, "scheduling"), Path::new("scheduling"));
        errors.extend(labels(at(given, "nodeSelector"), &path.child("nodeSelector")));
        let tolerations = list(given, "tolerations");
        for (index, toleration) in tolerations.iter().enumerate() {
            if tolerations.iter().take(index).any(|before| before == toleration) {
                errors.push(Error::duplicate(&path.child("tolerations").index(index), toleration.clone()));
            }
        }
        errors.extend(scheduling::tolerations(tolerations, &path.child("tolerations")));
    }
    errors
}
