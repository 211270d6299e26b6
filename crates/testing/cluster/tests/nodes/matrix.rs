//! Who reaches whom: a printed matrix, with the embedded pod network and with somebody else's.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use cluster::cluster::names;
use cluster::run::{Running, ensure, run};
use cluster::{Cluster, http, wait_for};

use crate::lab::{Machine, Seat, configure, fetch, inside, three_nodes_of, v6};

/// The machine that plays the world outside, and this machine's address on the link to it.
const OUTSIDE: &str = "10.221.8.2";
const GATEWAY: &str = "10.221.8.1";

/// A machine outside that says who calls.
struct Outside {
    _machine: Machine,
    _server: Running,
}

impl Outside {
    fn new(cluster: &Cluster) -> Self {
        let machine = Machine::new("stest-outside", GATEWAY, OUTSIDE);
        let toolbox = cluster.dir().join("toolbox");
        fs::hard_link(cluster.dir().join("sternpost"), &toolbox).unwrap();
        let mut server = Command::new("nsenter");
        server.arg(format!("--net={}", machine.netns().display())).arg(toolbox).args(["serve", "--port", "80"]);
        let server = Running::start(&mut server);
        wait_for("the server outside listens", 10, || inside(&machine.netns(), || http::get(&format!("{OUTSIDE}:80"), "/healthz")));
        Self { _server: server, _machine: machine }
    }

    fn hosts() -> [String; 2] {
        [OUTSIDE.to_owned(), format!("[{}]", v6(OUTSIDE).trim_end_matches("/64"))]
    }
}

/// Rows as they are printed, and what was not as it should be.
#[derive(Default)]
struct Matrix {
    rows: usize,
    cells: usize,
    wrong: Vec<String>,
}

impl Matrix {
    fn row(&mut self, from: &str, cells: impl IntoIterator<Item = (String, Result<(), String>)>) {
        let mut line = format!("{from:<34}");
        for (to, cell) in cells {
            self.cells += 1;
            line.push_str(if cell.is_ok() { " ok" } else { " XX" });
            self.wrong.extend(cell.err().map(|error| format!("{from} → {to}: {error}")));
        }
        self.rows += 1;
        println!("{line}");
    }

    #[track_caller]
    fn is_right(self, what: &str) {
        println!("{what}: {} rows, {} pairs, {} wrong", self.rows, self.cells, self.wrong.len());
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }
}

/// What `row` finds for each, all at the same time.
fn at_once<T: Sync, R: Send>(of: &[T], row: impl Fn(&T) -> R + Sync) -> Vec<R> {
    std::thread::scope(|scope| {
        let row = &row;
        let threads: Vec<_> = of.iter().map(|one| scope.spawn(move || row(one))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn equal(got: &str, wanted: &str) -> Result<(), String> {
    ensure(got == wanted, format!("got {got:?}, not {wanted:?}"))
}

fn one_of(got: &str, wanted: &BTreeSet<&str>) -> Result<(), String> {
    ensure(wanted.contains(got), format!("got {got:?}"))
}

/// The cluster addresses of `web`, as they are written in a URL.
fn service_hosts(cluster: &Cluster) -> Vec<String> {
    let ips = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}"]).ok();
    ips.split(' ').map(|ip| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }).collect()
}

/// Every node's addresses, as they are written in a URL.
fn node_hosts(cluster: &Cluster, node: &str) -> Vec<String> {
    let path = "jsonpath={.status.addresses[?(@.type==\"InternalIP\")].address}";
    let found = cluster.kubectl(&["get", "node", node, "-o", path]).ok();
    found.split(' ').map(|ip| if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }).collect()
}

/// Everything that pods and nodes should reach, by both families; `outside_sees` says whom the machine outside sees for a pod.
fn everything(cluster: &Cluster, seats: &[Seat], outside_sees: impl Fn(&Seat) -> Vec<String> + Sync) {
    let mut matrix = Matrix::default();
    let names: BTreeSet<&str> = seats.iter().map(|seat| seat.pod.as_str()).collect();
    let services = service_hosts(cluster);
    assert_eq!((services.len(), seats[0].hosts().count()), (2, 2), "both families");
    println!("columns: every pod by IPv4 and IPv6, the Service by both, its name in two spellings, the world outside by both");
    let rows = at_once(seats, |from| {
        let pods = seats.iter().flat_map(|to| {
            to.hosts().map(move |host| {
                let got = fetch(cluster, from, &format!("http://{host}:8080/hostname"));
                (format!("{} on {} by {host}", to.pod, to.node), equal(&got, &to.pod))
            })
        });
        let services = services.iter().cloned().chain(["web".into(), "web.default.svc.cluster.local".into()]).map(|host| {
            let got = fetch(cluster, from, &format!("http://{host}/hostname"));
            (host, one_of(&got, &names))
        });
        let outside = Outside::hosts().into_iter().zip(outside_sees(from)).map(|(host, seen)| {
            let got = fetch(cluster, from, &format!("http://{host}/clientip"));
            (format!("outside by {host}"), equal(&got, &seen))
        });
        pods.chain(services).chain(outside).collect::<Vec<_>>()
    });
    for (from, cells) in seats.iter().zip(rows) {
        matrix.row(&format!("{} on {}", from.pod, from.node), cells);
    }
    println!("columns: the node port on every node by IPv4 and IPv6, the Service's addresses");
    let port = cluster.kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.ports[0].nodePort}"]).ok();
    let nodes: BTreeSet<&str> = seats.iter().map(|seat| seat.node.as_str()).collect();
    let places = nodes.iter().map(|node| {
        let netns = cluster.dir().join(format!("run/nodes/{node}/netns"));
        ((*node).to_owned(), if netns.exists() { netns } else { "/proc/self/ns/net".into() })
    });
    for (place, netns) in places {
        let ports = nodes.iter().flat_map(|node| node_hosts(cluster, node)).map(|host| format!("{host}:{port}"));
        let all = ports.chain(services.iter().map(|host| format!("{host}:80")));
        let cells = all.map(|address| {
            let got = inside(&netns, || http::get(&address, "/hostname")).unwrap_or_else(|error| error);
            (address, one_of(got.trim(), &names))
        });
        matrix.row(&format!("node {place}"), cells.collect::<Vec<_>>());
    }
    matrix.is_right("reachability");
}

