//! Images from archives and from a registry, and what goes wrong with them.

use std::sync::OnceLock;

use cluster::registry::Registry;
use cluster::run::ensure;
use cluster::{Cluster, Namespace, images, wait_for};

/// A busybox image that the shared cluster has, in one of three versions.
pub fn busybox(version: u32) -> String {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        for version in [1, 2, 3] {
            let file = Cluster::shared().dir().join(format!("busybox-{version}.tar"));
            images::busybox(&version.to_string()).write_oci_archive(&file, &busybox_name(version));
            Cluster::shared().load_images(&file);
        }
    });
    busybox_name(version)
}

fn busybox_name(version: u32) -> String {
    format!("stest.local/busybox:{version}")
}

/// A pod that runs this image once.
fn once(ns: &Namespace, name: &str, image: &str, command: &[&str]) {
    let image = format!("--image={image}");
    let mut args = vec!["run", name, image.as_str(), "--restart=Never"];
    if !command.is_empty() {
        args.push("--command");
        args.push("--");
        args.extend(command);
    }
    ns.kubectl(&args).ok();
}

#[test]
fn archives_of_both_kinds_are_imported_listed_and_run() {
    let ns = Namespace::new("archives");
    let image = images::busybox("from an archive");
    let file = |name: &str| ns.cluster.dir().join(name);
    image.write_oci_archive(&file("oci.tar"), "stest.local/from-oci:v1");
    image.write_docker_archive(&file("docker.tar"), "stest.local/from-docker:v1");
    for (archive, name) in [("oci.tar", "stest.local/from-oci:v1"), ("docker.tar", "stest.local/from-docker:v1")] {
        let loaded = ns.cluster.sternpost(&["image", "load", &file(archive).display().to_string()]).ok();
        assert!(loaded.contains(name), "{loaded}");
        assert!(ns.cluster.sternpost(&["image", "list"]).ok().contains(name));
        let pod = archive.trim_end_matches(".tar");
        once(&ns, pod, name, &["cat", "/version"]);
        ns.wait_for_value(&format!("pod/{pod}"), "{.status.phase}", "Succeeded");
        assert_eq!(ns.kubectl(&["logs", pod]).ok(), "from an archive");
    }
    std::fs::write(file("broken.tar"), b"this is no archive").expect("write a file");
    let refused = ns.cluster.sternpost(&["image", "load", &file("broken.tar").display().to_string()]).fails();
    assert!(refused.contains("broken.tar"), "{refused}");
}

#[test]
fn an_image_is_pulled_from_a_registry_and_kept() {
    let ns = Namespace::new("pull");
    let registry = Registry::start();
    let name = registry.push(&images::busybox("from a registry"), "team/busybox", "v1");
    once(&ns, "first", &name, &["sh", "-c", "cat /version; pwd; echo $FROM_IMAGE"]);
    ns.wait_for_value("pod/first", "{.status.phase}", "Succeeded");
    assert_eq!(
        ns.kubectl(&["logs", "first"]).ok(),
        "from a registry/home\nyes\n",
        "file system, working directory and variables are the image's"
    );
    ns.wait_for_event("first", "Pulled", &format!("Successfully pulled image \"{name}\""));
    let id = ns.value("pod/first", "{.status.containerStatuses[0].imageID}");
    assert!(id.contains("sha256:"), "{id}");
    drop(registry);
    once(&ns, "second", &name, &["cat", "/version"]);
    ns.wait_for_value("pod/second", "{.status.phase}", "Succeeded");
    ns.wait_for_event("second", "Pulled", &format!("Container image \"{name}\" already present on machine"));
}

