//! What it costs to read, write, patch and apply one Pod in every encoding, on one thread.

use std::hint::black_box;
use std::path::Path;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use schema::apply::{self, Manager};
use schema::decode::{self, Mode};
use schema::merge;
use schema::model::Type;
use schema::{cbor, protobuf, table};
use serde_json::{Value, json};

use crate::Options;
use crate::measure::Spread;
use crate::report::{Outcome, number, spread};

const METHOD: &str = "\
One running Pod of a Deployment with its managedFields. Every operation runs in batches on one thread, all operations in turn in each \
round; a batch's time is the thread's processor time by the number of runs. The floors are serde_json into a tree of values (what every \
reader of JSON here does first) and into k8s-openapi's typed Pod.";

/// Runs in a batch: long enough for the clock, short enough that rounds interleave.
const BATCH: u32 = 400;

type Operation<'a> = (&'static str, Box<dyn Fn() + 'a>);

pub async fn race(options: &Options, _dir: &Path) -> anyhow::Result<Outcome> {
    let pod = table::by_gvk("", "v1", "Pod").context("the table has no Pod")?;
    let value = decode::decode_type(sample(), pod, Mode::Strict)?.0;
    let json = value.to_string().into_bytes();
    let (pb, binary) = (protobuf::encode(&value, pod), cbor::encode(&value));
    let yaml = serde_json::to_string_pretty(&value)?;
    let operations = operations(pod, &value, &json, &pb, &binary, yaml.as_bytes());
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); operations.len()];
    for _ in 0..options.rounds {
        for (at, (_, run)) in operations.iter().enumerate() {
            times[at].push(micros(run));
        }
    }
    let mut rows = vec![
        vec!["bytes as JSON".to_owned(), json.len().to_string()],
        vec!["bytes as protobuf".to_owned(), pb.len().to_string()],
        vec!["bytes as CBOR".to_owned(), binary.len().to_string()],
    ];
    let mut figures = serde_json::Map::new();
    for ((name, _), micros) in operations.iter().zip(&times) {
        let found = Spread::of(micros);
        rows.push(vec![format!("{name}, µs"), spread(&found)]);
        figures.insert((*name).to_owned(), json!({"microseconds": micros, "spread": found}));
    }
    let least = times.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    eprintln!("the quickest operation took {} µs", number(least));
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "median (least–most)"], rows, figures: figures.into() })
}

fn operations<'a>(
    pod: &'static Type,
    value: &'a Value,
    json: &'a [u8],
    pb: &'a [u8],
    binary: &'a [u8],
    yaml: &'a [u8],
) -> Vec<Operation<'a>> {
    let applied = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": value["metadata"]["name"], "labels": {"team": "a"}},
        "spec": {"containers": [{"name": "web", "image": value["spec"]["containers"][0]["image"], "ports": [{"containerPort": 8080}]}]}});
    let patch =
        json!({"metadata": {"labels": {"team": "b"}}, "spec": {"containers": [{"name": "web", "image": "registry.example.com/web:2"}]}});
    vec![
        ("floor: JSON → tree of values", Box::new(move || drop(black_box(serde_json::from_slice::<Value>(json))))),
        ("floor: JSON → typed Pod", Box::new(move || drop(black_box(serde_json::from_slice::<Pod>(json))))),
        (
            "JSON → object, fields checked",
            Box::new(move || {
                let parsed = decode::parse_json(json).expect("the sample is JSON");
                drop(black_box(decode::decode_type(parsed, pod, Mode::Strict).expect("the sample is a Pod")));
            }),
        ),
        (
            "YAML → object, fields checked",
            Box::new(move || {
                let parsed = decode::parse_yaml(yaml).expect("the sample is YAML");
                drop(black_box(decode::decode_type(parsed, pod, Mode::Strict).expect("the sample is a Pod")));
            }),
        ),
        ("protobuf → object", Box::new(move || drop(black_box(protobuf::decode(pb, Some(pod)).expect("the sample is a Pod"))))),
        ("CBOR → tree of values", Box::new(move || drop(black_box(cbor::decode(binary))))),
        ("object → JSON", Box::new(move || drop(black_box(serde_json::to_vec(value))))),
        ("object → protobuf", Box::new(move || drop(black_box(protobuf::encode(value, pod))))),
        ("JSON → protobuf, without a tree of values", Box::new(move || drop(black_box(protobuf::encode_message_json(json, pod))))),
        ("object → CBOR", Box::new(move || drop(black_box(cbor::encode(value))))),
        (
            "strategic merge patch",
            Box::new(move || {
                let mut object = value.clone();
                merge::strategic_merge_patch(&mut object, &patch, pod).expect("the sample is patched");
                drop(black_box(object));
            }),
        ),
        (
            "server-side apply",
            Box::new(move || {
                let manager =
                    Manager { name: "race", subresource: "", api_version: "v1", time: "2026-01-01T00:00:00Z", reset: &["status"] };
                drop(black_box(apply::apply(Some(value), &applied, &manager, true, pod).expect("the sample is applied")));
            }),
        ),
    ]
}

