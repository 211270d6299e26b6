//! admissionregistration.k8s.io/v1 MutatingWebhookConfiguration.

use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::list;
use crate::webhook;

pub const MUTATING_WEBHOOK_CONFIGURATION: Plain = Plain {
    default: |object| webhook::default(object, true),
    validate: |object| webhook::validate(object, true),
    counts_generation: true,
    unconditional_update: false,
    ..Plain::new(
        ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"),
        &[NAME, shown("Webhooks", "integer", "Webhooks of the configuration."), AGE],
        |object, now| vec![list(object, "webhooks").len().into(), printing::age(object, now)],
    )
};
