//! storage.k8s.io/v1 CSIStorageCapacity.

use meta::field::{Error, Path};
use meta::{names, quantity};

use crate::checks::{Errors, immutable, label_selector, sentences};
use crate::plain::Plain;
use crate::printing::{NAME, shown};
use crate::value::{at, text, text_or};

pub const CSI_STORAGE_CAPACITY: Plain = Plain {
    validate: |object| {
        let class = text(object, "storageClassName");
        let mut errors = label_selector(at(object, "nodeTopology"), &Path::new("nodeTopology"));
        errors.extend(sentences(&Path::new("storageClassName"), class, names::dns1123_subdomain(class)));
        for field in ["capacity", "maximumVolumeSize"] {
            if let Some(amount) = quantity::from_json(at(object, field)).filter(|amount| amount.is_negative()) {
                errors.push(Error::invalid(&Path::new(field), amount.to_string(), "must be greater than or equal to 0"));
            }
        }
        errors
    },
    validate_update: |new, old, _| -> Errors {
        let fields = ["nodeTopology", "storageClassName"];
        fields.into_iter().flat_map(|field| immutable(&Path::new(field), at(new, field), at(old, field))).collect()
    },
    unconditional_update: false,
    ..Plain::new(
        ("storage.k8s.io", "v1", "CSIStorageCapacity"),
        &[NAME, shown("StorageClassName", "string", "Class of the capacity."), shown("Capacity", "string", "What is left.")],
        |object, _| vec![text(object, "storageClassName").into(), text_or(object, "capacity", "<unset>").into()],
    )
};
