//! A node under load to which the worst happens: its daemon and its pods' supervisors are killed at random moments, its disk fills up, its
//! own memory runs out. Nothing may be left over, nothing unrelated may be touched, and every pod ends in a status that is true.
//!
//! `STERNPOST_SEED` repeats the moments of a run (they depend on the machine, too); `STERNPOST_ROUNDS` makes it longer.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cluster::process::{self, Process};
use cluster::run::{ensure, run};
use cluster::{Cluster, images, leaks, wait_for};
use serde_json::Value;

const IMAGE: &str = "stest.local/busybox:1";
const REPLICAS: usize = 8;
const ROUNDS: u64 = 8;
/// Clients that make and remove pods meanwhile.
const CLIENTS: u64 = 3;

/// Numbers that look random and can be had again.
struct Dice(u64);

impl Dice {
    fn from_environment() -> Self {
        let seed = std::env::var("STERNPOST_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or(6);
        println!("STERNPOST_SEED={seed}");
        Self(seed)
    }
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }
}

fn started() -> Cluster {
    let cluster = Cluster::fresh();
    begin(&cluster);
    cluster
}

fn begin(cluster: &Cluster) {
    let archive = cluster.dir().join("busybox.tar");
    images::busybox("1").write_oci_archive(&archive, IMAGE);
    cluster.up();
    cluster.sternpost(&["image", "load", &archive.display().to_string()]).ok();
    wait_for("the default service account", 30, || {
        let ran = cluster.kubectl(&["get", "serviceaccount", "default"]);
        ensure(ran.succeeded(), ran)
    });
}

fn pods(cluster: &Cluster) -> Vec<Value> {
    let listed = cluster.kubectl(&["get", "pods", "-o", "json"]).ok();
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    listed["items"].as_array().cloned().unwrap_or_default()
}

fn text<'a>(pod: &'a Value, pointer: &str) -> &'a str {
    pod.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The names of pods whose container runs, by the kernel's word: each has this variable and its pod's name as HOSTNAME.
fn running(mark: &str) -> Vec<String> {
    let name =
        |process: &Process| process.environment().into_iter().find_map(|variable| Some(variable.strip_prefix("HOSTNAME=")?.to_owned()));
    let mut names: Vec<String> = process::with_variable(&format!("MARK={mark}")).iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

const LOAD: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: load}\nspec:\n  replicas: REPLICAS\n  selector: {matchLabels: {app: load}}\n  template:\n    metadata: {labels: {app: load}}\n    spec:\n      terminationGracePeriodSeconds: 0\n      volumes: [{name: d, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}]\n      containers: [{name: main, image: IMAGE, command: [sh, -c, 'echo x > /d/x; echo x > /m/x; exec sleep 100000'], env: [{name: MARK, value: load}], volumeMounts: [{name: d, mountPath: /d}, {name: m, mountPath: /m}]}]\n";

fn once(number: u64) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: once-{number}, labels: {{app: once}}}}\nspec:\n  restartPolicy: Never\n  terminationGracePeriodSeconds: 0\n  containers: [{{name: main, image: '{IMAGE}', command: [sh, -c, 'sleep 0.{}; exit 3'], env: [{{name: MARK, value: once}}]}}]\n",
        number % 10
    )
}

/// Makes pods that end by themselves, five at a time, and removes some of the five before, until it is told to stop; how many it made. The API
/// may be away meanwhile.
fn come_and_go(cluster: &Cluster, stop: &AtomicBool, client: u64) -> usize {
    let (first, mut made) = (client * 10_000, 0);
    for five in (first..).step_by(5) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let manifests: String = (five..five + 5).map(once).collect();
        made += cluster.kubectl_with(&["create", "--validate=false", "-f", "-"], &manifests).stdout.lines().count();
        if five > first {
            cluster.kubectl(&["delete", "pod", &format!("once-{}", five - 5), &format!("once-{}", five - 2), "--wait=false"]);
        }
    }
    made
}

/// The supervisors of pods that run now.
fn supervisors(cluster: &Cluster) -> Vec<Process> {
    cluster.own_processes().into_iter().filter(|process| process.command_line().split(' ').nth(1) == Some("shim")).collect()
}

fn kill_if_there(process: &Process) {
    if process.is_alive() {
        // SAFETY: kill takes plain numbers; that the process is still the same was just looked at.
        unsafe { libc::kill(process.id, libc::SIGKILL) };
    }
}

