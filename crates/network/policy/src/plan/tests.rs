//! Plans, run on packets, against a reference that reads the objects as the documents say and knows nothing of chains and sets.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::*;
use crate::model::{SCTP, TCP, UDP};
use crate::read;

/// A packet of a new connection.
#[derive(Clone, Copy, Debug)]
struct Packet {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
}

/// What the kernel would do: the base chain of each direction, where the pod is on the plan's node.
fn passes(plan: &Plan, packet: Packet) -> bool {
    let egress = plan.egress.get(&packet.source).is_none_or(|chain| run(plan, chain, packet) == Some(true));
    egress && plan.ingress.get(&packet.destination).is_none_or(|chain| run(plan, chain, packet) == Some(true))
}

fn run(plan: &Plan, chain: &str, packet: Packet) -> Option<bool> {
    let (direction, steps) = &plan.chains[chain];
    for step in steps.iter().filter(|step| matches(plan, *direction, step, packet)) {
        match &step.verdict {
            Verdict::Accept => return Some(true),
            Verdict::Drop => return Some(false),
            Verdict::Goto(next) => return run(plan, next, packet),
            Verdict::Jump(next) => {
                if let Some(decided) = run(plan, next, packet) {
                    return Some(decided);
                }
            }
        }
    }
    None
}

fn matches(plan: &Plan, direction: Direction, step: &Step, packet: Packet) -> bool {
    let other = if direction == Direction::Ingress { packet.source } else { packet.destination };
    let whom = match &step.whom {
        Whom::Anyone => true,
        Whom::Itself => packet.source == packet.destination,
        Whom::Among(set) => plan.members[set].contains(&other),
        Whom::Within { network, except } => inside(other, *network) && !except.iter().any(|network| inside(other, *network)),
    };
    let what = match &step.what {
        What::Anything => true,
        What::Ports { protocol, first, last } => *protocol == packet.protocol && (*first..=*last).contains(&packet.port),
        What::Named(set) => plan.named[set].contains(&(packet.destination, packet.protocol, packet.port)),
    };
    whom && what
}

fn inside(address: IpAddr, (network, prefix): Cidr) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, true),
        IpAddr::V6(address) => (address.to_bits(), false),
    };
    let ((address, v4), (network, network_v4)) = (bits(address), bits(network));
    v4 == network_v4 && (prefix == 0 || (address ^ network) >> (128 - u32::from(prefix)) == 0)
}

/// The cluster of the tables: three namespaces with three pods each, on two nodes; every pod has two addresses and serves two ports.
struct Scene {
    namespaces: Vec<(&'static str, Value)>,
    pods: Vec<Value>,
}

fn scene() -> Scene {
    let namespaces =
        vec![("x", json!({"ns": "x", "team": "red"})), ("y", json!({"ns": "y", "team": "blue"})), ("z", json!({"ns": "z", "team": "red"}))];
    let mut pods = Vec::new();
    for (i, (namespace, _)) in namespaces.iter().enumerate() {
        for (j, pod) in ["a", "b", "c"].iter().enumerate() {
            let number = i * 3 + j + 2;
            pods.push(json!({
                "namespace": namespace, "name": pod, "labels": {"pod": pod, "even": (number % 2 == 0).to_string()},
                "node": if number % 2 == 0 { "one" } else { "two" },
                "addresses": [format!("10.244.{i}.{number}"), format!("fd00:{i}::{number}")],
                // The same name is another number in every namespace.
                "ports": [{"name": "web", "protocol": "TCP", "port": 80 + i}, {"name": "dns", "protocol": "UDP", "port": 53 + i}],
            }));
        }
    }
    Scene { namespaces, pods }
}

impl Scene {
    fn world(&self, node: &str, policies: &[Value]) -> World {
        let labels = |value: &Value| -> Labels { serde_json::from_value(value.clone()).unwrap() };
        let pod = |pod: &Value| Pod {
            namespace: pod["namespace"].as_str().unwrap().into(),
            labels: labels(&pod["labels"]),
            addresses: pod["addresses"].as_array().unwrap().iter().map(|ip| ip.as_str().unwrap().parse().unwrap()).collect(),
            node: pod["node"].as_str().unwrap().into(),
            ports: pod["ports"]
                .as_array()
                .unwrap()
                .iter()
                .map(|port| {
                    let protocol = crate::model::protocol_number(port["protocol"].as_str().unwrap()).unwrap();
                    (port["name"].as_str().unwrap().into(), protocol, port["port"].as_u64().unwrap() as u16)
                })
                .collect(),
        };
        World {
            node: node.into(),
            namespaces: self.namespaces.iter().map(|(name, value)| ((*name).to_owned(), labels(value))).collect(),
            pods: self.pods.iter().map(pod).collect(),
            nodes: vec![([("kubernetes.io/hostname".to_owned(), "one".to_owned())].into(), vec!["192.0.2.1".parse().unwrap()])],
            policies: policies
                .iter()
                .map(|policy| {
                    if policy["kind"] == "NetworkPolicy" { read::network_policy(policy) } else { read::cluster_policy(policy) }.unwrap()
                })
                .collect(),
        }
    }

