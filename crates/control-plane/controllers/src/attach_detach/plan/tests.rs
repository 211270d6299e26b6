//! Cases, one line each: the node, what is wanted there, what is attached; and what follows.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use serde_json::{Value, json};

use super::*;

fn volume(name: &str, mode: &str) -> Arc<PersistentVolume> {
    let csi = json!({"driver": "csi.example.org", "volumeHandle": format!("h-{name}")});
    Arc::new(serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"accessModes": [mode], "csi": csi}})).unwrap())
}

fn pod(namespace: &str, name: &str) -> Arc<Pod> {
    Arc::new(serde_json::from_value(json!({"metadata": {"namespace": namespace, "name": name}})).unwrap())
}

fn wanted(mode: &str, elsewhere: usize, others: &[(&str, &str)]) -> Wanted {
    let other_users = others.iter().map(|(namespace, name)| ObjectKey::new(*namespace, *name)).collect();
    Wanted { volume: volume("v", mode), pods: vec![pod("a", "p")], elsewhere, other_users }
}

fn attached(name: &str, status: Value, leaving: bool, unwanted_for: u64) -> Attached {
    let volume = volume(name, "ReadWriteOnce");
    let metadata = json!({"name": attachment_name(&volume, "n"), "deletionTimestamp": leaving.then_some("2026-01-01T00:00:00Z")});
    let spec = json!({"attacher": "csi.example.org", "nodeName": "n", "source": {"persistentVolumeName": name}});
    let attachment = serde_json::from_value(json!({"metadata": metadata, "spec": spec, "status": status})).unwrap();
    Attached { attachment: Arc::new(attachment), volume: Some(volume), unwanted_for: Duration::from_secs(unwanted_for) }
}

/// `state`: words out of `ready`, `mounted` (has `v` mounted), `lists` (says that `v` is attached), `out-of-service`; `gone`: no node.
fn node(state: &str) -> Option<Arc<Node>> {
    let has = |word: &str| state.split(' ').any(|known| known == word);
    let name = unique_name(&volume("v", ""));
    let taints = has("out-of-service").then(|| json!([{"key": "node.kubernetes.io/out-of-service", "effect": "NoExecute"}]));
    let status = json!({
        "conditions": [{"type": "Ready", "status": if has("ready") { "True" } else { "Unknown" }}],
        "volumesInUse": has("mounted").then(|| json!([name])),
        "volumesAttached": has("lists").then(|| json!([{"name": name, "devicePath": ""}])),
    });
    let node = json!({"metadata": {"name": "n"}, "spec": {"taints": taints}, "status": status});
    (!has("gone")).then(|| Arc::new(serde_json::from_value(node).unwrap()))
}

fn told(state: &str, wanted: Option<Wanted>, attachments: Vec<Attached>) -> String {
    let wanted: BTreeMap<_, _> = wanted.into_iter().map(|wanted| ("v".to_owned(), wanted)).collect();
    let plan = plan(&World { name: "n".into(), node: node(state), wanted, attachments });
    let mut words: Vec<String> = plan.attach.iter().map(|_| "attach".into()).collect();
    words.extend(plan.volumes_attached.iter().map(|volumes| format!("list:{}", volumes.len())));
    words.extend(plan.detach.iter().map(|_| "detach".into()));
    words.extend(plan.look_again.iter().map(|wait| format!("wait:{}", wait.as_secs())));
    words.extend(plan.events.iter().map(|(_, _, reason, message)| format!("{reason}: {message}")));
    words.join(" ")
}

#[test]
fn a_volume_is_attached_where_a_pod_uses_it_and_listed_once_it_is() {
    let rwo = || Some(wanted("ReadWriteOnce", 0, &[]));
    let done = json!({"attached": true});
    let failed = json!({"attached": false, "attachError": {"message": "no such disk"}});
    let cases = [
        ("ready", rwo(), vec![], "attach"),
        ("ready", rwo(), vec![attached("v", json!(null), false, 0)], ""),
        (
            "ready",
            rwo(),
            vec![attached("v", done.clone(), false, 0)],
            "list:1 SuccessfulAttachVolume: AttachVolume.Attach succeeded for volume \"v\" ",
        ),
        ("ready lists", rwo(), vec![attached("v", done.clone(), false, 0)], ""),
        ("ready lists", rwo(), vec![attached("v", done, true, 0)], "list:0"),
        (
            "ready",
            rwo(),
            vec![attached("v", failed, false, 0)],
            "FailedAttachVolume: AttachVolume.Attach failed for volume \"v\" : no such disk",
        ),
    ];
    for (state, wanted, attachments, expected) in cases {
        assert_eq!(told(state, wanted, attachments), expected, "{state}");
    }
}

#[test]
fn a_volume_for_one_node_is_not_attached_to_a_second_and_the_pod_hears_who_has_it() {
    let head = "FailedAttachVolume: Multi-Attach error for volume \"v\" ";
    let cases = [
        ("ReadWriteOnce", vec![], "Volume is already exclusively attached to one node and can't be attached to another"),
        ("ReadWriteOnce", vec![("a", "x"), ("a", "y")], "Volume is already used by pod(s) x, y"),
        ("ReadWriteOncePod", vec![("b", "x")], "Volume is already used by 1 pod(s) in different namespaces"),
        ("ReadWriteOnce", vec![("a", "x"), ("b", "y")], "Volume is already used by pod(s) x and 1 pod(s) in different namespaces"),
    ];
    for (mode, others, expected) in cases {
        assert_eq!(told("ready", Some(wanted(mode, 1, &others)), vec![]), format!("{head}{expected}"));
    }
    assert_eq!(told("ready", Some(wanted("ReadWriteMany", 1, &[("a", "x")])), vec![]), "attach");
}

#[test]
fn a_volume_is_taken_when_the_node_has_let_go_or_will_never_answer() {
    let done = json!({"attached": true});
    let cases = [
        ("ready lists", 0, "list:0 detach"),
        ("ready lists mounted", 0, "wait:360"),
        ("ready lists mounted", 1000, "wait:1"),
        ("lists mounted", 100, "wait:260"),
        ("lists mounted", 360, "list:0 detach"),
        ("lists mounted out-of-service", 0, "list:0 detach"),
        ("gone", 0, "wait:360"),
        ("gone", 400, "detach"),
    ];
    for (state, unwanted_for, expected) in cases {
        assert_eq!(told(state, None, vec![attached("v", done.clone(), false, unwanted_for)]), expected, "{state}, {unwanted_for} s");
    }
    assert_eq!(told("ready", None, vec![attached("v", done, true, 0)]), "", "it is on its way out already");
}
