//! How a node that has nothing but a token gets its keys: kubelet TLS bootstrapping, as upstream documents it.
//!
//! The token proves the node to the cluster, and the hash of the CA in the printed line proves the cluster to the node. Both certificates
//! come from CertificateSigningRequests: the client's with the token, the server's with the client's once the Node has its addresses.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use auth::pki::{NodeKeys, Pair};
use client::{Client, Https};
use k8s_openapi::api::core::v1::Node;
use kubelet::certificate;
use sha2::{Digest, Sha256};

use crate::config::Config;

/// How long the cluster may take to sign.
const SIGNED_WITHIN: Duration = Duration::from_secs(60);

const CLOCK_WITHIN: Duration = Duration::from_secs(5);
/// A token lives for hours, a Lease for 40 seconds.
const CLOCK_SECONDS_OFF_MAX: i64 = 60;

/// What `sternpost token create` prints: who we are, and by what we know the cluster.
pub struct Invitation<'a> {
    pub server: &'a str,
    /// `id.secret`
    pub token: &'a str,
    /// `sha256:` and the hash of the CA certificate's public key, as kubeadm's `--discovery-token-ca-cert-hash`.
    pub ca_hash: &'a str,
}

/// Asks for the node's client certificate; the serving one is self-signed until [`serving`] has another.
pub async fn join(invitation: &Invitation<'_>, config: &Config, address: IpAddr) -> anyhow::Result<NodeKeys> {
    let ca = trusted_ca(invitation).await?;
    let access = client::kubeconfig::Access {
        server: invitation.server.to_owned(),
        ca: Some(ca.clone().into_bytes()),
        token: Some(invitation.token.to_owned()),
        ..client::kubeconfig::Access::default()
    };
    let client = Client::new(Arc::new(Https::new(&access)?)).named("sternpost-join");
    let keys = NodeKeys { ca, client: own(&client, config).await?, server: Pair::self_signed(&config.node_name, &[address])? };
    keys.write(&config.pki_dir())?;
    Ok(keys)
}

/// Asks for the node's client certificate: with a token the first, with the former one the next.
pub async fn own(client: &Client, config: &Config) -> anyhow::Result<Pair> {
    in_time(certificate::client_certificate(client, &config.node_name)).await
}

/// Asks for the kubelet's serving certificate, in the node's own name; the Node must have its addresses by now.
pub async fn serving(client: &Client, config: &Config, address: IpAddr) -> anyhow::Result<Pair> {
    let hosts = [config.node_name.clone(), address.to_string()];
    in_time(certificate::serving_certificate(client, &config.node_name, &hosts)).await
}

/// Tokens, certificates and Leases are read by two clocks: a machine whose own is far off would fail later, and nobody would know why. A server
/// that does not answer is no reason: the agent waits for it.
pub async fn check_clock(client: &Client) -> anyhow::Result<()> {
    let request = http::Request::get("/version").body(bytes::Bytes::new())?;
    let Ok(Ok(answer)) = tokio::time::timeout(CLOCK_WITHIN, client.send(request)).await else { return Ok(()) };
    let date = answer.headers().get(http::header::DATE).and_then(|date| date.to_str().ok());
    let Some(theirs) = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok()) else { return Ok(()) };
    let off = jiff::Timestamp::now().as_second() - theirs.timestamp().as_second();
    if off.abs() > CLOCK_SECONDS_OFF_MAX {
        let way = if off > 0 { "ahead of" } else { "behind" };
        bail!("this machine's clock is {} s {way} the cluster's: set it (is NTP running?) and start again", off.abs());
    }
    Ok(())
}

/// Two machines under one name would take each other's pods: refused while the other one lives.
pub async fn check_name(client: &Client, config: &Config, address: IpAddr) -> anyhow::Result<()> {
    let Ok(Ok(node)) = tokio::time::timeout(CLOCK_WITHIN, client.get::<Node>(None, &config.node_name)).await else { return Ok(()) };
    let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
    let theirs: Vec<&str> = addresses.filter(|known| known.type_ == "InternalIP").map(|known| known.address.as_str()).collect();
    let same = theirs.is_empty() || theirs.iter().any(|known| known.parse() == Ok(address));
    if same || !crate::status::is_ready(&node) {
        return Ok(());
    }
    bail!(
        "the cluster has a node {:?} already, which lives at {}: choose another name with --node-name",
        config.node_name,
        theirs.join(", ")
    )
}

