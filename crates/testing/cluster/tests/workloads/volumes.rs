//! Volumes and settings from the API.

use std::fs;
use std::process::Command;

use cluster::cluster::names;
use cluster::process;
use cluster::run::{ensure, run};
use cluster::{Namespace, wait_for};
use serde_json::Value;

use crate::images::busybox;

#[test]
fn settings_arrive_as_variables_and_as_files_that_follow_changes() {
    let ns = Namespace::new("settings");
    ns.kubectl(&["create", "configmap", "conf", "--from-literal=COLOUR=red", "--from-literal=file.txt=old"]).ok();
    ns.kubectl(&["create", "secret", "generic", "keys", "--from-literal=PASSWORD=s3cret"]).ok();
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  volumes:\n  - {{name: conf, configMap: {{name: conf, items: [{{key: file.txt, path: deep/file.txt}}]}}}}\n  - {{name: keys, secret: {{secretName: keys, defaultMode: 0400}}}}\n\
         \x20 containers:\n  - name: main\n    image: \"{}\"\n    command: [sleep, '1000']\n    envFrom: [{{configMapRef: {{name: conf}}}}]\n    env: [{{name: PASS, valueFrom: {{secretKeyRef: {{name: keys, key: PASSWORD}}}}}}]\n    volumeMounts: [{{name: conf, mountPath: /conf}}, {{name: keys, mountPath: /keys, readOnly: true}}]\n",
        busybox(1)
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    let env = ns.exec("one", &["env"]).ok();
    assert!(env.lines().any(|line| line == "COLOUR=red") && env.lines().any(|line| line == "PASS=s3cret"), "{env}");
    assert_eq!(ns.exec("one", &["cat", "/conf/deep/file.txt"]).ok(), "old");
    assert_eq!(ns.exec("one", &["cat", "/keys/PASSWORD"]).ok(), "s3cret");
    assert_eq!(ns.exec("one", &["stat", "-L", "-c", "%a", "/keys/PASSWORD"]).ok(), "400\n");
    let filesystem = ns.exec("one", &["sh", "-c", "grep ' /keys ' /proc/mounts"]).ok();
    assert!(filesystem.starts_with("tmpfs ") || filesystem.contains(" tmpfs "), "secrets never reach a disk: {filesystem}");
    ns.exec("one", &["touch", "/keys/x"]).fails();

    ns.kubectl(&["patch", "configmap", "conf", "-p", r#"{"data":{"file.txt":"new"}}"#]).ok();
    ns.kubectl(&["patch", "secret", "keys", "-p", r#"{"stringData":{"PASSWORD":"changed"}}"#]).ok();
    wait_for("the files follow", 100, || {
        let ran = ns.exec("one", &["cat", "/conf/deep/file.txt", "/keys/PASSWORD"]);
        ensure(ran.stdout == "newchanged", ran)
    });
}

#[test]
fn a_missing_setting_holds_the_container_back_until_it_exists() {
    let ns = Namespace::new("missing");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  containers:\n  - {{name: main, image: \"{}\", command: [sleep, '1000'], envFrom: [{{configMapRef: {{name: later}}}}]}}\n",
        busybox(1)
    ));
    ns.wait_for_value("pod/one", "{.status.containerStatuses[0].state.waiting.reason}", "CreateContainerConfigError");
    assert_eq!(ns.value("pod/one", "{.status.containerStatuses[0].state.waiting.message}"), "configmap \"later\" not found");
    ns.kubectl(&["create", "configmap", "later"]).ok();
    ns.wait("condition=Ready", &["pod/one"]);
}

#[test]
fn an_empty_dir_is_shared_in_the_pod_and_goes_with_it() {
    let ns = Namespace::new("emptydir");
    let image = busybox(1);
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  terminationGracePeriodSeconds: 1\n  volumes: [{{name: disk, emptyDir: {{}}}}, {{name: memory, emptyDir: {{medium: Memory, sizeLimit: 8Mi}}}}]\n  containers:\n\
         \x20 - {{name: a, image: \"{image}\", command: [sleep, '1000'], volumeMounts: [{{name: disk, mountPath: /d}}, {{name: memory, mountPath: /m}}]}}\n\
         \x20 - {{name: b, image: \"{image}\", command: [sleep, '1000'], volumeMounts: [{{name: disk, mountPath: /d, subPath: inner}}]}}\n"
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    ns.kubectl(&["exec", "one", "-c", "a", "--", "sh", "-c", "echo shared > /d/inner/file"]).ok();
    assert_eq!(ns.kubectl(&["exec", "one", "-c", "b", "--", "cat", "/d/file"]).ok(), "shared\n");
    let memory = ns.kubectl(&["exec", "one", "-c", "a", "--", "grep", " /m ", "/proc/mounts"]).ok();
    assert!(memory.contains("tmpfs") && memory.contains("size=8192k"), "{memory}");
    let uid = ns.value("pod/one", "{.metadata.uid}");
    let holds = || {
        let mut find = Command::new("find");
        run(find.arg(ns.cluster.data_dir()).args(["-path", &format!("*{uid}*"), "-name", "file"]), "").stdout
    };
    assert!(holds().contains("inner/file"), "{}", holds());
    ns.kubectl(&["delete", "pod", "one", "--timeout=60s"]).ok();
    wait_for("the folder is gone", 30, || ensure(holds().is_empty(), holds()));
}

#[test]
fn a_host_path_shows_the_hosts_files() {
    let ns = Namespace::new("hostpath");
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("from-host"), "hello").expect("write a file");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  volumes: [{{name: h, hostPath: {{path: {}, type: Directory}}}}]\n  containers:\n  - {{name: main, image: \"{}\", command: [sleep, '1000'], volumeMounts: [{{name: h, mountPath: /h}}]}}\n",
        folder.path().display(),
        busybox(1)
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    assert_eq!(ns.exec("one", &["cat", "/h/from-host"]).ok(), "hello");
    ns.exec("one", &["sh", "-c", "echo back > /h/from-pod"]).ok();
    assert_eq!(fs::read_to_string(folder.path().join("from-pod")).expect("the pod wrote it"), "back\n");
    ns.kubectl(&["delete", "pod", "one", "--grace-period=1", "--timeout=60s"]).ok();
    assert!(folder.path().join("from-host").exists(), "deleting a pod leaves the host's files alone");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: two}}\nspec:\n  volumes: [{{name: h, hostPath: {{path: {}/absent, type: Directory}}}}]\n  containers:\n  - {{name: main, image: \"{}\", volumeMounts: [{{name: h, mountPath: /h}}]}}\n",
        folder.path().display(),
        busybox(1)
    ));
    ns.wait_for_event("two", "FailedMount", "hostPath type check failed");
}

#[test]
fn a_pods_token_opens_the_api_from_inside() {
    let ns = Namespace::new("token");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  containers:\n  - {{name: main, image: \"{}\", command: [sleep, '1000'], env: [{{name: MARK, value: token}}]}}\n",
        busybox(1)
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(ns.exec("one", &["cat", &format!("{folder}/namespace")]).ok(), ns.name);
    let token = ns.exec("one", &["cat", &format!("{folder}/token")]).ok();
    let authority = ns.cluster.dir().join(format!("{}.crt", ns.name));
    fs::write(&authority, ns.exec("one", &["cat", &format!("{folder}/ca.crt")]).ok()).expect("write the certificate");
    // From the pod's own network, by the Service's name and the pod's own certificate authority: nothing is trusted that the pod does not have.
    let process = process::with_variable("MARK=token").remove(0);
    let ask = |path: &str, authorization: &str| {
        let mut curl = Command::new("nsenter");
        curl.args(["-t", &process.id.to_string(), "-n", "curl", "-sS", "--max-time", "20", "--cacert"]).arg(&authority);
        curl.args(["--resolve", &format!("kubernetes.default.svc:443:{}0.1", names::SERVICE_NETWORK), "-H", authorization]);
        let answer = run(curl.arg(format!("https://kubernetes.default.svc{path}")), "").ok();
        serde_json::from_str::<Value>(&answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
    };
    let bearer = format!("Authorization: Bearer {token}");
    assert_eq!(ask("/version", &bearer)["minor"], "37");
    let forbidden = ask(&format!("/api/v1/namespaces/{}/secrets", ns.name), &bearer);
    assert_eq!((&forbidden["code"], &forbidden["reason"]), (&403.into(), &"Forbidden".into()), "{forbidden}");
    assert!(
        forbidden["message"].as_str().is_some_and(|text| text.contains(&format!("system:serviceaccount:{}:default", ns.name))),
        "{forbidden}"
    );
    assert_eq!(ask("/api/v1/pods", "Authorization: Bearer nonsense")["code"], 401);
    // The token ends with the pod that it was made for.
    ns.kubectl(&["delete", "pod", "one", "--grace-period=1", "--timeout=60s"]).ok();
    wait_for("the token is void", 60, || {
        let mut curl = Command::new("curl");
        let answer = run(curl.args(["-sk", "-H", &bearer]).arg(format!("{}/api/v1/pods", ns.cluster.server())), "");
        ensure(answer.stdout.contains("\"Unauthorized\""), answer)
    });
}

#[test]
fn the_downward_volume_follows_the_pods_labels() {
    let ns = Namespace::new("downward");
    ns.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one, labels: {{step: first}}}}\nspec:\n  volumes: [{{name: d, downwardAPI: {{items: [{{path: labels, fieldRef: {{fieldPath: metadata.labels}}}}]}}}}]\n  containers:\n  - {{name: main, image: \"{}\", command: [sleep, '1000'], volumeMounts: [{{name: d, mountPath: /d}}]}}\n",
        busybox(1)
    ));
    ns.wait("condition=Ready", &["pod/one"]);
    assert_eq!(ns.exec("one", &["cat", "/d/labels"]).ok(), "step=\"first\"");
    ns.kubectl(&["label", "pod", "one", "step=second", "--overwrite"]).ok();
    wait_for("the file follows", 100, || {
        let ran = ns.exec("one", &["cat", "/d/labels"]);
        ensure(ran.stdout == "step=\"second\"", ran)
    });
}
