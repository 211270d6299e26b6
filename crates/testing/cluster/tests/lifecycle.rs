//! Starting, stopping, crashing and removing whole clusters.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::process::Command;

use cluster::cluster::names;
use cluster::process::{self, Process};
use cluster::run::{ensure, run};
use cluster::{Cluster, http, wait_for};

/// Pods under a daemon that is killed.
const CROWD: usize = 50;

#[test]
fn up_is_ready_and_resumes_the_same_cluster_and_a_purge_leaves_nothing() {
    let cluster = Cluster::fresh();
    assert_eq!(cluster.traces(), Vec::<String>::new());
    let stopped = cluster.sternpost(&["status"]);
    assert_eq!(stopped.code, Some(3), "{stopped}");
    assert!(stopped.stdout.contains("not running"), "{stopped}");

    let said = cluster.up();
    for text in ["store", "API server", "Ready", "create deployment"] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let nodes = cluster.kubectl(&["get", "nodes", "--no-headers"]).ok();
    let row: Vec<&str> = nodes.split_whitespace().collect();
    assert_eq!((row[0], row[1]), (cluster.node(), "Ready"), "{nodes}");
    let status = cluster.sternpost(&["status"]);
    assert!(status.succeeded() && status.stdout.contains("nodes 1/1 ready"), "{status}");
    let daemon = cluster.daemon();
    let again = cluster.sternpost(&["up", "--no-kubeconfig", "--detach"]).ok();
    assert!(again.contains(&format!("already running as process {}", daemon.id)), "{again}");
    assert!(daemon.is_alive());
    let mode = fs::metadata(cluster.kubeconfig()).map(|file| std::os::unix::fs::PermissionsExt::mode(&file.permissions()) & 0o777);
    assert_eq!(mode.expect("a kubeconfig"), 0o600);

    cluster.kubectl(&["create", "deployment", "web", "--image=sternpost.io/toolbox", "--replicas=2"]).ok();
    cluster.kubectl(&["wait", "--for=condition=Available", "--timeout=60s", "deployment/web"]).ok();
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=a=b"]).ok();
    let identity = |object: &str| cluster.kubectl(&["get", object, "-o", "jsonpath={.metadata.uid} {.metadata.creationTimestamp}"]).ok();
    let before = [identity("configmap/kept"), identity("deployment/web"), identity("namespace/kube-system")];

    let down = cluster.sternpost(&["down"]).ok();
    assert!(down.contains("stopped the daemon") && down.contains("stopped 2 pods"), "{down}");
    assert!(!daemon.is_alive());
    assert_eq!(cluster.own_processes(), []);
    let left: Vec<String> = cluster.traces().into_iter().filter(|trace| !trace.starts_with("folder ")).collect();
    assert_eq!(left, Vec::<String>::new(), "a stopped cluster is files only");

    cluster.up();
    let after = [identity("configmap/kept"), identity("deployment/web"), identity("namespace/kube-system")];
    assert_eq!(before, after);
    wait_for("the pods run again", 60, || {
        let ran = cluster.kubectl(&["get", "deployment", "web", "-o", "jsonpath={.status.availableReplicas}"]);
        let pods = cluster.kubectl(&["get", "pods", "--no-headers"]).stdout;
        ensure(ran.stdout == "2" && pods.matches("Running").count() == 2, pods)
    });

    let planned = cluster.sternpost(&["down", "--purge", "--dry-run"]).ok();
    assert!(planned.contains(names::NFT_TABLE) && cluster.daemon().is_alive(), "{planned}");
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
    cluster.sternpost(&["down", "--purge"]).ok();
}

