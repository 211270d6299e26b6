//! Addresses, Services and names, from the host and from inside.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use cluster::cluster::names;
use cluster::run::ensure;
use cluster::{Namespace, http, process, wait_for};

/// `web`: three toolbox pods behind a Service on port 80.
fn web(topic: &str, expose: &[&str]) -> Namespace {
    let ns = Namespace::new(topic);
    ns.kubectl(&["create", "deployment", "web", "--image=sternpost.io/toolbox", "--replicas=3"]).ok();
    ns.kubectl(&[&["expose", "deployment", "web", "--port=80", "--target-port=8080"], expose].concat()).ok();
    ns.wait("condition=Available", &["deployment/web"]);
    ns.wait_for_endpoints("web", 3);
    ns
}

/// Whether every pod answered at least once and none much more often than the others; `answers` are host names.
fn shared_evenly(answers: impl IntoIterator<Item = String>, pods: usize) -> Result<BTreeMap<String, usize>, String> {
    let mut counts = BTreeMap::new();
    answers.into_iter().for_each(|name| *counts.entry(name).or_insert(0) += 1);
    let all: usize = counts.values().sum();
    let fair = all / pods;
    // Chance alone leaves a fair share of 60 below 20 or above 130 less than once in a million runs.
    let even = counts.len() == pods && counts.values().all(|count| (fair / 3..=fair * 13 / 6).contains(count));
    ensure(even, format!("{counts:?}")).map(|()| counts)
}

#[test]
fn a_service_name_resolves_inside_a_pod_and_its_three_endpoints_share_the_load() {
    let ns = web("service", &[]);
    ns.kubectl(&["run", "client", "--image=sternpost.io/toolbox", "--command", "--", "/toolbox", "sleep", "infinity"]).ok();
    ns.wait("condition=Ready", &["pod/client"]);
    let address = ns.value("service/web", "{.spec.clusterIP}");
    assert!(address.starts_with(names::SERVICE_NETWORK), "{address}");
    let (short, half, long) = ("web".to_owned(), format!("web.{}", ns.name), format!("web.{}.svc.cluster.local", ns.name));
    for name in [&short, &half, &long, &format!("{long}.")] {
        assert_eq!(ns.exec("client", &["/toolbox", "resolve", name]).ok(), format!("{address}\n"), "{name}");
    }
    assert_eq!(ns.exec("client", &["/toolbox", "resolve", "kubernetes.default"]).ok(), format!("{}0.1\n", names::SERVICE_NETWORK));
    let missing = ns.exec("client", &["/toolbox", "resolve", "nobody"]).fails();
    assert!(missing.contains("no such name"), "{missing}");
    let answers = ns.exec("client", &["/toolbox", "fetch", "-n", "180", "http://web/hostname"]).ok();
    let counts = shared_evenly(answers.lines().map(str::to_owned), 3).unwrap_or_else(|counts| panic!("uneven: {counts}"));
    let pods = ns.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].metadata.name}"]).ok();
    assert!(counts.keys().all(|name| pods.contains(name.as_str())), "{counts:?} are not {pods}");
    // A pod is seen under its own address by others.
    let client = ns.value("pod/client", "{.status.podIP}");
    assert_eq!(ns.exec("client", &["/toolbox", "fetch", "http://web/clientip"]).ok().trim(), client);
}

