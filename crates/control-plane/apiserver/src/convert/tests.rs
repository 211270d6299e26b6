use serde_json::json;

use super::*;
use crate::registry::catalog;

fn kind(group: &str, version: &str, plural: &str) -> &'static Kind {
    catalog::find(group, version, plural).unwrap()
}

#[test]
fn conversion_there_and_back_keeps_everything() {
    let metrics = json!([{"type": "Resource", "resource": {"name": "memory", "targetAverageValue": "1Gi"}},
        {"type": "Pods", "pods": {"metricName": "p", "targetAverageValue": "5"}},
        {"type": "Object", "object": {"metricName": "o", "target": {"kind": "Service", "name": "s"}, "targetValue": "7"}},
        {"type": "External", "external": {"metricName": "e", "metricSelector": {"matchLabels": {"a": "b"}}, "targetAverageValue": "3"}}]);
    let behavior = json!({"ScaleDown": {"Policies": [{"PeriodSeconds": 15, "Type": "Percent", "Value": 100}]}});
    let cases = [
        (
            "events.k8s.io",
            "v1",
            "events",
            json!({"note": "x", "regarding": {"kind": "Pod"}, "reportingController": "c", "deprecatedCount": 2}),
        ),
        ("autoscaling", "v1", "horizontalpodautoscalers", json!({"spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}})),
        (
            "autoscaling",
            "v1",
            "horizontalpodautoscalers",
            json!({"metadata": {"annotations": {"a": "b", "autoscaling.alpha.kubernetes.io/metrics": metrics.to_string(),
                "autoscaling.alpha.kubernetes.io/behavior": behavior.to_string(),
                "autoscaling.alpha.kubernetes.io/conditions": r#"[{"lastTransitionTime":null,"status":"True","type":"AbleToScale"}]"#}},
                "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}, "status": {"currentReplicas": 1}}),
        ),
        (
            "resource.k8s.io",
            "v1beta1",
            "resourceclaims",
            json!({"spec": {"devices": {"requests": [{"name": "a", "deviceClassName": "c", "count": 1}, {"name": "b", "firstAvailable": []}]}}}),
        ),
        (
            "resource.k8s.io",
            "v1beta1",
            "resourceslices",
            json!({"spec": {"devices": [{"name": "d", "basic": {"attributes": {"a": {"int": 1}}}}, {"name": "e", "basic": {}}]}}),
        ),
        ("certificates.k8s.io", "v1", "clustertrustbundles", json!({"spec": {"trustBundle": "x"}})),
    ];
    for (group, version, plural, mut object) in cases {
        let kind = kind(group, version, plural);
        object["kind"] = kind.facts.kind.into();
        object["apiVersion"] = kind.api_version().into();
        let object = typed(object, &kind.schema);
        let stored = to_storage(kind, object.clone());
        assert_eq!(stored["apiVersion"], kind.storage.api_version());
        assert_eq!(from_storage(kind, stored), object);
    }
}

#[test]
fn an_autoscaler_of_v1_means_what_it_always_meant() {
    let hpa = kind("autoscaling", "v1", "horizontalpodautoscalers");
    let stored = to_storage(hpa, json!({"spec": {"maxReplicas": 3}}));
    let cpu = json!([{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
    assert_eq!(stored["spec"]["metrics"], cpu);
    let annotations = json!({"autoscaling.alpha.kubernetes.io/metrics":
        r#"[{"type":"Resource","resource":{"name":"memory","targetAverageUtilization":60}}]"#});
    let stored = to_storage(hpa, json!({"metadata": {"annotations": annotations}, "spec": {"targetCPUUtilizationPercentage": 50}}));
    assert_eq!(
        stored["spec"]["metrics"],
        json!([{"type": "Resource", "resource": {"name": "memory", "target": {"type": "Utilization", "averageUtilization": 60}}},
            {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}])
    );
    assert!(stored["metadata"].get("annotations").is_none());
}

#[test]
fn what_a_version_lacks_is_left_out() {
    let request = kind("certificates.k8s.io", "v1", "podcertificaterequests");
    let stored = json!({"spec": {"signerName": "s", "pkixPublicKey": "AA==", "proofOfPossession": "AA=="}});
    let served = from_storage(request, stored);
    assert_eq!(served["spec"]["signerName"], "s");
    assert!(served["spec"].get("pkixPublicKey").is_none() && served["spec"].get("proofOfPossession").is_none(), "{served}");
}

#[test]
fn odd_objects_are_converted_without_a_panic() {
    let odd = [json!(null), json!([]), json!({"metadata": 1, "spec": [], "status": "x"}), json!({"spec": {"metrics": 1, "devices": 3}})];
    for kind in catalog::all().iter().filter(|kind| kind.converts()) {
        for object in &odd {
            to_storage(kind, object.clone());
            from_storage(kind, object.clone());
        }
    }
}

/// The published objects with every field filled lie beside the repository; without them this fails.
#[test]
fn objects_with_every_field_filled_survive_conversion() {
    let spec = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared/spec/api-testdata.tar.xz");
    let folder = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("tar").arg("xJf").arg(&spec).arg("-C").arg(folder.path()).status().unwrap();
    assert!(status.success(), "cannot unpack {}", spec.display());
    let mut converted = 0;
    for kind in catalog::all().iter().filter(|kind| kind.converts()) {
        let facts = kind.facts;
        let file = folder.path().join(format!("testdata/HEAD/{}.{}.{}.json", facts.group, facts.version, facts.kind));
        let Ok(text) = std::fs::read(&file) else { continue };
        let object = typed(serde_json::from_slice(&text).unwrap(), &kind.schema);
        let mut back = from_storage(kind, to_storage(kind, object.clone()));
        // What v1 knows of the present load comes back with the exact values beside it, as upstream.
        if let Some(annotations) = back.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove("autoscaling.alpha.kubernetes.io/current-metrics");
        }
        assert_eq!(back, object, "{}", file.display());
        converted += 1;
    }
    assert!(converted > 15, "{converted}");
}
