use serde_json::{Value, json};

use super::*;

fn node() -> Node {
    Node { name: "here".into(), zone: Some("z1".into()), pod_cidrs: vec![([10, 244, 0, 0].into(), 16)] }
}

/// A Service with port 80 → "web", changed by `spec`.
fn service(spec: Value) -> Service {
    let mut object = json!({
        "metadata": {"namespace": "a", "name": "web"},
        "spec": {"type": "ClusterIP", "clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": [{"name": "web", "port": 80, "targetPort": 8080}]}
    });
    for (key, value) in spec.as_object().into_iter().flatten() {
        object["spec"][key] = value.clone();
    }
    serde_json::from_value(object).unwrap()
}

/// Endpoints written as `address@node state`, with state "ready", "terminating" or "gone".
fn slice(endpoints: &[&str]) -> EndpointSlice {
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|text| {
            let (place, state) = text.split_once(' ').unwrap();
            let (address, node) = place.split_once('@').unwrap();
            let conditions = match state {
                "ready" => json!({"ready": true}),
                "terminating" => json!({"ready": false, "serving": true, "terminating": true}),
                _ => json!({"ready": false}),
            };
            json!({"addresses": [address], "nodeName": node, "conditions": conditions})
        })
        .collect();
    let ports = json!([{"name": "web", "port": 8080, "protocol": "TCP"}]);
    serde_json::from_value(json!({"addressType": "IPv4", "metadata": {}, "endpoints": endpoints, "ports": ports})).unwrap()
}

/// One line per frontend: `address:port action`.
fn show(plan: &Plan) -> Vec<String> {
    let list = |endpoints: &Vec<Endpoint>| {
        endpoints.iter().map(|endpoint| format!("{}:{}", endpoint.address, endpoint.port)).collect::<Vec<_>>().join(",")
    };
    plan.frontends
        .iter()
        .map(|(frontend, action)| {
            let address = frontend.address.map_or("node".to_owned(), |address| address.to_string());
            let action = match action {
                Action::Reject => "reject".to_owned(),
                Action::Drop => "drop".to_owned(),
                Action::Balance(balance) => {
                    let local = balance.local.as_ref().map(|local| format!(" outside=[{}]", list(local))).unwrap_or_default();
                    let affinity = balance.affinity_seconds.map(|seconds| format!(" affinity={seconds}")).unwrap_or_default();
                    format!("[{}]{local} {:?}{affinity}", list(&balance.endpoints), balance.masquerade)
                }
            };
            format!("{address}:{} {action}", frontend.port)
        })
        .collect()
}

#[test]
fn every_address_of_a_service_leads_to_the_endpoints_that_its_policies_allow() {
    let node_port = json!([{"name": "web", "port": 80, "nodePort": 30080}]);
    let here_and_there = ["10.244.0.1@here ready", "10.244.1.1@there ready"];
    let only_there = ["10.244.1.1@there ready"];
    for (what, spec, endpoints, expected) in [
        ("cluster IP", json!({}), &here_and_there[..], vec!["10.96.0.5:80 [10.244.0.1:8080,10.244.1.1:8080] NonPods"]),
        ("no endpoints", json!({}), &[], vec!["10.96.0.5:80 reject"]),
        ("none ready", json!({}), &["10.244.0.1@here gone"], vec!["10.96.0.5:80 reject"]),
        (
            "all terminate",
            json!({}),
            &["10.244.0.1@here terminating", "10.244.1.1@there gone"],
            vec!["10.96.0.5:80 [10.244.0.1:8080] NonPods"],
        ),
        (
            "a ready one hides terminating ones",
            json!({}),
            &["10.244.0.1@here terminating", "10.244.1.1@there ready"],
            vec!["10.96.0.5:80 [10.244.1.1:8080] NonPods"],
        ),
        ("internal Local", json!({"internalTrafficPolicy": "Local"}), &here_and_there, vec!["10.96.0.5:80 [10.244.0.1:8080] NonPods"]),
        ("internal Local without one here", json!({"internalTrafficPolicy": "Local"}), &only_there, vec!["10.96.0.5:80 drop"]),
        (
            "node port",
            json!({"type": "NodePort", "ports": node_port}),
            &only_there,
            vec!["node:30080 [10.244.1.1:8080] Always", "10.96.0.5:80 [10.244.1.1:8080] NonPods"],
        ),
        (
            "external Local",
            json!({"type": "NodePort", "ports": node_port, "externalTrafficPolicy": "Local"}),
            &here_and_there,
            vec![
                "node:30080 [10.244.0.1:8080,10.244.1.1:8080] outside=[10.244.0.1:8080] Never",
                "10.96.0.5:80 [10.244.0.1:8080,10.244.1.1:8080] NonPods",
            ],
        ),
        (
            "external address",
            json!({"externalIPs": ["192.0.2.7"]}),
            &only_there,
            vec!["10.96.0.5:80 [10.244.1.1:8080] NonPods", "192.0.2.7:80 [10.244.1.1:8080] Always"],
        ),
        ("affinity", json!({"sessionAffinity": "ClientIP"}), &only_there, vec!["10.96.0.5:80 [10.244.1.1:8080] NonPods affinity=10800"]),
        ("headless", json!({"clusterIP": "None", "clusterIPs": ["None"]}), &only_there, vec![]),
        ("external name", json!({"type": "ExternalName", "clusterIP": "", "externalName": "example.org"}), &only_there, vec![]),
        ("another port's name", json!({"ports": [{"name": "other", "port": 81}]}), &only_there, vec!["10.96.0.5:81 reject"]),
    ] {
        assert_eq!(show(&plan(&service(spec), [&slice(endpoints)], &node())), expected, "{what}");
    }
}

