//! The life of pods: restarts, probes, limits, order, ending, placing.

use std::fs;
use std::path::PathBuf;

use cluster::process::{self, Process};
use cluster::run::ensure;
use cluster::{Namespace, http, wait_for};

use crate::images::busybox;

/// A pod `one` of one container `main`; `spec` and `container` are further lines in flow style, such as `restartPolicy: Never`.
pub fn pod(spec: &str, container: &str) -> String {
    named_pod("one", spec, container)
}

pub fn named_pod(name: &str, spec: &str, container: &str) -> String {
    let spec = if spec.is_empty() { String::new() } else { format!("  {spec}\n") };
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n{spec}  containers:\n  - {{name: main, image: \"{}\", {container}}}\n",
        busybox(1)
    )
}

/// The one process that was started with `MARK=…`.
#[track_caller]
pub fn marked(mark: &str) -> Process {
    let variable = format!("MARK={mark}");
    wait_for(&variable, 60, || process::with_variable(&variable).into_iter().next().ok_or("no such process".into()))
}

/// The command of a container that only waits.
pub const WAITS: &str = "command: [sleep, '100000']";

#[test]
fn a_killed_container_restarts_and_then_waits_longer_each_time() {
    let ns = Namespace::new("restart");
    ns.apply(&pod("", &format!("{WAITS}, env: [{{name: MARK, value: restart}}]")));
    ns.wait("condition=Ready", &["pod/one"]);
    let first = marked("restart");
    first.kill();
    let count = "{.status.containerStatuses[0].restartCount}";
    ns.wait_for_value("pod/one", count, "1");
    let second =
        wait_for("a new process", 60, || process::with_variable("MARK=restart").into_iter().find(|now| *now != first).ok_or("none".into()));
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].lastState.terminated.exitCode}"), "137");
    ns.wait("condition=Ready", &["pod/one"]);
    second.kill();
    // The second restart is delayed: upstream's back-off begins at ten seconds.
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].state.waiting.reason}", "CrashLoopBackOff");
    let message = ns.value("pod/one", "{.status.containerStatuses[0].state.waiting.message}");
    assert!(message.starts_with("back-off 10s restarting failed container=main pod=one_"), "{message}");
    ns.wait_for_event("one", "BackOff", "Back-off restarting failed container main in pod one_");
    ns.wait_for_value("pod/one", count, "2");
    let listed = ns.kubectl(&["get", "pod", "one", "--no-headers"]).ok();
    assert!(listed.contains(" 2 ("), "RESTARTS shows the number and when: {listed}");
}

#[test]
fn the_log_of_the_previous_container_can_be_read() {
    let ns = Namespace::new("previous");
    ns.apply(&pod("", "command: [sh, -c, 'echo I am $(cat /proc/sys/kernel/random/uuid); test -e /mark && sleep 1000; exit 3']"));
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].restartCount}", "1");
    let previous = ns.kubectl(&["logs", "one", "--previous"]).ok();
    assert!(previous.starts_with("I am "), "{previous}");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].lastState.terminated.exitCode}"), "3");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].lastState.terminated.reason}"), "Error");
}

#[test]
fn restart_policies_decide_how_a_pod_ends() {
    let ns = Namespace::new("policy");
    for (name, policy, code) in
        [("ok-never", "Never", 0), ("bad-never", "Never", 5), ("ok-failure", "OnFailure", 0), ("bad-failure", "OnFailure", 5)]
    {
        ns.apply(&named_pod(name, &format!("restartPolicy: {policy}"), &format!("command: [sh, -c, 'exit {code}']")));
    }
    ns.wait_for_value("pod/ok-never", "{.status.phase}", "Succeeded");
    ns.wait_for_value("pod/bad-never", "{.status.phase}", "Failed");
    ns.wait_for_value("pod/ok-failure", "{.status.phase}", "Succeeded");
    ns.wait_for_value("pod/bad-failure", "{.status.containerStatuses[0].restartCount}", "1");
    assert_eq!(ns.value("pod/bad-failure", "{.status.phase}"), "Running");
    assert_eq!(
        ns.value("pod/bad-never", "{.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].restartCount}"),
        "5 0"
    );
    let table = ns.kubectl(&["get", "pods", "--no-headers"]).ok();
    assert!(table.lines().any(|line| line.starts_with("ok-never") && line.contains("Completed")), "{table}");
    assert!(table.lines().any(|line| line.starts_with("bad-never") && line.contains("Error")), "{table}");
}