#[test]
fn an_image_that_does_not_exist_is_tried_again_with_back_off() {
    let ns = Namespace::new("no-image");
    let registry = Registry::start();
    let name = format!("{}/nobody/nothing:v1", registry.address);
    ns.kubectl(&["run", "one", &format!("--image={name}")]).ok();
    let reason = "{.status.containerStatuses[0].state.waiting.reason}";
    wait_for("it cannot be pulled", 60, || {
        let reason = ns.value("pod/one", reason);
        ensure(reason == "ErrImagePull" || reason == "ImagePullBackOff", &reason)
    });
    ns.wait_for_event("one", "Failed", "Error: ErrImagePull");
    ns.wait_for_event("one", "Failed", &format!("Failed to pull image \"{name}\""));
    ns.wait_for_value("pod/one", reason, "ImagePullBackOff");
    let message = ns.value("pod/one", "{.status.containerStatuses[0].state.waiting.message}");
    assert!(message.contains(&format!("Back-off pulling image \"{name}\"")), "{message}");
    ns.wait_for_event("one", "BackOff", &format!("Back-off pulling image \"{name}\""));
    let listed = ns.kubectl(&["get", "pod", "one", "--no-headers"]).ok();
    assert!(listed.contains("0/1") && (listed.contains("ImagePullBackOff") || listed.contains("ErrImagePull")), "{listed}");
    // Once somebody pushes it, the pod runs without anybody touching it.
    registry.push(&images::busybox("late"), "nobody/nothing", "v1");
    wait_for("it was pulled", 90, || {
        let ran = ns.kubectl(&["get", "events", "--field-selector=reason=Pulled,involvedObject.name=one", "-o", "name"]);
        ensure(!ran.stdout.is_empty(), ran)
    });
}

#[test]
fn an_image_that_must_not_be_pulled_and_a_bad_name_say_so() {
    let ns = Namespace::new("image-names");
    ns.kubectl(&["run", "never", "--image=stest.local/absent:v1", "--image-pull-policy=Never"]).ok();
    ns.wait_for_value("pod/never", "{.status.containerStatuses[0].state.waiting.reason}", "ErrImageNeverPull");
    ns.wait_for_event("never", "ErrImageNeverPull", "Container image \"stest.local/absent:v1\" is not present with pull policy of Never");
    ns.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: invalid}\nspec:\n  containers:\n  - {name: main, image: \"stest.local/UPPER:v1\"}\n",
    );
    ns.wait_for_value("pod/invalid", "{.status.containerStatuses[0].state.waiting.reason}", "InvalidImageName");
}

/// Writes a build's folder.
fn folder(ns: &Namespace, files: &[(&str, &str)]) -> String {
    let folder = ns.cluster.dir().join(format!("build-{}", ns.name));
    for (name, content) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("make a folder");
        std::fs::write(path, content).expect("write a file");
    }
    folder.display().to_string()
}

const DOCKERFILE: &str = r#"
ARG BASE
FROM ${BASE} AS maker
ARG WHO=nobody
ENV GREETING="hello $WHO"
WORKDIR /srv/deep
RUN echo "$GREETING" > made && ln -s made link && rm /version && mkdir /var/full && echo x > /var/full/file
RUN test ! -e /version && test "$(pwd)" = /srv/deep && test -n "$WHO" && ip route | grep -q default
COPY --chown=guest *.txt /data/
RUN <<EOF
set -e
stat -c %U:%a /data/a.txt > /data/owner
EOF

FROM ${BASE}
COPY --from=maker /srv/deep /out/
COPY --from=maker /data /data
LABEL made.by="test"
USER guest
HEALTHCHECK CMD true
ENTRYPOINT ["/bin/sh", "-c"]
CMD ["cat /out/link /data/owner; ls /data; id -u; test -e /version && echo kept"]
"#;

