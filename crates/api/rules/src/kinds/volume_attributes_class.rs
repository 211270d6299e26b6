//! storage.k8s.io/v1 VolumeAttributesClass.

use meta::field::{Error, Path};

use super::storage_class;
use crate::checks::{Errors, any, immutable};
use crate::plain::Plain;
use crate::pod_spec::volumes::sources::driver_name;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::{at, text};

pub const VOLUME_ATTRIBUTES_CLASS: Plain = Plain {
    validate: |object| {
        let (parameters, path) = (at(object, "parameters"), Path::new("parameters"));
        let mut errors = driver_name(text(object, "driverName"), &Path::new("driverName"));
        if !any(parameters) {
            errors.push(Error::required(&path, "must contain at least one key/value pair"));
        }
        errors.extend(storage_class::parameters(parameters, &path));
        errors
    },
    validate_update: |new, old, _| -> Errors {
        let fields = ["driverName", "parameters"];
        fields.into_iter().flat_map(|field| immutable(&Path::new(field), at(new, field), at(old, field))).collect()
    },
    ..Plain::new(
        ("storage.k8s.io", "v1", "VolumeAttributesClass"),
        &[NAME, shown("DriverName", "string", "Driver that knows the attributes."), AGE],
        |object, now| vec![text(object, "driverName").into(), printing::age(object, now)],
    )
};
