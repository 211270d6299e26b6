//! A small valid object of every kind that can be created and kept.

use serde_json::{Value, json};

/// The object of a kind with the given name. `version` matters where versions differ.
pub fn sample(group: &str, version: &str, kind: &str, name: &str) -> Value {
    let mut object = body(group, version, kind);
    object["apiVersion"] = if group.is_empty() { version.into() } else { format!("{group}/{version}").into() };
    object["kind"] = kind.into();
    let named = match (group, kind) {
        ("apiextensions.k8s.io", _) => format!("{name}s.test.example.com"),
        ("apiregistration.k8s.io", _) => format!("v1.{name}.example.com"),
        ("networking.k8s.io", "IPAddress") => "192.168.7.7".into(),
        ("internal.apiserver.k8s.io", "StorageVersion") => format!("{name}.example.com"),
        _ => name.into(),
    };
    object["metadata"]["name"] = named.into();
    // Their names repeat what they are about.
    match kind {
        "APIService" => object["spec"]["group"] = format!("{name}.example.com").into(),
        "CustomResourceDefinition" => {
            let capital = format!("{}{}", name[..1].to_uppercase(), &name[1..]);
            object["spec"]["names"] =
                json!({"plural": format!("{name}s"), "singular": name, "kind": capital, "listKind": format!("{capital}List")});
        }
        _ => {}
    }
    object
}

fn body(group: &str, version: &str, kind: &str) -> Value {
    match (group, kind) {
        ("", _) => core(kind),
        ("apps" | "batch" | "autoscaling" | "policy", _) => workload(version, kind),
        ("storage.k8s.io" | "node.k8s.io" | "discovery.k8s.io" | "networking.k8s.io", _) => infrastructure(kind),
        ("admissionregistration.k8s.io" | "apiextensions.k8s.io" | "apiregistration.k8s.io", _) => extension(kind),
        ("resource.k8s.io" | "scheduling.k8s.io", _) => device_or_schedule(version, kind),
        _ => other(group, kind),
    }
}

fn containers() -> Value {
    json!([{"name": "c", "image": "registry.example.com/app:1"}])
}

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": containers()}})
}

fn selector() -> Value {
    json!({"matchLabels": {"app": "a"}})
}

fn core(kind: &str) -> Value {
    match kind {
        "ConfigMap" => json!({"data": {"a": "b"}}),
        "Endpoints" => json!({"subsets": [{"addresses": [{"ip": "10.9.8.7"}], "ports": [{"port": 80}]}]}),
        "Event" => json!({"involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"}, "reason": "Test", "type": "Normal"}),
        "LimitRange" => json!({"spec": {"limits": [{"type": "Container", "default": {"cpu": "1"}}]}}),
        "PersistentVolume" => {
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"}}})
        }
        "PersistentVolumeClaim" => json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}),
        "Pod" => json!({"spec": {"containers": containers()}}),
        "PodTemplate" => json!({"template": template()}),
        "ReplicationController" => json!({"spec": {"replicas": 0, "selector": {"app": "a"}, "template": template()}}),
        "ResourceQuota" => json!({"spec": {"hard": {"count/widgets.example.com": "9"}}}),
        "Secret" => json!({"data": {"a": "YWJj"}}),
        "Service" => json!({"spec": {"selector": {"app": "a"}, "ports": [{"port": 80}]}}),
        _ => json!({}),
    }
}

