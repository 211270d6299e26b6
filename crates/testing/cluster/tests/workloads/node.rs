//! What the kubelet does for pods beyond their plain life: resize, rules, refusals, static pods, limits of local storage, its own API.

use std::fs;

use cluster::run::ensure;
use cluster::{Namespace, wait_for};

use crate::images::busybox;
use crate::pods::{WAITS, group_file, marked, named_pod, pod};

const STATE: &str = "{.status.phase} {.status.reason}";

#[test]
fn a_running_container_gets_other_resources_without_a_restart() {
    let ns = Namespace::new("resize");
    let resources = "resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 64Mi}}";
    ns.apply(&pod("", &format!("{WAITS}, env: [{{name: MARK, value: resize}}], {resources}")));
    ns.wait("condition=Ready", &["pod/one"]);
    let process = marked("resize");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].resources.limits.cpu}"), "200m");
    let patch = r#"{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"150m","memory":"96Mi"},"limits":{"cpu":"300m","memory":"96Mi"}}}]}}"#;
    ns.kubectl(&["patch", "pod", "one", "--subresource", "resize", "--patch", patch]).ok();
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].resources.limits.cpu}", "300m");
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].allocatedResources.memory}", "96Mi");
    wait_for("the control group follows", 30, || {
        let memory = group_file(&process, "memory", ["memory.limit_in_bytes", "memory.max"]);
        ensure(memory == (96 << 20).to_string(), memory)
    });
    let cpu = group_file(&process, "cpu", ["cpu.cfs_quota_us", "cpu.max"]);
    assert!(cpu == "30000" || cpu == "30000 100000", "{cpu}");
    assert!(process.is_alive());
    ns.wait_for_value("pod/one", "{.status.conditions[?(@.type=='PodResizeInProgress')].status}", "");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].restartCount}"), "0");
}

#[test]
fn a_resize_beyond_the_node_is_infeasible_and_changes_nothing() {
    let ns = Namespace::new("infeasible");
    ns.apply(&pod("", &format!("{WAITS}, resources: {{requests: {{cpu: 10m}}}}")));
    ns.wait("condition=Ready", &["pod/one"]);
    let patch = r#"{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"1000"}}}]}}"#;
    ns.kubectl(&["patch", "pod", "one", "--subresource", "resize", "--patch", patch]).ok();
    ns.wait_for_value("pod/one", "{.status.conditions[?(@.type=='PodResizePending')].reason}", "Infeasible");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].allocatedResources.cpu}"), "10m");
    assert_eq!(ns.value("pod/one", "{.status.phase}"), "Running");
    // Taken back, the pod no longer waits for anything.
    let patch = r#"{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":"20m"}}}]}}"#;
    ns.kubectl(&["patch", "pod", "one", "--subresource", "resize", "--patch", patch]).ok();
    ns.wait_for_value("pod/one", "{.status.conditions[?(@.type=='PodResizePending')].reason}", "");
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].allocatedResources.cpu}", "20m");
}

#[test]
fn a_restart_rule_brings_back_what_the_policy_would_let_end() {
    let ns = Namespace::new("rules");
    let script = "test -e /state/ran && exit 0; touch /state/ran; exit 42";
    let rules = "restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]";
    let mounts = "volumeMounts: [{name: state, mountPath: /state}]";
    let spec = "restartPolicy: Never\n  volumes: [{name: state, emptyDir: {}}]";
    ns.apply(&pod(spec, &format!("command: [sh, -c, '{script}'], {rules}, {mounts}")));
    ns.wait_for_value("pod/one", "{.status.phase}", "Succeeded");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].restartCount}"), "1");
}