#[test]
fn daemon_and_supervisors_are_killed_at_random_under_load_and_nothing_is_left_nor_said_that_is_not_true() {
    let cluster = started();
    let mut dice = Dice::from_environment();
    let rounds = std::env::var("STERNPOST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(ROUNDS);
    let bystander = Command::new("sleep").arg("100000").spawn().expect("a process of somebody else");
    let before = leaks::of_pods(cluster.dir());
    cluster.kubectl_with(&["apply", "-f", "-"], &LOAD.replace("REPLICAS", &REPLICAS.to_string()).replace("IMAGE", IMAGE)).ok();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (cluster, stop) = (&cluster, &stop);
        let load: Vec<_> = (0..CLIENTS).map(|client| scope.spawn(move || come_and_go(cluster, stop, client))).collect();
        for round in 0..rounds {
            std::thread::sleep(Duration::from_millis(100 + dice.below(700)));
            let supervisors = supervisors(cluster);
            for _ in 0..dice.below(3) {
                if let Some(victim) = supervisors.get(dice.below(supervisors.len().max(1) as u64) as usize) {
                    kill_if_there(victim);
                }
            }
            if round % 2 == 0 || dice.below(3) == 0 {
                cluster.daemon().kill();
                // Some supervisors go while nobody looks.
                if let Some(victim) = supervisors.first().filter(|_| dice.below(2) == 0) {
                    kill_if_there(victim);
                }
                cluster.up();
            }
        }
        stop.store(true, Ordering::Relaxed);
        println!("{} short-lived pods", load.into_iter().map(|load| load.join().expect("the load")).sum::<usize>());
    });
    // What runs is what the API says that runs, and everybody who was to run does.
    wait_for("the API and the kernel agree", 120, || {
        let pods = pods(&cluster);
        let said = |app: &str| {
            let of = pods.iter().filter(|pod| text(pod, "/metadata/labels/app") == app && text(pod, "/status/phase") == "Running");
            let of = of.filter(|pod| pod.pointer("/status/containerStatuses/0/ready") == Some(&Value::Bool(true)));
            let mut names: Vec<String> = of.map(|pod| text(pod, "/metadata/name").to_owned()).collect();
            names.sort();
            names
        };
        let (load, once) = (said("load"), said("once"));
        ensure(
            load.len() == REPLICAS && load == running("load") && once.is_empty() && running("once").is_empty(),
            format!("{load:?} {:?} {once:?}", running("load")),
        )
    });
    // A pod that was to end ended, by itself or because its supervisor was killed, and says which.
    for pod in pods(&cluster).iter().filter(|pod| text(pod, "/metadata/labels/app") == "once") {
        let ended = pod.pointer("/status/containerStatuses/0/state/terminated").cloned().unwrap_or_default();
        let (code, reason) = (ended["exitCode"].as_i64().unwrap_or(-1), text(&ended, "/reason"));
        // The last one: its supervisor was killed while it started.
        let true_ones = [(3, "Error"), (255, "Unknown"), (137, "Error"), (137, "ContainerStatusUnknown"), (128, "StartError")];
        // One that was made and never started has no container that could have ended.
        let never_began = pod.pointer("/status/containerStatuses/0/state/waiting").is_some();
        assert!(text(pod, "/status/phase") == "Failed" && (true_ones.contains(&(code, reason)) || never_began), "{pod:#}");
    }
    cluster.kubectl(&["delete", "deployment", "load", "--cascade=foreground", "--timeout=60s"]).ok();
    cluster.kubectl(&["delete", "pods", "--all", "--timeout=60s"]).ok();
    wait_for("all that the pods had is gone", 60, || {
        let left: Vec<String> = leaks::of_pods(cluster.dir()).into_iter().filter(|trace| !before.contains(trace)).collect();
        ensure(left.is_empty(), left.join("\n"))
    });
    let mut bystander = bystander;
    assert!(bystander.try_wait().expect("its state").is_none(), "somebody else's process was ended");
    let _ = bystander.kill();
    let _ = bystander.wait();
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

/// A file system of a few hundred MiB for the cluster's data.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf, mebibytes: u64) -> Self {
        fs::create_dir_all(&at).expect("make a folder");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m"), "stest"]).arg(&at), "").ok();
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).output();
    }
}

