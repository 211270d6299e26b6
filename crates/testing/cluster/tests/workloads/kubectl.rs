//! The daily commands of kubectl against the API.

use cluster::run::{ensure, run};
use cluster::{Cluster, Namespace, wait_for};

use crate::images::busybox;

const TOOLBOX: &str = "--image=sternpost.io/toolbox";

#[test]
fn a_deployment_is_created_exposed_listed_and_described() {
    let ns = Namespace::new("deploy");
    let created = ns.kubectl(&["create", "deployment", "web", TOOLBOX, "--replicas=3", "--port=8080"]).ok();
    assert_eq!(created, "deployment.apps/web created\n");
    assert_eq!(ns.kubectl(&["expose", "deployment", "web", "--port=80", "--target-port=8080"]).ok(), "service/web exposed\n");
    ns.wait("condition=Available", &["deployment/web"]);

    let table = ns.kubectl(&["get", "deployment", "web", "-o", "wide"]).ok();
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().unwrap(), ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]);
    let row = lines.next().unwrap();
    assert_eq!((row[0], row[1], row[2], row[3]), ("web", "3/3", "3", "3"), "{table}");
    assert_eq!(row[5..], ["toolbox", "sternpost.io/toolbox", "app=web"], "{table}");

    let table = ns.kubectl(&["get", "pods", "-o", "wide", "--no-headers"]).ok();
    assert_eq!(table.lines().count(), 3, "{table}");
    for line in table.lines() {
        let row: Vec<&str> = line.split_whitespace().collect();
        assert_eq!((row[1], row[2], row[3]), ("1/1", "Running", "0"), "{table}");
        assert!(row[5].starts_with(cluster::cluster::names::POD_NETWORK), "{table}");
        assert_eq!(row[6], ns.cluster.node(), "{table}");
    }

    let described = ns.kubectl(&["describe", "deployment", "web"]).ok();
    assert!(described.contains("3 desired | 3 updated | 3 total | 3 available | 0 unavailable"), "{described}");
    assert!(
        described.contains("ScalingReplicaSet") && described.contains("RollingUpdateStrategy:  25% max unavailable, 25% max surge"),
        "{described}"
    );
    let described = ns.kubectl(&["describe", "pods", "-l", "app=web"]).ok();
    for text in [
        "Successfully assigned",
        "Controlled By:  ReplicaSet/web-",
        "Started container toolbox",
        "Created container",
        "QoS Class:",
        "BestEffort",
    ] {
        assert!(described.contains(text), "{text}: {described}");
    }
    let described = ns.kubectl(&["describe", "service", "web"]).ok();
    let endpoints = described.lines().find(|line| line.starts_with("Endpoints:")).unwrap_or_default();
    assert_eq!(endpoints.matches(":8080").count(), 3, "{described}");
    let described = ns.cluster.kubectl(&["describe", "node", ns.cluster.node()]).ok();
    assert!(described.contains("KubeletReady") && described.contains(&ns.name), "{described}");
}

#[test]
fn scaling_reaches_the_wanted_number_and_minds_the_precondition() {
    let ns = Namespace::new("scale");
    ns.kubectl(&["create", "deployment", "web", TOOLBOX, "--", "/toolbox", "sleep", "infinity"]).ok();
    assert_eq!(ns.kubectl(&["scale", "deployment/web", "--replicas=4"]).ok(), "deployment.apps/web scaled\n");
    ns.wait_for_value("deployment/web", "{.status.readyReplicas}", "4");
    let refused = ns.kubectl(&["scale", "deployment/web", "--current-replicas=9", "--replicas=1"]).fails();
    assert!(refused.contains("Expected replicas to be 9, was 4"), "{refused}");
    ns.kubectl(&["scale", "deployment/web", "--replicas=1"]).ok();
    wait_for("one pod is left", 60, || {
        let pods = ns.kubectl(&["get", "pods", "--no-headers"]).ok();
        ensure(pods.lines().count() == 1, pods)
    });
}

