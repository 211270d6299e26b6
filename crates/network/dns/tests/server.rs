//! The server on loopback sockets, with caches fed by hand and a stub in the place of the host's resolver.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dns::{Caches, Config, Endpoint, Server, ensure_service};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use reconcile::Cache;
use serde_json::json;
use testkit::fake_api::FakeApi;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

struct Running {
    server: Arc<Server>,
    address: SocketAddr,
    caches: Caches,
    drain: stdx::Drain,
    _directory: tempfile::TempDir,
}

async fn start(resolver: Option<SocketAddr>) -> Running {
    start_for(resolver, None).await
}

/// The same with clients that live in that namespace.
async fn start_for(resolver: Option<SocketAddr>, home: Option<&'static str>) -> Running {
    let directory = tempfile::tempdir().unwrap();
    let resolv_conf = directory.path().join("resolv.conf");
    std::fs::write(&resolv_conf, resolver.map(|resolver| format!("nameserver {resolver}\n")).unwrap_or_default()).unwrap();
    let mut config = Config::new(vec!["127.0.0.1:0".parse().unwrap()], "cluster.local");
    config.resolv_conf = resolv_conf;
    config.homes = dns::Homes(Arc::new(move |_| home.map(str::to_owned)));
    let server = Arc::new(Server::bind(config).unwrap());
    let address = server.addresses()[0];
    let caches = Caches { services: Cache::detached(), slices: Cache::detached(), namespaces: Cache::detached() };
    let drain = stdx::drain();
    tokio::spawn(server.clone().run(caches.clone(), drain.clone()));
    Running { server, address, caches, drain, _directory: directory }
}

impl Running {
    fn sync(&self) {
        self.caches.services.mark_synced("1");
        self.caches.slices.mark_synced("1");
        self.caches.namespaces.mark_synced("1");
    }
    fn apply(&self, name: &str, spec: serde_json::Value) {
        let object = json!({"metadata": {"namespace": "default", "name": name, "resourceVersion": "1"}, "spec": spec});
        self.caches.services.apply(serde_json::from_value(object).unwrap());
    }
    async fn ask(&self, message: &Message) -> Message {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&message.to_vec().unwrap(), self.address).await.unwrap();
        let mut buffer = vec![0; 4096];
        let length = tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
        Message::from_vec(&buffer[..length]).unwrap()
    }
    async fn ask_tcp(&self, message: &Message) -> Message {
        let bytes = message.to_vec().unwrap();
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_u16(bytes.len() as u16).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut answer = vec![0; length.into()];
        stream.read_exact(&mut answer).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }
    /// Asks until the answer is not SERVFAIL any more.
    async fn ask_ready(&self, message: &Message) -> Message {
        loop {
            let answer = self.ask(message).await;
            if answer.metadata.response_code != ResponseCode::ServFail {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.parse().unwrap(), kind));
    message
}

/// Answers A with 192.0.2.9 and TXT with 3,000 bytes (cut over UDP); counts questions.
async fn resolver() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let socket = UdpSocket::bind(address).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        loop {
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            count.fetch_add(1, Ordering::SeqCst);
            let reply = stub_answer(&buffer[..length]);
            let reply = if reply.answers.iter().any(|answer| answer.record_type() == RecordType::TXT) { reply.truncate() } else { reply };
            // A forged answer with another id comes first and must be passed over.
            let mut forged = reply.clone();
            forged.metadata.id ^= 1;
            forged.answers.clear();
            socket.send_to(&forged.to_vec().unwrap(), client).await.unwrap();
            socket.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let length = stream.read_u16().await.unwrap();
            let mut bytes = vec![0; length.into()];
            stream.read_exact(&mut bytes).await.unwrap();
            let reply = stub_answer(&bytes).to_vec().unwrap();
            stream.write_u16(reply.len() as u16).await.unwrap();
            stream.write_all(&reply).await.unwrap();
        }
    });
    (address, asked)
}

fn stub_answer(bytes: &[u8]) -> Message {
    let request = Message::from_vec(bytes).unwrap();
    let query = request.queries[0].clone();
    let mut reply = Message::response(request.metadata.id, OpCode::Query);
    reply.add_query(query.clone());
    let data = match query.query_type() {
        RecordType::TXT => RData::TXT(TXT::new(vec!["x".repeat(200); 15])),
        _ => RData::A(A([192, 0, 2, 9].into())),
    };
    reply.add_answer(Record::from_rdata(query.name().clone(), 600, data));
    reply
}

