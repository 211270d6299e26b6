//! A node with settings of its own: who gets processors, memory and devices for itself, and what all pods get together.

mod chaos;
mod other_runtime;
mod plugin;

use std::fs;

use cluster::run::ensure;
use cluster::{Cluster, images, wait_for};

const SETTINGS: &str = "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\ncpuManagerPolicy: static\nmemoryManagerPolicy: Static\n\
    topologyManagerPolicy: single-numa-node\nsystemReserved: {cpu: '1', memory: 512Mi}\nreservedMemory: [{numaNode: 0, limits: {memory: 512Mi}}]\n\
    evictionHard: {nodefs.available: 1Mi}\nimageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\n\
    evictionSoft: {memory.available: 1Mi}\nevictionSoftGracePeriod: {memory.available: 30s}\n";
const CDI: &str = "/var/run/cdi/stest-acme.yaml";

/// The file of named devices, gone with the test.
struct Named;

impl Named {
    fn write() -> Self {
        fs::create_dir_all("/var/run/cdi").expect("the folder of CDI files");
        let text = "cdiVersion: 0.6.0\nkind: acme.test/named\ndevices: [{name: one, containerEdits: {env: [NAMED=yes], deviceNodes: [{path: /dev/named, hostPath: /dev/zero}]}}]\n";
        fs::write(CDI, text).expect("a CDI file");
        Self
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = fs::remove_file(CDI);
    }
}

fn pod(name: &str, spec: &str, limits: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  {spec}\n  containers:\n  - name: main\n    image: stest.local/busybox:1\n\
         \x20   command: [sh, -c, \"{script}; sleep 100000\"]\n    resources: {{limits: {{{limits}}}}}\n"
    )
}

fn apply(cluster: &Cluster, manifest: &str) {
    cluster.kubectl_with(&["apply", "-f", "-"], manifest).ok();
}

fn wait_for_value(cluster: &Cluster, object: &str, path: &str, wanted: &str) {
    wait_for(&format!("{object} {path} is {wanted}"), 90, || {
        let ran = cluster.kubectl(&["get", object, "-o", &format!("jsonpath={path}")]);
        ensure(ran.stdout == wanted, ran)
    });
}

const PINS: &str = "grep _allowed_list /proc/self/status | tr -d '\\t'";

fn pins(cluster: &Cluster, pod: &str) -> (String, String) {
    let said = cluster.kubectl(&["exec", pod, "--", "sh", "-c", PINS]).ok();
    let of = |name: &str| said.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
    (of("Cpus_allowed_list:"), of("Mems_allowed_list:"))
}

#[test]
fn processors_memory_and_devices_go_to_those_who_ask_and_stay_theirs_over_a_restart() {
    let cluster = Cluster::fresh();
    fs::write(cluster.dir().join("kubelet.yaml"), SETTINGS).expect("the kubelet's settings");
    let archive = cluster.dir().join("busybox.tar");
    images::busybox("1").write_oci_archive(&archive, "stest.local/busybox:1");
    let _named = Named::write();
    cluster.up();
    cluster.sternpost(&["image", "load", &archive.display().to_string()]).ok();
    let node = format!("node/{}", cluster.node());
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    wait_for_value(&cluster, &node, "{.status.allocatable.cpu}", &(cpus - 1).to_string());

    let plugin = plugin::Plugin::start(&cluster.data_dir().join("kubelet"), &cluster.dir().join("given"));
    wait_for_value(&cluster, &node, r"{.status.allocatable.acme\.test/gift}", "2");
    apply(
        &cluster,
        &pod(
            "own",
            "",
            "cpu: '1', memory: 64Mi, acme.test/gift: 1",
            "echo $GIVEN $NAMED; cat /given; ls /dev/gift /dev/named; head -c 2 /dev/named | od -An -tx1",
        ),
    );
    apply(&cluster, &pod("other", "", "memory: 32Mi", "true"));
    for pod in ["pod/own", "pod/other"] {
        wait_for_value(&cluster, pod, "{.status.phase}", "Running");
    }
    wait_for("the pod has said what it got", 30, || {
        let ran = cluster.kubectl(&["logs", "own"]);
        ensure(ran.stdout.split_whitespace().collect::<Vec<_>>().join(" ") == "g0 yes a gift /dev/gift /dev/named 00 00", ran)
    });
    let (own, memory) = pins(&cluster, "own");
    assert!(own.parse::<u32>().is_ok() && memory == "0", "own processors {own:?}, memory {memory:?}");
    wait_for("the other pod runs beside it", 30, || {
        let (others, _) = pins(&cluster, "other");
        ensure(!others.is_empty() && others != own && !others.split(',').any(|part| part == own), others)
    });
    // Whom the scheduler did not judge the kubelet does.
    apply(&cluster, &pod("many", &format!("nodeName: {}", cluster.node()), "acme.test/gift: 2", "true"));
    wait_for_value(&cluster, "pod/many", "{.status.phase} {.status.reason}", "Failed UnexpectedAdmissionError");
    let why = cluster.kubectl(&["get", "pod", "many", "-o", "jsonpath={.status.message}"]).ok();
    assert_eq!(
        why,
        "Pod was rejected: Allocate failed due to requested number of devices unavailable for acme.test/gift. Requested: 2, Available: 1, which is unexpected"
    );
    assert_eq!(plugin::holders(&cluster.data_dir().join("kubelet"), "acme.test/gift"), ["default/own/main g0"]);

    cluster.daemon().kill();
    cluster.up();
    plugin.register();
    wait_for_value(&cluster, &node, r"{.status.allocatable.acme\.test/gift}", "2");
    apply(&cluster, &pod("second", "", "cpu: '1', memory: 64Mi, acme.test/gift: 1", "echo $GIVEN"));
    wait_for_value(&cluster, "pod/second", "{.status.phase}", "Running");
    assert_eq!(cluster.kubectl(&["logs", "second"]).ok().trim(), "g1");
    let (second, _) = pins(&cluster, "second");
    assert!(second.parse::<u32>().is_ok() && second != own, "{second} and {own}");
    assert_eq!(pins(&cluster, "own").0, own);
    // Given back, they are the next one's.
    cluster.kubectl(&["delete", "pod", "own", "many"]).ok();
    apply(&cluster, &pod("third", "", "acme.test/gift: 1", "echo $GIVEN"));
    wait_for_value(&cluster, "pod/third", "{.status.phase}", "Running");
    assert_eq!(cluster.kubectl(&["logs", "third"]).ok().trim(), "g0");
    drop(plugin);
    wait_for_value(&cluster, &node, r"{.status.allocatable.acme\.test/gift}", "0");

    // What a client tells of is there to be used; it is nobody's to check.
    let patch = r#"[{"op": "add", "path": "/status/capacity/acme.test~1dongle", "value": "5"}]"#;
    cluster.kubectl(&["patch", &node, "--subresource=status", "--type=json", "--patch", patch]).ok();
    wait_for_value(&cluster, &node, r"{.status.allocatable.acme\.test/dongle}", "5");
    cluster.sternpost(&["down", "--purge"]).ok();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