#[test]
fn who_fills_the_disk_is_evicted_and_nobody_else() {
    let cluster = Cluster::fresh();
    let settings = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\nevictionHard: {nodefs.available: 60Mi}\n\
        evictionPressureTransitionPeriod: 2s\nimageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n";
    fs::write(cluster.dir().join("kubelet.yaml"), settings).expect("the kubelet's settings");
    let binary = fs::metadata(cluster::cluster::tested_binary()).expect("the binary").len() >> 20;
    let disk = SmallDisk::mount(cluster.data_dir(), binary + 600);
    begin(&cluster);
    let pod = |name: &str, script: &str| {
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  volumes: [{{name: v, emptyDir: {{}}}}]\n  containers: [{{name: main, image: '{IMAGE}', command: [sh, -c, '{script}; sleep 100000'], env: [{{name: MARK, value: disk}}], volumeMounts: [{{name: v, mountPath: /v}}]}}]\n"
        );
        cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    };
    let value = |object: &str, path: &str| cluster.kubectl(&["get", object, "-o", &format!("jsonpath={path}")]).stdout;
    let pressure = || value(&format!("node/{}", cluster.node()), r#"{.status.conditions[?(@.type=="DiskPressure")].status}"#);
    pod("modest", "echo kept > /v/x");
    wait_for("the modest one runs", 60, || ensure(value("pod/modest", "{.status.phase}") == "Running", ""));
    // Once into a volume, once into the container's own layer.
    for (name, file) in [("volume", "/v/big"), ("layer", "/big")] {
        pod(name, &format!("cat /dev/zero > {file}"));
        wait_for("who fills it is evicted", 90, || {
            let said = value(&format!("pod/{name}"), "{.status.phase} {.status.reason}");
            ensure(said == "Failed Evicted", cluster.kubectl(&["get", "pods,events"]))
        });
        let message = value(&format!("pod/{name}"), "{.status.message}");
        assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: 60Mi, available: "), "{message}");
        // Its object stays, its bytes do not.
        wait_for("there is room again", 60, || {
            let room = rustix::fs::statvfs(&cluster.data_dir()).map_or(0, |disk| disk.f_bavail * disk.f_frsize >> 20);
            ensure(room > 100 && pressure() == "False", format!("{room} MiB, pressure {}", pressure()))
        });
    }
    assert_eq!(value("pod/modest", "{.status.phase} {.status.containerStatuses[0].restartCount}"), "Running 0");
    assert_eq!(cluster.kubectl(&["exec", "modest", "--", "cat", "/v/x"]).ok().trim(), "kept");
    cluster.kubectl(&["create", "configmap", "written", "--from-literal=a=b"]).ok();
    pod("later", "true");
    wait_for("the next pod runs", 60, || ensure(value("pod/later", "{.status.phase}") == "Running", cluster.kubectl(&["get", "events"])));
    cluster.sternpost(&["down", "--purge"]).ok();
    drop(disk);
}

/// A memory control group with a limit, outside of the cluster's own.
struct Cage(PathBuf);

impl Cage {
    fn around(process: &Process) -> Self {
        let v1 = PathBuf::from("/sys/fs/cgroup/memory");
        let root = if v1.is_dir() { v1 } else { PathBuf::from("/sys/fs/cgroup") };
        let cage = Self(root.join("stestcage"));
        fs::create_dir_all(&cage.0).expect("a control group");
        fs::write(cage.0.join("cgroup.procs"), process.id.to_string()).expect("move the daemon");
        cage
    }

    /// What is charged from now on; what the daemon had before stays where it was charged.
    fn limit(&self, bytes: u64) {
        let file = ["memory.limit_in_bytes", "memory.max"].iter().map(|name| self.0.join(name)).find(|file| file.exists());
        fs::write(file.expect("a limit's file"), bytes.to_string()).expect("set the limit");
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        let parent = self.0.parent().expect("a parent").join("cgroup.procs");
        for id in fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            let _ = fs::write(&parent, id);
        }
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn a_daemon_whose_own_memory_runs_out_is_killed_alone_and_its_pods_go_on() {
    let cluster = started();
    cluster.kubectl_with(&["apply", "-f", "-"], &LOAD.replace("REPLICAS", "4").replace("IMAGE", IMAGE)).ok();
    cluster.kubectl(&["rollout", "status", "deployment/load", "--timeout=60s"]).ok();
    let (before, daemon) = (process::with_variable("MARK=load"), cluster.daemon());
    let cage = Cage::around(&daemon);
    cage.limit(64 << 20);
    // Many at once, so that it runs out at once: a program near its limit reads its own code from the disk again and again.
    let words = "x".repeat(900_000);
    let create = |writer: u32| {
        let names = (0..40).map(|number| format!("big-{writer}-{number}")).take_while(|_| daemon.is_alive());
        let stored = |name: &String| {
            let manifest = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}}}\ndata: {{text: \"{words}\"}}\n");
            cluster.kubectl_with(&["create", "--request-timeout=20s", "--validate=false", "-f", "-"], &manifest).succeeded()
        };
        names.filter(stored).collect::<Vec<String>>()
    };
    let create = &create;
    let acknowledged: Vec<String> = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..8).map(|writer| scope.spawn(move || create(writer))).collect();
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect()
    });
    wait_for("the kernel ends the daemon", 30, || ensure(!daemon.is_alive(), format!("{} writes went through", acknowledged.len())));
    assert_eq!(process::with_variable("MARK=load"), before, "no container went with it");
    drop(cage);
    cluster.up();
    cluster.wait_until_node_is_ready();
    for name in &acknowledged {
        cluster.kubectl(&["get", "configmap", name, "-o", "name"]).ok();
    }
    wait_for("all are Ready", 60, || {
        let ran = cluster.kubectl(&["get", "deployment", "load", "-o", "jsonpath={.status.readyReplicas}"]);
        ensure(ran.stdout == "4", ran)
    });
    assert_eq!(process::with_variable("MARK=load"), before, "the same processes, none more");
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