/// The directory of a process's control group in the hierarchy of this controller, on version 1 or 2.
pub fn group_of(process: &Process, controller: &str) -> PathBuf {
    let groups = process.cgroups();
    let path = |wanted: &str| {
        groups
            .iter()
            .find(|(controllers, _)| controllers.split(',').any(|each| each == wanted))
            .map(|(_, path)| path.trim_start_matches('/').to_owned())
    };
    match path(controller) {
        Some(path) => PathBuf::from("/sys/fs/cgroup").join(controller).join(path),
        None => PathBuf::from("/sys/fs/cgroup").join(path("").expect("a version 2 hierarchy")),
    }
}

/// The first of these files that exists in the process's group.
#[track_caller]
pub fn group_file(process: &Process, controller: &str, names: [&str; 2]) -> String {
    let group = group_of(process, controller);
    let text = names.iter().find_map(|name| fs::read_to_string(group.join(name)).ok());
    text.unwrap_or_else(|| panic!("none of {names:?} in {}", group.display())).trim().to_owned()
}

#[test]
fn limits_are_set_in_the_kernel() {
    let ns = Namespace::new("limits");
    ns.apply(&pod(
        "",
        &format!(
            "{WAITS}, env: [{{name: MARK, value: limits}}], resources: {{limits: {{cpu: 250m, memory: 64Mi}}, requests: {{cpu: 125m}}}}"
        ),
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    let process = marked("limits");
    assert_eq!(group_file(&process, "memory", ["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    let cpu = group_file(&process, "cpu", ["cpu.cfs_quota_us", "cpu.max"]);
    assert!(cpu == "25000" || cpu == "25000 100000", "{cpu}");
    let weight = group_file(&process, "cpu", ["cpu.shares", "cpu.weight"]);
    assert!(weight == "128" || weight == "5" || weight == "17", "{weight}");
    let pids = group_file(&process, "pids", ["pids.max", "pids.max"]);
    assert!(!pids.is_empty());
    assert_eq!(ns.value("pod/one", "{.status.qosClass}"), "Burstable");
    assert!(process.cgroups().iter().any(|(_, path)| path.contains(cluster::cluster::names::CGROUP_ROOT)), "{:?}", process.cgroups());
}

#[test]
fn a_container_over_its_memory_is_killed_and_says_so() {
    let ns = Namespace::new("oom");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  restartPolicy: Never\n  containers:\n  - {{name: main, image: '{}', args: [burn, '60', '200'], resources: {{limits: {{memory: 50Mi}}}}}}\n",
        ns.cluster.toolbox()
    ));
    ns.wait_for_value("pod/one", "{.status.phase}", "Failed");
    assert_eq!(
        ns.value(
            "pod/one",
            "{.status.containerStatuses[0].state.terminated.reason} {.status.containerStatuses[0].state.terminated.exitCode}"
        ),
        "OOMKilled 137"
    );
}

#[test]
fn a_failing_liveness_probe_restarts_the_container() {
    let ns = Namespace::new("liveness");
    ns.apply(&pod(
        "terminationGracePeriodSeconds: 1",
        &format!("{WAITS}, livenessProbe: {{exec: {{command: [test, '!', -e, /tmp/broken]}}, periodSeconds: 1, failureThreshold: 2}}"),
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    ns.exec("one", &["touch", "/tmp/broken"]).ok();
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].restartCount}", "1");
    ns.wait_for_event("one", "Unhealthy", "Liveness probe failed:");
    ns.wait_for_event("one", "Killing", "Container main failed liveness probe, will be restarted");
    ns.wait("condition=Ready", &["pod/one"]);
    ns.exec("one", &["test", "-e", "/tmp/broken"]).fails();
}

#[test]
fn readiness_decides_who_gets_the_traffic() {
    let ns = Namespace::new("readiness");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one, labels: {{app: web}}}}\nspec:\n  containers:\n  - {{name: main, image: '{}', readinessProbe: {{httpGet: {{path: /healthz, port: http}}, periodSeconds: 1}}, ports: [{{name: http, containerPort: 8080}}]}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {{selector: {{app: web}}, ports: [{{port: 80, targetPort: http}}]}}\n",
        ns.cluster.toolbox()
    ));
    ns.apply(&named_pod("two", "", &format!("{WAITS}, readinessProbe: {{exec: {{command: [test, -e, /tmp/ready]}}, periodSeconds: 1, failureThreshold: 1}}, ports: [{{name: http, containerPort: 8080}}]")));
    ns.kubectl(&["label", "pod", "two", "app=web", "--overwrite"]).ok();
    ns.wait("condition=Ready", &["pod/one"]);
    ns.wait_for_endpoints("web", 1);
    ns.wait_for_event("two", "Unhealthy", "Readiness probe failed:");
    assert_eq!(
        ns.value(
            "pod/two",
            r#"{.status.phase} {.status.conditions[?(@.type=="Ready")].status} {.status.containerStatuses[0].restartCount}"#
        ),
        "Running False 0"
    );
    ns.exec("two", &["touch", "/tmp/ready"]).ok();
    ns.wait_for_endpoints("web", 2);
    ns.exec("two", &["rm", "/tmp/ready"]).ok();
    ns.wait_for_endpoints("web", 1);
    let address = format!("{}:80", ns.value("service/web", "{.spec.clusterIP}"));
    wait_for("only the ready pod answers", 20, || {
        (0..20).try_for_each(|_| http::get(&address, "/hostname").and_then(|name| ensure(name == "one\n", name)))
    });
}