/// Processor time of one run, in microseconds.
fn micros(run: &dyn Fn()) -> f64 {
    let clock = || {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        now.tv_sec as f64 * 1e6 + now.tv_nsec as f64 / 1e3
    };
    let before = clock();
    for _ in 0..BATCH {
        run();
    }
    (clock() - before) / f64::from(BATCH)
}

fn sample() -> Value {
    let env = |name: &str, value: &str| json!({"name": name, "value": value});
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http", "scheme": "HTTP"}, "initialDelaySeconds": 3, "timeoutSeconds": 1,
        "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3});
    let condition = |kind: &str| {
        json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": "2026-01-01T00:00:05Z",
        "observedGeneration": 1})
    };
    let conditions = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"].map(condition);
    let owned: Value = json!({"f:metadata": {"f:generateName": {}, "f:labels": {".": {}, "f:app": {}, "f:pod-template-hash": {}},
        "f:ownerReferences": {".": {}, "k:{\"uid\":\"6f8a4b1e-1a53-4c7e-8a35-2f3d5a3a9f10\"}": {}}},
        "f:spec": {"f:containers": {"k:{\"name\":\"web\"}": {".": {}, "f:env": {".": {}, "k:{\"name\":\"MODE\"}": {".": {}, "f:name": {}, "f:value": {}}},
        "f:image": {}, "f:imagePullPolicy": {}, "f:livenessProbe": {".": {}, "f:httpGet": {".": {}, "f:path": {}, "f:port": {}, "f:scheme": {}}},
        "f:name": {}, "f:ports": {".": {}, "k:{\"containerPort\":8080,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}, "f:name": {}, "f:protocol": {}}},
        "f:resources": {".": {}, "f:limits": {".": {}, "f:memory": {}}, "f:requests": {".": {}, "f:cpu": {}, "f:memory": {}}}, "f:securityContext": {},
        "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {}}}, "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {},
        "f:schedulerName": {}, "f:securityContext": {}, "f:terminationGracePeriodSeconds": {}}});
    let manager = |name: &str| {
        json!({"manager": name, "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": owned})
    };
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web-7d9c5b6f4d-x2x7k", "generateName": "web-7d9c5b6f4d-", "namespace": "default", "generation": 1,
            "uid": "0b0c7c0e-3f5e-4a0f-9a70-0a1de2f4bd11", "resourceVersion": "123456", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "web", "pod-template-hash": "7d9c5b6f4d"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7d9c5b6f4d", "controller": true,
                "blockOwnerDeletion": true, "uid": "6f8a4b1e-1a53-4c7e-8a35-2f3d5a3a9f10"}],
            "managedFields": [manager("kube-controller-manager"), manager("sternpost")]},
        "spec": {
            "volumes": [{"name": "kube-api-access-abcde", "projected": {"defaultMode": 420, "sources": [
                {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}}],
            "containers": [{"name": "web", "image": "registry.example.com/web:1", "imagePullPolicy": "IfNotPresent",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "env": [env("MODE", "production"), env("LOG", "info"), env("ADDRESS", "0.0.0.0:8080")],
                "resources": {"limits": {"memory": "256Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
                "volumeMounts": [{"name": "kube-api-access-abcde", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
                "livenessProbe": probe, "readinessProbe": probe,
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst", "serviceAccountName": "default",
            "serviceAccount": "default", "nodeName": "node-1", "securityContext": {}, "schedulerName": "default-scheduler",
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority"},
        "status": {"phase": "Running", "observedGeneration": 1, "hostIP": "10.0.0.1", "hostIPs": [{"ip": "10.0.0.1"}], "podIP": "10.244.0.7",
            "podIPs": [{"ip": "10.244.0.7"}], "startTime": "2026-01-01T00:00:01Z", "qosClass": "Burstable",
            "conditions": conditions,
            "containerStatuses": [{"name": "web", "state": {"running": {"startedAt": "2026-01-01T00:00:02Z"}}, "lastState": {}, "ready": true,
                "restartCount": 0, "image": "registry.example.com/web:1", "started": true,
                "imageID": "registry.example.com/web@sha256:5f1c3c1e8d1f7f2f6a4c2c4d8e0a9c7b6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a",
                "containerID": "sternpost://a3f1c3c1e8d1f7f2f6a4c2c4d8e0a9c7b6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1"}]}
    })
}