#[test]
fn a_container_is_asked_to_stop_with_the_signal_that_it_names() {
    let ns = Namespace::new("signal");
    let script = "trap 'exit 7' USR1; trap 'exit 9' TERM; while :; do sleep 0.1; done";
    let spec = "restartPolicy: Never\n  activeDeadlineSeconds: 2\n  os: {name: linux}";
    ns.apply(&pod(spec, &format!("command: [sh, -c, \"{script}\"], lifecycle: {{stopSignal: SIGUSR1}}")));
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].stopSignal}", "SIGUSR1");
    ns.wait_for_value("pod/one", STATE, "Failed DeadlineExceeded");
    // Containerd of Debian 12 knows no signal but the image's own.
    let code = if ns.cluster.is_on_containerd() { "9" } else { "7" };
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].state.terminated.exitCode}"), code);
}

#[test]
fn a_pod_that_the_node_cannot_take_fails_with_the_reason() {
    let ns = Namespace::new("refused");
    let node = format!("nodeName: {}", ns.cluster.node());
    ns.apply(&named_pod("large", &node, "command: [sleep, '1'], resources: {requests: {cpu: '1000'}}"));
    ns.wait_for_value("pod/large", STATE, "Failed OutOfcpu");
    ns.apply(&named_pod("sysctl", "securityContext: {sysctls: [{name: kernel.msgmax, value: '65536'}]}", "command: [sleep, '1']"));
    ns.wait_for_value("pod/sysctl", STATE, "Failed SysctlForbidden");
    assert_eq!(ns.value("pod/sysctl", "{.status.message}"), "Pod was rejected: forbidden sysctl: \"kernel.msgmax\" not allowlisted");
    let safe = "securityContext: {sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: '81'}]}\n  restartPolicy: Never";
    ns.apply(&named_pod("safe", safe, "command: [cat, /proc/sys/net/ipv4/ip_unprivileged_port_start]"));
    ns.wait_for_value("pod/safe", "{.status.phase}", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "safe"]).ok().trim(), "81");
}

#[test]
fn a_runtime_class_leads_to_its_handler_or_says_that_there_is_none() {
    let ns = Namespace::new("handler");
    let own = if ns.cluster.is_on_containerd() { "runc" } else { "sternpost" };
    for (class, handler) in [("node-test-own", own), ("node-test-none", "no-such-handler")] {
        ns.apply(&format!("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {class}}}\nhandler: {handler}\n"));
    }
    ns.apply(&named_pod("own", "runtimeClassName: node-test-own", WAITS));
    ns.apply(&named_pod("none", "runtimeClassName: node-test-none", WAITS));
    ns.wait("condition=Ready", &["pod/own"]);
    ns.wait_for_event("none", "FailedCreatePodSandBox", "no runtime for \"no-such-handler\" is configured");
    ns.kubectl(&["delete", "runtimeclass", "node-test-own", "node-test-none"]).ok();
}

#[test]
fn a_file_in_the_folder_of_static_pods_is_a_pod_until_it_goes() {
    let ns = Namespace::new("static");
    let folder = ns.cluster.dir().join("manifests");
    fs::create_dir_all(&folder).expect("the folder of static pods");
    let manifest = |word: &str| {
        let container = format!("command: [sh, -c, 'echo {word}; sleep 100000']");
        named_pod("static", "terminationGracePeriodSeconds: 0", &container)
            .replace("metadata: {", &format!("metadata: {{namespace: {}, ", ns.name))
    };
    let name = format!("static-{}", ns.cluster.node());
    fs::write(folder.join("static.yaml"), manifest("first")).expect("a manifest");
    let object = format!("pod/{name}");
    wait_for("the mirror pod is Ready", 60, || {
        let ran = ns.kubectl(&["get", &object, "-o", "jsonpath={.status.conditions[?(@.type=='Ready')].status}"]);
        ensure(ran.stdout == "True", ran)
    });
    assert_eq!(ns.kubectl(&["logs", &name]).ok().trim(), "first");
    assert_eq!(ns.value(&object, "{.metadata.ownerReferences[0].kind}"), "Node");
    // Deleting the mirror does not end the pod: it is shown again.
    let uid = ns.value(&object, "{.metadata.uid}");
    let container = ns.value(&object, "{.status.containerStatuses[0].containerID}");
    ns.kubectl(&["delete", &object, "--grace-period=0", "--force"]).ok();
    wait_for("another mirror of the same pod", 60, || {
        let ran = ns.kubectl(&["get", &object, "-o", "jsonpath={.metadata.uid} {.status.containerStatuses[0].containerID}"]);
        ensure(ran.stdout.ends_with(&container) && !ran.stdout.starts_with(&uid), ran)
    });
    fs::write(folder.join("static.yaml"), manifest("second")).expect("a manifest");
    wait_for("the changed pod runs", 60, || {
        let ran = ns.kubectl(&["logs", &name]);
        ensure(ran.stdout.trim() == "second", ran)
    });
    fs::remove_file(folder.join("static.yaml")).expect("removal");
    wait_for("the mirror goes with its pod", 60, || {
        let ran = ns.kubectl(&["get", &object, "--ignore-not-found"]);
        ensure(ran.succeeded() && ran.stdout.is_empty(), ran)
    });
}

