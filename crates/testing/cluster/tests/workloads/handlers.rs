//! Pods whose RuntimeClass has another program make their containers: Debian's runc.

use cluster::process::Process;
use cluster::run::{ensure, run};
use cluster::{Namespace, wait_for};

use crate::images::busybox;
use crate::pods::{WAITS, group_file, marked, named_pod};

/// A namespace with a class of its own for this handler.
fn class(topic: &str, handler: &str) -> (Namespace, String) {
    let ns = Namespace::new(topic);
    let class = format!("{}-class", ns.name);
    ns.apply(&format!("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {class}}}\nhandler: {handler}\n"));
    (ns, class)
}

/// How many containers runc knows below the cluster's folder.
fn made_by_runc(ns: &Namespace) -> usize {
    let mut find = std::process::Command::new("find");
    run(find.arg(ns.cluster.dir().join("run")).args(["-path", "*/bundle/state/*", "-name", "state.json"]), "").stdout.lines().count()
}

#[test]
fn runc_makes_what_the_pod_describes_and_its_end_is_told_as_ever() {
    let (ns, class) = class("runc", "stest-runc");
    ns.kubectl(&["create", "configmap", "words", "--from-literal=word=read"]).ok();
    let image = busybox(1);
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one, labels: {{app: one}}}}\nspec:\n  runtimeClassName: {class}\n  terminationGracePeriodSeconds: 1\n  securityContext: {{fsGroup: 2000, seccompProfile: {{type: RuntimeDefault}}}}\n\
         \x20 volumes: [{{name: v, emptyDir: {{}}}}, {{name: c, configMap: {{name: words}}}}]\n\
         \x20 initContainers: [{{name: init, image: \"{image}\", command: [sh, -c, 'echo first > /v/x'], volumeMounts: [{{name: v, mountPath: /v}}]}}]\n\
         \x20 containers:\n  - name: main\n    image: \"{image}\"\n    command: [sh, -c, 'cat /v/x /c/word; echo; exec busybox httpd -f -p 8080 -h /v']\n    env: [{{name: MARK, value: runc}}]\n\
         \x20   resources: {{limits: {{cpu: 250m, memory: 64Mi}}}}\n    readinessProbe: {{httpGet: {{path: /x, port: 8080}}, periodSeconds: 1}}\n\
         \x20   securityContext: {{runAsUser: 1000, runAsGroup: 3000, readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {{drop: [ALL], add: [NET_BIND_SERVICE]}}}}\n\
         \x20   volumeMounts: [{{name: v, mountPath: /v}}, {{name: c, mountPath: /c}}, {{name: c, mountPath: /one, subPath: word}}]\n"
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    assert!(made_by_runc(&ns) > 0, "runc has no state of it");
    assert_eq!(ns.kubectl(&["logs", "one"]).ok(), "first\nread\n");
    let process = marked("runc");
    let own = |field: &str| process.status(field).unwrap_or_default();
    assert_eq!((own("Uid"), own("Gid")), ("1000\t1000\t1000\t1000".into(), "3000\t3000\t3000\t3000".into()));
    assert_eq!(own("Groups").split(' ').collect::<Vec<_>>(), ["2000", "3000"]);
    assert_eq!((own("NoNewPrivs"), own("CapBnd"), own("Seccomp")), ("1".into(), format!("{:016x}", 1u64 << 10), "2".into()));
    assert_eq!(group_file(&process, "memory", ["memory.limit_in_bytes", "memory.max"]), (64 << 20).to_string());
    // It is in the pod's network, and alone with its processes and mounts.
    assert_eq!(ns.exec("one", &["wget", "-qO-", "localhost:8080/x"]).ok(), "first\n");
    let ids = ns.exec("one", &["ls", "/proc"]).ok().lines().filter_map(|line| line.parse::<u32>().ok()).count();
    assert!(ids <= 3, "{ids} processes are seen");
    assert!(ns.exec("one", &["touch", "/file"]).fails().contains("Read-only file system"));
    assert_eq!(ns.exec("one", &["cat", "/one"]).ok(), "read");
    assert_eq!(ns.exec("one", &["sh", "-c", "cat /proc/keys 2>/dev/null | head -c 1"]).stdout, "");
    // A killed container is restarted, its exit code told.
    process.kill();
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].restartCount}", "1");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].lastState.terminated.exitCode}"), "137");
    ns.wait("condition=Ready", &["pod/one"]);
    let last = marked("runc");
    ns.kubectl(&["delete", "pod", "one", "--timeout=60s"]).ok();
    assert!(!last.is_alive());
    ns.kubectl(&["delete", "runtimeclass", &class]).ok();
}