#[test]
fn an_image_is_rolled_out_and_rolled_back() {
    let ns = Namespace::new("rollout");
    let image = |ns: &Namespace| ns.value("deployment/web", "{.spec.template.spec.containers[0].image}");
    ns.kubectl(&["create", "deployment", "web", &format!("--image={}", busybox(1)), "--replicas=2", "--", "sleep", "1000"]).ok();
    let status = ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]).ok();
    assert!(status.ends_with("deployment \"web\" successfully rolled out\n"), "{status}");

    ns.kubectl(&["set", "image", "deployment/web", &format!("busybox={}", busybox(2))]).ok();
    ns.kubectl(&["annotate", "deployment/web", "kubernetes.io/change-cause=the second"]).ok();
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]).ok();
    wait_for("only the new image runs", 60, || {
        let pods = ns.kubectl(&["get", "pods", "-o", "name"]).ok();
        let versions: Vec<String> = pods.lines().map(|pod| ns.exec(pod, &["cat", "/version"]).stdout).collect();
        ensure(versions == ["2", "2"], format!("{versions:?}"))
    });
    let history = ns.kubectl(&["rollout", "history", "deployment/web"]).ok();
    assert!(history.contains("REVISION  CHANGE-CAUSE\n1 ") && history.contains("\n2         the second"), "{history}");
    let second = ns.kubectl(&["rollout", "history", "deployment/web", "--revision=2"]).ok();
    assert!(second.contains(&busybox(2)), "{second}");

    let undone = ns.kubectl(&["rollout", "undo", "deployment/web"]).ok();
    assert_eq!(undone, "deployment.apps/web rolled back\n");
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]).ok();
    assert_eq!(image(&ns), busybox(1));
    let history = ns.kubectl(&["rollout", "history", "deployment/web"]).ok();
    assert!(!history.contains("\n1 ") && history.contains("\n3 "), "revision 1 came back as 3: {history}");

    ns.kubectl(&["rollout", "pause", "deployment/web"]).ok();
    ns.kubectl(&["set", "image", "deployment/web", &format!("busybox={}", busybox(2))]).ok();
    wait_for("the controller saw the change", 30, || {
        let generations = ns.value("deployment/web", "{.metadata.generation} {.status.observedGeneration}");
        let (wanted, seen) = generations.split_once(' ').unwrap_or_default();
        ensure(wanted == seen, &generations)
    });
    assert_eq!(ns.value("deployment/web", "{.status.updatedReplicas}"), "", "a paused deployment does not roll out");
    ns.kubectl(&["rollout", "resume", "deployment/web"]).ok();
    ns.kubectl(&["rollout", "restart", "deployment/web"]).ok();
    ns.kubectl(&["rollout", "status", "deployment/web", "--timeout=90s"]).ok();
    assert_eq!(ns.value("deployment/web", "{.status.updatedReplicas}"), "2");
}

const SETTINGS: &str = "
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, labels: {tier: one}}
data: {colour: red, size: small}
";

