//! admissionregistration.k8s.io/v1 ValidatingWebhookConfiguration.

use crate::plain::Plain;
use crate::printing::{self, AGE, NAME, shown};
use crate::value::list;
use crate::webhook;

pub const VALIDATING_WEBHOOK_CONFIGURATION: Plain = Plain {
    default: |object| webhook::default(object, false),
    validate: |object| webhook::validate(object, false),
    counts_generation: true,
    unconditional_update: false,
    ..Plain::new(
        ("admissionregistration.k8s.io", "v1", "ValidatingWebhookConfiguration"),
        &[NAME, shown("Webhooks", "integer", "Webhooks of the configuration."), AGE],
        |object, now| vec![list(object, "webhooks").len().into(), printing::age(object, now)],
    )
};

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::Rules;

    #[test]
    fn broken_webhooks_are_explained() {
        let hook = |path: &str, value: Value| {
            let mut hook = json!({"name": "a.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"url": "https://a.example.com/x"},
                "rules": [{"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]});
            crate::value::set(&mut hook, path, value);
            hook
        };
        let cases = [
            (hook("name", json!("a.example.com")), vec![]),
            (
                hook("name", json!("a")),
                vec!["webhooks[0].name: Invalid value: \"a\": should be a domain with at least three segments separated by dots"],
            ),
            (
                hook("sideEffects", json!("Some")),
                vec!["webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\""],
            ),
            (hook("sideEffects", Value::Null), vec!["webhooks[0].sideEffects: Required value: must specify one of None, NoneOnDryRun"]),
            (
                hook("timeoutSeconds", json!(31)),
                vec!["webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds"],
            ),
            (hook("clientConfig", json!({})), vec!["webhooks[0].clientConfig: Required value: exactly one of url or service is required"]),
            (
                hook("clientConfig.url", json!("http://a/b")),
                vec![
                    "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired format: \
                     https://host[/path]",
                ],
            ),
            (
                hook("admissionReviewVersions", json!([])),
                vec!["webhooks[0].admissionReviewVersions: Required value: must specify one of v1, v1beta1"],
            ),
            (
                hook(
                    "rules",
                    json!([{"operations": ["*", "CREATE"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*", "pods"]}]),
                ),
                vec![
                    "webhooks[0].rules[0].operations: Invalid value: [\"*\",\"CREATE\"]: if '*' is present, must not specify other operations",
                    "webhooks[0].rules[0].resources: Invalid value: [\"*\",\"pods\"]: if '*' is present, must not specify other resources \
                     without subresources",
                ],
            ),
        ];
        for (hook, expected) in cases {
            let mut object = json!({"webhooks": [hook]});
            VALIDATING_WEBHOOK_CONFIGURATION.default(&mut object);
            let found: Vec<String> = VALIDATING_WEBHOOK_CONFIGURATION.validate(&object).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{hook}");
        }
    }
}
