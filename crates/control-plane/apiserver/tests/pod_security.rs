//! Pod Security Standards against the whole server: every control, at each level, in each mode.

mod harness;

use harness::Api;
use harness::cases::{make, namespace};
use serde_json::{Value, json};

const LABEL: &str = "pod-security.kubernetes.io";

/// What satisfies the restricted level.
fn restricted() -> Value {
    let own = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "i", "securityContext": own}],
    })
}

type Change = fn(&mut Value);

/// A control, a change to a restricted pod that violates it, whether the baseline forbids that too, and what is said.
const CONTROLS: [(&str, Change, bool, &str); 25] = [
    (
        "hostProcess",
        |spec| {
            spec["hostNetwork"] = true.into();
            spec["securityContext"]["windowsOptions"] = json!({"hostProcess": true});
            spec["containers"][0]["securityContext"]["windowsOptions"] = json!({"hostProcess": true});
        },
        true,
        "hostProcess (pod and container \"c\" must not set securityContext.windowsOptions.hostProcess=true)",
    ),
    ("hostNetwork", |spec| spec["hostNetwork"] = true.into(), true, "host namespaces (hostNetwork=true)"),
    ("hostPID", |spec| spec["hostPID"] = true.into(), true, "host namespaces (hostPID=true)"),
    ("hostIPC", |spec| spec["hostIPC"] = true.into(), true, "host namespaces (hostIPC=true)"),
    (
        "privileged",
        |spec| {
            own(spec)["privileged"] = true.into();
            own(spec)["allowPrivilegeEscalation"] = true.into();
        },
        true,
        "privileged (container \"c\" must not set securityContext.privileged=true)",
    ),
    (
        "capabilities of the baseline",
        |spec| own(spec)["capabilities"]["add"] = json!(["NET_RAW"]),
        true,
        "non-default capabilities (container \"c\" must not include \"NET_RAW\" in securityContext.capabilities.add)",
    ),
    ("hostPath", |spec| spec["volumes"] = json!([{"name": "v", "hostPath": {"path": "/"}}]), true, "hostPath volumes (volume \"v\")"),
    (
        "hostPort",
        |spec| spec["containers"][0]["ports"] = json!([{"containerPort": 80, "hostPort": 80}]),
        true,
        "hostPort (container \"c\" uses hostPort 80)",
    ),
    (
        "probe host",
        |spec| spec["containers"][0]["livenessProbe"] = json!({"tcpSocket": {"host": "10.0.0.1", "port": 80}}),
        true,
        "probe or lifecycle host (container \"c\" uses probe or lifecycle host \"10.0.0.1\")",
    ),
    (
        "lifecycle host",
        |spec| spec["containers"][0]["lifecycle"] = json!({"preStop": {"httpGet": {"host": "10.0.0.1", "port": 80}}}),
        true,
        "probe or lifecycle host",
    ),
    (
        "AppArmor of the pod",
        |spec| spec["securityContext"]["appArmorProfile"] = json!({"type": "Unconfined"}),
        true,
        "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
    ),
    (
        "AppArmor of a container",
        |spec| own(spec)["appArmorProfile"] = json!({"type": "Unconfined"}),
        true,
        "forbidden AppArmor profile (container \"c\" must not set AppArmor profile type to \"Unconfined\")",
    ),
    (
        "SELinux type",
        |spec| own(spec)["seLinuxOptions"] = json!({"type": "spc_t"}),
        true,
        "seLinuxOptions (container \"c\" set forbidden securityContext.seLinuxOptions: type \"spc_t\")",
    ),
    (
        "SELinux user",
        |spec| spec["securityContext"]["seLinuxOptions"] = json!({"user": "u"}),
        true,
        "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: user may not be set)",
    ),
    (
        "procMount",
        |spec| {
            spec["hostUsers"] = false.into();
            own(spec)["procMount"] = "Unmasked".into();
        },
        false,
        "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
    ),
    (
        "seccomp of the baseline",
        |spec| own(spec)["seccompProfile"] = json!({"type": "Unconfined"}),
        true,
        "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
    ),
    (
        "sysctls",
        |spec| spec["securityContext"]["sysctls"] = json!([{"name": "kernel.msgmax", "value": "1"}]),
        true,
        "forbidden sysctls (kernel.msgmax)",
    ),
    (
        "volume types",
        |spec| spec["volumes"] = json!([{"name": "v", "nfs": {"server": "s", "path": "/"}}]),
        false,
        "restricted volume types (volume \"v\" uses restricted volume type \"nfs\")",
    ),
    (
        "allowPrivilegeEscalation",
        |spec| own(spec)["allowPrivilegeEscalation"] = true.into(),
        false,
        "allowPrivilegeEscalation != false (container \"c\" must set securityContext.allowPrivilegeEscalation=false)",
    ),
    (
        "runAsNonRoot",
        |spec| spec["securityContext"]["runAsNonRoot"] = Value::Null,
        false,
        "runAsNonRoot != true (pod or container \"c\" must set securityContext.runAsNonRoot=true)",
    ),
    (
        "runAsNonRoot of a container",
        |spec| own(spec)["runAsNonRoot"] = false.into(),
        false,
        "runAsNonRoot != true (container \"c\" must not set securityContext.runAsNonRoot=false)",
    ),
    ("runAsUser", |spec| own(spec)["runAsUser"] = 0.into(), false, "runAsUser=0 (container \"c\" must not set runAsUser=0)"),
    (
        "seccomp",
        |spec| spec["securityContext"]["seccompProfile"] = Value::Null,
        false,
        "seccompProfile (pod or container \"c\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")",
    ),
    (
        "capabilities",
        |spec| own(spec)["capabilities"] = Value::Null,
        false,
        "unrestricted capabilities (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"])",
    ),
    (
        "capabilities added",
        |spec| own(spec)["capabilities"]["add"] = json!(["CHOWN"]),
        false,
        "unrestricted capabilities (container \"c\" must not include \"CHOWN\" in securityContext.capabilities.add)",
    ),
];