fn addresses(message: &Message) -> Vec<String> {
    message.answers.iter().filter(|record| record.record_type() == RecordType::A).map(|record| record.data.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_are_answered_as_soon_as_they_are_known_over_udp_and_tcp() {
    let server = start(None).await;
    let web = question("web.default.svc.cluster.local.", RecordType::A);
    assert_eq!(server.ask(&web).await.metadata.response_code, ResponseCode::ServFail, "nothing is known yet");
    server.sync();
    let missing = server.ask_ready(&web).await;
    assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(missing.authorities[0].record_type(), RecordType::SOA);
    server.apply("web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}));
    for answer in [server.ask(&web).await, server.ask_tcp(&web).await] {
        assert_eq!(addresses(&answer), ["10.96.0.5"]);
        assert_eq!(answer.metadata.id, 77);
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available && answer.metadata.recursion_desired);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_outside_go_to_the_resolver_once_and_then_come_from_the_cache() {
    let (resolver, asked) = resolver().await;
    let server = start(Some(resolver)).await;
    server.sync();
    for _ in 0..3 {
        let answer = server.ask(&question("www.example.org.", RecordType::A)).await;
        assert_eq!(addresses(&answer), ["192.0.2.9"]);
        assert_eq!(answer.metadata.id, 77);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_search_path_is_gone_through_for_it_as_far_as_the_answers_are_known() {
    let (resolver, asked) = resolver().await;
    let server = start_for(Some(resolver), Some("default")).await;
    server.sync();
    server.apply("web", json!({"clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80}]}));
    let ask = async |name: &str| {
        let answer = server.ask_ready(&question(name, RecordType::A)).await;
        (answer.metadata.response_code, answer.answers.first().map(Record::record_type), addresses(&answer))
    };
    let (missing, alias) = ((ResponseCode::NXDomain, None, Vec::<String>::new()), Some(RecordType::CNAME));
    assert_eq!(ask("web.default.default.svc.cluster.local.").await, (ResponseCode::NoError, alias, vec!["10.96.0.7".to_owned()]));
    assert_eq!(ask("www.example.org.default.svc.cluster.local.").await, missing, "nobody is asked for a guess");
    assert_eq!(asked.load(Ordering::SeqCst), 0);
    for kind in [RecordType::A, RecordType::AAAA] {
        server.ask(&question("www.example.org.", kind)).await;
    }
    let found = (ResponseCode::NoError, alias, vec!["192.0.2.9".to_owned()]);
    assert_eq!(ask("www.example.org.default.svc.cluster.local.").await, found);
    assert_eq!(ask("www.example.org.other.svc.cluster.local.").await, missing, "not its namespace");
    assert_eq!(ask("nobody.default.svc.cluster.local.").await, missing);
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_name_is_followed_to_its_addresses() {
    let (resolver, _) = resolver().await;
    let server = start(Some(resolver)).await;
    server.sync();
    server.apply("out", json!({"type": "ExternalName", "externalName": "www.example.org"}));
    server.apply("loop", json!({"type": "ExternalName", "externalName": "loop.default.svc.cluster.local"}));
    let answer = server.ask_ready(&question("out.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(answer.answers[0].record_type(), RecordType::CNAME);
    assert_eq!(addresses(&answer), ["192.0.2.9"]);
    let alias = server.ask(&question("out.default.svc.cluster.local.", RecordType::CNAME)).await;
    assert_eq!((alias.metadata.response_code, alias.answers.len()), (ResponseCode::NoError, 1));
    let endless = server.ask(&question("loop.default.svc.cluster.local.", RecordType::A)).await;
    assert_eq!(endless.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_do_not_fit_are_cut_over_udp_and_whole_over_tcp() {
    let (resolver, _) = resolver().await;
    let server = start(Some(resolver)).await;
    server.sync();
    let mut text = question("big.example.org.", RecordType::TXT);
    text.set_edns(Edns::new());
    let cut = server.ask(&text).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    let whole = server.ask_tcp(&text).await;
    assert!(!whole.metadata.truncation);
    assert!(whole.to_vec().unwrap().len() > 3000);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_gets_no_answer_and_does_not_stop_the_server() {
    let server = start(None).await;
    server.sync();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let response = Message::response(1, OpCode::Query).to_vec().unwrap();
    for garbage in [&b""[..], b"x", &[0xff; 300], &response] {
        socket.send_to(garbage, server.address).await.unwrap();
    }
    let mut notify = question("cluster.local.", RecordType::SOA);
    notify.metadata.op_code = OpCode::Notify;
    assert_eq!(server.ask(&notify).await.metadata.response_code, ResponseCode::NotImp);
    let soa = server.ask_ready(&question("cluster.local.", RecordType::SOA)).await;
    assert_eq!(soa.answers.len(), 1);
    assert!(socket.try_recv(&mut [0; 16]).is_err());
}

#[tokio::test]
async fn without_a_resolver_names_outside_fail_at_once() {
    let server = start(None).await;
    server.sync();
    let answer = server.ask(&question("www.example.org.", RecordType::A)).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn the_service_and_this_nodes_slice_are_made_once_and_follow_the_node() {
    let api = FakeApi::new();
    let client = api.client();
    let mut endpoint = Endpoint { node_name: "n1".into(), address: "192.0.2.1".parse().unwrap(), port: 10053 };
    let ips = ["10.96.0.10".parse().unwrap()];
    for _ in 0..3 {
        ensure_service(&client, &ips, &endpoint).await.unwrap();
    }
    assert_eq!(api.writes().len(), 2, "{:?}", api.writes());
    endpoint.address = "192.0.2.2".parse().unwrap();
    ensure_service(&client, &ips, &endpoint).await.unwrap();
    let service = client.get::<Service>(Some("kube-system"), "kube-dns").await.unwrap();
    assert_eq!(service.spec.unwrap().cluster_ip.as_deref(), Some("10.96.0.10"));
    let slice = client.get::<EndpointSlice>(Some("kube-system"), "kube-dns-n1").await.unwrap();
    assert_eq!(slice.endpoints.unwrap()[0].addresses, ["192.0.2.2"]);
    assert_eq!(slice.ports.unwrap()[0].port, Some(10053));
}

#[tokio::test]
async fn a_corefile_names_forwarders_for_zones_and_fixed_hosts_and_a_bad_one_changes_nothing() {
    let (usual, usual_asked) = resolver().await;
    let (special, special_asked) = resolver().await;
    let running = start(Some(usual)).await;
    running.sync();
    running.apply("web", json!({"clusterIP": "10.96.0.5", "clusterIPs": ["10.96.0.5"], "ports": [{"port": 80}]}));
    let text = format!(
        ".:53 {{\n kubernetes cluster.local\n forward . /etc/resolv.conf\n hosts {{\n  192.0.2.77 fixed.example.org\n  fallthrough\n }}\n}}\n\
         acme.local:53 {{\n forward . {special}\n}}"
    );
    running.server.configure(Some(&text)).unwrap();
    let address = |message: &Message| match message.answers.first().map(|answer| &answer.data) {
        Some(RData::A(A(address))) => address.to_string(),
        other => format!("{other:?}"),
    };
    for (name, expected, usual, special) in [
        ("web.default.svc.cluster.local.", "10.96.0.5", 0, 0),
        ("Fixed.example.org.", "192.0.2.77", 0, 0),
        ("db.acme.local.", "192.0.2.9", 0, 1),
        ("example.com.", "192.0.2.9", 1, 1),
    ] {
        assert_eq!(address(&running.ask_ready(&question(name, RecordType::A)).await), expected, "{name}");
        assert_eq!((usual_asked.load(Ordering::SeqCst), special_asked.load(Ordering::SeqCst)), (usual, special), "{name}");
    }
    assert!(running.server.configure(Some("broken")).is_err());
    assert_eq!(address(&running.ask(&question("fixed.example.org.", RecordType::A)).await), "192.0.2.77");
    running.server.configure(None).unwrap();
    assert_eq!(address(&running.ask(&question("fixed.example.org.", RecordType::A)).await), "192.0.2.9");
}

#[tokio::test]
async fn a_changed_service_is_answered_anew_however_often_it_was_asked_before() {
    let running = start(None).await;
    running.sync();
    for last in [5, 6, 7] {
        let ip = format!("10.96.0.{last}");
        let service = json!({"metadata": {"namespace": "default", "name": "web", "resourceVersion": last.to_string()},
            "spec": {"clusterIP": ip, "clusterIPs": [ip], "ports": [{"port": 80}]}});
        running.caches.services.apply(serde_json::from_value(service).unwrap());
        for _ in 0..20 {
            let answer = running.ask_ready(&question("web.default.svc.cluster.local.", RecordType::A)).await;
            assert!(matches!(answer.answers[0].data, RData::A(A(address)) if address.to_string() == ip), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn strangers_are_not_answered_by_udp_or_tcp() {
    let mut config = Config::new(vec!["127.0.0.1:0".parse().unwrap()], "cluster.local");
    config.clients = dns::Clients(Arc::new(|address| address.to_string() == "127.0.0.2"));
    let server = Arc::new(Server::bind(config).unwrap());
    let address = server.addresses()[0];
    let caches = Caches { services: Cache::detached(), slices: Cache::detached(), namespaces: Cache::detached() };
    let drain = stdx::drain();
    tokio::spawn(server.run(caches, drain.clone()));
    let question = question("dns-version.cluster.local.", RecordType::TXT).to_vec().unwrap();
    for (source, answered) in [("127.0.0.2:0", true), ("127.0.0.3:0", false)] {
        let socket = UdpSocket::bind(source).await.unwrap();
        socket.send_to(&question, address).await.unwrap();
        let patience = Duration::from_millis(if answered { 10_000 } else { 200 });
        let got = tokio::time::timeout(patience, socket.recv(&mut [0; 512])).await;
        assert_eq!(got.is_ok(), answered, "{source}");
    }
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(&[&[0, question.len() as u8][..], &question].concat()).await;
    assert!(!matches!(stream.read_u16().await, Ok(length) if length > 0), "from 127.0.0.1");
    drain.stop();
}
