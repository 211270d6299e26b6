//! A node joins over TLS with nothing but a bootstrap token, and what its certificates then open; certificates are exchanged under open watches.

mod harness;

use std::pin::Pin;
use std::sync::Arc;

use apiserver::{Body, ClientAuthorities, Config, Server};
use auth::UserInfo;
use auth::pki::{Lifetimes, Names, Pair, Pki};
use bytes::Bytes;
use client::kubeconfig::Access;
use client::{Client, Https, ListParams, Patch, Transport, WatchEvent, WatchParams};
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Secret};
use kubelet::certificate;
use serde_json::{Value, json};

struct InProcess(Server, UserInfo);

impl Transport for InProcess {
    fn send(&self, request: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
        let request = request.map(|body| Full::new(body).map_err(|never| match never {}).boxed());
        Box::pin(async move { Ok(self.0.handle(request, Some(self.1.clone())).await) })
    }
    fn as_account(&self, namespace: &str, name: &str) -> Option<Arc<dyn Transport>> {
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
        let user = UserInfo::authenticated(&auth::tokens::username(namespace, name), &groups.each_ref().map(String::as_str));
        Some(Arc::new(InProcess(self.0.clone(), user)))
    }
}

/// A cluster's control plane on a socket, with its controllers.
struct Cluster {
    server: Server,
    dir: tempfile::TempDir,
    pki: Pki,
    tls: Arc<auth::tls::Server>,
    port: u16,
    drain: stdx::Drain,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.drain.stop();
    }
}

fn names() -> Names {
    Names {
        api_hosts: vec![],
        api_addresses: vec![],
        cluster_domain: "cluster.local".into(),
        node_name: "control".into(),
        node_addresses: vec![],
    }
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::open(dir.path(), &names()).unwrap();
        let tls = auth::tls::Server::with_front_proxy(&pki.api_server, &pki.ca, Some(&pki.front_proxy_ca)).unwrap();
        let issuer = Arc::new(pki.token_issuer(auth::tokens::ISSUER).unwrap());
        let authorities = ClientAuthorities {
            client_ca: pki.ca.clone(),
            front_proxy_ca: pki.front_proxy_ca.clone(),
            front_proxies: vec!["front-proxy-client".into()],
        };
        let config = Config { issuer: Some(issuer), tls: Some(tls.clone()), client_authorities: Some(authorities), ..Config::default() };
        let server = Server::new(config, Arc::new(store::memory::Memory::new())).unwrap();
        server.bootstrap().await.unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let drain = stdx::drain();
        let (serving, config, stop) = (server.clone(), tls.config().unwrap(), drain.clone());
        tokio::spawn(async move { serving.serve(listener, Some(config), stop).await.unwrap() });
        let signer = auth::csr::Signer::new(&pki.ca, &pki.ca_key).unwrap();
        let settings =
            controllers::Config { root_ca: pki.ca.clone().into(), signer: Some(Arc::new(signer)), ..controllers::Config::default() };
        let manager = UserInfo::authenticated("system:kube-controller-manager", &[]);
        let manager = Client::new(Arc::new(InProcess(server.clone(), manager)));
        tokio::spawn(controllers::run(manager, settings, drain.clone()));
        Self { server, dir, pki, tls, port, drain }
    }

    fn admin(&self) -> Client {
        Client::new(Arc::new(InProcess(self.server.clone(), harness::admin())))
    }

    fn over_tls(&self, identity: Option<&Pair>, token: Option<&str>) -> Client {
        let access = Access {
            server: format!("https://127.0.0.1:{}", self.port),
            server_name: None,
            ca: Some(self.pki.ca.clone().into_bytes()),
            insecure: false,
            identity: identity.map(|pair| (pair.certificate.clone().into_bytes(), pair.key.clone().into_bytes())),
            token: token.map(str::to_owned),
            namespace: None,
        };
        Client::new(Arc::new(Https::new(&access).unwrap()))
    }
}

fn secret(name: &str, kind: &str, text: &[(&str, &str)]) -> Secret {
    let text: serde_json::Map<String, Value> = text.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "kube-system"}, "type": kind, "stringData": text})).unwrap()
}