#[test]
fn a_load_balancers_address_is_served_unless_its_mode_is_proxy() {
    let mut service = service(json!({"type": "LoadBalancer"}));
    service.status =
        serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}, {"ip": "192.0.2.9", "ipMode": "Proxy"}]}}))
            .unwrap();
    let plan = plan(&service, [&slice(&["10.244.1.1@there ready"])], &node());
    assert_eq!(show(&plan), ["10.96.0.5:80 [10.244.1.1:8080] NonPods", "192.0.2.8:80 [10.244.1.1:8080] Always"]);
}

#[test]
fn source_ranges_guard_the_load_balancers_address_without_overlaps() {
    let mut service = service(
        json!({"type": "LoadBalancer", "loadBalancerSourceRanges": ["10.1.2.3/16", "10.0.0.0/8", " 192.0.2.9/32", "fd00::/8", "x"]}),
    );
    service.status = serde_json::from_value(json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.8"}]}})).unwrap();
    let plan = plan(&service, [], &node());
    let shown: Vec<String> = plan
        .sources
        .iter()
        .flat_map(|(frontend, networks)| {
            networks.iter().map(|(address, prefix)| format!("{}: {address}/{prefix}", frontend.address.unwrap()))
        })
        .collect();
    assert_eq!(shown, ["192.0.2.8: 10.0.0.0/8", "192.0.2.8: 192.0.2.9/32"]);
}

#[test]
fn only_endpoints_here_can_reach_themselves_through_the_service() {
    let plan = plan(&service(json!({})), [&slice(&["10.244.0.1@here ready", "10.244.1.1@there ready"])], &node());
    assert_eq!(plan.local_addresses, BTreeSet::from(["10.244.0.1".parse().unwrap()]));
}

#[test]
fn hints_keep_traffic_in_the_zone_while_every_endpoint_has_one() {
    let mut hinted = slice(&["10.244.0.1@here ready", "10.244.1.1@there ready"]);
    for (endpoint, zone) in hinted.endpoints.iter_mut().flatten().zip(["z2", "z1"]) {
        endpoint.hints = serde_json::from_value(json!({"forZones": [{"name": zone}]})).unwrap();
    }
    assert_eq!(show(&plan(&service(json!({})), [&hinted], &node())), ["10.96.0.5:80 [10.244.1.1:8080] NonPods"]);
    hinted.endpoints.as_mut().unwrap()[0].hints = None;
    assert_eq!(show(&plan(&service(json!({})), [&hinted], &node())), ["10.96.0.5:80 [10.244.0.1:8080,10.244.1.1:8080] NonPods"]);
}

#[test]
fn host_ports_lead_to_their_pod_while_it_runs_here() {
    let pod = |node: &str, phase: &str| -> Pod {
        serde_json::from_value(json!({
            "metadata": {"namespace": "a", "name": "p"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [
                {"containerPort": 80, "hostPort": 8080}, {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"}, {"containerPort": 9}
            ]}]},
            "status": {"phase": phase, "podIP": "10.244.0.9", "podIPs": [{"ip": "10.244.0.9"}]}
        }))
        .unwrap()
    };
    assert!(has_host_ports(&pod("here", "Running")));
    let plan = plan_host_ports(&pod("here", "Running"), &node());
    assert_eq!(show(&plan), ["node:8080 [10.244.0.9:80] Never", "192.0.2.1:5353 [10.244.0.9:53] Never"]);
    for other in [pod("there", "Running"), pod("here", "Succeeded")] {
        assert_eq!(plan_host_ports(&other, &node()), Plan::default());
    }
}