#[test]
fn a_startup_probe_holds_the_other_probes_back() {
    let ns = Namespace::new("startup");
    let probes = "startupProbe: {tcpSocket: {port: 7000}, periodSeconds: 1, failureThreshold: 60}, livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1}";
    ns.apply(&pod(
        "terminationGracePeriodSeconds: 1",
        &format!("command: [sh, -c, 'sleep 4; touch /tmp/alive; exec nc -ll -p 7000 -e cat'], {probes}"),
    ));
    ns.wait_for_value("pod/one", "{.status.phase}", "Running");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].started}"), "false");
    ns.wait("condition=Ready", &["pod/one"]);
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].started} {.status.containerStatuses[0].restartCount}"), "true 0");
}

#[test]
fn init_containers_run_one_after_the_other_before_the_others() {
    let ns = Namespace::new("init");
    let image = busybox(1);
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  volumes: [{{name: shared, emptyDir: {{}}}}]\n  initContainers:\n\
         \x20 - {{name: a, image: \"{image}\", command: [sh, -c, 'sleep 1; echo a >> /s/order'], volumeMounts: [{{name: shared, mountPath: /s}}]}}\n\
         \x20 - {{name: b, image: \"{image}\", command: [sh, -c, 'echo b >> /s/order'], volumeMounts: [{{name: shared, mountPath: /s}}]}}\n\
         \x20 containers:\n  - {{name: main, image: \"{image}\", command: [sh, -c, 'echo main >> /s/order; exec sleep 1000'], volumeMounts: [{{name: shared, mountPath: /s}}]}}\n"
    );
    ns.apply(&manifest);
    ns.wait("condition=Ready", &["pod/one"]);
    wait_for("the order is written", 20, || {
        let order = ns.exec("one", &["cat", "/s/order"]);
        ensure(order.stdout == "a\nb\nmain\n", order)
    });
    assert_eq!(ns.value("pod/one", "{.status.initContainerStatuses[*].state.terminated.reason}"), "Completed Completed");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: stuck}}\nspec:\n  restartPolicy: Never\n  initContainers:\n  - {{name: a, image: \"{image}\", command: ['false']}}\n  containers:\n  - {{name: main, image: \"{image}\"}}\n"
    ));
    ns.wait_for_value("pod/stuck", "{.status.phase}", "Failed");
    let listed = ns.kubectl(&["get", "pod", "stuck", "--no-headers"]).ok();
    assert!(listed.contains("Init:Error"), "{listed}");
    assert_eq!(ns.value("pod/stuck", "{.status.containerStatuses[0].state.waiting.reason}"), "PodInitializing");
}

