//! Keys and certificates of a running daemon: certificates that live for seconds, an exchange of the authority and of the key of service account
//! tokens, while clients watch, write, run commands and read logs.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cluster::run::{Running, ensure};
use cluster::{Cluster, wait_for};

/// So long the certificates are valid …
const LIFETIME_SECONDS: u64 = 12;
/// … and so long the test goes on.
const RUN: Duration = Duration::from_secs(45);
const POD: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: app}
spec:
  containers:
  - {name: main, image: sternpost.io/toolbox, args: [serve]}
"#;

fn started() -> Cluster {
    let cluster = Cluster::fresh();
    let file = cluster.dir().join("config.yaml");
    let settings = fs::read_to_string(&file).expect("the configuration");
    fs::write(&file, format!("{settings}certificateLifetimeSeconds: {LIFETIME_SECONDS}\n")).expect("write the configuration");
    cluster.up();
    cluster
}

#[test]
fn rotations_of_everything_drop_no_watch_and_fail_no_request() {
    let cluster = started();
    cluster.kubectl_with(&["apply", "-f", "-"], POD).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/app"]).ok();
    let token = cluster.kubectl(&["create", "token", "default"]).ok();
    let mut watch = Running::start(&mut cluster.kubectl_command(&["get", "configmaps", "--watch", "-o", "name"]));
    watch.wait_for_output("configmap/kube-root-ca.crt", 20);

    let start = Instant::now();
    // What is exchanged, and when.
    let mut plan = vec![(20, vec!["rotate", "ca", "--promote"]), (8, vec!["rotate", "ca"]), (4, vec!["rotate", "service-account-key"])];
    let (mut shown, mut authorities) = (BTreeSet::new(), BTreeSet::new());
    let mut made = 0;
    while start.elapsed() < RUN {
        if plan.last().is_some_and(|(at, _)| start.elapsed().as_secs() >= *at) {
            let (_, command) = plan.pop().expect("there is one");
            cluster.sternpost(&command).ok();
        }
        cluster.kubectl(&["create", "configmap", &format!("m{made}")]).ok();
        // The API server's own way to the kubelet, with both sides' certificates.
        assert_eq!(cluster.kubectl(&["exec", "app", "--", "/toolbox", "echo", "here"]).ok(), "here\n");
        cluster.kubectl(&["logs", "app"]).ok();
        let answer = cluster.kubectl(&["--token", token.trim(), "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]);
        assert!(answer.succeeded(), "{answer}");
        watch.wait_for_output(&format!("configmap/m{made}\n"), 20);
        shown.insert(read(&cluster, "apiserver.crt"));
        authorities.insert(read(&cluster, "ca.crt"));
        made += 1;
        std::thread::sleep(Duration::from_millis(300));
    }
    assert!(watch.child.try_wait().expect("its state").is_none(), "the watch goes on");
    assert!(made > 10, "{made}");
    assert!(shown.len() > 3, "{} serving certificates were shown", shown.len());
    assert_eq!(authorities.len(), 2);
    // The former authority is out of trust once nothing of it can be valid any more; pods hear of the new one.
    wait_for("the former authority is retired", 30, || ensure(!cluster.data_dir().join("pki/ca-former.crt").exists(), "it is still there"));
    let issuing = read(&cluster, "ca.crt");
    wait_for("pods are given the new authority alone", 20, || {
        let published = cluster.kubectl(&["get", "configmap", "kube-root-ca.crt", "-o", r"jsonpath={.data.ca\.crt}"]).ok();
        ensure(published.trim() == issuing.trim(), published)
    });
    let refused = cluster.sternpost(&["rotate", "ca", "--promote"]).fails();
    assert!(refused.contains("no exchange of the authority is under way"), "{refused}");
}

/// The nodes' own certificates come from requests to the API.
#[test]
fn further_nodes_follow_the_exchange_of_the_authority_and_front_proxies_have_one_of_their_own() {
    let cluster = Cluster::fresh();
    let file = cluster.dir().join("config.yaml");
    let settings = fs::read_to_string(&file).expect("the configuration");
    fs::write(&file, format!("{settings}certificateLifetimeSeconds: 60\n")).expect("write the configuration");
    cluster.up_with(&["--nodes", "2"]);
    let nodes = cluster.kubectl(&["get", "nodes", "-o", "name"]).ok();
    let second =
        nodes.lines().map(|line| line.trim_start_matches("node/")).find(|name| *name != cluster.node()).expect("a second node").to_owned();
    let pod = POD.replace("spec:", &format!("spec:\n  nodeName: {second}"));
    cluster.kubectl_with(&["apply", "-f", "-"], &pod).ok();
    cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", "pod/app"]).ok();
    let works = || {
        assert_eq!(cluster.kubectl(&["exec", "app", "--", "/toolbox", "echo", "here"]).ok(), "here\n");
        let ready = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
        assert_eq!(cluster.kubectl(&["get", "node", &second, "-o", ready]).ok(), "True");
    };
    // A certificate of the former authority is of no use after the last step: the node has others before it.
    let keys = cluster.node_data_dir(&second).join("pki");
    let own = |name: &str| fs::read_to_string(keys.join(name)).expect("a certificate of the node");
    works();
    cluster.sternpost(&["rotate", "ca"]).ok();
    wait_for("the node believes both authorities", 15, || ensure(own("ca.crt").matches("BEGIN CERTIFICATE").count() == 2, own("ca.crt")));
    works();
    let former = [own("kubelet-client.crt"), own("kubelet.crt")];
    cluster.sternpost(&["rotate", "ca", "--promote"]).ok();
    wait_for("both certificates of the node come from the next authority", 15, || {
        let issuing = read(&cluster, "ca.crt");
        let fresh = [own("kubelet-client.crt"), own("kubelet.crt")];
        ensure(fresh.iter().all(|pem| auth::csr::is_issued_by(pem, &issuing)), format!("{fresh:?}, of before: {former:?}"))
    });
    works();
    cluster.sternpost(&["rotate", "ca", "--retire"]).ok();
    // Longer than a node may be silent.
    for _ in 0..12 {
        std::thread::sleep(Duration::from_secs(5));
        works();
    }
    let published = || {
        let path = r"jsonpath={.data.requestheader-client-ca-file}";
        let map = ["get", "configmap", "-n", "kube-system", "extension-apiserver-authentication", "-o", path];
        cluster.kubectl(&map).ok()
    };
    let first = read(&cluster, "front-proxy-ca.crt");
    assert_eq!(published().trim(), first.trim());
    cluster.sternpost(&["rotate", "front-proxy-ca"]).ok();
    assert_eq!(published().matches("BEGIN CERTIFICATE").count(), 2);
    cluster.sternpost(&["rotate", "front-proxy-ca", "--promote"]).ok();
    assert!(published().contains(first.trim()) && !published().starts_with(first.trim()));
    cluster.sternpost(&["rotate", "front-proxy-ca", "--retire"]).ok();
    assert_eq!(published().trim(), read(&cluster, "front-proxy-ca.crt").trim());
    let refused = cluster.sternpost(&["rotate", "front-proxy-ca", "--retire"]).fails();
    assert!(refused.contains("no exchange of the authority is under way"), "{refused}");
}

fn read(cluster: &Cluster, name: &str) -> String {
    fs::read_to_string(cluster.data_dir().join("pki").join(name)).expect("a certificate")
}

#[test]
fn strangers_learn_nothing_but_health_and_version_and_only_root_reads_the_data() {
    let cluster = Cluster::fresh();
    cluster.up();
    let server = cluster.server();
    let ask = |path: &str| {
        let arguments = ["-sk", "-o", "/dev/null", "-w", "%{http_code}", &format!("{server}{path}")];
        cluster::run(std::process::Command::new("curl").args(arguments), "").ok()
    };
    let open = ["/healthz", "/livez", "/readyz", "/version"];
    let closed = [
        "/",
        "/api",
        "/api/v1",
        "/apis",
        "/apis/apps/v1",
        "/openapi/v2",
        "/openapi/v3",
        "/metrics",
        "/api/v1/namespaces",
        "/api/v1/namespaces/kube-system/secrets",
        "/api/v1/nodes",
        "/openid/v1/jwks",
        "/.well-known/openid-configuration",
        "/debug/pprof/",
        "/nowhere",
    ];
    for path in open {
        assert_eq!(ask(path), "200", "{path}");
    }
    for path in closed {
        assert_eq!(ask(path), "403", "{path}");
    }
    assert_eq!(mode(&cluster.data_dir()) & 0o077, 0);
    for file in ["admin.kubeconfig", "audit.log", "pki/ca.key", "pki/sa.key", "pki/encryption-config.json"] {
        assert_eq!(mode(&cluster.data_dir().join(file)) & 0o077, 0, "{file}");
    }
    assert_eq!(mode(&cluster.dir().join("run/control.sock")) & 0o077, 0);
}

#[test]
fn the_kubelet_believes_who_the_api_believes_and_allows_what_it_allows() {
    let cluster = Cluster::fresh();
    cluster.up();
    let kubelet = format!("https://127.0.0.1:{}", cluster::cluster::names::KUBELET_PORT);
    let ask = |path: &str, token: &str| {
        let (url, header) = (format!("{kubelet}{path}"), format!("Authorization: Bearer {token}"));
        let mut arguments = vec!["-sk", "-o", "/dev/null", "-w", "%{http_code}", &url];
        if !token.is_empty() {
            arguments.extend(["-H", &header]);
        }
        cluster::run(std::process::Command::new("curl").args(arguments), "").ok()
    };
    let token = |account: &str| {
        cluster.kubectl(&["create", "serviceaccount", account]).ok();
        cluster.kubectl(&["create", "token", account]).ok().trim().to_owned()
    };
    cluster.kubectl(&["create", "clusterrole", "scrape", "--verb=get", "--resource=nodes/metrics"]).ok();
    cluster.kubectl(&["create", "clusterrolebinding", "scrape", "--clusterrole=scrape", "--serviceaccount=default:scraper"]).ok();
    let (scraper, nobody) = (token("scraper"), token("nobody"));
    let cases = [
        ("/healthz", "", "200"),
        ("/metrics", "", "401"),
        ("/metrics", "nonsense", "401"),
        ("/metrics", &nobody, "403"),
        ("/metrics", &scraper, "200"),
        ("/pods", &scraper, "403"),
        ("/containerLogs/a/b/c", &scraper, "403"),
    ];
    for (path, token, code) in cases {
        assert_eq!(ask(path, token), code, "{path}");
    }
    // As upstream's own test asks: HEAD, over HTTP/2.
    let url = format!("{kubelet}/metrics");
    let head = cluster::run(std::process::Command::new("curl").args(["-sIk", "-o", "/dev/null", "-w", "%{http_code}", &url]), "");
    assert_eq!(head.ok(), "401");
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode()
}