fn node(name: &str) -> Node {
    serde_json::from_value(json!({"metadata": {"name": name}})).unwrap()
}

/// The message of a refusal; panics where nothing was refused.
fn refusal<T>(answer: Result<T, client::Error>) -> String {
    answer.err().expect("refused").to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_joins_with_a_bootstrap_token_and_touches_its_own_alone() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let token = [
        ("token-id", "abcdef"),
        ("token-secret", "0123456789abcdef"),
        ("usage-bootstrap-authentication", "true"),
        ("auth-extra-groups", "system:bootstrappers:kubeadm:default-node-token"),
    ];
    admin.create(&secret("bootstrap-token-abcdef", "bootstrap.kubernetes.io/token", &token)).await.unwrap();
    admin.create(&secret("planted", "Opaque", &[("key", "value")])).await.unwrap();
    let joining = cluster.over_tls(None, Some("abcdef.0123456789abcdef"));
    // The token itself opens nothing but the request.
    assert!(refusal(joining.list::<Secret>(&ListParams::default()).await).contains("User \"system:bootstrap:abcdef\" cannot list"));
    assert!(refusal(joining.create(&node("n1")).await).contains("cannot create resource \"nodes\""));
    let pair = certificate::client_certificate(&joining, "n1").await.unwrap();

    let kubelet = cluster.over_tls(Some(&pair), None);
    kubelet.create(&node("n1")).await.unwrap();
    assert!(refusal(kubelet.create(&node("n2")).await).contains("node \"n1\" is not allowed to modify node \"n2\""));
    admin.create(&node("n2")).await.unwrap();
    kubelet.get::<Node>(None, "n1").await.unwrap();
    let label = Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}));
    assert!(refusal(kubelet.patch::<Node>(None, "n2", &label, "").await).contains("node \"n1\" is not allowed to modify node \"n2\""));
    let hidden = kubelet.get::<Secret>(Some("kube-system"), "planted").await;
    assert!(refusal(hidden).contains("no relationship found between node 'n1' and this object"));
    let lease: Lease = serde_json::from_value(json!({"metadata": {"name": "n1", "namespace": "kube-node-lease"}})).unwrap();
    kubelet.create(&lease).await.unwrap();

    // A serving certificate for what the Node is known by, and none for others' names.
    let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]}});
    kubelet.patch::<Node>(None, "n1", &Patch::Merge(addresses), "status").await.unwrap();
    let serving = certificate::serving_certificate(&kubelet, "n1", &["n1".into(), "192.0.2.7".into()]).await.unwrap();
    auth::tls::Server::new(&serving, &cluster.pki.ca).unwrap();
    let others = ["kubernetes.default".to_owned()];
    let stolen = certificate::serving_certificate(&kubelet, "n1", &others);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(500), stolen).await.is_err(), "nobody approves that");
    // Renewal with the certificate itself; another node's is not to be had so.
    certificate::client_certificate(&kubelet, "n1").await.unwrap();
    let other = certificate::client_certificate(&kubelet, "n2");
    assert!(tokio::time::timeout(std::time::Duration::from_millis(500), other).await.is_err(), "nobody approves that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_proxys_word_counts_only_with_its_certificate() {
    let cluster = Cluster::start().await;
    let ask = async |identity: &Pair| {
        let request = http::Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
            .header("content-type", "application/json")
            .header("x-remote-user", "jane")
            .header("x-remote-group", "ops")
            .header("x-remote-extra-scopes", "a")
            .body(Bytes::from("{}"))
            .unwrap();
        let answer = cluster.over_tls(Some(identity), None).send(request).await;
        let answer = answer.unwrap().into_body().collect().await.unwrap().to_bytes();
        serde_json::from_slice::<Value>(&answer).unwrap()["status"]["userInfo"].clone()
    };
    let jane = ask(&cluster.pki.front_proxy_client).await;
    assert_eq!(jane, json!({"username": "jane", "groups": ["ops", "system:authenticated"], "extra": {"scopes": ["a"]}}));
    assert_eq!(ask(&cluster.pki.admin).await["username"], "kubernetes-admin");
    let nobody = cluster.over_tls(Some(&cluster.pki.front_proxy_client), None).list::<ConfigMap>(&ListParams::default()).await;
    assert_eq!(nobody.err().unwrap().code(), 401);
    let map: ConfigMap = cluster.admin().get(Some("kube-system"), "extension-apiserver-authentication").await.unwrap();
    assert_eq!(map.data.unwrap()["requestheader-allowed-names"], "[\"front-proxy-client\"]");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secrets_token_is_its_accounts_until_the_secret_goes() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let account = json!({"metadata": {"name": "bot", "namespace": "kube-system"}});
    admin.create(&serde_json::from_value::<k8s_openapi::api::core::v1::ServiceAccount>(account).unwrap()).await.unwrap();
    let mut held = secret("bot-token", "kubernetes.io/service-account-token", &[]);
    held.metadata.annotations = Some([("kubernetes.io/service-account.name".to_owned(), "bot".to_owned())].into());
    admin.create(&held).await.unwrap();
    let mut token = String::new();
    for _ in 0..200 {
        let now: Secret = admin.get(Some("kube-system"), "bot-token").await.unwrap();
        if let Some(data) = now.data.filter(|data| data.contains_key("token")) {
            assert!(data.contains_key("ca.crt") && data.contains_key("namespace"));
            token = String::from_utf8(data["token"].0.clone()).unwrap();
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let bot = cluster.over_tls(None, Some(&token));
    assert!(
        refusal(bot.list::<Secret>(&ListParams::default()).await).contains("User \"system:serviceaccount:kube-system:bot\" cannot list")
    );
    admin.delete::<Secret>(Some("kube-system"), "bot-token", &client::DeleteParams::default()).await.unwrap();
    assert_eq!(bot.list::<Secret>(&ListParams::default()).await.err().unwrap().code(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_rotations_drop_no_watch_and_fail_no_request() {
    let cluster = Cluster::start().await;
    // Every look finds every leaf due: an hour of certificates that live a minute.
    let always = Lifetimes { leaf: 60, renew_before: 366 * 86_400, ..Lifetimes::default() };
    let old = cluster.over_tls(Some(&cluster.pki.admin), None);
    let mut watch = old.watch::<ConfigMap>(&WatchParams { namespace: Some("default".into()), ..WatchParams::default() }).await.unwrap();
    let mut seen = std::collections::HashSet::new();
    for round in 0..60 {
        let pki = Pki::open_with(cluster.dir.path(), &names(), &always).unwrap();
        assert_ne!(pki.api_server.certificate, cluster.pki.api_server.certificate);
        cluster.tls.rotate(&pki.api_server).unwrap();
        let fresh = cluster.over_tls(Some(&pki.admin), None);
        let writer = if round % 2 == 0 { &fresh } else { &old };
        let map = json!({"metadata": {"name": format!("m{round}"), "namespace": "default"}});
        writer.create(&serde_json::from_value::<ConfigMap>(map).unwrap()).await.unwrap();
        while !seen.contains(&format!("m{round}")) {
            match watch.next().await.expect("the watch goes on").unwrap() {
                WatchEvent::Added(map) => drop(seen.insert(map.metadata.name.unwrap())),
                WatchEvent::Bookmark { .. } | WatchEvent::Modified(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    drop(watch);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_gets_certificates_for_pods_of_its_own_node_alone() {
    use k8s_openapi::api::certificates::v1::PodCertificateRequest;
    use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let account = json!({"metadata": {"name": "bot", "namespace": "default"}});
    let account: ServiceAccount = admin.create(&serde_json::from_value::<ServiceAccount>(account).unwrap()).await.unwrap();
    let (mut nodes, mut pods) = (Vec::new(), Vec::new());
    for name in ["n1", "n2"] {
        nodes.push(admin.create(&node(name)).await.unwrap());
        let pod = json!({"metadata": {"name": format!("on-{name}"), "namespace": "default"},
            "spec": {"nodeName": name, "serviceAccountName": "bot", "containers": [{"name": "c", "image": "i"}]}});
        pods.push(admin.create(&serde_json::from_value::<Pod>(pod).unwrap()).await.unwrap());
    }
    let (key, stub) = auth::csr::make_stub().unwrap();
    let request = |at: usize, node: usize| {
        let uid = |meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta| meta.uid.clone().unwrap();
        let mut request = PodCertificateRequest::default();
        request.metadata.namespace = Some("default".into());
        request.metadata.generate_name = Some("r-".into());
        request.spec.signer_name = auth::csr::POD_CLIENT.into();
        request.spec.pod_name = pods[at].metadata.name.clone().unwrap();
        request.spec.pod_uid = uid(&pods[at].metadata);
        request.spec.service_account_name = "bot".into();
        request.spec.service_account_uid = uid(&account.metadata);
        request.spec.node_name = format!("n{}", node + 1);
        request.spec.node_uid = uid(&nodes[node].metadata);
        request.spec.stub_pkc_s10_request = k8s_openapi::ByteString(stub.clone());
        request
    };
    let n1 = UserInfo::authenticated("system:node:n1", &["system:nodes"]);
    let kubelet = Client::new(Arc::new(InProcess(cluster.server.clone(), n1)));
    assert!(refusal(kubelet.create(&request(1, 1)).await).contains("which is not the requesting node \"n1\""));
    assert!(refusal(kubelet.create(&request(1, 0)).await).contains("node of the pod is \"n2\", not \"n1\""));
    let mut another = request(0, 0);
    another.spec.service_account_name = "default".into();
    assert!(refusal(kubelet.create(&another).await).contains("service account"));
    let mut torn = request(0, 0);
    torn.spec.stub_pkc_s10_request.0.truncate(20);
    assert!(refusal(kubelet.create(&torn).await).contains("spec.stubPKCS10Request: Invalid value: the certificate request cannot be read"));
    let made: PodCertificateRequest = kubelet.create(&request(0, 0)).await.unwrap();
    let name = made.metadata.name.unwrap();
    let mut chain = None;
    for _ in 0..400 {
        let now: PodCertificateRequest = kubelet.get(Some("default"), &name).await.unwrap();
        chain = now.status.and_then(|status| status.certificate_chain);
        if chain.is_some() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let pair = Pair { certificate: chain.expect("the certificate is issued"), key };
    let bot = cluster.over_tls(Some(&pair), None).list::<Secret>(&ListParams::default()).await;
    assert!(refusal(bot).contains("User \"system:serviceaccount:default:bot\" cannot list"));
    // Who is no signer answers nothing.
    let answer = json!({"status": {"conditions": [{"type": "Denied", "status": "True", "reason": "No", "message": "no",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
    let patch = kubelet.patch::<PodCertificateRequest>(Some("default"), &name, &Patch::Merge(answer.clone()), "status").await;
    assert!(refusal(patch).contains("cannot patch resource \"podcertificaterequests/status\""));
    let late = admin.patch::<PodCertificateRequest>(Some("default"), &name, &Patch::Merge(answer), "status").await;
    assert!(refusal(late).contains("immutable after \"Issued\" was set"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_is_answered_without_a_body() {
    let cluster = Cluster::start().await;
    // The client speaks HTTP/2, in which a body after such an answer is a fault.
    let client = cluster.over_tls(Some(&cluster.pki.admin), None);
    for path in ["/version", "/api/v1/namespaces/default", "/nowhere"] {
        let ask = async |method: &str| {
            let request = http::Request::builder().method(method).uri(path).body(Bytes::new()).unwrap();
            let (parts, body) = client.send(request).await.unwrap().into_parts();
            (parts.status, parts.headers["content-length"].clone(), body.collect().await.unwrap().to_bytes().len())
        };
        let (get, head) = (ask("GET").await, ask("HEAD").await);
        assert_eq!((head.0, &head.1, head.2), (get.0, &get.1, 0), "{path}");
    }
}