#[test]
fn the_control_plane_in_the_foreground_stops_by_a_signal_and_pods_keep_running() {
    let cluster = Cluster::fresh();
    let mut foreground = cluster::run::Running::start(&mut cluster.command(&["up", "--no-kubeconfig"]));
    foreground.wait_for_output("Ctrl-C stops the control plane", 60);
    cluster.kubectl(&["run", "one", "--image=sternpost.io/toolbox", "--env=MARK=foreground"]).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/one"]).ok();
    let address = cluster.kubectl(&["get", "pod", "one", "-o", "jsonpath={.status.podIP}"]).ok();
    let pod = process::with_variable("MARK=foreground");
    interrupt(&cluster.daemon());
    let ended = foreground.end_within(std::time::Duration::from_secs(20));
    assert_eq!(ended.code, Some(0), "{ended}");
    assert_eq!(process::with_variable("MARK=foreground"), pod);
    assert_eq!(http::get(&format!("{address}:8080"), "/hostname").expect("the pod answers without a control plane"), "one\n");
    cluster.up();
    cluster.wait_until_node_is_ready();
    assert_eq!(process::with_variable("MARK=foreground"), pod);
    wait_for("the API says so", 30, || {
        let ran = cluster.kubectl(&["get", "pod", "one", "--no-headers"]);
        ensure(ran.stdout.contains("1/1") && ran.stdout.split_whitespace().nth(3) == Some("0"), ran)
    });
}

fn interrupt(process: &Process) {
    // SAFETY: kill takes plain numbers.
    assert_eq!(unsafe { libc::kill(process.id, libc::SIGINT) }, 0);
}

/// Every container's first process by its pod's name.
fn crowd() -> BTreeMap<String, Process> {
    let name =
        |process: &Process| process.environment().into_iter().find_map(|variable| Some(variable.strip_prefix("HOSTNAME=")?.to_owned()));
    process::with_variable("MARK=crowd").into_iter().filter_map(|process| Some((name(&process)?, process))).collect()
}

#[test]
fn fifty_pods_outlive_a_killed_daemon_and_are_adopted_again_and_a_purge_leaves_nothing() {
    let cluster = Cluster::fresh();
    cluster.up();
    let manifest = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: crowd}}\nspec:\n  replicas: {CROWD}\n  selector: {{matchLabels: {{app: crowd}}}}\n  template:\n\
         \x20   metadata: {{labels: {{app: crowd}}}}\n    spec:\n      volumes: [{{name: m, emptyDir: {{medium: Memory}}}}]\n      containers:\n\
         \x20     - {{name: main, image: sternpost.io/toolbox, env: [{{name: MARK, value: crowd}}], volumeMounts: [{{name: m, mountPath: /m}}], readinessProbe: {{httpGet: {{path: /healthz, port: 8080}}, periodSeconds: 2}}}}\n"
    );
    cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    cluster.kubectl(&["expose", "deployment", "crowd", "--port=80", "--target-port=8080"]).ok();
    cluster.kubectl(&["rollout", "status", "deployment/crowd", "--timeout=110s"]).ok();
    let before = crowd();
    assert_eq!(before.len(), CROWD);
    let service = format!("{}:80", cluster.kubectl(&["get", "service", "crowd", "-o", "jsonpath={.spec.clusterIP}"]).ok());
    let ids = |cluster: &Cluster| {
        let path = r#"jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].containerID} {.status.containerStatuses[0].restartCount}{"\n"}{end}"#;
        cluster.kubectl(&["get", "pods", "--sort-by=.metadata.name", "-o", path]).ok()
    };
    let known = ids(&cluster);

    for _ in 0..2 {
        let daemon = cluster.daemon();
        daemon.kill();
        assert_eq!(crowd(), before, "no container died with the daemon");
        http::get(&service, "/hostname").expect("the Service works without the daemon");
        cluster.up();
        cluster.wait_until_node_is_ready();
        assert_ne!(cluster.daemon(), daemon);
        wait_for("all are Ready", 60, || {
            let ran = cluster.kubectl(&["get", "deployment", "crowd", "-o", "jsonpath={.status.readyReplicas}"]);
            ensure(ran.stdout == CROWD.to_string(), ran)
        });
        assert_eq!(crowd(), before, "the same processes, none more");
        assert_eq!(ids(&cluster), known, "the same pods and containers, none restarted");
    }
    // Adopted again means: looked after. What dies is started again, what is run inside runs, logs go on.
    let (pod, victim) = before.iter().next().expect("a pod");
    assert_eq!(cluster.kubectl(&["exec", pod, "--", "/toolbox", "hostname"]).ok().trim(), pod);
    assert!(cluster.kubectl(&["logs", pod]).ok().contains("toolbox serves HTTP"));
    victim.kill();
    wait_for("it is started again", 60, || {
        let ran = cluster.kubectl(&["get", "pod", pod, "--no-headers"]);
        ensure(ran.stdout.contains("1/1") && ran.stdout.split_whitespace().nth(3) == Some("1"), ran)
    });

    // A purge right after another crash, without a daemon to help.
    cluster.daemon().kill();
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(crowd(), BTreeMap::new());
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

