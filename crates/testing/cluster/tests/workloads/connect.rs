//! Commands that open a way into a container: logs, exec, attach, port-forward, cp.

use std::fs;
use std::time::Duration;

use cluster::run::{ensure, run};
use cluster::{Namespace, http, wait_for};

use crate::images::busybox;

/// A namespace with one ready toolbox pod, `one`.
fn one_toolbox(topic: &str) -> Namespace {
    let ns = Namespace::new(topic);
    ns.kubectl(&["run", "one", &format!("--image={}", ns.cluster.toolbox()), "--port=8080"]).ok();
    ns.wait("condition=Ready", &["pod/one"]);
    ns
}

/// A namespace with one ready busybox pod, `one`, that runs this script.
fn one_busybox(topic: &str, script: &str) -> Namespace {
    let ns = Namespace::new(topic);
    ns.kubectl(&["run", "one", &format!("--image={}", busybox(1)), "--", "sh", "-c", script]).ok();
    ns.wait("condition=Ready", &["pod/one"]);
    ns
}

#[test]
fn logs_follow_a_container_and_cut_what_was_asked_for() {
    let ns = one_busybox("logs", "echo first; echo second; sleep 1; echo to stderr >&2; sleep 1; echo third; exec sleep 1000");
    let mut follow = ns.start(&["logs", "-f", "one"]);
    let all = follow.wait_for_output("third\n", 30);
    assert!(all.starts_with("first\nsecond\n") && all.contains("to stderr\n"), "{all}");
    assert_eq!(ns.kubectl(&["logs", "one", "--tail=1"]).ok(), "third\n");
    assert_eq!(ns.kubectl(&["logs", "one", "--limit-bytes=5"]).ok(), "first");
    let stamped = ns.kubectl(&["logs", "one", "--timestamps"]).ok();
    let (time, text) = stamped.lines().next().and_then(|line| line.split_once(' ')).expect("a time before the line");
    assert!(text == "first" && time.ends_with('Z') && time.contains('T'), "{stamped}");
    assert_eq!(ns.kubectl(&["logs", "one", "--since-time=2100-01-01T00:00:00Z"]).ok(), "");
    let wrong = ns.kubectl(&["logs", "one", "-c", "nobody"]).fails();
    assert!(wrong.contains("container nobody is not valid for pod one") || wrong.contains("container \"nobody\" not found"), "{wrong}");
}

#[test]
fn logs_of_all_pods_with_a_label_come_together() {
    let ns = Namespace::new("logs-all");
    ns.kubectl(&["create", "deployment", "web", &format!("--image={}", ns.cluster.toolbox()), "--replicas=2"]).ok();
    ns.wait("condition=Available", &["deployment/web"]);
    let logs = ns.kubectl(&["logs", "-l", "app=web", "--prefix"]).ok();
    assert_eq!(logs.lines().filter(|line| line.contains("toolbox serves HTTP")).count(), 2, "{logs}");
    let one = ns.kubectl(&["logs", "deployment/web"]).ok();
    assert!(one.contains("toolbox serves HTTP on port 8080"), "{one}");
}