    /// Both nodes' plans: a packet passes where the source's node lets it out and the destination's lets it in.
    fn compare(&self, policies: &[Value]) -> usize {
        let plans = ["one", "two"].map(|node| plan(&self.world(node, policies)));
        let mut compared = 0;
        let outside: Vec<Value> = vec![json!({"addresses": ["203.0.113.9", "2001:db8::9"], "ports": []})];
        for family in 0..2 {
            for from in self.pods.iter().chain(&outside) {
                for to in self.pods.iter().chain(&outside) {
                    for protocol in [TCP, UDP, SCTP] {
                        for port in [53, 54, 80, 81, 82, 443] {
                            let address = |pod: &Value| pod["addresses"][family].as_str().unwrap().parse().unwrap();
                            let packet = Packet { source: address(from), destination: address(to), protocol, port };
                            let got = plans.iter().all(|plan| passes(plan, packet));
                            let expected = self.reference(policies, from, to, packet);
                            assert_eq!(got, expected, "{packet:?}\n{}", serde_json::to_string_pretty(policies).unwrap());
                            compared += 1;
                        }
                    }
                }
            }
        }
        compared
    }

    fn reference(&self, policies: &[Value], from: &Value, to: &Value, packet: Packet) -> bool {
        from["addresses"] == to["addresses"] && from["node"].is_string()
            || self.side(policies, "egress", from, to, packet) && self.side(policies, "ingress", to, from, packet)
    }

    /// Whether the pod's own side of the connection is open.
    fn side(&self, policies: &[Value], side: &str, pod: &Value, other: &Value, packet: Packet) -> bool {
        if pod["node"].is_null() {
            return true;
        }
        let peers = if side == "ingress" { "from" } else { "to" };
        let destination = if side == "ingress" { pod } else { other };
        let other_address = if side == "ingress" { packet.source } else { packet.destination };
        if let Some(decided) = self.tier(policies, "Admin", side, peers, pod, other, destination, other_address, packet) {
            return decided;
        }
        let mut isolated = false;
        for policy in policies.iter().filter(|policy| policy["kind"] == "NetworkPolicy") {
            let types: Vec<&str> = policy["spec"]["policyTypes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let covers = match (types.is_empty(), side) {
                (false, _) => types.iter().any(|name| name.to_lowercase() == side),
                (true, "ingress") => true,
                (true, _) => policy["spec"]["egress"].as_array().is_some_and(|rules| !rules.is_empty()),
            };
            let selected = policy["metadata"]["namespace"] == pod["namespace"] && chosen(&policy["spec"]["podSelector"], &pod["labels"]);
            if !covers || !selected {
                continue;
            }
            isolated = true;
            for rule in policy["spec"][side].as_array().into_iter().flatten() {
                let list = rule[peers].as_array().filter(|list| !list.is_empty());
                let peer_fits = list.is_none_or(|list| list.iter().any(|peer| self.peer(peer, policy, other, other_address)));
                let list = rule["ports"].as_array().filter(|list| !list.is_empty());
                let port_fits = list.is_none_or(|list| list.iter().any(|port| port_is(port, destination, packet)));
                if peer_fits && port_fits {
                    return true;
                }
            }
        }
        if isolated {
            return false;
        }
        self.tier(policies, "Baseline", side, peers, pod, other, destination, other_address, packet).unwrap_or(true)
    }