#[test]
fn pods_reach_each_other_themselves_and_the_node_without_translation() {
    let ns = web("direct", &[]);
    let pods = ns.json(&["pods"]);
    let pods: Vec<(String, String)> = pods["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|pod| {
            (
                pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                pod["status"]["podIP"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    for (from, own) in &pods {
        for (to, address) in &pods {
            let url = format!("http://{address}:8080");
            assert_eq!(ns.exec(from, &["/toolbox", "fetch", &format!("{url}/hostname")]).ok().trim(), to);
            assert_eq!(ns.exec(from, &["/toolbox", "fetch", &format!("{url}/clientip")]).ok().trim(), own);
        }
        // Through the Service to whichever pod, itself included.
        for _ in 0..6 {
            ns.exec(from, &["/toolbox", "fetch", "-t", "3", "http://web/hostname"]).ok();
        }
    }
    let on_host = TcpListener::bind("0.0.0.0:0").expect("a free port");
    let port = on_host.local_addr().expect("an address").port();
    let served = std::thread::spawn(move || {
        let (mut stream, _) = on_host.accept().expect("a connection");
        let _ = stream.read(&mut [0; 1024]);
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nhost").expect("answer");
    });
    let url = format!("http://{}:{port}/", ns.cluster.node_address());
    assert_eq!(ns.exec(&pods[0].0, &["/toolbox", "fetch", &url]).ok(), "host");
    served.join().expect("the server on the host");
}

#[test]
fn each_pod_has_a_network_of_its_own() {
    let ns = Namespace::new("netns");
    ns.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec:\n  containers:\n  - {name: a, image: sternpost.io/toolbox, env: [{name: MARK, value: netns-a}]}\n  - {name: b, image: sternpost.io/toolbox, command: [/toolbox, sleep, infinity], env: [{name: MARK, value: netns-b}]}\n",
    );
    ns.wait("condition=Ready", &["pod/one"]);
    let (a, b) = (process::with_variable("MARK=netns-a").remove(0), process::with_variable("MARK=netns-b").remove(0));
    let own = process::Process::of(std::process::id() as i32).expect("this process");
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(a.namespace(kind), b.namespace(kind), "containers of a pod share {kind}");
        assert_ne!(a.namespace(kind), own.namespace(kind), "a pod does not share the host's {kind}");
    }
    for kind in ["mnt", "pid"] {
        assert_ne!(a.namespace(kind), b.namespace(kind), "containers of a pod have their own {kind}");
        assert_ne!(a.namespace(kind), own.namespace(kind));
    }
    // The second container reaches the first over loopback.
    assert_eq!(ns.kubectl(&["exec", "one", "-c", "b", "--", "/toolbox", "fetch", "http://127.0.0.1:8080/hostname"]).ok(), "one\n");
    let address = ns.value("pod/one", "{.status.podIP}");
    let mut ip = std::process::Command::new("nsenter");
    ip.args(["-t", &a.id.to_string(), "-n", "ip", "-4", "-o", "address", "show", "eth0"]);
    let shown = cluster::run(&mut ip, "").ok();
    assert!(shown.contains(&format!("inet {address}/32")), "{shown}");
}

#[test]
fn a_node_port_answers_on_the_host_and_a_cluster_address_too() {
    let ns = web("nodeport", &["--type=NodePort"]);
    let port = ns.value("service/web", "{.spec.ports[0].nodePort}");
    assert!((30_000..=32_767).contains(&port.parse::<u32>().expect("a port")), "{port}");
    let cluster_address = ns.value("service/web", "{.spec.clusterIP}");
    for address in [format!("{}:{port}", ns.cluster.node_address()), format!("{cluster_address}:80")] {
        wait_for("the Service answers", 20, || http::get(&address, "/healthz"));
        let answers = (0..180).map(|_| http::get(&address, "/hostname").unwrap_or_else(|error| error).trim().to_owned());
        shared_evenly(answers, 3).unwrap_or_else(|counts| panic!("uneven at {address}: {counts}"));
    }
    ns.kubectl(&["delete", "service", "web"]).ok();
    wait_for("nobody answers any more", 20, || {
        let answer = http::get(&format!("{}:{port}", ns.cluster.node_address()), "/healthz");
        ensure(answer.is_err(), "it still answers")
    });
}

#[test]
fn a_service_without_endpoints_refuses_at_once() {
    let ns = web("empty", &[]);
    let address = format!("{}:80", ns.value("service/web", "{.spec.clusterIP}"));
    wait_for("the Service answers", 20, || http::get(&address, "/healthz"));
    ns.kubectl(&["scale", "deployment", "web", "--replicas=0"]).ok();
    wait_for("connections are refused", 60, || {
        match TcpStream::connect_timeout(&address.parse().expect("an address"), Duration::from_secs(2)) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    ns.kubectl(&["scale", "deployment", "web", "--replicas=1"]).ok();
    wait_for("the Service answers again", 60, || http::get(&address, "/healthz"));
}

#[test]
fn udp_goes_through_a_service() {
    let ns = Namespace::new("udp");
    ns.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: echo, labels: {app: echo}}\nspec:\n  containers:\n  - {name: main, image: sternpost.io/toolbox}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata: {name: echo}\nspec: {selector: {app: echo}, ports: [{name: u, protocol: UDP, port: 7, targetPort: 8081}, {name: t, protocol: TCP, port: 7, targetPort: 8081}]}\n",
    );
    ns.wait("condition=Ready", &["pod/echo"]);
    let address = format!("{}:7", ns.value("service/echo", "{.spec.clusterIP}"));
    wait_for("a datagram comes back", 20, || {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
        socket.set_read_timeout(Some(Duration::from_secs(1))).map_err(|error| error.to_string())?;
        socket.send_to(b"hello", &address).map_err(|error| error.to_string())?;
        let mut buffer = [0; 64];
        let count = socket.recv(&mut buffer).map_err(|error| error.to_string())?;
        ensure(&buffer[..count] == b"hello", "something else came back")
    });
    let mut stream = TcpStream::connect(&address).expect("connect");
    stream.write_all(b"over TCP").expect("send");
    let mut buffer = [0; 8];
    stream.read_exact(&mut buffer).expect("an echo");
    assert_eq!(&buffer, b"over TCP");
}

#[test]
fn a_headless_service_resolves_to_its_pods() {
    let ns = web("headless", &["--cluster-ip=None"]);
    ns.kubectl(&["run", "client", "--image=sternpost.io/toolbox", "--command", "--", "/toolbox", "sleep", "infinity"]).ok();
    ns.wait("condition=Ready", &["pod/client"]);
    let mut wanted: Vec<String> = ns
        .kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].status.podIP}"])
        .ok()
        .split(' ')
        .map(str::to_owned)
        .collect();
    wanted.sort();
    wait_for("all addresses", 20, || {
        let found = ns.exec("client", &["/toolbox", "resolve", "web"]);
        let mut addresses: Vec<&str> = found.stdout.lines().collect();
        addresses.sort_unstable();
        ensure(addresses == wanted, &found)
    });
}

