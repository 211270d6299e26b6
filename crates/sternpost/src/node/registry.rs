//! The built-in registry: on loopback for pushes and pulls (`localhost:5000/…`), and on the node's address for other nodes, which know each
//! other by their certificates and fetch what they lack from whoever has it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use images::{Access, Endpoint, Registries, Server, Store};
use k8s_openapi::api::core::v1::Node;
use reconcile::Cache;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::Surroundings;
use super::peers::internal_address;
use crate::components::Components;
use crate::names;

/// On which port a node gives others its images; what has no such label gives none.
pub const PORT_LABEL: &str = "registry.sternpost.io/port";
/// Connections of other nodes at the same time.
const CONNECTIONS_MAX: usize = 256;

/// Listens, and tells the store how registries are reached. A port that somebody else has is no reason not to start: the cluster works
/// without the registry, and `localhost:5000` stays the other's.
pub async fn start(around: &Surroundings, store: &Arc<Store>, components: &mut Components) -> Open {
    let config = &around.config;
    let loopback = listen(Ipv4Addr::LOCALHOST.into(), config.registry_port, "the registry").await;
    let peers = listen(around.address, config.registry_peer_port, "the registry for other nodes").await;
    let open = Open { own: loopback.is_some().then(|| format!("localhost:{}", config.registry_port)), to_peers: peers.is_some() };
    store.use_registries(registries(around, open.own.clone()));
    if let Some(listener) = loopback {
        components.spawn("registry", serve(listener, Server::new(store.clone(), Access::Registry), None, around.drain.clone()));
    }
    if let Some(listener) = peers {
        let tls = Some(TlsAcceptor::from(around.tls.clone()));
        components.spawn("registry for other nodes", serve(listener, Server::new(store.clone(), Access::Peer), tls, around.drain.clone()));
    }
    open
}

/// What could be opened.
pub struct Open {
    own: Option<String>,
    pub to_peers: bool,
}

async fn listen(address: IpAddr, port: u16, what: &str) -> Option<TcpListener> {
    if port == 0 {
        return None;
    }
    let address = SocketAddr::new(address, port);
    TcpListener::bind(address).await.inspect_err(|error| tracing::warn!(%address, %error, "{what} is off")).ok()
}

async fn serve(listener: TcpListener, server: Arc<Server>, tls: Option<TlsAcceptor>, drain: stdx::Drain) {
    let room = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    while let Some(accepted) = drain.run(listener.accept()).await {
        let Ok((stream, _)) = accepted else { continue };
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let _ = stream.set_nodelay(true);
        let (server, tls) = (server.clone(), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => server.serve_connection(stream).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await
                        && is_node(stream.get_ref().1.peer_certificates().unwrap_or_default())
                    {
                        server.serve_connection(stream).await;
                    }
                }
            }
            drop(place);
        });
    }
}

/// Nodes, and the API server's process, whose node shows itself as the kubelets' client. The handshake has verified who vouches for it.
fn is_node(chain: &[rustls::pki_types::CertificateDer<'_>]) -> bool {
    let user = chain.first().and_then(|leaf| auth::authenticate::certificate_user(leaf));
    user.is_some_and(|user| user.groups.iter().any(|group| group == "system:nodes" || group == "system:masters"))
}

fn registries(around: &Surroundings, own: Option<String>) -> Registries {
    let nodes: Cache<Node> = around.caches.of();
    let (name, tls) = (around.config.node_name.clone(), around.to_nodes.clone());
    Registries {
        file: Some(around.config.registries_file.clone()),
        resolver: Arc::new(|host| Box::pin(async move { names::look_up(&host).await })),
        own,
        peers: Arc::new(move || {
            let others = nodes.list();
            let others = others.iter().filter(|node| node.metadata.name.as_ref() != Some(&name) && is_ready(node));
            others.filter_map(|node| address(node)).map(|address| Endpoint::peer(format!("https://{address}"), tls.clone())).collect()
        }),
        verifiers: Some(around.config.image_verifier_dir.clone()),
    }
}

fn address(node: &Node) -> Option<SocketAddr> {
    let port = node.metadata.labels.as_ref()?.get(PORT_LABEL)?.parse().ok()?;
    Some(SocketAddr::new(internal_address(node)?, port))
}

/// One that is not would only be waited for.
fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