fn workload(version: &str, kind: &str) -> Value {
    match kind {
        "ControllerRevision" => json!({"revision": 1, "data": {"a": 1}}),
        "DaemonSet" => json!({"spec": {"selector": selector(), "template": template()}}),
        "StatefulSet" => json!({"spec": {"serviceName": "s", "selector": selector(), "template": template()}}),
        "Deployment" | "ReplicaSet" => json!({"spec": {"replicas": 0, "selector": selector(), "template": template()}}),
        "HorizontalPodAutoscaler" => {
            let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"});
            let mut spec = json!({"scaleTargetRef": target, "maxReplicas": 3});
            match version {
                "v1" => spec["targetCPUUtilizationPercentage"] = 50.into(),
                _ => {
                    let target = json!({"type": "Utilization", "averageUtilization": 50});
                    spec["metrics"] = json!([{"type": "Resource", "resource": {"name": "cpu", "target": target}}]);
                }
            }
            json!({"spec": spec})
        }
        "Job" => json!({"spec": {"template": job_template()}}),
        "CronJob" => json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": job_template()}}}}),
        "PodDisruptionBudget" => json!({"spec": {"minAvailable": 1, "selector": selector()}}),
        other => panic!("no sample of {other}"),
    }
}

fn job_template() -> Value {
    json!({"spec": {"restartPolicy": "Never", "containers": containers()}})
}

fn infrastructure(kind: &str) -> Value {
    match kind {
        "CSIDriver" => json!({"spec": {"attachRequired": false}}),
        "CSINode" => json!({"spec": {"drivers": []}}),
        "CSIStorageCapacity" => json!({"storageClassName": "fast", "capacity": "1Gi"}),
        "StorageClass" => json!({"provisioner": "example.com/p"}),
        "VolumeAttachment" => json!({"spec": {"attacher": "example.com", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}}),
        "VolumeAttributesClass" => json!({"driverName": "example.com", "parameters": {"a": "b"}}),
        "RuntimeClass" => json!({"handler": "h"}),
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.9.8.7"]}], "ports": []}),
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
        "IngressClass" => json!({"spec": {"controller": "example.com/c"}}),
        "IPAddress" => json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "s"}}}),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "ServiceCIDR" => json!({"spec": {"cidrs": ["192.168.0.0/24"]}}),
        other => panic!("no sample of {other}"),
    }
}

