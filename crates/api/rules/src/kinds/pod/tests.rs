use serde_json::{Value, json};

use super::{Pod, qos_class};
use crate::value::set;
use crate::{Part, Rules};

fn pod(spec: Value) -> Value {
    let mut object = json!({"metadata": {"name": "p", "namespace": "default"}, "spec": spec});
    Pod.default(&mut object);
    Pod.prepare_create(&mut object);
    object
}

fn complaints(object: &Value) -> Vec<String> {
    Pod.validate(object).iter().map(ToString::to_string).collect()
}

#[test]
fn an_ordinary_pod_is_valid() {
    let object = pod(json!({"containers": [{"name": "a", "image": "b:1", "ports": [{"containerPort": 80, "name": "http"}],
        "env": [{"name": "X", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        "readinessProbe": {"httpGet": {"path": "/", "port": "http"}}}], "volumes": [{"name": "v"}]}));
    assert_eq!(complaints(&object), Vec::<String>::new());
}

#[test]
fn broken_pods_are_explained_in_upstreams_sentences() {
    let cases = [
        (json!({"containers": []}), "spec.containers: Required value"),
        (json!({"containers": [{"name": "a"}]}), "spec.containers[0].image: Required value"),
        (
            json!({"containers": [{"name": "a", "image": "b"}, {"name": "a", "image": "b"}]}),
            "spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "b"}], "restartPolicy": "Sometimes"}),
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "b", "ports": [{"containerPort": 70000}]}]}),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"containers": [{"name": "a", "image": "b", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            "spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "b", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"containers": [{"name": "a", "image": "b", "livenessProbe": {}}]}),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
        (
            json!({"containers": [{"name": "a", "image": "b"}], "volumes": [{"name": "v", "emptyDir": {}, "hostPath": {"path": "/"}}]}),
            "spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(complaints(&pod(spec.clone())), [expected], "{spec}");
    }
}

#[test]
fn only_a_few_fields_of_a_pod_may_change() {
    let old = pod(json!({"containers": [{"name": "a", "image": "b:1"}]}));
    let update = |path: &str, value: Value| {
        let mut new = old.clone();
        set(&mut new, path, value);
        let errors = Pod.validate_update(&new, &old, Part::Main);
        errors.first().map(|error| error.to_string().lines().next().unwrap_or("").to_owned())
    };
    let mut image = old.clone();
    image["spec"]["containers"][0]["image"] = "b:2".into();
    assert_eq!(Pod.validate_update(&image, &old, Part::Main), []);
    assert_eq!(update("spec.activeDeadlineSeconds", json!(5)), None);
    assert_eq!(update("spec.tolerations", json!([{"operator": "Exists"}])), None);
    let refused = "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
                   `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
                   tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
    assert_eq!(update("spec.nodeName", json!("n")).as_deref(), Some(refused));
    assert_eq!(
        update("spec.containers", json!([])).as_deref(),
        Some("spec.containers: Forbidden: pod updates may not add or remove containers")
    );
}

#[test]
fn the_status_column_says_what_kubectl_users_know() {
    let now = 1_000_000;
    let ran = |name: &str| json!({"name": name, "ready": true, "state": {"running": {}}});
    let two = json!({"containers": [{"name": "a", "image": "b"}, {"name": "c", "image": "d"}]});
    let init =
        json!({"containers": [{"name": "a", "image": "b"}], "initContainers": [{"name": "i", "image": "j"}, {"name": "k", "image": "l"}]});
    let cases: Vec<(&Value, Value, [&str; 3])> = vec![
        (&two, json!({"phase": "Pending"}), ["0/2", "Pending", "0"]),
        (&two, json!({"phase": "Running", "containerStatuses": [ran("a"), ran("c")]}), ["2/2", "Running", "0"]),
        (
            &two,
            json!({"phase": "Pending", "containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}),
            ["0/2", "ContainerCreating", "0"],
        ),
        (
            &two,
            json!({"phase": "Running", "containerStatuses": [ran("a"), {"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"finishedAt": meta::time::from_epoch(now - 300)}}}]}),
            ["1/2", "CrashLoopBackOff", "3 (5m ago)"],
        ),
        (
            &two,
            json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
            ["0/2", "Completed", "0"],
        ),
        (
            &two,
            json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}],
                "containerStatuses": [ran("a"), {"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
            ["1/2", "NotReady", "0"],
        ),
        (&two, json!({"phase": "Failed", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}), ["0/2", "ExitCode:3", "0"]),
        (&two, json!({"phase": "Failed", "reason": "Evicted"}), ["0/2", "Evicted", "0"]),
        (
            &two,
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}),
            ["0/2", "SchedulingGated", "0"],
        ),
        (
            &init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}},
                {"name": "k", "state": {"running": {}}}], "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}),
            ["0/1", "Init:1/2", "0"],
        ),
        (
            &init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
            ["0/1", "Init:Error", "2"],
        ),
        (
            &init,
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]}),
            ["0/1", "Init:ImagePullBackOff", "0"],
        ),
    ];
    for (spec, status, expected) in cases {
        let mut object = pod(spec.clone());
        object["status"] = status;
        let cells = Pod.cells(&object, now);
        assert_eq!(cells[1..4], expected.map(Value::from), "{}", object["status"]);
        assert_eq!(cells.len(), Pod.columns().len());
        set(&mut object, "metadata.deletionTimestamp", "2026-01-01T00:00:00Z");
        let finished = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        assert_eq!(Pod.cells(&object, now)[2], if finished { expected[1] } else { "Terminating" });
    }
}

#[test]
fn the_qos_class_follows_from_requests_and_limits() {
    let class = |resources: Value| qos_class(&pod(json!({"containers": [{"name": "a", "image": "b", "resources": resources}]})));
    assert_eq!(class(json!({})), "BestEffort");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
}

#[test]
fn pods_nobody_runs_are_deleted_at_once() {
    let mut object = pod(json!({"containers": [{"name": "a", "image": "b"}]}));
    assert_eq!(Pod.default_grace_seconds(&object), None);
    set(&mut object, "spec.nodeName", "n");
    assert_eq!(Pod.default_grace_seconds(&object), Some(30));
    set(&mut object, "status.phase", "Failed");
    assert_eq!(Pod.default_grace_seconds(&object), None);
}

#[test]
fn status_writes_leave_the_spec_and_spec_writes_the_status() {
    let old = pod(json!({"containers": [{"name": "a", "image": "b"}]}));
    let mut new = old.clone();
    new["spec"]["nodeName"] = "n".into();
    new["status"]["phase"] = "Running".into();
    let (mut main, mut status) = (new.clone(), new);
    Pod.prepare_update(&mut main, &old, Part::Main);
    Pod.prepare_update(&mut status, &old, Part::Status);
    assert_eq!((&main["status"], &main["spec"]["nodeName"]), (&old["status"], &json!("n")));
    assert_eq!((&status["spec"], &status["status"]["phase"]), (&old["spec"], &json!("Running")));
}

#[test]
fn a_container_that_ended_for_good_stays_ended() {
    let with = |policy: &str, state: Value| {
        let mut object = pod(json!({"restartPolicy": policy, "containers": [{"name": "a", "image": "b"}]}));
        object["status"]["containerStatuses"] = json!([{"name": "a", "state": state}]);
        object
    };
    for (policy, code, refused) in [("Always", 0, false), ("OnFailure", 0, true), ("OnFailure", 1, false), ("Never", 1, true)] {
        let (old, new) = (with(policy, json!({"terminated": {"exitCode": code}})), with(policy, json!({"running": {}})));
        let found: Vec<String> = Pod.validate_update(&new, &old, Part::Status).iter().map(ToString::to_string).collect();
        let expected = "status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state";
        assert_eq!(found, if refused { vec![expected] } else { vec![] }, "{policy} {code}");
    }
}