const PRIVATE: &str = r#"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: private}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress: [{from: [{podSelector: {matchLabels: {role: client}}}], ports: [{port: 8080}]}]
"#;

/// Who may and who may not, from every node and by both families.
fn policies(cluster: &Cluster, seats: &[Seat]) {
    let mut matrix = Matrix::default();
    let nodes: BTreeSet<&str> = seats.iter().map(|seat| seat.node.as_str()).collect();
    let clients: Vec<(String, &str)> =
        nodes.iter().flat_map(|node| ["client", "stranger"].map(|role| (format!("{role}-{node}"), role))).collect();
    for (name, role) in &clients {
        let node = name.strip_prefix(&format!("{role}-")).unwrap();
        let manifest = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{role: {role}}}}}\nspec:\n  nodeName: {node}\n  \
             terminationGracePeriodSeconds: 1\n  containers: [{{name: main, image: sternpost.io/toolbox}}]\n"
        );
        cluster.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    }
    cluster.kubectl_with(&["apply", "-f", "-"], PRIVATE).ok();
    for (name, _) in &clients {
        cluster.kubectl(&["wait", "--for=condition=Ready", "--timeout=60s", &format!("pod/{name}")]).ok();
    }
    let got = |from: &str, host: &str| {
        let url = format!("http://{host}:8080/hostname");
        cluster.kubectl(&["exec", from, "--", "/toolbox", "fetch", "-t", "1", &url]).stdout.trim().to_owned()
    };
    let last = clients.last().unwrap();
    wait_for("the policy holds", 20, || ensure(seats.iter().all(|to| got(&last.0, &to.address).is_empty()), "not yet"));
    println!("columns: every pod by IPv4 and IPv6; clients get in, strangers do not");
    let rows = at_once(&clients, |(from, role)| {
        let cells = seats.iter().flat_map(|to| to.hosts().map(move |host| (host, to))).map(|(host, to)| {
            let wanted = if *role == "client" { to.pod.as_str() } else { "" };
            (format!("{} by {host}", to.pod), equal(&got(from, &host), wanted))
        });
        cells.collect::<Vec<_>>()
    });
    for ((from, _), cells) in clients.iter().zip(rows) {
        matrix.row(from, cells);
    }
    matrix.is_right("policies");
    cluster.kubectl(&["delete", "networkpolicy", "private"]).ok();
}

/// Tables as firewalld and Docker would have them, with a chain where forwarded packets pass.
struct Firewall(Vec<nft::Table>);

const CHAIN: &str = "filter_FORWARD";

impl Firewall {
    fn new() -> Self {
        let mut socket = nft::Socket::netfilter().unwrap();
        let tables = ["stest-firewalld", "stest-docker"].map(nft::Table::inet);
        for table in &tables {
            let mut batch = nft::Batch::new(table);
            batch.add_table();
            batch.add_chain(CHAIN, Some(nft::Hook { kind: nft::ChainKind::Filter, point: nft::HookPoint::Forward, priority: 10 }));
            batch.add_rule(CHAIN, &[nft::Expression::Counter]);
            batch.commit(&mut socket).unwrap();
        }
        Self(tables.into())
    }

    #[track_caller]
    fn is_untouched(&self) {
        let mut socket = nft::Socket::netfilter().unwrap();
        for table in &self.0 {
            assert_eq!(table.chains(&mut socket).unwrap(), [CHAIN]);
        }
    }
}

impl Drop for Firewall {
    fn drop(&mut self) {
        let mut socket = nft::Socket::netfilter().unwrap();
        self.0.iter().for_each(|table| drop(table.delete(&mut socket)));
    }
}

