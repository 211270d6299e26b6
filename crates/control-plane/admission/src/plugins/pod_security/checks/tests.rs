use serde_json::{Value, json};

use super::*;

fn found(level: Level, version: Version, spec: &Value, annotations: &Value) -> String {
    details(&evaluate(Standard { level, version }, &Pod { annotations, spec }))
}

/// A container with this security context.
fn one(context: Value) -> Value {
    json!({"containers": [{"name": "a", "securityContext": context}]})
}

/// What the restricted level asks of every pod.
fn with_restricted(mut spec: Value) -> Value {
    spec["securityContext"]["runAsNonRoot"] = true.into();
    spec["securityContext"]["seccompProfile"] = json!({"type": "RuntimeDefault"});
    for kind in ["initContainers", "containers", "ephemeralContainers"] {
        for container in spec[kind].as_array_mut().into_iter().flatten() {
            container["securityContext"]["allowPrivilegeEscalation"] = false.into();
            container["securityContext"]["capabilities"] = json!({"drop": ["ALL"]});
        }
    }
    spec
}

#[test]
fn every_control_of_the_baseline_says_what_is_wrong() {
    let cases = [
        (one(json!({})), ""),
        (json!({"hostNetwork": true, "hostIPC": true}), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
        (
            json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}]}, {"name": "b", "ports": [{"hostPort": 443}, {"containerPort": 1}]}]}),
            "hostPort (containers \"a\", \"b\" use hostPorts 443, 80)",
        ),
        (
            json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "10.0.0.1"}}}]}),
            "probe or lifecycle host (container \"a\" uses probe or lifecycle host \"10.0.0.1\")",
        ),
        (one(json!({"privileged": true})), "privileged (container \"a\" must not set securityContext.privileged=true)"),
        (
            json!({"initContainers": [{"name": "i", "securityContext": {"privileged": true}}], "ephemeralContainers": [{"name": "e", "securityContext": {"privileged": true}}]}),
            "privileged (containers \"i\", \"e\" must not set securityContext.privileged=true)",
        ),
        (
            one(json!({"capabilities": {"add": ["NET_RAW", "CHOWN", "BPF"]}})),
            "non-default capabilities (container \"a\" must not include \"BPF\", \"NET_RAW\" in securityContext.capabilities.add)",
        ),
        (one(json!({"procMount": "Unmasked"})), "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")"),
        (
            one(json!({"seLinuxOptions": {"type": "spc_t", "user": "u"}})),
            "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
            "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}, {"name": "net.ipv4.tcp_rmem"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}, "containers": [{"name": "a", "securityContext": {"windowsOptions": {"hostProcess": true}}}]}),
            "hostProcess (pod and container \"a\" must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(found(Level::Baseline, Version::Latest, &spec, &Value::Null), expected, "{spec}");
        assert_eq!(found(Level::Privileged, Version::Latest, &spec, &Value::Null), "", "{spec}");
    }
}

#[test]
fn every_control_of_the_restricted_level_says_what_is_wrong() {
    let all = "allowPrivilegeEscalation != false (container \"a\" must set securityContext.allowPrivilegeEscalation=false), \
               unrestricted capabilities (container \"a\" must set securityContext.capabilities.drop=[\"ALL\"]), \
               runAsNonRoot != true (pod or container \"a\" must set securityContext.runAsNonRoot=true), \
               seccompProfile (pod or container \"a\" must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";
    assert_eq!(found(Level::Restricted, Version::Latest, &one(json!({})), &Value::Null), all);
    let cases = [
        (with_restricted(one(json!({}))), ""),
        (
            with_restricted(
                json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "hostPath": {}}, {"name": "n", "nfs": {}}, {"name": "c", "configMap": {}}]}),
            ),
            "restricted volume types (volumes \"v\", \"n\" use restricted volume types \"hostPath\", \"nfs\")",
        ),
        (with_restricted(one(json!({"runAsUser": 0}))), "runAsUser=0 (container \"a\" must not set runAsUser=0)"),
        (
            with_restricted(one(json!({"runAsNonRoot": false}))),
            "runAsNonRoot != true (container \"a\" must not set securityContext.runAsNonRoot=false)",
        ),
        (
            {
                let mut spec = with_restricted(one(json!({})));
                spec["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["NET_BIND_SERVICE", "CHOWN"]);
                spec
            },
            "unrestricted capabilities (container \"a\" must not include \"CHOWN\" in securityContext.capabilities.add)",
        ),
        (
            {
                let mut spec = with_restricted(one(json!({"procMount": "Unmasked", "runAsUser": 0})));
                spec["hostUsers"] = false.into();
                spec
            },
            "procMount (container \"a\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (json!({"os": {"name": "windows"}, "securityContext": {"runAsNonRoot": true}, "containers": [{"name": "a"}]}), ""),
    ];
    for (spec, expected) in cases {
        assert_eq!(found(Level::Restricted, Version::Latest, &spec, &Value::Null), expected, "{spec}");
    }
}

#[test]
fn older_versions_judge_as_they_did() {
    let sysctl = |name: &str| json!({"securityContext": {"sysctls": [{"name": name}]}});
    let annotated =
        json!({"seccomp.security.alpha.kubernetes.io/pod": "unconfined", "container.apparmor.security.beta.kubernetes.io/a": "unconfined"});
    let cases = [
        (
            Level::Baseline,
            26,
            sysctl("net.ipv4.ip_local_reserved_ports"),
            Value::Null,
            "forbidden sysctls (net.ipv4.ip_local_reserved_ports)",
        ),
        (Level::Baseline, 27, sysctl("net.ipv4.ip_local_reserved_ports"), Value::Null, ""),
        (Level::Baseline, 36, sysctl("net.ipv4.tcp_notsent_lowat"), Value::Null, "forbidden sysctls (net.ipv4.tcp_notsent_lowat)"),
        (
            Level::Baseline,
            30,
            one(json!({"seLinuxOptions": {"type": "container_engine_t"}})),
            Value::Null,
            "seLinuxOptions (container \"a\" set forbidden securityContext.seLinuxOptions: type \"container_engine_t\")",
        ),
        (Level::Baseline, 31, one(json!({"seLinuxOptions": {"type": "container_engine_t"}})), Value::Null, ""),
        (Level::Restricted, 7, json!({"containers": [{"name": "a"}], "securityContext": {"runAsNonRoot": true}}), Value::Null, ""),
        (
            Level::Baseline,
            18,
            json!({"containers": [{"name": "a"}]}),
            annotated,
            "forbidden AppArmor profile (annotation must not set AppArmor profile type to \"container.apparmor.security.beta.kubernetes.io/a=\"unconfined\"\"), \
             seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod=\"unconfined\")",
        ),
        (Level::Baseline, 33, json!({"containers": [{"name": "a", "livenessProbe": {"httpGet": {"host": "x"}}}]}), Value::Null, ""),
    ];
    for (level, minor, spec, annotations, expected) in cases {
        assert_eq!(found(level, Version::Minor(minor), &spec, &annotations), expected, "v1.{minor} {spec}");
    }
}