    #[allow(clippy::too_many_arguments)]
    fn tier(
        &self,
        policies: &[Value],
        tier: &str,
        side: &str,
        peers: &str,
        pod: &Value,
        other: &Value,
        destination: &Value,
        other_address: IpAddr,
        packet: Packet,
    ) -> Option<bool> {
        let mut ours: Vec<&Value> = policies.iter().filter(|policy| policy["spec"]["tier"] == tier).collect();
        ours.sort_by_key(|policy| (policy["spec"]["priority"].as_i64(), policy["metadata"]["name"].as_str()));
        for policy in ours {
            if !self.pod_is(&policy["spec"]["subject"], pod) {
                continue;
            }
            for rule in policy["spec"][side].as_array().into_iter().flatten() {
                let peer = rule[peers].as_array().unwrap().iter().any(|peer| match peer["networks"].as_array() {
                    Some(networks) => networks.iter().any(|network| inside(other_address, read::cidr(network.as_str().unwrap()).unwrap())),
                    None => self.pod_is(peer, other),
                });
                let ports = rule["protocols"].as_array().filter(|list| !list.is_empty());
                let port = ports.is_none_or(|list| {
                    list.iter().any(|entry| match entry["destinationNamedPort"].as_str() {
                        Some(name) => destination["ports"].as_array().unwrap().iter().any(|port| {
                            port["name"] == name && port["port"] == packet.port && protocol_is(port["protocol"].as_str().unwrap(), packet)
                        }),
                        None => ["tcp", "udp", "sctp"].iter().any(|name| {
                            entry.get(name).is_some_and(|chosen| {
                                let wanted = &chosen["destinationPort"];
                                let start = wanted["number"].as_u64().or(wanted["range"]["start"].as_u64()).unwrap_or(0);
                                let end = wanted["number"].as_u64().or(wanted["range"]["end"].as_u64()).unwrap_or(65_535);
                                protocol_is(&name.to_uppercase(), packet) && (start..=end).contains(&packet.port.into())
                            })
                        }),
                    })
                });
                if peer && port {
                    match rule["action"].as_str().unwrap() {
                        "Accept" => return Some(true),
                        "Deny" => return Some(false),
                        _ => return None,
                    }
                }
            }
        }
        None
    }

    /// `namespaces` or `pods`.
    fn pod_is(&self, wanted: &Value, pod: &Value) -> bool {
        let Some(namespace) = self.namespace_labels(pod) else { return false };
        match wanted.get("namespaces") {
            Some(selector) => chosen(selector, namespace),
            None => chosen(&wanted["pods"]["namespaceSelector"], namespace) && chosen(&wanted["pods"]["podSelector"], &pod["labels"]),
        }
    }

    fn peer(&self, peer: &Value, policy: &Value, other: &Value, address: IpAddr) -> bool {
        if let Some(block) = peer.get("ipBlock") {
            let within = |text: &Value| inside(address, read::cidr(text.as_str().unwrap()).unwrap());
            return within(&block["cidr"]) && !block["except"].as_array().into_iter().flatten().any(within);
        }
        let Some(namespace) = self.namespace_labels(other) else { return false };
        let namespace_fits = match peer.get("namespaceSelector") {
            Some(selector) => chosen(selector, namespace),
            None => policy["metadata"]["namespace"] == other["namespace"],
        };
        namespace_fits && peer.get("podSelector").is_none_or(|selector| chosen(selector, &other["labels"]))
    }

    fn namespace_labels(&self, pod: &Value) -> Option<&Value> {
        self.namespaces.iter().find(|(name, _)| pod["namespace"] == *name).map(|(_, labels)| labels)
    }
}

fn chosen(selector: &Value, labels: &Value) -> bool {
    let equal = selector["matchLabels"].as_object().into_iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten().all(|expression| {
        let value = labels.get(expression["key"].as_str().unwrap());
        let listed = || value.is_some_and(|value| expression["values"].as_array().unwrap().contains(value));
        match expression["operator"].as_str().unwrap() {
            "In" => listed(),
            "NotIn" => !listed(),
            "Exists" => value.is_some(),
            _ => value.is_none(),
        }
    });
    equal && expressions
}

fn protocol_is(name: &str, packet: Packet) -> bool {
    crate::model::protocol_number(name) == Some(packet.protocol)
}

fn port_is(port: &Value, destination: &Value, packet: Packet) -> bool {
    if !protocol_is(port["protocol"].as_str().unwrap_or("TCP"), packet) {
        return false;
    }
    match &port["port"] {
        Value::Null => true,
        Value::String(name) => destination["ports"]
            .as_array()
            .unwrap()
            .iter()
            .any(|its| its["name"] == *name && its["port"] == packet.port && protocol_is(its["protocol"].as_str().unwrap(), packet)),
        number => (number.as_u64().unwrap()..=port["endPort"].as_u64().or(number.as_u64()).unwrap()).contains(&packet.port.into()),
    }
}

/// SplitMix64: the same cases in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }
    fn some(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> Value) -> Value {
        let count = self.below(most + 1);
        Value::Array((0..count).map(|_| make(self)).collect())
    }