#[test]
fn every_pair_of_pods_nodes_services_names_and_the_world_outside_is_connected_by_both_families() {
    let firewall = Firewall::new();
    let (cluster, seats) = three_nodes_of(Cluster::fresh(), &[]);
    let outside = Outside::new(&cluster);
    // A pod goes out with its node's address, and a further node by way of this machine.
    everything(&cluster, &seats, |_| vec![GATEWAY.into(), v6(GATEWAY).trim_end_matches("/64").into()]);
    policies(&cluster, &seats);
    drop(outside);
    firewall.is_untouched();
    cluster.sternpost(&["down", "--purge"]).ok();
    firewall.is_untouched();
    assert_eq!(cluster.traces(), Vec::<String>::new());
}

/// Pods' ranges on node `number`, and the list of plugins that hands them out.
fn ranges(number: usize) -> [String; 2] {
    [format!("{}{}.0/24", names::POD_NETWORK, 16 * number), format!("fd00:10:222:{number}::/64")]
}

const BRIDGE: &str = "stxcni0";

fn write_plugins(cluster: &Cluster, folder: &std::path::Path, number: usize) {
    fs::create_dir_all(folder).unwrap();
    let [v4, v6] = ranges(number);
    let state = cluster.dir().join(format!("cni-{number}"));
    let list = serde_json::json!({"cniVersion": "1.0.0", "name": "stest", "plugins": [{
        "type": "bridge", "bridge": BRIDGE, "isDefaultGateway": true, "hairpinMode": true,
        "ipam": {"type": "host-local", "dataDir": state, "ranges": [[{"subnet": v4}], [{"subnet": v6}]]},
    }]});
    fs::write(folder.join("10-stest.conflist"), list.to_string()).unwrap();
}

/// Each node knows the others' ranges, as whoever runs the bridge plugin on several machines has to see to.
fn write_routes(cluster: &Cluster) {
    let nodes: Vec<String> =
        (1..=3).map(|number| if number == 1 { cluster.node().to_owned() } else { format!("{}-{number}", cluster.node()) }).collect();
    for here in &nodes {
        for (number, there) in nodes.iter().enumerate().filter(|(_, there)| *there != here) {
            // The host is reached by its address on the nodes' wire.
            let ways = if there == cluster.node() { vec![gateway(4), gateway(6)] } else { node_hosts(cluster, there) };
            for (range, way) in ranges(number + 1).iter().zip(ways) {
                let mut ip = if here == cluster.node() { Command::new("ip") } else { Command::new("nsenter") };
                if here != cluster.node() {
                    ip.arg(format!("--net={}", cluster.dir().join(format!("run/nodes/{here}/netns")).display())).arg("ip");
                }
                run(ip.args(["route", "replace", range, "via", way.trim_matches(['[', ']'])]), "").ok();
            }
        }
    }
}

/// This machine's address on the bridge between the nodes.
fn gateway(family: u8) -> String {
    let shown = run(
        Command::new("ip").args([
            "-o",
            &format!("-{family}"),
            "addr",
            "show",
            "dev",
            &format!("br-{}", names::LINK_PREFIX),
            "scope",
            "global",
        ]),
        "",
    )
    .ok();
    let address = shown.split_whitespace().nth(3).unwrap_or_default();
    address.split('/').next().unwrap_or_default().to_owned()
}

#[test]
fn the_same_pairs_are_connected_by_the_bridge_and_host_local_plugins() {
    let cluster = Cluster::fresh();
    let plugins = ["/usr/lib/cni", "/opt/cni/bin"].into_iter().find(|folder| std::path::Path::new(folder).join("bridge").exists());
    let plugins = plugins.expect("the tests need Debian's containernetworking-plugins");
    let first = cluster.dir().join("net.d");
    configure(&cluster, &format!("network: cni\ncniConfDir: {}\ncniBinDirs: [{plugins}]\n", first.display()));
    write_plugins(&cluster, &first, 1);
    for number in 2..=3 {
        write_plugins(&cluster, &cluster.data_dir().join(format!("nodes/{}-{number}/cni", cluster.node())), number);
    }
    let (cluster, seats) = three_nodes_of(cluster, &[]);
    write_routes(&cluster);
    let outside = Outside::new(&cluster);
    // Nobody was asked to translate: the way back leads over this machine.
    everything(&cluster, &seats, |seat| vec![seat.address.clone(), seat.address_v6.clone()]);
    policies(&cluster, &seats);
    drop(outside);
    cluster.sternpost(&["down", "--purge"]).ok();
    // The bridge is the plugin's, which never removes it.
    run(Command::new("ip").args(["link", "delete", BRIDGE]), "").ok();
    for number in 2..=3 {
        ranges(number).iter().for_each(|range| drop(run(Command::new("ip").args(["route", "delete", range]), "")));
    }
    assert_eq!(cluster.traces(), Vec::<String>::new());
}
