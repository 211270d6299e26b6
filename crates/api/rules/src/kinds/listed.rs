//! Kinds whose rules are no more than their columns: a row of [`ALL`] each.

use meta::{names, time};
use serde_json::Value;

use crate::printing::{self, AGE, NAME, or_none, shown};
use crate::value::{has, int, list, text};
use crate::{Column, Rules};

/// A kind, its columns after the name, and their cells.
pub struct Listed {
    gvk: (&'static str, &'static str, &'static str),
    columns: &'static [Column],
    cells: fn(&Value, i64) -> Vec<Value>,
}

impl Rules for Listed {
    fn gvk(&self) -> (&'static str, &'static str, &'static str) {
        self.gvk
    }
    fn columns(&self) -> &'static [Column] {
        self.columns
    }
    fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        let mut cells = vec![printing::name(object)];
        cells.extend((self.cells)(object, now));
        cells
    }
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_subdomain(name)
    }
}

const fn text_column(name: &'static str) -> Column {
    shown(name, "string", "")
}

pub const CERTIFICATE_SIGNING_REQUEST: Listed = Listed {
    gvk: ("certificates.k8s.io", "v1", "CertificateSigningRequest"),
    columns: &[NAME, AGE, text_column("SignerName"), text_column("Requestor"), text_column("RequestedDuration"), text_column("Condition")],
    cells: |object, now| {
        let duration = int(object, "spec.expirationSeconds").map_or_else(|| "<none>".to_owned(), time::human);
        let is = |kind: &str| list(object, "status.conditions").iter().any(|condition| text(condition, "type") == kind);
        let mut words: Vec<&str> = ["Approved", "Denied", "Failed"].into_iter().filter(|kind| is(kind)).collect();
        if words.is_empty() {
            words.push("Pending");
        }
        if has(object, "status.certificate") {
            words.push("Issued");
        }
        vec![
            printing::age(object, now),
            or_none(object, "spec.signerName"),
            text(object, "spec.username").into(),
            duration.into(),
            words.join(",").into(),
        ]
    },
};

const WEBHOOK_COLUMNS: &[Column] = &[NAME, shown("Webhooks", "integer", "Webhooks of the configuration."), AGE];

pub const VALIDATING_WEBHOOKS: Listed = Listed {
    gvk: ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration"),
    columns: WEBHOOK_COLUMNS,
    cells: |object, now| vec![list(object, "webhooks").len().into(), printing::age(object, now)],
};

pub const MUTATING_WEBHOOKS: Listed = Listed {
    gvk: ("admissionregistration.k8s.io", "v1", "MutatingWebhookConfiguration"),
    columns: WEBHOOK_COLUMNS,
    cells: |object, now| vec![list(object, "webhooks").len().into(), printing::age(object, now)],
};

pub const FLOW_SCHEMA: Listed = Listed {
    gvk: ("flowcontrol.apiserver.k8s.io", "v1", "FlowSchema"),
    columns: &[
        NAME,
        text_column("PriorityLevel"),
        shown("MatchingPrecedence", "string", "The order in which schemas are asked."),
        text_column("DistinguisherMethod"),
        AGE,
        text_column("MissingPL"),
    ],
    cells: |object, now| {
        let dangling = list(object, "status.conditions").iter().find(|condition| text(condition, "type") == "Dangling");
        vec![
            or_none(object, "spec.priorityLevelConfiguration.name"),
            int(object, "spec.matchingPrecedence").unwrap_or(0).to_string().into(),
            or_none(object, "spec.distinguisherMethod.type"),
            printing::age(object, now),
            dangling.map_or("?", |condition| text(condition, "status")).into(),
        ]
    },
};

pub const PRIORITY_LEVEL: Listed = Listed {
    gvk: ("flowcontrol.apiserver.k8s.io", "v1", "PriorityLevelConfiguration"),
    columns: &[
        NAME,
        text_column("Type"),
        text_column("NominalConcurrencyShares"),
        text_column("Queues"),
        text_column("HandSize"),
        text_column("QueueLengthLimit"),
        AGE,
    ],
    cells: |object, now| {
        let number = |path: &str| Value::from(int(object, path).map_or_else(|| "<none>".to_owned(), |number| number.to_string()));
        let queuing = |field: &str| number(&format!("spec.limited.limitResponse.queuing.{field}"));
        vec![
            text(object, "spec.type").into(),
            number("spec.limited.nominalConcurrencyShares"),
            queuing("queues"),
            queuing("handSize"),
            queuing("queueLengthLimit"),
            printing::age(object, now),
        ]
    },
};

pub const API_SERVICE: Listed = Listed {
    gvk: ("apiregistration.k8s.io", "v1", "APIService"),
    columns: &[NAME, text_column("Service"), text_column("Available"), AGE],
    cells: |object, now| {
        let service = match has(object, "spec.service") {
            true => format!("{}/{}", text(object, "spec.service.namespace"), text(object, "spec.service.name")),
            false => "Local".to_owned(),
        };
        let condition = list(object, "status.conditions").iter().find(|condition| text(condition, "type") == "Available");
        let available = condition.map_or_else(
            || "Unknown".to_owned(),
            |condition| match text(condition, "status") {
                "True" => "True".to_owned(),
                other => format!("{other} ({})", text(condition, "reason")),
            },
        );
        vec![service.into(), available.into(), printing::age(object, now)]
    },
};

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_show_what_upstream_shows() {
        let spec = |spec: Value| json!({"metadata": {"name": "x"}, "spec": spec});
        let cases: [(&Listed, Value, &[Value]); 1] = [(&API_SERVICE, spec(json!({})), &[json!("Local"), json!("Unknown")])];
        for (kind, object, cells) in cases {
            assert_eq!(kind.cells(&object, 0)[1..=cells.len()], *cells, "{:?}", kind.gvk);
        }
        let request =
            json!({"metadata": {"name": "x"}, "spec": {"expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved"}]}});
        assert_eq!(CERTIFICATE_SIGNING_REQUEST.cells(&request, 0)[4..], [json!("60m"), json!("Approved")]);
    }
}