#[test]
fn a_variable_comes_from_a_file_that_an_init_container_wrote() {
    let ns = Namespace::new("envfile");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  restartPolicy: Never\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  initContainers:\n  - name: write\n    image: \"{image}\"\n    command: [sh, -c, \"echo \\\"COLOR='dark red'\\\" > /v/a.env\"]\n    volumeMounts: [{{name: v, mountPath: /v}}]\n  containers:\n  - name: main\n    image: \"{image}\"\n    command: [sh, -c, 'echo $COLOR']\n    env: [{{name: COLOR, valueFrom: {{fileKeyRef: {{volumeName: v, path: a.env, key: COLOR}}}}}}]\n",
        image = busybox(1)
    ));
    ns.wait_for_value("pod/one", "{.status.phase}", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "one"]).ok().trim(), "dark red");
}

#[test]
fn a_pod_that_outgrows_its_volume_is_evicted() {
    let ns = Namespace::new("storage");
    let spec = "restartPolicy: Never\n  volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]";
    let container = "command: [sh, -c, 'dd if=/dev/zero of=/v/file bs=1M count=4; sleep 100000'], volumeMounts: [{name: v, mountPath: /v}]";
    ns.apply(&pod(spec, container));
    ns.wait_for_value("pod/one", STATE, "Failed Evicted");
    assert_eq!(ns.value("pod/one", "{.status.message}"), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
}

#[test]
fn the_pod_as_a_whole_is_limited_where_it_says_so() {
    let ns = Namespace::new("whole");
    ns.apply(&pod(
        "resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 500m, memory: 64Mi}}",
        &format!("{WAITS}, env: [{{name: MARK, value: whole}}]"),
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    let process = marked("whole");
    let own = crate::pods::group_of(&process, "memory");
    let group = own.parent().expect("the pod's group");
    let limit = ["memory.limit_in_bytes", "memory.max"].iter().find_map(|name| fs::read_to_string(group.join(name)).ok());
    assert_eq!(limit.as_deref().map(str::trim), Some((64 << 20).to_string().as_str()), "{}", group.display());
    assert_eq!(ns.value("pod/one", "{.status.qosClass}"), "Burstable");
}

#[test]
fn the_kubelet_tells_what_its_pods_use() {
    let ns = Namespace::new("kubelet");
    ns.apply(&pod("", WAITS));
    ns.wait("condition=Ready", &["pod/one"]);
    let raw = |path: &str| ns.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{}/proxy/{path}", ns.cluster.node())]).ok();
    let summary: serde_json::Value = serde_json::from_str(&raw("stats/summary")).expect("JSON");
    assert!(summary["node"]["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{summary}");
    let own = summary["pods"].as_array().and_then(|pods| pods.iter().find(|pod| pod["podRef"]["namespace"] == ns.name.as_str()));
    assert!(own.is_some_and(|pod| pod["containers"][0]["memory"]["workingSetBytes"].as_u64().is_some_and(|bytes| bytes > 0)), "{summary}");
    let labels = format!("container=\"main\",namespace=\"{}\",pod=\"one\"", ns.name);
    // How long it waited, where the kernel tells; Debian 12's containerd does not.
    if std::path::Path::new("/proc/pressure/cpu").exists() && !ns.cluster.is_on_containerd() {
        for resource in ["cpu", "memory", "io"] {
            let told = own.is_some_and(|pod| pod["containers"][0][resource]["psi"]["some"]["total"].is_u64());
            assert!(told, "{resource}: {summary}");
        }
        assert!(
            raw("metrics/cadvisor").lines().any(|line| line.starts_with("container_pressure_cpu_waiting_seconds_total{container=\"main\""))
        );
    }
    for (path, family) in [
        ("metrics/resource", "container_memory_working_set_bytes"),
        ("metrics/resource", "node_cpu_usage_seconds_total"),
        ("metrics/cadvisor", "machine_cpu_cores"),
        ("metrics", "kubelet_running_pods"),
    ] {
        assert!(raw(path).lines().any(|line| line.starts_with(family)), "{family} in {path}");
    }
    assert!(raw("metrics/resource").contains(&labels));
    let running: serde_json::Value = serde_json::from_str(&raw("runningpods/")).expect("JSON");
    assert!(running["items"].as_array().is_some_and(|pods| pods.iter().any(|pod| pod["metadata"]["namespace"] == ns.name.as_str())));
    let configz: serde_json::Value = serde_json::from_str(&raw("configz")).expect("JSON");
    assert_eq!(configz["kubeletconfig"]["clusterDomain"], "cluster.local");
}

#[test]
fn a_sub_path_does_not_lead_out_of_its_volume_however_fast_it_is_swapped() {
    let ns = Namespace::new("escape");
    // One container swaps a directory and a link to the host's root all the time; the other one mounts it and looks, again and again.
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  containers:\n  - name: swaps\n    image: \"{image}\"\n    command: [sh, -c, 'mkdir /v/real; touch /v/real/inside; ln -s / /v/link; while :; do mv /v/real /v/sub; mv /v/sub /v/real; mv /v/link /v/sub; mv /v/sub /v/link; done']\n    volumeMounts: [{{name: v, mountPath: /v}}]\n  - name: looks\n    image: \"{image}\"\n    command: [sh, -c, 'ls -a /sub; test -e /sub/bin && echo ESCAPED; test -e /sub/etc && echo ESCAPED; exit 1']\n    volumeMounts: [{{name: v, mountPath: /sub, subPath: sub}}]\n",
        image = busybox(1)
    ));
    wait_for("some looks", 90, || {
        let ran = ns.kubectl(&["get", "pod", "one", "-o", "jsonpath={.status.containerStatuses[?(@.name=='looks')].restartCount}"]);
        ensure(ran.stdout.trim().parse::<u32>().is_ok_and(|count| count >= 2), ran)
    });
    let said = ns.kubectl(&["logs", "one", "-c", "looks", "--previous"]).ok();
    assert!(!said.contains("ESCAPED"), "{said}");
}

#[test]
fn a_fork_bomb_and_a_flood_of_output_harm_only_their_own_pod() {
    let ns = Namespace::new("bomb");
    ns.apply(&named_pod("bomb", "terminationGracePeriodSeconds: 0", "command: [sh, -c, 'i=0; while [ $i -lt 20000 ]; do sleep 1000 & i=$((i+1)); done; wait'], resources: {limits: {memory: 64Mi, cpu: 200m}}"));
    ns.apply(&named_pod("flood", "terminationGracePeriodSeconds: 0", "command: [sh, -c, 'yes 0123456789012345678901234567890123456789 | head -c 30000000; sleep 100000'], resources: {limits: {cpu: 500m}}"));
    ns.apply(&named_pod("calm", "", WAITS));
    ns.wait("condition=Ready", &["pod/calm", "pod/flood"]);
    assert_eq!(ns.exec("calm", &["echo", "fine"]).ok().trim(), "fine");
    let lines = ns.kubectl(&["logs", "flood", "--tail=1"]).ok();
    assert!(lines.len() < 100, "{lines}");
    ns.kubectl(&["delete", "pod", "bomb", "flood", "--wait=true", "--timeout=90s"]).ok();
}

#[test]
fn a_pod_without_the_hosts_users_is_root_of_its_own_ids_and_its_volumes_keep_their_owners() {
    let ns = Namespace::new("users");
    ns.kubectl(&["create", "configmap", "words", "--from-literal=word=read"]).ok();
    let spec = "hostUsers: false\n  restartPolicy: Never\n  securityContext: {fsGroup: 2000}\n  volumes: [{name: v, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}, {name: c, configMap: {name: words}}]";
    let script = "tr -s ' ' < /proc/self/uid_map; id -u; touch /v/f /m/f; stat -c %u:%g /v/f /m/f; cat /c/word; echo; \
        test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; stat -c %u /etc/hosts; wget -q -O /dev/null http://localhost:1 2>&1 | head -c 4; echo; \
        mount | grep -c ' on /proc/'";
    let mounts = "volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}, {name: c, mountPath: /c}]";
    ns.apply(&named_pod("masked", spec, &format!("command: [sh, -c, \"{}\"], {mounts}", script)));
    if ns.cluster.is_on_containerd() {
        // Debian 12's makes no user namespaces: such a pod is never started with the host's users instead.
        return ns.wait_for_event("masked", "FailedCreatePodSandBox", "does not support user namespaces");
    }
    ns.wait_for_value("pod/masked", "{.status.phase}", "Succeeded");
    let said = ns.kubectl(&["logs", "masked"]).ok();
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines.get(1..8), Some(&["0", "0:2000", "0:2000", "read", "token", "0", "wget"][..]), "{said}");
    let ids: Vec<u32> = lines[0].split(' ').filter_map(|number| number.parse().ok()).collect();
    assert!(matches!(ids[..], [0, first, 65_536] if first >= 65_536), "{said}");
    assert!(lines.last() > Some(&"3"), "/proc is masked: {said}");
    // Two pods never share ids.
    let whole = "hostUsers: false\n  restartPolicy: Never";
    let unmasked =
        "securityContext: {procMount: Unmasked}, command: [sh, -c, 'cat /proc/self/uid_map; mount | grep -c \" on /proc/\"; exit 0']";
    ns.apply(&named_pod("unmasked", whole, unmasked));
    ns.wait_for_value("pod/unmasked", "{.status.phase}", "Succeeded");
    let other = ns.kubectl(&["logs", "unmasked"]).ok();
    assert_eq!(other.lines().nth(1), Some("0"), "{other}");
    let node = ns.value(&format!("node/{}", ns.cluster.node()), "{.status.runtimeHandlers[?(@.name=='runc')].features.userNamespaces}");
    assert_eq!(node, "true");
}

#[test]
fn a_rule_restarts_every_container_of_a_pod_in_the_sandbox_that_it_has() {
    let ns = Namespace::new("restartall");
    let image = busybox(1);
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  initContainers:\n  - {{name: init, image: \"{image}\", command: [sh, -c, 'echo init >> /v/order'], volumeMounts: [{{name: v, mountPath: /v}}]}}\n  containers:\n  - name: main\n    image: \"{image}\"\n    command: [sh, -c, 'echo main >> /v/order; test $(grep -c main /v/order) = 2 || exit 42; sleep 1000']\n    volumeMounts: [{{name: v, mountPath: /v}}]\n    restartPolicy: Never\n    restartPolicyRules: [{{action: RestartAllContainers, exitCodes: {{operator: In, values: [42]}}}}]\n  - {{name: other, image: \"{image}\", command: [sleep, '1000']}}\n"
    ));
    ns.wait_for_value("pod/one", "{.status.containerStatuses[?(@.name=='main')].restartCount} {.status.containerStatuses[?(@.name=='other')].restartCount} {.status.phase}", "1 1 Running");
    let order = ns.kubectl(&["exec", "one", "-c", "main", "--", "cat", "/v/order"]).ok();
    assert_eq!(order.split_whitespace().collect::<Vec<_>>(), ["init", "main", "init", "main"]);
}