#[test]
fn exec_returns_output_exit_code_and_errors_of_the_command() {
    let ns = one_busybox("exec", "exec sleep 1000");
    let ran = ns.exec("one", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((ran.stdout.as_str(), ran.code), ("out\n", Some(7)), "{ran}");
    assert!(ran.stderr.starts_with("err\n") && ran.stderr.contains("command terminated with exit code 7"), "{ran}");
    let missing = ns.exec("one", &["no-such-command"]).fails();
    assert!(missing.contains("no-such-command") && missing.contains("not found"), "{missing}");
    assert_eq!(ns.exec("one", &["hostname"]).ok(), "one\n");
    let wrong = ns.kubectl(&["exec", "one", "-c", "nobody", "--", "true"]).fails();
    assert!(wrong.contains("container nobody is not valid for pod one") || wrong.contains("container not found"), "{wrong}");
    let absent = ns.kubectl(&["exec", "absent", "--", "true"]).fails();
    assert!(absent.contains(r#"pods "absent" not found"#), "{absent}");
}

#[test]
fn exec_passes_piped_input_whole() {
    let ns = one_busybox("exec-in", "exec sleep 1000");
    let input: String = (0..60_000).map(|number| format!("line {number}\n")).collect();
    let ran = ns.kubectl_with(&["exec", "-i", "one", "--", "wc", "-c"], &input).ok();
    assert_eq!(ran.trim(), input.len().to_string());
    let back = ns.kubectl_with(&["exec", "-i", "one", "--", "cat"], &input).ok();
    assert!(back == input, "{} bytes came back of {}", back.len(), input.len());
}

#[test]
fn exec_on_a_terminal_is_interactive_and_knows_its_size() {
    let ns = one_busybox("exec-tty", "exec sleep 1000");
    let mut shell = ns.start_on_terminal(&["exec", "-it", "one", "--", "sh"]);
    shell.wait_for_output("# ", 30);
    shell.write("tty; echo a$((40+2))b\n");
    let output = shell.wait_for_output("a42b", 20);
    assert!(output.contains("/dev/pts/") || output.contains("/dev/console"), "{output}");
    shell.write("exit 3\n");
    let ended = shell.end_within(Duration::from_secs(20));
    assert_eq!(ended.code, Some(3), "{ended}");
    let mut sized = ns.start_on_terminal(&["exec", "-it", "one", "--", "sh", "-c", "sleep 1; stty size"]);
    let ended = sized.end_within(Duration::from_secs(30));
    assert_eq!((ended.stdout.trim(), ended.code), ("41 97", Some(0)), "{ended}");
}

#[test]
fn attach_joins_the_running_process() {
    let ns = Namespace::new("attach");
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: one}}\nspec:\n  containers:\n  - {{name: main, image: \"{}\", stdin: true, command: [sh, -c, 'while read line; do echo got $line; done']}}\n",
        busybox(1)
    );
    ns.apply(&manifest);
    ns.wait("condition=Ready", &["pod/one"]);
    let mut attached = ns.start(&["attach", "-i", "one"]);
    wait_for("the process answers", 30, || {
        attached.write("hello\n");
        std::thread::sleep(Duration::from_millis(300));
        let output = attached.output();
        ensure(output.contains("got hello"), output)
    });
    wait_for("the log has it too", 20, || {
        let log = ns.kubectl(&["logs", "one"]);
        ensure(log.stdout.contains("got hello"), log)
    });
}

#[test]
fn run_with_rm_gives_a_one_time_container() {
    let ns = Namespace::new("run-rm");
    let image = format!("--image={}", busybox(1));
    let ran = ns.kubectl_with(&["run", "once", "--rm", "-i", "--restart=Never", &image, "--", "cat"], "through\n");
    assert!(ran.succeeded() && ran.stdout.contains("through"), "{ran}");
    wait_for("the pod is gone", 60, || {
        let pod = ns.kubectl(&["get", "pod", "once"]);
        ensure(pod.stderr.contains("NotFound"), pod)
    });
}

#[test]
fn port_forward_carries_many_connections() {
    let ns = one_toolbox("forward");
    ns.kubectl(&["expose", "pod", "one", "--port=80", "--target-port=8080"]).ok();
    for target in ["pod/one", "service/one"] {
        let port = if target == "pod/one" { ":8080" } else { ":80" };
        let mut forward = ns.start(&["port-forward", target, port]);
        let said = forward.wait_for_output("Forwarding from 127.0.0.1:", 30);
        let local = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a local port").to_owned();
        let address = format!("127.0.0.1:{local}");
        for _ in 0..10 {
            assert_eq!(http::get(&address, "/hostname").expect("an answer"), "one\n", "{}", forward.output());
        }
        let body = vec![b'x'; 1 << 20];
        let echoed = http::send("POST", &address, "/echo", &[], &body).expect("an answer");
        assert!(echoed.body == body, "{} bytes came back of {}", echoed.body.len(), body.len());
    }
    let mut forward = ns.start(&["port-forward", "pod/one", ":4"]);
    let said = forward.wait_for_output("Forwarding from 127.0.0.1:", 30);
    let local = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a local port").to_owned();
    http::get(&format!("127.0.0.1:{local}"), "/").expect_err("nothing listens there");
    forward.wait_for_output("refused", 20);
}

#[test]
fn cp_copies_files_and_folders_both_ways() {
    for (topic, ns) in [("toolbox", one_toolbox("cp-toolbox")), ("busybox", one_busybox("cp-busybox", "exec sleep 1000"))] {
        let local = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| local.path().join(name).display().to_string();
        let content: String = (0..200_000).map(|number| format!("{number},")).collect();
        fs::create_dir_all(local.path().join("tree/inner")).expect("make folders");
        fs::write(path("tree/inner/file"), &content).expect("write a file");
        ns.kubectl(&["cp", &path("tree"), "one:/tmp/tree"]).ok();
        let back = ns.exec("one", &["cat", "/tmp/tree/inner/file"]).ok();
        assert!(back == content, "{topic}: {} bytes arrived of {}", back.len(), content.len());
        ns.kubectl(&["cp", "one:/tmp/tree", &path("back")]).ok();
        assert!(fs::read_to_string(path("back/inner/file")).expect("the copy") == content, "{topic}");
        ns.kubectl(&["cp", "one:/etc/hostname", &path("hostname")]).ok();
        assert_eq!(fs::read_to_string(path("hostname")).expect("the copy"), "one\n", "{topic}");
    }
}

#[test]
fn what_a_user_may_not_do_is_refused_before_a_container_is_reached() {
    let ns = one_toolbox("connect-rbac");
    for args in [
        &["exec", "one", "--as=jane", "--", "/toolbox", "id"][..],
        &["logs", "one", "--as=jane"],
        &["port-forward", "one", ":8080", "--as=jane"],
    ] {
        let refused = run(&mut ns.command(args), "").fails();
        assert!(refused.contains("Forbidden") && refused.contains("jane"), "{args:?}: {refused}");
    }
}

#[test]
fn older_clients_reach_containers_over_spdy() {
    let ns = one_busybox("spdy", "exec nc -ll -p 8080 -e hostname");
    let spdy = |command: &mut std::process::Command| {
        command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false").env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
    };
    let input: String = (0..60_000).map(|number| format!("line {number}\n")).collect();
    let mut exec = ns.command(&["exec", "-i", "one", "--", "sh", "-c", "cat; echo problem >&2; exit 7"]);
    spdy(&mut exec);
    let ran = run(&mut exec, &input);
    assert!(
        ran.stdout == input && ran.stderr.contains("problem\n") && ran.code == Some(7),
        "{} bytes, {:?}, {}",
        ran.stdout.len(),
        ran.code,
        ran.stderr
    );
    let mut forward = ns.command(&["port-forward", "pod/one", ":8080"]);
    spdy(&mut forward);
    let mut forward = cluster::run::Running::start(&mut forward);
    let said = forward.wait_for_output("Forwarding from 127.0.0.1:", 30);
    let local = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a local port");
    for _ in 0..5 {
        let mut stream = std::net::TcpStream::connect(format!("127.0.0.1:{local}")).expect("connect");
        let mut text = String::new();
        std::io::Read::read_to_string(&mut stream, &mut text).expect("an answer");
        assert_eq!(text, "one\n", "{}", forward.output());
    }
}

#[test]
fn kubectl_proxy_and_the_pods_own_proxy_path_lead_to_a_pod() {
    let ns = one_toolbox("proxy");
    let raw = ns.kubectl(&["get", "--raw", &format!("/api/v1/namespaces/{}/pods/one:8080/proxy/hostname", ns.name)]).ok();
    assert_eq!(raw, "one\n");
    let mut proxy = ns.start(&["proxy", "--port=0"]);
    let said = proxy.wait_for_output("Starting to serve on 127.0.0.1:", 30);
    let address = said.trim().rsplit(' ').next().expect("an address").to_owned();
    let listed = http::get(&address, &format!("/api/v1/namespaces/{}/pods", ns.name)).expect("a list");
    assert!(listed.contains("\"PodList\"") && listed.contains("\"one\""), "{listed}");
}

#[test]
fn an_ephemeral_container_joins_a_running_pod() {
    let ns = one_toolbox("debug");
    let image = format!("--image={}", busybox(1));
    ns.kubectl(&["debug", "one", &image, "--container=look", "--", "sh", "-c", "wget -q -O - http://127.0.0.1:8080/hostname"]).ok();
    wait_for("it looked around in the pod's network", 60, || {
        let log = ns.kubectl(&["logs", "one", "-c", "look"]);
        ensure(log.stdout == "one\n", log)
    });
}
