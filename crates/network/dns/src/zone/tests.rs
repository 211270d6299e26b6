use serde_json::{Value, json};

use super::*;

fn service(name: &str, spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"namespace": "default", "name": name}, "spec": spec})).unwrap()
}

fn zone() -> Zone {
    let mut zone = Zone::new("cluster.local").unwrap();
    zone.add_namespace("default");
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]);
    let slice = json!({"addressType": "IPv4", "metadata": {}, "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}], "endpoints": [
        {"addresses": ["10.244.0.7"], "hostname": "web-0"}, {"addresses": ["10.244.0.8"]},
        {"addresses": ["10.244.0.9"], "hostname": "web-2", "conditions": {"ready": false}}]});
    let slice: EndpointSlice = serde_json::from_value(slice).unwrap();
    for (name, spec, slices) in [
        ("web", json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": ports}), vec![]),
        ("dual", json!({"clusterIP": "10.96.0.6", "clusterIPs": ["10.96.0.6", "fd00::6"], "ports": ports}), vec![]),
        ("pods", json!({"clusterIP": "None", "clusterIPs": ["None"], "ports": ports}), vec![&slice]),
        ("nobody", json!({"clusterIP": "None", "ports": ports}), vec![]),
        ("out", json!({"type": "ExternalName", "externalName": "www.example.org"}), vec![]),
    ] {
        zone.set_service("default", name, service_records(&service(name, spec), slices));
    }
    zone
}

/// Each record as its owner's first label, type and data; hints after `+`.
fn show(answer: &Answer) -> String {
    let record = |record: &Record| {
        let data = match &record.data {
            RData::SRV(srv) => format!("{} {} {}", srv.weight, srv.port, srv.target),
            RData::SOA(soa) => format!("minimum {}", soa.minimum),
            other => other.to_string(),
        };
        format!("{} {data}", record.record_type())
    };
    match answer {
        Answer::Records { answers, additionals } => {
            let hints: Vec<String> = additionals.iter().map(|hint| format!("+{} {}", hint.name, record(hint))).collect();
            answers.iter().map(record).chain(hints).collect::<Vec<_>>().join("; ")
        }
        Answer::Alias { record: alias, .. } => record(alias),
        other => format!("{other:?}"),
    }
}

#[test]
fn questions_are_answered_as_the_specification_says() {
    let zone = zone();
    for (name, kind, expected) in [
        ("web.default.svc.cluster.local.", RecordType::A, "A 10.96.0.5"),
        ("WEB.Default.svc.CLUSTER.local.", RecordType::A, "A 10.96.0.5"),
        ("web.default.svc.cluster.local.", RecordType::AAAA, "NoData"),
        ("web.default.svc.cluster.local.", RecordType::MX, "NoData"),
        ("dual.default.svc.cluster.local.", RecordType::AAAA, "AAAA fd00::6"),
        ("none.default.svc.cluster.local.", RecordType::A, "NoName"),
        ("web.other.svc.cluster.local.", RecordType::A, "NoName"),
        ("pods.default.svc.cluster.local.", RecordType::A, "A 10.244.0.7; A 10.244.0.8"),
        ("web-0.pods.default.svc.cluster.local.", RecordType::A, "A 10.244.0.7"),
        ("10-244-0-8.pods.default.svc.cluster.local.", RecordType::A, "A 10.244.0.8"),
        ("web-2.pods.default.svc.cluster.local.", RecordType::A, "NoName"),
        ("web-0.web.default.svc.cluster.local.", RecordType::A, "NoName"),
        ("nobody.default.svc.cluster.local.", RecordType::A, "NoName"),
        ("out.default.svc.cluster.local.", RecordType::A, "CNAME www.example.org."),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            RecordType::SRV,
            "SRV 100 80 web.default.svc.cluster.local.; +web.default.svc.cluster.local. A 10.96.0.5",
        ),
        ("_http._udp.web.default.svc.cluster.local.", RecordType::SRV, "NoName"),
        ("_http._tcp.web.default.svc.cluster.local.", RecordType::A, "NoData"),
        ("http._tcp.web.default.svc.cluster.local.", RecordType::SRV, "NoName"),
        (
            "_http._tcp.pods.default.svc.cluster.local.",
            RecordType::SRV,
            "SRV 50 8080 10-244-0-8.pods.default.svc.cluster.local.; SRV 50 8080 web-0.pods.default.svc.cluster.local.; \
             +10-244-0-8.pods.default.svc.cluster.local. A 10.244.0.8; +web-0.pods.default.svc.cluster.local. A 10.244.0.7",
        ),
        ("10-244-0-7.default.pod.cluster.local.", RecordType::A, "A 10.244.0.7"),
        ("fd00--1.default.pod.cluster.local.", RecordType::AAAA, "AAAA fd00::1"),
        ("10-244-0-7.other.pod.cluster.local.", RecordType::A, "NoName"),
        ("10-244-0.default.pod.cluster.local.", RecordType::A, "NoName"),
        ("default.svc.cluster.local.", RecordType::A, "NoData"),
        ("other.svc.cluster.local.", RecordType::A, "NoName"),
        ("svc.cluster.local.", RecordType::A, "NoData"),
        ("cluster.local.", RecordType::SOA, "SOA minimum 30"),
        ("dns-version.cluster.local.", RecordType::TXT, "TXT 1.1.0"),
        ("www.example.org.default.svc.cluster.local.", RecordType::A, "NoName"),
        ("5.0.96.10.in-addr.arpa.", RecordType::PTR, "PTR web.default.svc.cluster.local."),
        ("7.0.244.10.in-addr.arpa.", RecordType::PTR, "PTR web-0.pods.default.svc.cluster.local."),
        (
            "6.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            RecordType::PTR,
            "PTR dual.default.svc.cluster.local.",
        ),
        ("9.9.9.9.in-addr.arpa.", RecordType::PTR, "NotOurs"),
        ("www.example.org.", RecordType::A, "NotOurs"),
        ("notcluster.local.", RecordType::A, "NotOurs"),
    ] {
        assert_eq!(show(&zone.answer(&name.parse().unwrap(), kind)).trim_end(), expected, "{kind} {name}");
    }
}

#[test]
fn a_removed_service_takes_its_reverse_names_along() {
    let mut zone = zone();
    zone.set_service("default", "web", None);
    assert_eq!(zone.answer(&"web.default.svc.cluster.local.".parse().unwrap(), RecordType::A), Answer::NoName);
    assert_eq!(zone.answer(&"5.0.96.10.in-addr.arpa.".parse().unwrap(), RecordType::PTR), Answer::NotOurs);
}

#[test]
fn a_domain_must_be_a_name() {
    for domain in ["", ".", "a..b"] {
        assert!(Zone::new(domain).is_none(), "{domain:?}");
    }
}
