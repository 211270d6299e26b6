//! The same kubelet on Debian's containerd with runc (`containerRuntimeEndpoint`): what pods of every kind are promised.

use cluster::run::ensure;
use cluster::{Cluster, containerd, wait_for};

/// Pods, each with what it says and how it ends: `phase exit-code reason restarts`.
const PODS: &[(&str, &str, &str, &str)] = &[
    (
        "stages",
        "restartPolicy: Never\n  volumes: [{name: v, emptyDir: {}}]\n  initContainers: [{name: init, image: IMAGE, command: [sh, -c, 'echo first > /v/x'], volumeMounts: [{name: v, mountPath: /v}]}]",
        "command: [sh, -c, 'cat /v/x; echo $NAME; echo words > /dev/termination-log; exit 3'], env: [{name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}], volumeMounts: [{name: v, mountPath: /v}]",
        "Failed 3 Error 0 | first stages",
    ),
    (
        "memory",
        "restartPolicy: Never",
        "command: [sh, -c, 'tail /dev/zero'], resources: {limits: {memory: 24Mi}}",
        "Failed 137 OOMKilled 0 |",
    ),
    (
        "user",
        "restartPolicy: Never\n  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000}",
        "command: [sh, -c, 'id -u; id -g; touch /x 2>/dev/null || echo locked; grep CapEff /proc/self/status | cut -f2'], securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}",
        "Succeeded 0 Completed 0 | 1000 3000 locked 0000000000000000",
    ),
    (
        "files",
        "restartPolicy: Never\n  volumes: [{name: c, configMap: {name: words, defaultMode: 0400}}, {name: s, secret: {secretName: hidden}}]",
        "command: [sh, -c, 'cat /c/word /one /s/key; stat -L -c %a /c/word; test -s /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; grep -c cluster.local /etc/resolv.conf'], volumeMounts: [{name: c, mountPath: /c}, {name: c, mountPath: /one, subPath: word}, {name: s, mountPath: /s}]",
        "Succeeded 0 Completed 0 | readreadhush400 token 1",
    ),
    (
        "sidecar",
        "restartPolicy: Never\n  shareProcessNamespace: true\n  initContainers: [{name: side, image: IMAGE, restartPolicy: Always, command: [sleep, '77777']}]",
        "command: [sh, -c, 'ps | grep -c \"sleep 7777[7]\"; hostname']",
        "Succeeded 0 Completed 0 | 1 sidecar",
    ),
];

/// Pods that go on: readiness, liveness, hooks.
const RUNNING: &[(&str, &str, &str)] = &[
    (
        "web",
        "",
        "command: [sh, -c, 'mkdir /w; echo hello > /w/index.html; exec httpd -f -p 8080 -h /w'], readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}",
    ),
    (
        "sick",
        "",
        "command: [sh, -c, 'touch /well; sleep 2; rm /well; sleep 100000'], livenessProbe: {exec: {command: [test, -e, /well]}, periodSeconds: 1, failureThreshold: 1}",
    ),
    ("hooked", "", "command: [sh, -c, 'sleep 100000'], lifecycle: {postStart: {exec: {command: [sh, -c, 'echo began > /hook']}}}"),
];

fn manifest((name, spec, container): (&str, &str, &str)) -> String {
    let image = containerd::IMAGE;
    let spec = if spec.is_empty() { String::new() } else { format!("  {}\n", spec.replace("IMAGE", image)) };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n{spec}  containers:\n  - {{name: main, image: '{image}', {container}}}\n"
    )
}

fn end(cluster: &Cluster, name: &str) -> String {
    let of = |path: &str| cluster.kubectl(&["get", "pod", name, "-o", &format!("jsonpath={path}")]).stdout;
    let state = of(
        "{.status.phase} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].restartCount}",
    );
    let said = cluster.kubectl(&["logs", name, "-c", "main"]).stdout;
    format!("{state} | {}", said.split_whitespace().collect::<Vec<_>>().join(" ")).trim().to_owned()
}

#[test]
fn pods_on_containerd_live_and_end_as_they_do_on_the_embedded_runtime() {
    let cluster = Cluster::fresh();
    let containerd = cluster.use_containerd();
    cluster.up();
    cluster.kubectl(&["create", "configmap", "words", "--from-literal=word=read"]).ok();
    cluster.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=key=hush"]).ok();
    let all = PODS.iter().map(|(name, spec, container, _)| manifest((name, spec, container)));
    let all: String = all.chain(RUNNING.iter().copied().map(manifest)).collect();
    cluster.kubectl_with(&["apply", "-f", "-"], &all).ok();
    for (name, _, _, wanted) in PODS {
        wait_for(&format!("{name} ends as {wanted:?}"), 90, || {
            let said = end(&cluster, name);
            ensure(said == *wanted, said)
        });
    }
    let value = |object: &str, path: &str| cluster.kubectl(&["get", object, "-o", &format!("jsonpath={path}")]).stdout;
    assert_eq!(value("pod/stages", "{.status.containerStatuses[0].state.terminated.message}").trim(), "words");
    for (object, path, wanted) in [
        ("pod/web", "{.status.conditions[?(@.type=='Ready')].status}", "True"),
        ("pod/hooked", "{.status.conditions[?(@.type=='Ready')].status}", "True"),
    ] {
        wait_for(object, 60, || ensure(value(object, path) == wanted, cluster.kubectl(&["get", "events"])));
    }
    assert_eq!(cluster.kubectl(&["exec", "web", "--", "wget", "-qO-", "localhost:8080"]).ok().trim(), "hello");
    assert_eq!(cluster.kubectl(&["exec", "hooked", "--", "cat", "/hook"]).ok().trim(), "began");
    wait_for("the sick one is restarted", 60, || {
        let restarts = value("pod/sick", "{.status.containerStatuses[0].restartCount}");
        ensure(restarts.parse::<u32>().is_ok_and(|count| count > 0), restarts)
    });
    assert!(value("pod/web", "{.status.containerStatuses[0].containerID}").starts_with("containerd://"));
    // A user namespace is more than this runtime can do: it says so.
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest(("alone", "hostUsers: false", "command: [sleep, '1']"))).ok();
    wait_for("the reason", 60, || {
        let events =
            cluster.kubectl(&["get", "events", "--field-selector", "involvedObject.name=alone", "-o", "jsonpath={.items[*].message}"]);
        ensure(events.stdout.contains("does not support user namespaces"), events)
    });
    // The kubelet comes and goes; what runs stays.
    let before = value("pod/web", "{.status.containerStatuses[0].containerID} {.status.podIP}");
    cluster.daemon().kill();
    cluster.up();
    wait_for("the web is Ready", 60, || ensure(value("pod/web", "{.status.conditions[?(@.type=='Ready')].status}") == "True", ""));
    assert_eq!(value("pod/web", "{.status.containerStatuses[0].containerID} {.status.podIP}"), before);
    cluster.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).ok();
    let tokio = tokio::runtime::Runtime::new().expect("tokio");
    let left = tokio.block_on(async {
        let client = remote::Remote::new(&containerd.socket);
        for _ in 0..100 {
            let left = cri::RuntimeService::list_pod_sandbox(&client, Default::default()).await.expect("a list").items.len();
            if left == 0 {
                return left;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
        usize::MAX
    });
    assert_eq!(left, 0, "sandboxes are left");
    cluster.sternpost(&["down", "--purge"]).ok();
}