fn extension(kind: &str) -> Value {
    let rules = json!([{"apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["widgets"]}]);
    let webhooks = json!([{"name": "a.example.com", "admissionReviewVersions": ["v1"], "sideEffects": "None", "rules": rules,
        "clientConfig": {"url": "https://127.0.0.1:1/"}}]);
    match kind {
        "MutatingWebhookConfiguration" | "ValidatingWebhookConfiguration" => json!({"webhooks": webhooks}),
        "ValidatingAdmissionPolicy" => {
            json!({"spec": {"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "object.metadata.name != ''"}]}})
        }
        "ValidatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "p", "validationActions": ["Deny"]}}),
        "MutatingAdmissionPolicy" => json!({"spec": {"matchConstraints": {"resourceRules": rules}, "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"}}]}}),
        "MutatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "p"}}),
        "CustomResourceDefinition" => json!({"spec": {"group": "test.example.com", "scope": "Namespaced",
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object"}}}]}}),
        "APIService" => {
            json!({"spec": {"version": "v1", "groupPriorityMinimum": 1000, "versionPriority": 15,
            "insecureSkipTLSVerify": true, "service": {"namespace": "default", "name": "s"}}})
        }
        other => panic!("no sample of {other}"),
    }
}

fn device_or_schedule(version: &str, kind: &str) -> Value {
    let old = version == "v1beta1";
    let claim = match old {
        true => json!({"devices": {"requests": [{"name": "r", "deviceClassName": "c"}]}}),
        false => json!({"devices": {"requests": [{"name": "r", "exactly": {"deviceClassName": "c"}}]}}),
    };
    let device = if old { json!({"name": "d", "basic": {}}) } else { json!({"name": "d"}) };
    let group_template = json!([{"name": "t", "schedulingPolicy": {"gang": {"minCount": 1}}}]);
    match kind {
        "DeviceClass" => json!({"spec": {"selectors": [{"cel": {"expression": "device.driver == 'example.com'"}}]}}),
        "DeviceTaintRule" => {
            json!({"spec": {"deviceSelector": {"driver": "example.com"}, "taint": {"key": "example.com/t", "effect": "NoSchedule"}}})
        }
        "ResourceClaim" => json!({"spec": claim}),
        "ResourceClaimTemplate" => json!({"spec": {"spec": claim}}),
        "ResourceSlice" => {
            json!({"spec": {"driver": "example.com", "nodeName": "n", "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
            "devices": [device]}})
        }
        "ResourcePoolStatusRequest" => json!({"spec": {"driver": "example.com", "poolName": "p"}}),
        "PriorityClass" => json!({"value": 7}),
        "Workload" => json!({"spec": {"podGroupTemplates": group_template}}),
        "PodGroup" => json!({"spec": {"schedulingPolicy": {"gang": {"minCount": 1}}}}),
        "CompositePodGroup" => json!({"spec": {"schedulingPolicy": {"gang": {"minGroupCount": 1}},
            "workloadRef": {"workloadName": "w", "templateName": "t"}}}),
        other => panic!("no sample of {other}"),
    }
}

/// A PKCS #10 request of a P-256 key for the subject `CN=sample`.
const SIGNING_REQUEST: &str = include_str!("sample.csr");

fn other(group: &str, kind: &str) -> Value {
    use base64::Engine;
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let subject = json!([{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"}]);
    match (group, kind) {
        ("certificates.k8s.io", "CertificateSigningRequest") => json!({"spec": {"signerName": "example.com/s",
            "request": base64(SIGNING_REQUEST.as_bytes()), "usages": ["client auth"]}}),
        ("certificates.k8s.io", "ClusterTrustBundle") => json!({"spec": {"trustBundle": include_str!("sample.crt")}}),
        ("certificates.k8s.io", "PodCertificateRequest") => {
            let der: String = SIGNING_REQUEST.lines().filter(|line| !line.starts_with('-')).collect();
            json!({"spec": {"signerName": "example.com/s", "podName": "p", "podUID": "00000000-0000-4000-8000-000000000001",
                "serviceAccountName": "default", "serviceAccountUID": "00000000-0000-4000-8000-000000000002", "nodeName": "n",
                "nodeUID": "00000000-0000-4000-8000-000000000003", "stubPKCS10Request": der}})
        }
        ("coordination.k8s.io", "Lease") => json!({"spec": {"holderIdentity": "h", "leaseDurationSeconds": 15}}),
        ("coordination.k8s.io", _) => {
            json!({"spec": {"leaseName": "l", "binaryVersion": "1.37.0", "emulationVersion": "1.37.0", "strategy": "OldestEmulationVersion"}})
        }
        ("events.k8s.io", _) => {
            json!({"eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "example.com/c", "type": "Normal",
            "reportingInstance": "i", "action": "a", "reason": "r", "regarding": {"kind": "Pod", "namespace": "default", "name": "p"}})
        }
        ("flowcontrol.apiserver.k8s.io", "FlowSchema") => json!({"spec": {"matchingPrecedence": 9000,
            "priorityLevelConfiguration": {"name": "global-default"}}}),
        ("flowcontrol.apiserver.k8s.io", _) => json!({"spec": {"type": "Limited", "limited": {"nominalConcurrencyShares": 5,
            "limitResponse": {"type": "Reject"}}}}),
        ("internal.apiserver.k8s.io", _) => json!({"spec": {}}),
        ("lifecycle.k8s.io", "EvictionRequest") => json!({"spec": {"intent": "Eviction", "requester": "example.com/requester",
            "target": {"pod": {"name": "p", "uid": "00000000-0000-4000-8000-000000000001"}}}}),
        ("lifecycle.k8s.io", _) => json!({"spec": {"target": {"pod": {"name": "p", "uid": "00000000-0000-4000-8000-000000000001"}}}}),
        ("rbac.authorization.k8s.io", "Role" | "ClusterRole") => {
            json!({"rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]})
        }
        ("rbac.authorization.k8s.io", _) => json!({"subjects": subject,
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}}),
        ("storagemigration.k8s.io", _) => json!({"spec": {"resource": {"group": "apps", "resource": "deployments"}}}),
        other => panic!("no sample of {other:?}"),
    }
}