#[test]
fn an_image_is_built_in_the_nodes_own_runtime_and_runs_by_its_registry_name() {
    let ns = Namespace::new("build");
    let base = format!("BASE={}", busybox(1));
    let files = [("Dockerfile", DOCKERFILE), ("a.txt", "a"), ("b.txt", "b"), ("secret.txt", "s"), (".dockerignore", "secret*\n")];
    let folder = folder(&ns, &files);
    let name = format!("localhost:{}/team/built:v1", cluster::cluster::names::REGISTRY_PORT);
    let build = |more: &[&str]| {
        let arguments = ["image", "build", "-t", &name, "--build-arg", &base, "--build-arg", "WHO=world"];
        ns.cluster.sternpost(&[&arguments[..], more, &[&folder]].concat())
    };
    let first = build(&[]);
    let said = format!("{}{}", first.stdout, first.stderr);
    assert!(first.ok().contains("named localhost:"), "{said}");
    assert!(said.contains("HEALTHCHECK is left out"), "{said}");
    let again = build(&[]);
    let said = format!("{}{}", again.stdout, again.stderr);
    assert_eq!(said.matches("Using cache").count(), 7, "{said}");
    once(&ns, "built", &name, &[]);
    ns.wait_for_value("pod/built", "{.status.phase}", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "built"]).ok(), "hello world\nguest:644\na.txt\nb.txt\nowner\n1000\nkept\n");
    // With Always it comes from the registry that it is in by its name.
    let image = format!("--image={name}");
    ns.kubectl(&["run", "always", &image, "--restart=Never", "--image-pull-policy=Always"]).ok();
    ns.wait_for_value("pod/always", "{.status.phase}", "Succeeded");
    ns.wait_for_event("always", "Pulled", &format!("Successfully pulled image \"{name}\""));
    let inspect = || ns.cluster.sternpost(&["image", "inspect", &name]);
    let inspected = inspect().ok();
    assert!(inspected.contains("\"made.by\": \"test\"") && inspected.contains("\"User\": \"guest\""), "{inspected}");
    // Saved, removed, loaded: the same image.
    let archive = ns.cluster.dir().join("built.tar").display().to_string();
    ns.cluster.sternpost(&["image", "save", "-o", &archive, &name]).ok();
    ns.kubectl(&["delete", "pod", "built", "always", "--now"]).ok();
    ns.cluster.sternpost(&["image", "rm", &name]).ok();
    assert!(inspect().fails().contains("no such image"));
    ns.cluster.sternpost(&["image", "load", &archive]).ok();
    assert_eq!(inspect().ok(), inspected);
    // What goes wrong is told with its line.
    std::fs::write(format!("{folder}/Dockerfile"), format!("FROM {}\nRUN echo before; exit 7\n", busybox(1))).expect("write");
    let failed = build(&[]).fails();
    assert!(failed.contains("line 2") && failed.contains("returned a non-zero code: 7"), "{failed}");
}

#[test]
fn an_image_goes_to_a_foreign_registry_and_only_who_may_gets_it_back() {
    let ns = Namespace::new("closed");
    let registry = Registry::closed();
    let name = format!("{}/team/private:v1", registry.address);
    registry.push(&images::busybox("private"), "team/private", "v1");
    let pushed = format!("{}/team/pushed:v1", registry.address);
    // No other test has this one: once it was pulled with credentials, a pod without them may not use it under any name.
    ns.cluster.sternpost(&["image", "tag", &busybox(3), &pushed]).ok();
    let refused = ns.cluster.sternpost(&["image", "push", &pushed]).fails();
    assert!(refused.contains("push access denied"), "{refused}");
    ns.cluster.sternpost(&["image", "push", "--creds", "user:secret", &pushed]).ok();
    let server = format!("--docker-server={}", registry.address);
    ns.kubectl(&["create", "secret", "docker-registry", "login", &server, "--docker-username=user", "--docker-password=secret"]).ok();
    let pod = |pod: &str, image: &str, secret: &str| {
        ns.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}}}\nspec:\n  restartPolicy: Never\n  {secret}\n  containers:\n  - {{name: main, image: \"{image}\", command: [cat, /version]}}\n"
        ));
    };
    let refused = |pod: &str| {
        wait_for("it is refused", 60, || {
            let reason = ns.value(&format!("pod/{pod}"), "{.status.containerStatuses[0].state.waiting.reason}");
            ensure(matches!(reason.as_str(), "ErrImagePull" | "ImagePullBackOff"), &reason)
        });
        ns.wait_for_event(pod, "Failed", "authorization failed");
    };
    let login = "imagePullSecrets: [{name: login}]";
    pod("nobody", &name, "");
    refused("nobody");
    pod("owner", &name, login);
    ns.wait_for_value("pod/owner", "{.status.phase}", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "owner"]).ok(), "private");
    // The image is on the node now, and still not everybody's.
    pod("later", &name, "");
    refused("later");
    pod("friend", &name, login);
    ns.wait_for_value("pod/friend", "{.status.phase}", "Succeeded");
    ns.wait_for_event("friend", "Pulled", "already present on machine");
    // A mirror to which the node itself has credentials serves everybody.
    let mirrors = format!(
        "mirrors:\n  far.example:\n    endpoint: [\"http://{0}\"]\n    rewrite: {{\"^their/(.*)\": \"team/$1\"}}\nconfigs:\n  \"{0}\":\n    auth: {{username: user, password: secret}}\n",
        registry.address
    );
    std::fs::write(ns.cluster.dir().join("registries.yaml"), mirrors).expect("write registries.yaml");
    pod("mirrored", "far.example/their/pushed:v1", "");
    ns.wait_for_value("pod/mirrored", "{.status.phase}", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "mirrored"]).ok(), "3");
}