#[test]
fn processes_of_runc_that_end_at_once_or_use_too_much_memory_are_told_truly() {
    let (ns, class) = class("runc-end", "stest-runc");
    let spec = format!("runtimeClassName: {class}\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 1");
    for name in ["quick-0", "quick-1", "quick-2", "quick-3"] {
        ns.apply(&named_pod(name, &spec, "command: [sh, -c, 'echo said; exit 7']"));
    }
    ns.apply(&named_pod("full", &spec, "command: [sh, -c, 'tail /dev/zero'], resources: {limits: {memory: 24Mi}}"));
    let (image, script) = (busybox(1), "sleep 1; ps | grep -c 'sleep 7777[7]'");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: shared}}\nspec:\n  {spec}\n  shareProcessNamespace: true\n  initContainers: [{{name: side, image: \"{image}\", restartPolicy: Always, command: [sleep, '77777']}}]\n  containers: [{{name: main, image: \"{image}\", command: [sh, -c, \"{script}\"]}}]\n"
    ));
    ns.apply(&named_pod("nothing", &spec, "command: [/no/such/command]"));
    let end =
        "{.status.phase} {.status.containerStatuses[0].state.terminated.exitCode} {.status.containerStatuses[0].state.terminated.reason}";
    for name in ["quick-0", "quick-1", "quick-2", "quick-3"] {
        ns.wait_for_value(&format!("pod/{name}"), end, "Failed 7 Error");
        assert_eq!(ns.kubectl(&["logs", name]).ok(), "said\n");
    }
    ns.wait_for_value("pod/full", end, "Failed 137 OOMKilled");
    ns.wait_for_value("pod/shared", end, "Succeeded 0 Completed");
    assert_eq!(ns.kubectl(&["logs", "shared", "-c", "main"]).ok(), "1\n", "containers of the pod see each other");
    ns.wait_for_value("pod/nothing", end, "Failed 128 StartError");
    let why = ns.value("pod/nothing", "{.status.containerStatuses[0].state.terminated.message}");
    assert!(why.contains("/usr/sbin/runc") && why.contains("/no/such/command"), "{why}");
    ns.kubectl(&["delete", "runtimeclass", &class]).ok();
}

#[test]
fn runc_opens_a_terminal_that_is_attached_to_sized_and_logged() {
    let (ns, class) = class("runc-tty", "stest-runc");
    let spec = format!("runtimeClassName: {class}\n  terminationGracePeriodSeconds: 0");
    ns.apply(&named_pod("shell", &spec, "command: [sh], stdin: true, tty: true"));
    ns.wait("condition=Ready", &["pod/shell"]);
    let mut shell = ns.start_on_terminal(&["attach", "-it", "shell"]);
    shell.write("tty; echo a$((40+2))b; sleep 1; echo size $(stty size)\n");
    let output = shell.wait_for_output("size 41 97", 30);
    assert!(output.contains("a42b") && (output.contains("/dev/pts/") || output.contains("/dev/console")), "{output}");
    let mut second = ns.start_on_terminal(&["exec", "-it", "shell", "--", "sh", "-c", "tty; exit 3"]);
    let ended = second.end_within(std::time::Duration::from_secs(30));
    assert!(ended.stdout.contains("/dev/pts/") && ended.code == Some(3), "{ended}");
    shell.write("exit 4\n");
    ns.wait_for_value("pod/shell", "{.status.containerStatuses[0].lastState.terminated.exitCode}", "4");
    let logs = ns.kubectl(&["logs", "shell", "--previous"]).ok();
    assert!(logs.contains("a42b"), "{logs}");
    ns.kubectl(&["delete", "runtimeclass", &class]).ok();
}