/// The cluster may take its time to approve, but not for ever.
async fn in_time(signed: impl Future<Output = Result<Pair, certificate::Error>>) -> anyhow::Result<Pair> {
    let waited = tokio::time::timeout(SIGNED_WITHIN, signed).await;
    Ok(waited.with_context(|| format!("no certificate within {} s; is the request approved?", SIGNED_WITHIN.as_secs()))??)
}

/// The CA that the server shows, if it is the one that we were told of.
async fn trusted_ca(invitation: &Invitation<'_>) -> anyhow::Result<String> {
    let shown = client::presented_chain(invitation.server).await.with_context(|| format!("reach {}", invitation.server))?;
    for certificate in &shown {
        if ca_hash(certificate).as_deref() == Some(invitation.ca_hash) {
            return Ok(auth::pki::pem_of(certificate));
        }
    }
    bail!(
        "{} does not show the certificate authority {}: it is another cluster, or someone between us and it",
        invitation.server,
        invitation.ca_hash
    )
}

/// `sha256:…` of the public key (SubjectPublicKeyInfo) of a certificate (DER).
pub fn ca_hash(certificate: &[u8]) -> Option<String> {
    let key = auth::pki::public_key(certificate)?;
    let digits: String = Sha256::digest(key).iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!("sha256:{digits}"))
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use bytes::Bytes;
    use client::{Body, Transport};
    use http_body_util::{BodyExt, Full};
    use jiff::{SignedDuration, Timestamp};

    use super::*;

    /// Answers every request with this, at that time.
    struct Server {
        clock: SignedDuration,
        answer: serde_json::Value,
    }

    impl Transport for Server {
        fn send(&self, _: http::Request<Bytes>) -> Pin<Box<dyn Future<Output = std::io::Result<http::Response<Body>>> + Send + '_>> {
            let date = jiff::fmt::rfc2822::to_string(&(Timestamp::now() + self.clock).to_zoned(jiff::tz::TimeZone::UTC));
            let body = Full::new(Bytes::from(self.answer.to_string())).map_err(|never| match never {}).boxed();
            let answer = http::Response::builder().header(http::header::DATE, date.unwrap()).body(body);
            Box::pin(async { answer.map_err(std::io::Error::other) })
        }
    }

    fn server(minutes_ahead: i64, answer: serde_json::Value) -> Client {
        Client::new(Arc::new(Server { clock: SignedDuration::from_mins(minutes_ahead), answer }))
    }

    #[tokio::test]
    async fn a_machine_with_another_time_is_told_so_before_it_joins() {
        for (minutes_ahead, says) in
            [(0, None), (5, Some("s behind the cluster's: set it")), (-90, Some("s ahead of the cluster's: set it"))]
        {
            let refused = check_clock(&server(minutes_ahead, serde_json::json!({}))).await.err().map(|error| error.to_string());
            assert_eq!(refused.is_some(), says.is_some(), "{refused:?}");
            assert!(refused.unwrap_or_default().contains(says.unwrap_or_default()));
        }
    }

    #[tokio::test]
    async fn a_second_machine_of_a_living_nodes_name_is_refused() {
        let config = Config { node_name: "twin".into(), ..Config::default() };
        for (ready, address, refused) in [("True", "192.0.2.7", true), ("True", "192.0.2.8", false), ("Unknown", "192.0.2.7", false)] {
            let node = serde_json::json!({"metadata": {"name": "twin"}, "status": {
                "conditions": [{"type": "Ready", "status": ready}], "addresses": [{"type": "InternalIP", "address": address}]}});
            let said = check_name(&server(0, node), &config, [192, 0, 2, 8].into()).await.err().map(|error| error.to_string());
            assert_eq!(said.is_some(), refused, "{ready} {address}: {said:?}");
            assert!(said.is_none_or(|said| said.contains("\"twin\" already, which lives at 192.0.2.7: choose another name")));
        }
    }
}