#[test]
fn sessions_stick_to_one_endpoint_when_asked_to() {
    let ns = web("affinity", &["--session-affinity=ClientIP"]);
    let address = format!("{}:80", ns.value("service/web", "{.spec.clusterIP}"));
    let first = wait_for("the Service answers", 20, || http::get(&address, "/hostname"));
    for _ in 0..20 {
        assert_eq!(http::get(&address, "/hostname").as_ref(), Ok(&first));
    }
}

#[test]
fn a_host_port_leads_to_the_pod_and_only_one_pod_gets_it() {
    let ns = Namespace::new("hostport");
    let pod = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - {{name: main, image: sternpost.io/toolbox, ports: [{{containerPort: 8080, hostPort: 26080}}]}}\n"
        )
    };
    ns.apply(&pod("one"));
    ns.wait("condition=Ready", &["pod/one"]);
    let address = format!("{}:26080", ns.cluster.node_address());
    wait_for("the host port answers", 20, || http::get(&address, "/hostname").and_then(|name| ensure(name == "one\n", name)));
    // The conformance tests ask for this one, too.
    assert_eq!(http::get("127.0.0.1:26080", "/hostname").as_deref(), Ok("one\n"));
    ns.apply(&pod("two"));
    ns.wait_for_event("two", "FailedScheduling", "1 node(s) didn't have free ports for the requested pod ports");
    ns.kubectl(&["delete", "pod", "one"]).ok();
    ns.wait("condition=Ready", &["pod/two"]);
    wait_for("it leads to the second", 20, || http::get(&address, "/hostname").and_then(|name| ensure(name == "two\n", name)));
}