#[test]
fn apply_creates_changes_and_removes_what_the_manifest_says() {
    let ns = Namespace::new("apply");
    let apply = |manifest: &str| ns.kubectl_with(&["apply", "-f", "-"], manifest).ok();
    assert_eq!(apply(SETTINGS), "configmap/settings created\n");
    assert_eq!(apply(SETTINGS), "configmap/settings unchanged\n");
    ns.kubectl(&["patch", "configmap", "settings", "--type=merge", "-p", r#"{"data":{"by-hand":"stays"}}"#]).ok();
    let changed = SETTINGS.replace("size: small", "shape: round");
    let diff = ns.kubectl_with(&["diff", "-f", "-"], &changed);
    assert_eq!(diff.code, Some(1), "{diff}");
    assert!(diff.stdout.contains("-  size: small") && diff.stdout.contains("+  shape: round"), "{diff}");
    assert_eq!(apply(&changed), "configmap/settings configured\n");
    assert_eq!(ns.json(&["configmap", "settings"])["data"], serde_json::json!({ "by-hand": "stays", "colour": "red", "shape": "round" }));
    assert_eq!(ns.kubectl_with(&["diff", "-f", "-"], &changed).code, Some(0));
}

#[test]
fn server_side_apply_tells_who_owns_a_field_and_refuses_to_take_it() {
    let ns = Namespace::new("ssa");
    let apply = |manager: &str, manifest: &str, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let mut args = vec!["apply", "--server-side", manager.as_str(), "-f", "-"];
        args.extend(more);
        ns.kubectl_with(&args, manifest)
    };
    assert_eq!(apply("alice", SETTINGS, &[]).ok(), "configmap/settings serverside-applied\n");
    let blue = SETTINGS.replace("red", "blue");
    let conflict = apply("bob", &blue, &[]).fails();
    assert!(conflict.contains(r#"Apply failed with 1 conflict: conflict with "alice": .data.colour"#), "{conflict}");
    apply("bob", &blue, &["--force-conflicts"]).ok();
    assert_eq!(ns.value("configmap/settings", "{.data.colour}"), "blue");
    // Alice gives up what only she owned; what Bob owns as well stays.
    apply("alice", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\n", &[]).ok();
    assert_eq!(ns.json(&["configmap", "settings"])["data"], serde_json::json!({ "colour": "blue", "size": "small" }));
    let managers =
        ns.kubectl(&["get", "configmap", "settings", "--show-managed-fields", "-o", "jsonpath={.metadata.managedFields[*].manager}"]).ok();
    assert!(managers.contains("bob"), "{managers}");
}

#[test]
fn a_deployment_is_applied_server_side_and_scaled_by_another_manager() {
    let ns = Namespace::new("ssa-deploy");
    let manifest = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: main, image: sternpost.io/toolbox, ports: [{containerPort: 8080}]}
";
    ns.kubectl_with(&["apply", "--server-side", "-f", "-"], manifest).ok();
    ns.kubectl(&["scale", "deployment/web", "--replicas=2"]).ok();
    let conflict = ns.kubectl_with(&["apply", "--server-side", "-f", "-"], manifest).fails();
    assert!(conflict.contains(".spec.replicas"), "{conflict}");
    let without = manifest.replace("  replicas: 1\n", "");
    ns.kubectl_with(&["apply", "--server-side", "-f", "-"], &without).ok();
    assert_eq!(ns.value("deployment/web", "{.spec.replicas}"), "2");
}

#[test]
fn edit_changes_the_object_with_the_users_editor() {
    let ns = Namespace::new("edit");
    ns.apply(SETTINGS);
    let mut edit = ns.command(&["edit", "configmap", "settings"]);
    edit.env("KUBE_EDITOR", "sed -i s/red/green/");
    assert_eq!(run(&mut edit, "").ok(), "configmap/settings edited\n");
    assert_eq!(ns.value("configmap/settings", "{.data.colour}"), "green");
    let mut edit = ns.command(&["edit", "configmap", "settings"]);
    edit.env("KUBE_EDITOR", "true");
    let unchanged = run(&mut edit, "");
    assert!(unchanged.stderr.contains("Edit cancelled, no changes made."), "{unchanged}");
}

#[test]
fn explain_knows_every_field_and_its_description() {
    let cluster = Cluster::shared();
    let recursive = cluster.kubectl(&["explain", "deployment.spec", "--recursive"]).ok();
    for text in [
        "GROUP:      apps",
        "KIND:       Deployment",
        "VERSION:    v1",
        "maxUnavailable\t<IntOrString>",
        "terminationGracePeriodSeconds\t<integer>",
    ] {
        assert!(recursive.contains(text), "{text}: {}", recursive.chars().take(3_000).collect::<String>());
    }
    let one = cluster.kubectl(&["explain", "pod.spec.restartPolicy"]).ok();
    assert!(one.contains("FIELD: restartPolicy <string>") && one.contains("Restart policy for all containers within the pod"), "{one}");
    let unknown = cluster.kubectl(&["explain", "pod.spec.nonsense"]).fails();
    assert!(unknown.contains(r#"field "nonsense" does not exist"#), "{unknown}");
}

#[test]
fn a_watch_shows_what_comes_changes_and_goes() {
    let ns = Namespace::new("watch");
    let mut watch = ns.start(&["get", "configmaps", "-w", "--output-watch-events", "-l", "watched=yes"]);
    ns.kubectl(&["create", "configmap", "unseen"]).ok();
    ns.kubectl(&["create", "configmap", "seen"]).ok();
    // Becoming and ceasing to be selected looks like an addition and a deletion.
    ns.kubectl(&["label", "configmap", "seen", "watched=yes"]).ok();
    watch.wait_for_output("ADDED", 20);
    ns.kubectl(&["patch", "configmap", "seen", "-p", r#"{"data":{"a":"b"}}"#]).ok();
    watch.wait_for_output("MODIFIED", 20);
    ns.kubectl(&["label", "configmap", "seen", "watched-"]).ok();
    let output = watch.wait_for_output("DELETED", 20);
    assert!(!output.contains("unseen"), "{output}");
}

#[test]
fn wait_returns_when_a_condition_a_value_or_a_deletion_comes() {
    let ns = Namespace::new("wait");
    ns.kubectl(&["run", "one", TOOLBOX]).ok();
    let waited = ns.kubectl(&["wait", "pod/one", "--for=condition=Ready", "--timeout=90s"]).ok();
    assert_eq!(waited, "pod/one condition met\n");
    ns.kubectl(&["wait", "pod/one", "--for=jsonpath={.status.phase}=Running", "--timeout=30s"]).ok();
    let mut wait = ns.start(&["wait", "pod/one", "--for=delete", "--timeout=60s"]);
    ns.kubectl(&["delete", "pod", "one", "--wait=false"]).ok();
    assert_eq!(wait.end_within(std::time::Duration::from_secs(60)).ok(), "pod/one condition met\n");
    let late = ns.kubectl(&["wait", "pod/one", "--for=condition=Ready", "--timeout=2s"]).fails();
    assert!(late.contains("pods \"one\" not found"), "{late}");
}

#[test]
fn selectors_pick_by_labels_and_by_fields() {
    let ns = Namespace::new("select");
    for (name, labels) in [("a", "tier=web,env=prod"), ("b", "tier=web,env=test"), ("c", "tier=db,env=prod"), ("d", "other=yes")] {
        let labels: Vec<&str> = labels.split(',').collect();
        ns.kubectl(&["create", "configmap", name]).ok();
        ns.kubectl(&[&["label", "configmap", name], labels.as_slice()].concat()).ok();
    }
    let names = |args: &[&str]| {
        let listed = ns.kubectl(&[&["get", "configmaps", "-o", "name"], args].concat()).ok();
        listed
            .lines()
            .map(|line| line.trim_start_matches("configmap/").to_owned())
            .filter(|name| name != "kube-root-ca.crt")
            .collect::<Vec<_>>()
            .join(" ")
    };
    for (selector, picked) in [
        ("tier=web", "a b"),
        ("tier=web,env!=prod", "b"),
        ("tier in (web,db),env=prod", "a c"),
        ("tier notin (web)", "c d"),
        ("!tier", "d"),
        ("env", "a b c"),
    ] {
        assert_eq!(names(&["-l", selector]), picked, "{selector}");
    }
    assert_eq!(names(&["--field-selector", "metadata.name=c"]), "c");
    let refused = ns.kubectl(&["get", "configmaps", "--field-selector", "data.x=1"]).fails();
    assert!(refused.contains("field label not supported"), "{refused}");
}

#[test]
fn every_output_form_shows_the_same_object() {
    let ns = Namespace::new("output");
    ns.apply(SETTINGS);
    let get = |form: &str| ns.kubectl(&["get", "configmap", "settings", "-o", form]).ok();
    assert!(get("yaml").contains("\n  colour: red\n"));
    assert_eq!(get("jsonpath={.data.colour}/{.metadata.labels.tier}"), "red/one");
    assert_eq!(get("custom-columns=NAME:.metadata.name,C:.data.colour"), "NAME       C\nsettings   red\n");
    assert_eq!(get("go-template={{range $k, $v := .data}}{{$k}}={{$v}};{{end}}"), "colour=red;size=small;");
    assert_eq!(get("name"), "configmap/settings\n");
    let columns: Vec<String> = get("wide").lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(columns, ["NAME DATA", "settings 2"]);
    let labels = ns.kubectl(&["get", "configmap", "settings", "--show-labels", "--no-headers"]).ok();
    assert!(labels.trim_end().ends_with("tier=one"), "{labels}");
}

#[test]
fn objects_are_patched_replaced_labelled_and_annotated() {
    let ns = Namespace::new("patch");
    ns.kubectl(&["create", "deployment", "web", TOOLBOX, "--replicas=0"]).ok();
    let patch = |kind: &str, patch: &str| ns.kubectl(&["patch", "deployment", "web", "--type", kind, "-p", patch]).ok();
    patch("strategic", r#"{"spec":{"template":{"spec":{"containers":[{"name":"side","image":"sternpost.io/toolbox"}]}}}}"#);
    let containers = |ns: &Namespace| ns.value("deployment/web", "{.spec.template.spec.containers[*].name}");
    assert_eq!(containers(&ns), "side toolbox", "a strategic patch merges lists by name");
    patch("merge", r#"{"spec":{"template":{"spec":{"containers":[{"name":"only","image":"sternpost.io/toolbox"}]}}}}"#);
    assert_eq!(containers(&ns), "only", "a merge patch replaces lists");
    patch(
        "json",
        r#"[{"op":"test","path":"/spec/replicas","value":0},{"op":"replace","path":"/spec/template/spec/containers/0/name","value":"first"}]"#,
    );
    assert_eq!(containers(&ns), "first");
    let refused = ns.kubectl(&["patch", "deployment", "web", "--type=json", "-p", r#"[{"op":"remove","path":"/spec/nothing"}]"#]).fails();
    assert!(
        refused.contains("The request is invalid") || refused.contains("nonexistent") || refused.contains("Unable to remove"),
        "{refused}"
    );

    ns.kubectl(&["label", "deployment", "web", "tier=front"]).ok();
    let refused = ns.kubectl(&["label", "deployment", "web", "tier=back"]).fails();
    assert!(refused.contains("'tier' already has a value (front), and --overwrite is false"), "{refused}");
    ns.kubectl(&["annotate", "deployment", "web", "note=hello"]).ok();
    assert_eq!(ns.value("deployment/web", "{.metadata.labels.tier} {.metadata.annotations.note}"), "front hello");

    let before = ns.kubectl(&["get", "deployment", "web", "-o", "json"]).ok();
    ns.kubectl(&["annotate", "deployment", "web", "note=changed", "--overwrite"]).ok();
    let conflict = ns.kubectl_with(&["replace", "-f", "-"], &before).fails();
    assert!(
        conflict.contains(r#"Operation cannot be fulfilled on deployments.apps "web": the object has been modified; please apply your changes to the latest version and try again"#),
        "{conflict}"
    );
    let now = ns.kubectl(&["get", "deployment", "web", "-o", "json"]).ok();
    ns.kubectl_with(&["replace", "-f", "-"], &now.replace("changed", "replaced")).ok();
    assert_eq!(ns.value("deployment/web", "{.metadata.annotations.note}"), "replaced");
}

#[test]
fn a_dry_run_on_the_server_checks_everything_and_stores_nothing() {
    let ns = Namespace::new("dry");
    let ran = ns.kubectl_with(&["create", "--dry-run=server", "-o", "jsonpath={.metadata.uid}", "-f", "-"], SETTINGS).ok();
    assert!(!ran.is_empty());
    ns.kubectl(&["get", "configmap", "settings"]).fails();
    ns.apply(SETTINGS);
    ns.kubectl(&["delete", "configmap", "settings", "--dry-run=server"]).ok();
    ns.kubectl(&["get", "configmap", "settings"]).ok();
}

#[test]
fn a_long_list_arrives_whole_in_small_chunks() {
    let ns = Namespace::new("chunks");
    let manifests: String = (0..23)
        .map(|number| format!("---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{name: c{number}, labels: {{many: 'yes'}}}}\n"))
        .collect();
    ns.apply(&manifests);
    let names = ns.kubectl(&["get", "configmaps", "-l", "many=yes", "-o", "name", "--chunk-size=5"]).ok();
    assert_eq!(names.lines().count(), 23, "{names}");
}

#[test]
fn deletion_takes_the_owned_objects_along_or_leaves_them() {
    let ns = Namespace::new("delete");
    let pods = |app: &str| ns.kubectl(&["get", "replicasets,pods", "-l", &format!("app={app}"), "-o", "name"]).ok();
    for app in ["taken", "left"] {
        ns.kubectl(&["create", "deployment", app, TOOLBOX, "--", "/toolbox", "sleep", "infinity"]).ok();
        ns.wait("condition=Available", &[&format!("deployment/{app}")]);
    }
    ns.kubectl(&["delete", "deployment", "taken", "--cascade=foreground", "--timeout=60s"]).ok();
    assert_eq!(pods("taken"), "", "after a foreground deletion nothing is left");
    ns.kubectl(&["delete", "deployment", "left", "--cascade=orphan"]).ok();
    assert_eq!(pods("left").lines().count(), 2, "the ReplicaSet and its pod stay");
    let owner = ns.kubectl(&["get", "replicasets", "-l", "app=left", "-o", "jsonpath={.items[*].metadata.ownerReferences}"]).ok();
    assert_eq!(owner, "");
    let missing = ns.kubectl(&["delete", "deployment", "left"]).fails();
    assert!(missing.contains(r#"Error from server (NotFound): deployments.apps "left" not found"#), "{missing}");
}

#[test]
fn a_namespace_goes_with_everything_in_it() {
    let ns = Namespace::new("gone");
    let name = format!("{}-inner", ns.name);
    let cluster = ns.cluster;
    cluster.kubectl(&["create", "namespace", &name]).ok();
    cluster.kubectl(&["create", "configmap", "a", "-n", &name]).ok();
    wait_for("its service account", 30, || {
        let ran = cluster.kubectl(&["create", "deployment", "web", TOOLBOX, "-n", &name]);
        ensure(ran.succeeded(), ran)
    });
    cluster.kubectl(&["delete", "namespace", &name, "--timeout=90s"]).ok();
    cluster.kubectl(&["get", "namespace", &name]).fails();
    let refused = cluster.kubectl(&["create", "configmap", "late", "-n", &name]).fails();
    assert!(refused.contains(&format!("namespaces \"{name}\" not found")), "{refused}");
}

#[test]
fn kubectl_discovers_the_server_and_asks_for_its_rights() {
    let cluster = Cluster::shared();
    let resources = cluster.kubectl(&["api-resources", "--no-headers"]).ok();
    for line in
        ["pods", "po", "deployments", "deploy", "apps/v1", "configmaps", "endpointslices", "discovery.k8s.io/v1", "leases", "replicasets"]
    {
        assert!(resources.contains(line), "{line}: {resources}");
    }
    let versions = cluster.kubectl(&["api-versions"]).ok();
    assert!(versions.lines().any(|line| line == "apps/v1") && versions.lines().any(|line| line == "v1"), "{versions}");
    let version = cluster.kubectl(&["version", "-o", "json"]).ok();
    let version: serde_json::Value = serde_json::from_str(&version).expect("JSON");
    assert_eq!(version["serverVersion"]["major"], "1", "{version}");
    assert_eq!(version["serverVersion"]["minor"], "37", "{version}");

    assert_eq!(cluster.kubectl(&["auth", "can-i", "delete", "nodes"]).ok(), "yes\n");
    let no = cluster.kubectl(&["auth", "can-i", "list", "secrets", "--as=system:serviceaccount:default:default"]);
    assert_eq!((no.stdout.as_str(), no.code), ("no\n", Some(1)), "{no}");
    let forbidden = cluster.kubectl(&["get", "pods", "-A", "--as=jane"]).fails();
    assert!(forbidden.contains(r#"Error from server (Forbidden): pods is forbidden: User "jane" cannot list resource "pods" in API group "" at the cluster scope"#), "{forbidden}");
    let me = cluster.kubectl(&["auth", "whoami"]).ok();
    assert!(me.contains("system:masters") || me.contains("Groups"), "{me}");
}

#[test]
fn events_are_listed_for_an_object() {
    let ns = Namespace::new("events");
    ns.kubectl(&["run", "one", TOOLBOX]).ok();
    ns.wait("condition=Ready", &["pod/one"]);
    ns.wait_for_event("one", "Started", "Started container one");
    let events = ns.kubectl(&["events", "--for", "pod/one"]).ok();
    for text in ["Normal", "Scheduled", "Pod/one", "Pulled", "Created", "Started"] {
        assert!(events.contains(text), "{text}: {events}");
    }
}

#[test]
fn a_role_lets_a_service_account_do_what_it_says_and_no_more() {
    let ns = Namespace::new("rbac");
    ns.kubectl(&["create", "serviceaccount", "robot"]).ok();
    let token = ns.kubectl(&["create", "token", "robot"]).ok();
    let token = format!("--token={}", token.trim());
    let kubeconfig = ns.cluster.dir().join("anonymous.kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\nclusters: [{{name: c, cluster: {{server: \"{}\", insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
        ns.cluster.server()
    );
    std::fs::write(&kubeconfig, text).expect("write a kubeconfig");
    let as_robot = |args: &[&str]| {
        let mut command = std::process::Command::new("kubectl");
        command.arg("--kubeconfig").arg(&kubeconfig).args([&token, "-n", &ns.name]).args(args).env("HOME", ns.cluster.dir().join("home"));
        run(&mut command, "")
    };
    let whoami = as_robot(&["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]).ok();
    assert_eq!(whoami, format!("system:serviceaccount:{}:robot", ns.name));
    as_robot(&["get", "configmaps"]).fails();
    ns.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=configmaps"]).ok();
    ns.kubectl(&["create", "rolebinding", "robot", "--role=reader", &format!("--serviceaccount={}:robot", ns.name)]).ok();
    wait_for("the role counts", 30, || {
        let ran = as_robot(&["get", "configmaps"]);
        ensure(ran.succeeded(), ran)
    });
    let refused = as_robot(&["delete", "configmap", "kube-root-ca.crt"]).fails();
    assert!(refused.contains("cannot delete resource \"configmaps\""), "{refused}");
    let stranger = std::process::Command::new("curl")
        .args(["-sk", "-H", "Authorization: Bearer nonsense"])
        .arg(format!("{}/api/v1/pods", ns.cluster.server()))
        .output()
        .expect("curl");
    let stranger = String::from_utf8_lossy(&stranger.stdout).into_owned();
    assert!(stranger.contains("\"reason\":\"Unauthorized\"") || stranger.contains("\"reason\": \"Unauthorized\""), "{stranger}");
}