#[test]
fn a_pod_may_finish_its_work_before_it_goes() {
    let ns = Namespace::new("graceful");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let volume = format!("volumes: [{{name: out, hostPath: {{path: {}}}}}]", folder.path().display());
    let script = "trap \"echo asked >> /out/words; sleep 1; echo finished >> /out/words; exit 0\" TERM; while true; do sleep 0.1; done";
    let container = format!(
        "command: [sh, -c, '{script}'], volumeMounts: [{{name: out, mountPath: /out}}], lifecycle: {{preStop: {{exec: {{command: [sh, -c, 'echo hook >> /out/words']}}}}}}"
    );
    ns.apply(&pod(&volume, &container));
    ns.wait("condition=Ready", &["pod/one"]);
    ns.kubectl(&["delete", "pod", "one", "--timeout=60s"]).ok();
    assert_eq!(fs::read_to_string(folder.path().join("words")).expect("it wrote"), "hook\nasked\nfinished\n");

    // Who does not listen is killed after the grace period.
    ns.apply(&named_pod(
        "deaf",
        "terminationGracePeriodSeconds: 2",
        "command: [sh, -c, 'trap \"\" TERM; while true; do sleep 1; done'], env: [{name: MARK, value: deaf}]",
    ));
    ns.wait("condition=Ready", &["pod/deaf"]);
    let process = marked("deaf");
    ns.kubectl(&["delete", "pod", "deaf", "--timeout=60s"]).ok();
    assert!(!process.is_alive());
    ns.kubectl(&["get", "pod", "deaf"]).fails();
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    let ns = Namespace::new("placing");
    ns.apply(&named_pod("selector", "nodeSelector: {disk: golden}", WAITS));
    ns.apply(&named_pod("greedy", "", &format!("{WAITS}, resources: {{requests: {{cpu: '1000'}}}}")));
    ns.wait_for_event("selector", "FailedScheduling", "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.");
    ns.wait_for_event("greedy", "FailedScheduling", "0/1 nodes are available: 1 Insufficient cpu.");
    let condition = ns.value("pod/greedy", r#"{.status.conditions[?(@.type=="PodScheduled")].reason}"#);
    assert_eq!(condition, "Unschedulable");
    // It goes on by itself once the node fits. The label is not one that other tests look at.
    ns.cluster.kubectl(&["label", "node", ns.cluster.node(), "disk=golden", "--overwrite"]).ok();
    ns.wait("condition=Ready", &["pod/selector"]);
    ns.cluster.kubectl(&["label", "node", ns.cluster.node(), "disk-"]).ok();
}

#[test]
fn environment_comes_from_values_fields_and_resources() {
    let ns = Namespace::new("env");
    ns.apply(&pod(
        "restartPolicy: Never",
        "command: [sh, -c, 'env; echo \"$@\"', sh, args, $(A)-$(B), $(UNSET), $$(A)], resources: {limits: {memory: 32Mi}}, env: [{name: A, value: x}, {name: B, value: '$(A)y'}, \
         {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}, {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}, \
         {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: LABEL, valueFrom: {fieldRef: {fieldPath: \"metadata.labels['app']\"}}}, \
         {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}]",
    ));
    ns.wait_for_value("pod/one", "{.status.phase}", "Succeeded");
    let log = ns.kubectl(&["logs", "one"]).ok();
    let address = ns.value("pod/one", "{.status.podIP}");
    let node = ns.cluster.node();
    for line in [
        "A=x",
        "B=xy",
        "POD=one",
        &format!("NODE={node}"),
        &format!("IP={address}"),
        "LABEL=one",
        "MEMORY=33554432",
        "HOSTNAME=one",
        "args x-xy $(UNSET) $(A)",
    ] {
        assert!(log.lines().any(|found| found == line), "{line}: {log}");
    }
    assert!(log.lines().any(|line| line.starts_with("KUBERNETES_SERVICE_HOST=")), "{log}");
}

#[test]
fn the_security_context_is_what_the_process_has() {
    let ns = Namespace::new("security");
    let context = "securityContext: {runAsUser: 1000, runAsGroup: 1000, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL], add: [NET_BIND_SERVICE]}}";
    ns.apply(&pod("securityContext: {fsGroup: 4000}", &format!("{WAITS}, {context}, env: [{{name: MARK, value: security}}]")));
    ns.wait("condition=Ready", &["pod/one"]);
    let process = marked("security");
    let own = |field: &str| process.status(field).unwrap_or_default();
    assert_eq!(own("Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(own("Gid"), "1000\t1000\t1000\t1000");
    assert_eq!(own("Groups").split(' ').collect::<Vec<_>>(), ["1000", "4000"]);
    assert_eq!(own("NoNewPrivs"), "1");
    assert_eq!(own("CapBnd"), format!("{:016x}", 1u64 << 10));
    assert!(own("Seccomp") == "2" || own("Seccomp") == "0");
    let refused = ns.exec("one", &["touch", "/file"]).fails();
    assert!(refused.contains("Read-only file system"), "{refused}");
    ns.apply(&named_pod("root", "securityContext: {runAsNonRoot: true}", WAITS));
    ns.wait_for_value("pod/root", "{.status.containerStatuses[0].state.waiting.reason}", "CreateContainerConfigError");
    let message = ns.value("pod/root", "{.status.containerStatuses[0].state.waiting.message}");
    assert!(message.contains("container has runAsNonRoot and image will run as root"), "{message}");
}

#[test]
fn a_container_sees_only_itself() {
    let ns = Namespace::new("isolation");
    ns.apply(&pod("", WAITS));
    ns.wait("condition=Ready", &["pod/one"]);
    let processes = ns.exec("one", &["ls", "/proc"]).ok();
    let ids: Vec<u32> = processes.lines().filter_map(|line| line.parse().ok()).collect();
    assert!(ids.contains(&1) && ids.len() <= 3, "{ids:?}");
    let mounts = ns.exec("one", &["cat", "/proc/1/mountinfo"]).ok();
    let root = mounts.lines().next().unwrap_or_default();
    assert!(root.contains(" / / ") && root.contains("overlay"), "{mounts}");
    for masked in ["/proc/kcore", "/proc/keys", "/sys/firmware"] {
        let shown =
            ns.exec("one", &["sh", "-c", &format!("cat {masked} 2>/dev/null | head -c 1; ls {masked} 2>/dev/null | grep -v {masked}")]);
        assert_eq!(shown.stdout, "", "{masked} is hidden");
    }
    ns.exec("one", &["sh", "-c", "echo 1 > /proc/sys/kernel/panic"]).fails();
}

#[test]
fn a_sidecar_starts_first_and_a_job_like_pod_still_completes() {
    let ns = Namespace::new("sidecar");
    let image = busybox(1);
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 2\n  initContainers:\n\
         \x20 - {{name: side, image: \"{image}\", restartPolicy: Always, command: [sh, -c, 'nc -ll -p 9000 -e cat'], startupProbe: {{tcpSocket: {{port: 9000}}, periodSeconds: 1}}}}\n\
         \x20 containers:\n  - {{name: main, image: \"{image}\", command: [sh, -c, 'echo hi | nc -w 2 127.0.0.1 9000']}}\n"
    ));
    ns.wait_for_value("pod/one", "{.status.phase}", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "one", "-c", "main"]).ok(), "hi\n");
}

#[test]
fn an_active_deadline_ends_a_pod() {
    let ns = Namespace::new("deadline");
    ns.apply(&pod(
        "{activeDeadlineSeconds: 2, terminationGracePeriodSeconds: 1}".trim_matches(['{', '}']).replace(", ", "\n  ").as_str(),
        WAITS,
    ));
    ns.wait_for_value("pod/one", "{.status.phase}", "Failed");
    assert_eq!(ns.value("pod/one", "{.status.reason}"), "DeadlineExceeded");
}