#[test]
fn a_host_port_that_a_process_of_the_host_listens_on_is_refused_by_an_event_until_it_is_free() {
    let ns = Namespace::new("hosttaken");
    let held = std::net::TcpListener::bind("0.0.0.0:26084").unwrap();
    ns.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: late}\nspec:\n  containers:\n  - {name: main, image: sternpost.io/toolbox, ports: [{containerPort: 8080, hostPort: 26084}]}\n",
    );
    ns.wait_for_event("late", "FailedCreatePodSandBox", "cannot open host port 26084/TCP: a process of this node listens on it already");
    // Its own callers go on reaching the process.
    let address = format!("{}:26084", ns.cluster.node_address());
    let caller = std::net::TcpStream::connect(&address).unwrap();
    assert_eq!(held.accept().unwrap().1, caller.local_addr().unwrap());
    drop((held, caller));
    ns.wait("condition=Ready", &["pod/late"]);
    wait_for("the host port answers", 20, || http::get(&address, "/hostname").and_then(|name| ensure(name == "late\n", name)));
}

#[test]
fn the_same_host_port_on_other_addresses_is_another_port() {
    let ns = Namespace::new("hostip");
    for (name, address) in [("loopback", "127.0.0.1".to_owned()), ("node", ns.cluster.node_address())] {
        ns.apply(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - {{name: main, image: sternpost.io/toolbox, ports: [{{containerPort: 8080, hostPort: 26083, hostIP: {address}}}]}}\n"
        ));
    }
    ns.wait("condition=Ready", &["pod/loopback", "pod/node"]);
    for (name, address) in [("loopback", "127.0.0.1".to_owned()), ("node", ns.cluster.node_address())] {
        let wanted = format!("{name}\n");
        wait_for("its own pod answers", 20, || {
            http::get(&format!("{address}:26083"), "/hostname").and_then(|name| ensure(name == wanted, name))
        });
    }
}

#[test]
fn a_pod_on_the_hosts_network_has_the_nodes_address() {
    let ns = Namespace::new("hostnet");
    ns.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: one}\nspec:\n  hostNetwork: true\n  containers:\n  - {name: main, image: sternpost.io/toolbox, args: [serve, --port, '26081', --echo-port, '26082']}\n");
    ns.wait("condition=Ready", &["pod/one"]);
    assert_eq!(ns.value("pod/one", "{.status.podIP}"), ns.cluster.node_address());
    wait_for("it answers on the host", 20, || http::get("127.0.0.1:26081", "/healthz"));
}

#[test]
fn the_pods_name_files_are_as_the_dns_policy_says() {
    let ns = Namespace::new("resolv");
    ns.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: cluster}\nspec:\n  hostname: special\n  hostAliases: [{ip: 192.0.2.9, hostnames: [far.example]}]\n  containers:\n  - {name: main, image: sternpost.io/toolbox}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: own}\nspec:\n  dnsPolicy: None\n  dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: '2'}]}\n  containers:\n  - {name: main, image: sternpost.io/toolbox}\n",
    );
    ns.wait("condition=Ready", &["pod/cluster", "pod/own"]);
    let conf = ns.exec("cluster", &["/toolbox", "cat", "/etc/resolv.conf"]).ok();
    let search = format!("search {0}.svc.cluster.local svc.cluster.local cluster.local", ns.name);
    assert!(
        conf.contains(&format!("nameserver {}0.10", names::SERVICE_NETWORK)) && conf.contains(&search) && conf.contains("options ndots:5"),
        "{conf}"
    );
    let hosts = ns.exec("cluster", &["/toolbox", "cat", "/etc/hosts"]).ok();
    assert!(hosts.contains("192.0.2.9\tfar.example") && hosts.contains("special"), "{hosts}");
    assert_eq!(ns.exec("cluster", &["/toolbox", "hostname"]).ok(), "special\n");
    let conf = ns.exec("own", &["/toolbox", "cat", "/etc/resolv.conf"]).ok();
    assert_eq!(conf.lines().collect::<Vec<_>>(), ["search a.example", "nameserver 192.0.2.53", "options ndots:2"]);
}