/// What the restricted level says instead, where a control of its own takes the place of the baseline's.
fn said_at<'a>(level: &str, control: &str, said: &'a str) -> &'a str {
    match (level, control) {
        ("restricted", "capabilities of the baseline") => {
            "unrestricted capabilities (container \"c\" must not include \"NET_RAW\" in securityContext.capabilities.add)"
        }
        ("restricted", "hostPath") => "restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")",
        _ => said,
    }
}

fn own(spec: &mut Value) -> &mut Value {
    &mut spec["containers"][0]["securityContext"]
}

fn pod(change: Change) -> Value {
    let mut spec = restricted();
    change(&mut spec);
    json!({"metadata": {"generateName": "p-"}, "spec": spec})
}

fn labels(mode: &str, level: &str) -> Value {
    let mut labels = json!({});
    labels[format!("{LABEL}/{mode}")] = level.into();
    labels
}

#[tokio::test]
async fn every_control_is_enforced_and_warned_of_at_its_level() {
    let api = Api::new().await;
    for mode in ["enforce", "warn"] {
        for level in ["privileged", "baseline", "restricted"] {
            let name = format!("{mode}-{level}");
            namespace(&api, &name, labels(mode, level), json!({})).await;
            let pods = format!("/api/v1/namespaces/{name}/pods?dryRun=All");
            let fine = api.post(&pods, pod(|_| {})).await;
            assert_eq!((fine.code, fine.warnings().len()), (201, 0), "{name}: {} {:?}", fine.message(), fine.warnings());
            for (control, change, baseline, said) in CONTROLS {
                let answer = api.post(&pods, pod(change)).await;
                let violated = level == "restricted" || (level == "baseline" && baseline);
                let (what, said) = (format!("{name}: {control}"), said_at(level, control, said));
                match mode {
                    "enforce" if violated => {
                        assert_eq!(answer.code, 403, "{what}");
                        let head = format!("is forbidden: violates PodSecurity \"{level}:latest\": ");
                        assert!(answer.message().contains(&head) && answer.message().contains(said), "{what}: {}", answer.message());
                    }
                    "warn" if violated => {
                        let head = format!("would violate PodSecurity \"{level}:latest\": ");
                        let warned = answer.warnings().join("\n").replace("\\\"", "\"");
                        assert!(warned.contains(&head) && warned.contains(said), "{what}: {warned}");
                    }
                    _ => {
                        assert_eq!(answer.code, 201, "{what}: {}", answer.message());
                        assert!(!answer.warnings().join("").contains("violate"), "{what}: {:?}", answer.warnings());
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn the_audit_mode_tells_the_trail() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("audit.log");
    let api = Api::with(apiserver::Config { audit_file: Some(file.clone()), ..apiserver::Config::default() }).await;
    namespace(&api, "audited", labels("audit", "restricted"), json!({})).await;
    for (_, change, _, _) in CONTROLS {
        let answer = api.post("/api/v1/namespaces/audited/pods?dryRun=All", pod(change)).await;
        assert_eq!(
            (answer.code, answer.warnings().iter().any(|warning| warning.contains("violate"))),
            (201, false),
            "{}",
            answer.message()
        );
    }
    let mut told: Vec<String> = Vec::new();
    for _ in 0..200 {
        let text = std::fs::read_to_string(&file).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of = |line: Value| line["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().map(str::to_owned);
        told = lines.filter(|line| line["stage"] == "ResponseComplete").filter_map(of).collect();
        if told.len() == CONTROLS.len() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(told.len(), CONTROLS.len());
    for (told, (control, _, _, said)) in told.iter().zip(CONTROLS) {
        let said = said_at("restricted", control, said);
        assert!(told.starts_with("would violate PodSecurity \"restricted:latest\": ") && told.contains(said), "{control}: {told}");
    }
}

#[tokio::test]
async fn workloads_are_warned_of_and_namespaces_tell_whom_a_new_level_hits() {
    let api = Api::new().await;
    let mut both = labels("enforce", "restricted");
    both[format!("{LABEL}/warn")] = "restricted".into();
    namespace(&api, "a", both, json!({})).await;
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i", "securityContext": {"privileged": true}}]}});
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let made = api.post("/apis/apps/v1/namespaces/a/deployments", deployment).await;
    assert_eq!(made.code, 201, "a workload is not refused: {}", made.message());
    assert!(made.warnings()[0].contains("would violate PodSecurity"), "{:?}", made.warnings());
    namespace(&api, "b", json!({}), json!({})).await;
    make(
        &api,
        "/api/v1/namespaces/b/pods",
        json!({"metadata": {"name": "p"}, "spec": {"hostNetwork": true, "containers": [{"name": "c", "image": "i"}]}}),
    )
    .await;
    let tightened = api.merge("/api/v1/namespaces/b", json!({"metadata": {"labels": labels("enforce", "baseline")}})).await;
    let warned = tightened.warnings().join("\n").replace("\\\"", "\"");
    assert!(warned.contains("existing pods in namespace \"b\" violate the new PodSecurity enforce level \"baseline:latest\""), "{warned}");
    assert!(warned.contains("p: host namespaces"), "{warned}");
    let wrong = api.merge("/api/v1/namespaces/b", json!({"metadata": {"labels": labels("enforce", "loose")}})).await;
    assert_eq!(wrong.code, 422, "{}", wrong.message());
}