    fn selector(&mut self, key: &str, values: [&str; 3]) -> Value {
        match self.below(6) {
            0 => json!({}),
            1 | 2 => json!({"matchLabels": {key: self.of(&values)}}),
            3 => json!({"matchExpressions": [{"key": key, "operator": "In", "values": [self.of(&values), self.of(&values)]}]}),
            4 => json!({"matchExpressions": [{"key": key, "operator": "NotIn", "values": [self.of(&values)]}]}),
            _ => json!({"matchExpressions": [{"key": self.of(&[key, "absent"]), "operator": self.of(&["Exists", "DoesNotExist"])}]}),
        }
    }
    fn pods(&mut self) -> Value {
        self.selector("pod", ["a", "b", "c"])
    }
    fn namespaces(&mut self) -> Value {
        if self.below(2) == 0 { self.selector("ns", ["x", "y", "z"]) } else { self.selector("team", ["red", "blue", "green"]) }
    }
    fn block(&mut self) -> Value {
        let (network, exceptions) = self.of(&[
            ("0.0.0.0/0", ["10.244.0.0/24", "203.0.113.9/32"]),
            ("10.244.0.0/16", ["10.244.1.0/24", "10.244.0.3/32"]),
            ("::/0", ["fd00:1::/64", "2001:db8::/32"]),
            ("203.0.113.0/24", ["203.0.113.0/25", "203.0.113.128/25"]),
        ]);
        json!({"ipBlock": {"cidr": network, "except": self.some(2, |dice| dice.of(&exceptions).into())}})
    }
    fn peer(&mut self) -> Value {
        match self.below(4) {
            0 => json!({"podSelector": self.pods()}),
            1 => json!({"namespaceSelector": self.namespaces()}),
            2 => json!({"namespaceSelector": self.namespaces(), "podSelector": self.pods()}),
            _ => self.block(),
        }
    }
    fn port(&mut self) -> Value {
        let protocol = self.of(&["TCP", "UDP", "SCTP"]);
        match self.below(5) {
            0 => json!({"protocol": protocol}),
            1 => json!({"port": self.of(&[80, 81, 443])}),
            2 => json!({"protocol": protocol, "port": self.of(&["web", "dns", "nothing"])}),
            3 => json!({"protocol": protocol, "port": 53, "endPort": self.of(&[54, 81])}),
            _ => json!({"protocol": protocol, "port": self.of(&[53, 80, 82])}),
        }
    }
    fn network_policy(&mut self, number: usize) -> Value {
        let mut spec = json!({"podSelector": self.pods()});
        if let Some(types) = self.of(&[None, Some(vec!["Ingress"]), Some(vec!["Egress"]), Some(vec!["Ingress", "Egress"])]) {
            spec["policyTypes"] = json!(types);
        }
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            if self.below(3) > 0 {
                spec[direction] = self.some(2, |dice| {
                    let mut rule = json!({"ports": dice.some(2, Self::port)});
                    rule[peers] = dice.some(2, Self::peer);
                    rule
                });
            }
        }
        json!({"kind": "NetworkPolicy", "metadata": {"name": format!("p{number}"), "namespace": self.of(&["x", "y", "z"])}, "spec": spec})
    }
    fn chosen_pods(&mut self) -> Value {
        match self.below(2) {
            0 => json!({"namespaces": self.namespaces()}),
            _ => json!({"pods": {"namespaceSelector": self.namespaces(), "podSelector": self.pods()}}),
        }
    }
    fn cluster_policy(&mut self, number: usize) -> Value {
        let mut spec = json!({"tier": self.of(&["Admin", "Baseline"]), "priority": self.below(4), "subject": self.chosen_pods()});
        for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
            spec[direction] = self.some(2, |dice| {
                let mut rule = json!({"action": dice.of(&["Accept", "Deny", "Pass"]), "protocols": dice.some(2, |dice| match dice.below(4) {
                    0 => json!({"tcp": {}}),
                    1 => json!({"destinationNamedPort": dice.of(&["web", "dns"])}),
                    2 => json!({"udp": {"destinationPort": {"number": 53}}}),
                    _ => json!({"tcp": {"destinationPort": {"range": {"start": 80, "end": dice.of(&[81, 443])}}}}),
                })});
                rule[peers] = Value::Array(vec![if direction == "egress" && dice.below(3) == 0 {
                    json!({"networks": [dice.of(&["10.244.1.0/24", "0.0.0.0/0", "fd00:2::/64"])]})
                } else {
                    dice.chosen_pods()
                }]);
                rule
            });
        }
        json!({"kind": "ClusterNetworkPolicy", "metadata": {"name": format!("c{number}")}, "spec": spec})
    }
}