#[test]
fn a_daemon_killed_while_pods_come_and_go_leaves_nothing_half_made() {
    let cluster = Cluster::fresh();
    cluster.up();
    for round in 0..3 {
        let replicas = if round % 2 == 0 { 20 } else { 3 };
        if round == 0 {
            cluster.kubectl(&["create", "deployment", "web", "--image=sternpost.io/toolbox", "--replicas=20"]).ok();
        } else {
            cluster.kubectl(&["scale", "deployment", "web", &format!("--replicas={replicas}")]).ok();
        }
        // Somewhere in the middle of it: neither before the first pod changed nor after the last.
        wait_for("it has begun", 30, || {
            let pods = cluster.kubectl(&["get", "pods", "--no-headers"]).stdout;
            ensure(pods.contains("ContainerCreating") || pods.contains("Terminating") || pods.matches("Running").count() == replicas, pods)
        });
        cluster.daemon().kill();
        cluster.up();
        wait_for("the wanted pods and no others", 90, || {
            let pods = cluster.kubectl(&["get", "pods", "--no-headers"]).stdout;
            let containers =
                process::all().into_iter().filter(|process| process.command_line().starts_with("/toolbox serve")).filter(contained).count();
            ensure(
                pods.matches(" 1/1 ").count() == replicas && pods.lines().count() == replicas && containers == replicas,
                format!("{containers} containers\n{pods}"),
            )
        });
    }
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

/// Whether a process is in a container of the tests' cluster.
fn contained(process: &Process) -> bool {
    process.cgroups().iter().any(|(_, path)| path.trim_start_matches('/').starts_with(names::CGROUP_ROOT))
}

#[test]
fn acknowledged_writes_survive_every_kill_of_the_daemon() {
    let cluster = Cluster::fresh();
    cluster.up();
    let mut acknowledged = BTreeMap::new();
    for round in 0..4 {
        let daemon = cluster.daemon();
        let killer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300 + 170 * round));
            daemon.kill();
        });
        for number in 0.. {
            let name = format!("w{round}-{number}");
            let ran = cluster.kubectl(&["create", "configmap", &name, "-o", "jsonpath={.metadata.uid} {.metadata.resourceVersion}"]);
            if !ran.succeeded() {
                break;
            }
            acknowledged.insert(name, ran.stdout);
        }
        killer.join().expect("the daemon was there to be killed");
        cluster.up();
    }
    let path = r#"jsonpath={range .items[*]}{.metadata.name} {.metadata.uid} {.metadata.resourceVersion}{"\n"}{end}"#;
    let listed = cluster.kubectl(&["get", "configmaps", "-o", path]).ok();
    let stored: BTreeMap<&str, &str> = listed.lines().filter_map(|line| line.split_once(' ')).collect();
    for (name, identity) in &acknowledged {
        assert_eq!(stored.get(name.as_str()), Some(&identity.as_str()), "{name}");
    }
    assert!(acknowledged.len() >= 4, "{acknowledged:?}");
}