#[test]
fn a_credential_provider_opens_a_registry_to_the_service_accounts_that_it_knows() {
    use std::os::unix::fs::PermissionsExt;
    let ns = Namespace::new("provider");
    let registry = Registry::closed();
    let name = format!("{}/team/provided:v1", registry.address);
    registry.push(&images::busybox("provided"), "team/provided", "v1");
    let folder = ns.cluster.dir().join("providers");
    std::fs::create_dir_all(&folder).expect("a folder");
    let answer = format!(
        "{{\"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Registry\",\"auth\":{{\"{}\":{{\"username\":\"user\",\"password\":\"secret\"}}}}}}",
        registry.address
    );
    // The middle of a token is what it says, in base64.
    let script = format!(
        "#!/bin/sh\nread question\ncase \"$question\" in *'\"team\":\"red\"'*) ;; *) exit 3;; esac\n\
         said=$(echo \"$question\" | sed 's/.*serviceAccountToken\":\"[^.]*\\.\\([^.]*\\).*/\\1==/' | tr _- /+ | base64 -d 2>/dev/null)\n\
         case \"$said\" in *'\"stest-registry\"'*'\"serviceaccount\":{{\"name\":\"red\"'*) echo '{answer}';; *) exit 4;; esac\n"
    );
    std::fs::write(folder.join("stest-provider"), script).expect("write the provider");
    std::fs::set_permissions(folder.join("stest-provider"), std::fs::Permissions::from_mode(0o755)).expect("make it a program");
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: stest-provider\n  matchImages: [\"{}\"]\n  defaultCacheDuration: 10m\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n\
         \x20 tokenAttributes: {{serviceAccountTokenAudience: stest-registry, cacheType: ServiceAccount, requireServiceAccount: true, requiredServiceAccountAnnotationKeys: [team]}}\n",
        registry.address
    );
    std::fs::write(ns.cluster.dir().join("providers.yaml"), config).expect("write the configuration");
    ns.apply("apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: red, annotations: {team: red}}\n---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {name: blue, annotations: {team: blue}}\n");
    let pod = |pod: &str, account: &str| {
        ns.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {pod}}}\nspec:\n  restartPolicy: Never\n  serviceAccountName: {account}\n  containers:\n  - {{name: main, image: \"{name}\", command: [cat, /version]}}\n"
        ));
    };
    pod("owner", "red");
    ns.wait_for_value("pod/owner", "{.status.phase}", "Succeeded");
    assert_eq!(ns.kubectl(&["logs", "owner"]).ok(), "provided");
    // What the node has by now is still not for other accounts.
    for (stranger, account) in [("other", "blue"), ("plain", "default")] {
        pod(stranger, account);
        ns.wait_for_event(stranger, "Failed", "authorization failed");
    }
    pod("friend", "red");
    ns.wait_for_value("pod/friend", "{.status.phase}", "Succeeded");
    ns.wait_for_event("friend", "Pulled", "already present on machine");
}

#[test]
fn a_command_that_does_not_exist_is_named() {
    let ns = Namespace::new("no-command");
    once(&ns, "never", &busybox(1), &["/no/such/command"]);
    ns.wait_for_value("pod/never", "{.status.phase}", "Failed");
    let reason = ns.value("pod/never", "{.status.containerStatuses[0].state.terminated.reason}");
    assert_eq!(reason, "StartError");
    let message = ns.value("pod/never", "{.status.containerStatuses[0].state.terminated.message}");
    assert!(message.contains("/no/such/command") && message.contains("no such file or directory"), "{message}");
    assert_eq!(ns.value("pod/never", "{.status.containerStatuses[0].state.terminated.exitCode}"), "128");
    ns.wait_for_event("never", "Failed", "/no/such/command");
    let image = format!("--image={}", busybox(1));
    ns.kubectl(&["run", "again", &image, "--command", "--", "no-such-word"]).ok();
    wait_for("it waits with the reason", 60, || {
        let reason = ns.value("pod/again", "{.status.containerStatuses[0].state.waiting.reason}");
        ensure(reason == "RunContainerError" || reason == "CrashLoopBackOff", &reason)
    });
    wait_for("it is tried again", 90, || {
        let count = ns.value("pod/again", "{.status.containerStatuses[0].restartCount}");
        ensure(count.parse::<u32>().is_ok_and(|count| count > 0), &count)
    });
}
