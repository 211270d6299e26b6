//! The cluster's certificates while it runs: renewed before they end, and shown from then on, without a restart and without closing a connection.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use auth::pki::{Lifetimes, Names, Pair, Pki};
use auth::tls;
use stdx::Drain;

use crate::config::Config;
use crate::kubeconfig;

/// The wall clock is looked at this often: a timer would sleep on while the machine sleeps past the end of a certificate.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// Keys, certificates and where they are shown.
pub struct Certificates {
    /// As they were at the start; what changes is in the others.
    pub pki: Pki,
    pub api_server: Arc<tls::Server>,
    pub kubelet: Arc<tls::Server>,
    /// What the API server shows to kubelets.
    pub kubelet_client: Arc<tls::Client>,
    /// What the API server shows to aggregated API servers.
    pub front_proxy: Arc<tls::Client>,
    names: Names,
    lifetimes: Lifetimes,
}

impl Certificates {
    pub fn open(config: &Config, node_ip: IpAddr) -> anyhow::Result<Self> {
        let names = Names {
            api_hosts: vec![config.node_name.clone()],
            api_addresses: vec![node_ip, config.api_service_ip()?],
            cluster_domain: config.cluster_domain.clone(),
            node_name: config.node_name.clone(),
            node_addresses: vec![node_ip, Ipv4Addr::LOCALHOST.into()],
        };
        let lifetimes = lifetimes(config);
        let pki = Pki::open_with(&config.pki_dir(), &names, &lifetimes).context("keys and certificates")?;
        Ok(Self {
            api_server: tls::Server::with_front_proxy(&with_authority(&pki.api_server, &pki.ca), &pki.ca, Some(&pki.front_proxy_ca))?,
            kubelet: tls::Server::new(&pki.kubelet_server, &pki.ca)?,
            kubelet_client: tls::Client::new(&pki.kubelet_client)?,
            front_proxy: tls::Client::new(&pki.front_proxy_client)?,
            pki,
            names,
            lifetimes,
        })
    }

    /// Renews what ends soon until `drain`.
    pub async fn rotate(&self, config: &Config, drain: &Drain) {
        let look_every = LOOK_EVERY.min(Duration::from_secs(self.lifetimes.renew_before.unsigned_abs().div_ceil(4).max(1)));
        let mut due = self.pki.renew_at(&self.lifetimes);
        while drain.run(tokio::time::sleep(look_every)).await.is_some() {
            if jiff::Timestamp::now().as_second() < due {
                continue;
            }
            match self.renew(config) {
                Ok(pki) => {
                    due = pki.renew_at(&self.lifetimes);
                    tracing::info!("certificates were renewed");
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "renew certificates"),
            }
        }
    }

    fn renew(&self, config: &Config) -> anyhow::Result<Pki> {
        let pki = Pki::open_with(&config.pki_dir(), &self.names, &self.lifetimes)?;
        self.api_server.rotate(&with_authority(&pki.api_server, &pki.ca))?;
        self.kubelet.rotate(&pki.kubelet_server)?;
        self.kubelet_client.rotate(&pki.kubelet_client)?;
        self.front_proxy.rotate(&pki.front_proxy_client)?;
        kubeconfig::write_admin(config, &pki)?;
        Ok(pki)
    }
}

/// The API server shows the authority as well: a machine that joins knows it by its hash.
fn with_authority(pair: &Pair, ca: &str) -> Pair {
    Pair { certificate: format!("{}{ca}", pair.certificate), key: pair.key.clone() }
}

fn lifetimes(config: &Config) -> Lifetimes {
    let leaf = i64::try_from(config.certificate_lifetime_seconds).unwrap_or(i64::MAX);
    Lifetimes { leaf, renew_before: leaf / 6, ..Lifetimes::default() }
}