#[test]
fn every_fault_of_the_host_is_named_at_once_and_nothing_is_changed() {
    let cluster = Cluster::fresh();
    let taken = TcpListener::bind(("0.0.0.0", names::API_PORT)).expect("the port is free");
    let config = cluster.dir().join("config.yaml");
    let text = fs::read_to_string(&config).expect("the configuration");
    fs::write(&config, text.replace(names::POD_CIDR, "127.0.0.0/16")).expect("write the configuration");
    let refused = cluster.sternpost(&["up", "--no-kubeconfig", "--detach"]);
    assert_eq!(refused.code, Some(1), "{refused}");
    let said = refused.fails();
    assert!(said.contains(&format!("TCP port {} (API server) is taken by process {}", names::API_PORT, std::process::id())), "{said}");
    assert!(said.contains("podCidr 127.0.0.0/16 overlaps with 127.0.0.1 on lo"), "{said}");
    assert_eq!(cluster.traces(), Vec::<String>::new());
    drop(taken);

    fs::write(&config, text.replace(names::SERVICE_CIDR, "10.222.128.0/20")).expect("write the configuration");
    let said = cluster.sternpost(&["up", "--no-kubeconfig", "--detach"]).fails();
    assert!(said.contains("overlap"), "{said}");
    fs::write(&config, text.replace("nodeName", "nodename")).expect("write the configuration");
    let said = cluster.sternpost(&["up", "--no-kubeconfig", "--detach"]).fails();
    assert!(said.contains("nodename"), "{said}");
    fs::write(&config, text).expect("write the configuration");

    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--clear-groups"]).arg(cluster::cluster::tested_binary()).args([
        "up",
        "--data-dir",
        "/tmp/stest-nobody",
        "--run-dir",
        "/tmp/stest-nobody",
    ]);
    let said = run(&mut nobody, "").fails();
    assert!(said.contains("not root") || said.contains("ermission denied"), "{said}");
    let _ = fs::remove_dir_all("/tmp/stest-nobody");
    cluster.up();
}

#[test]
fn the_users_kubeconfig_gets_and_loses_our_context_and_keeps_the_others() {
    let cluster = Cluster::fresh();
    let home = cluster.dir().join("home/.kube");
    fs::create_dir_all(&home).expect("make a folder");
    let other = "apiVersion: v1\nkind: Config\ncurrent-context: other\nclusters: [{name: other, cluster: {server: 'https://192.0.2.1'}}]\nusers: []\ncontexts: [{name: other, context: {cluster: other, user: ''}}]\n";
    fs::write(home.join("config"), other).expect("write a kubeconfig");
    cluster.sternpost(&["up", "--detach"]).ok();
    let kubectl = |args: &[&str]| {
        let mut command = Command::new("kubectl");
        command.args(args).env("HOME", cluster.dir().join("home")).env_remove("KUBECONFIG");
        run(&mut command, "")
    };
    assert_eq!(kubectl(&["config", "current-context"]).ok(), "stest\n");
    assert_eq!(kubectl(&["get", "nodes", "-o", "name"]).ok(), format!("node/{}\n", cluster.node()));
    assert_eq!(kubectl(&["config", "get-contexts", "-o", "name"]).ok(), "other\nstest\n");
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(kubectl(&["config", "get-contexts", "-o", "name"]).ok(), "other\n");
}