#[test]
fn runc_makes_a_pod_with_users_of_its_own_and_a_privileged_one() {
    let (ns, class) = class("runc-users", "stest-runc");
    ns.kubectl(&["create", "configmap", "words", "--from-literal=word=read"]).ok();
    let spec = format!(
        "runtimeClassName: {class}\n  hostUsers: false\n  restartPolicy: Never\n  securityContext: {{fsGroup: 2000}}\n  volumes: [{{name: v, emptyDir: {{}}}}, {{name: c, configMap: {{name: words}}}}]"
    );
    let script = "tr -s ' ' < /proc/self/uid_map; id -u; touch /v/f /own; stat -c %u:%g /v/f /own; cat /c/word; echo; hostname; echo x > /dev/null && echo null; sleep 1000";
    let mounts = "env: [{name: MARK, value: runc-users}], volumeMounts: [{name: v, mountPath: /v}, {name: c, mountPath: /c}]";
    ns.apply(&named_pod("masked", &spec, &format!("command: [sh, -c, \"{script}\"], {mounts}")));
    ns.wait("condition=Ready", &["pod/masked"]);
    wait_for("the script has spoken", 20, || {
        let ran = ns.kubectl(&["logs", "masked"]);
        ensure(ran.stdout.contains("null"), ran)
    });
    let said = ns.kubectl(&["logs", "masked"]).ok();
    let lines: Vec<&str> = said.lines().map(str::trim).collect();
    assert_eq!(lines.get(1..), Some(&["0", "0:2000", "0:0", "read", "masked", "null"][..]), "{said}");
    let ids: Vec<u32> = lines[0].split(' ').filter_map(|number| number.parse().ok()).collect();
    assert!(matches!(ids[..], [0, first, 65_536] if first >= 65_536), "{said}");
    // The host sees another user.
    let own = marked("runc-users").status("Uid").unwrap_or_default();
    assert!(own.starts_with(&ids[1].to_string()), "{own}");
    assert_eq!(ns.exec("masked", &["id", "-u"]).ok(), "0\n");

    let spec = format!("runtimeClassName: {class}\n  restartPolicy: Never");
    let script = "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; mkdir -p /m; mount -t tmpfs none /m && echo mounted; test -b /dev/loop0 -o -c /dev/kmsg && echo devices; echo 1 > /proc/sys/net/ipv4/ip_forward && echo written";
    ns.apply(&named_pod("privileged", &spec, &format!("command: [sh, -c, \"{script}\"], securityContext: {{privileged: true}}")));
    ns.wait_for_value("pod/privileged", "{.status.phase}", "Succeeded");
    let said = ns.kubectl(&["logs", "privileged"]).ok();
    let held = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let held = held.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap_or_default().trim().to_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, [&format!("CapEff:\t{held}"), "Seccomp:\t0", "mounted", "devices", "written"], "{said}");
    ns.kubectl(&["delete", "runtimeclass", &class]).ok();
}

#[test]
fn what_another_program_cannot_do_is_refused_with_the_reason() {
    let (ns, class) = class("runc-not", "stest-runc");
    let volume = format!("runtimeClassName: {class}\n  volumes: [{{name: v, emptyDir: {{}}}}]");
    let shared = "securityContext: {privileged: true}, volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]";
    ns.apply(&named_pod("shared", &volume, &format!("{WAITS}, {shared}")));
    ns.wait_for_event("shared", "Failed", "/usr/sbin/runc is not asked for volumes with mountPropagation Bidirectional");
    let lost = format!("{}-lost", ns.name);
    ns.apply(&format!("apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {lost}}}\nhandler: stest-lost\n"));
    ns.apply(&named_pod("lost", &format!("runtimeClassName: {lost}"), WAITS));
    ns.wait_for_event("lost", "Failed", "/no/such/program");
    // A pod of the built-in handler beside them is none of theirs.
    ns.apply(&named_pod("own", "", &format!("{WAITS}, env: [{{name: MARK, value: runc-not}}]")));
    ns.wait("condition=Ready", &["pod/own"]);
    wait_for("its process", 20, || ensure(Process::is_alive(&marked("runc-not")), ""));
    ns.kubectl(&["delete", "runtimeclass", &class, &lost]).ok();
}