#[test]
fn hundreds_of_generated_policies_let_through_what_the_documents_say() {
    let scene = scene();
    let mut dice = Dice(7);
    let (mut policies, mut compared, mut open) = (0, 0, BTreeSet::new());
    for _ in 0..110 {
        let together: Vec<Value> = (0..1 + dice.below(4)).map(|number| dice.network_policy(number)).collect();
        policies += together.len();
        compared += scene.compare(&together);
        open.insert(plan(&scene.world("one", &together)).is_empty());
    }
    println!("{policies} policies in 110 clusters, {compared} packets");
    assert!(policies > 200 && open.len() == 2);
}

#[test]
fn administrators_policies_come_before_and_after_those_of_namespaces() {
    let scene = scene();
    let mut dice = Dice(11);
    for _ in 0..80 {
        let mut together: Vec<Value> = (0..1 + dice.below(3)).map(|number| dice.cluster_policy(number)).collect();
        together.extend((0..dice.below(3)).map(|number| dice.network_policy(number)));
        scene.compare(&together);
    }
}

#[test]
fn pods_that_the_same_policies_select_share_their_chain_and_a_new_pod_makes_none() {
    let scene = scene();
    let policies = [json!({"kind": "NetworkPolicy", "metadata": {"namespace": "x", "name": "p"}, "spec": {
        "podSelector": {}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"pod": "a"}}}]}]}})];
    let mut world = scene.world("one", &policies);
    let before = plan(&world);
    let heads: BTreeSet<&String> = before.ingress.values().collect();
    assert_eq!((before.ingress.len(), heads.len(), before.egress.len()), (4, 1, 0), "two pods of two addresses");
    let mut more = world.pods[0].clone();
    more.addresses = vec!["10.244.0.99".parse().unwrap()];
    world.pods.push(more);
    let after = plan(&world);
    assert_eq!(after.chains, before.chains);
    assert_eq!(after.ingress.len(), 5);
    let sizes = |plan: &Plan| plan.members.values().map(BTreeSet::len).collect::<Vec<_>>();
    assert_eq!((sizes(&before), sizes(&after)), (vec![2], vec![3]));
}

#[test]
fn older_kinds_of_administrators_policies_say_the_same_in_other_words() {
    let policy = json!({"kind": "AdminNetworkPolicy", "metadata": {"name": "old"}, "spec": {"priority": 5,
        "subject": {"namespaces": {}},
        "ingress": [{"action": "Allow", "from": [{"namespaces": {}}],
            "ports": [{"portNumber": {"protocol": "UDP", "port": 53}}, {"portRange": {"start": 1, "end": 9}}, {"namedPort": "web"}]}]}});
    let read = read::cluster_policy(&policy).unwrap();
    let rule = &read.ingress.as_ref().unwrap()[0];
    assert_eq!((read.tier, read.priority, rule.action), (Tier::Admin, 5, Action::Accept));
    let expected = [
        Port::Between { protocol: UDP, first: 53, last: 53 },
        Port::Between { protocol: TCP, first: 1, last: 9 },
        Port::Named { protocol: None, name: "web".into() },
    ];
    assert_eq!(rule.ports.as_deref(), Some(&expected[..]));
}