#[test]
fn a_tainted_or_cordoned_node_takes_only_pods_that_tolerate_it() {
    let cluster = Cluster::fresh();
    cluster.up();
    let pod = |name: &str, tolerations: &str| {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  tolerations: [{tolerations}]\n  containers:\n  - {{name: main, image: sternpost.io/toolbox}}\n"
        );
        cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    };
    let ready = |name: &str| cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]).ok();
    let refused = |name: &str, why: &str| {
        wait_for("it says why it cannot be placed", 30, || {
            let events = cluster.kubectl(&["events", "--for", &format!("pod/{name}")]);
            ensure(events.stdout.contains("FailedScheduling") && events.stdout.contains(why), events)
        });
    };
    wait_for("the default service account", 30, || {
        let ran = cluster.kubectl(&["get", "serviceaccount", "default"]);
        ensure(ran.succeeded(), ran)
    });
    pod("early", "");
    ready("early");
    cluster.kubectl(&["taint", "node", cluster.node(), "kind=special:NoSchedule"]).ok();
    pod("plain", "");
    pod("tolerant", "{key: kind, operator: Equal, value: special, effect: NoSchedule}");
    ready("tolerant");
    refused("plain", "0/1 nodes are available: 1 node(s) had untolerated taint");
    ready("early");
    cluster.kubectl(&["taint", "node", cluster.node(), "kind-"]).ok();
    ready("plain");

    cluster.kubectl(&["cordon", cluster.node()]).ok();
    assert!(cluster.kubectl(&["get", "nodes"]).ok().contains("Ready,SchedulingDisabled"));
    pod("late", "");
    refused("late", "node(s) were unschedulable");
    cluster.kubectl(&["uncordon", cluster.node()]).ok();
    ready("late");

    cluster.kubectl(&["taint", "node", cluster.node(), "kind=leave:NoExecute"]).ok();
    wait_for("everybody left", 60, || {
        let pods = cluster.kubectl(&["get", "pods", "-o", "name"]);
        ensure(pods.succeeded() && pods.stdout.is_empty(), pods)
    });
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

/// A small file system below the cluster's folder, unmounted when dropped.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: std::path::PathBuf, mebibytes: u32) -> Self {
        fs::create_dir_all(&at).expect("make a folder");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "stest"]).arg(&at);
        run(&mut mount, "").ok();
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn a_full_disk_refuses_writes_by_a_status_and_loses_nothing() {
    let cluster = Cluster::fresh();
    // Large enough for the preflight and the built-in image's copy of the binary; then filled up.
    let binary = fs::metadata(cluster::cluster::tested_binary()).expect("the binary").len() >> 20;
    let disk = SmallDisk::mount(cluster.data_dir(), binary as u32 + 600);
    cluster.up();
    cluster.kubectl(&["create", "configmap", "early", "--from-literal=a=b"]).ok();
    let filler = cluster.data_dir().join("filler");
    let mut fill = Command::new("sh");
    fill.arg("-c").arg(format!("cat /dev/zero > {} 2>/dev/null; sync", filler.display()));
    run(&mut fill, "");
    let manifest = |number: u64| {
        // Digits that do not compress away.
        let mut state = number;
        let mut digits = String::with_capacity(900_000);
        while digits.len() < 900_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            digits.push_str(&format!("{:08x}", state >> 32));
        }
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: big-{number}}}\ndata: {{text: \"{digits}\"}}\n")
    };
    let mut stored = Vec::new();
    let refused = (0..200).find_map(|number| {
        let ran = cluster.kubectl_with(&["create", "-f", "-"], &manifest(number));
        if ran.succeeded() {
            stored.push(format!("big-{number}"));
            return None;
        }
        Some(ran.fails())
    });
    let refused = refused.expect("a full disk takes no more");
    assert!(
        refused.contains("Error from server") && refused.to_lowercase().contains("space"),
        "{}",
        refused.chars().take(600).collect::<String>()
    );
    // Reading, and making room, always work.
    assert_eq!(cluster.kubectl(&["get", "configmap", "early", "-o", "jsonpath={.data.a}"]).ok(), "b");
    for name in stored.iter().take(2) {
        cluster.kubectl(&["delete", "configmap", name]).ok();
    }
    cluster.daemon().kill();
    fs::remove_file(&filler).expect("make room");
    cluster.up();
    let names = cluster.kubectl(&["get", "configmaps", "-o", "jsonpath={.items[*].metadata.name}"]).ok();
    let names: Vec<&str> = names.split(' ').collect();
    for name in stored.iter().skip(2) {
        assert!(names.contains(&name.as_str()), "{name} was acknowledged: {names:?}");
    }
    for name in stored.iter().take(2) {
        assert!(!names.contains(&name.as_str()), "{name} was deleted");
    }
    cluster.kubectl(&["create", "configmap", "late"]).ok();
    cluster.sternpost(&["down"]).ok();
    drop(disk);
}
