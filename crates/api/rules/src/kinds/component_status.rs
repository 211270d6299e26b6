//! v1 ComponentStatus, which is only read.

use crate::plain::Plain;
use crate::printing::{NAME, shown};
use crate::value::{list, text};

pub const COMPONENT_STATUS: Plain = Plain::new(
    ("", "v1", "ComponentStatus"),
    &[
        NAME,
        shown("Status", "string", "Whether the component is well."),
        shown("Message", "string", "What it says."),
        shown("Error", "string", "What is wrong with it."),
    ],
    |object, _| {
        let health = list(object, "conditions").iter().find(|condition| text(condition, "type") == "Healthy");
        let said = |field: &str| health.map_or("", |condition| text(condition, field));
        let status = match (health, said("status")) {
            (None, _) => "Unknown",
            (_, "True") => "Healthy",
            _ => "Unhealthy",
        };
        vec![status.into(), said("message").into(), said("error").into()]
    },
);
