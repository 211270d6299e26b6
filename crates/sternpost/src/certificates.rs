//! The cluster's keys and certificates while it runs: leaves renewed before they end, the authority and the key of service account tokens
//! exchanged on request (or before the authority ends), and all of it shown and believed from then on, without a restart and without closing a
//! connection.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use auth::csr::Signer;
use auth::pki::authority::{Authority, Phase};
use auth::pki::{Lifetimes, Names, Pair, Pki};
use auth::tls;
use auth::tokens::{ISSUER, Issuer};
use stdx::Drain;
use tokio::sync::{Mutex, watch};

use crate::config::Config;
use crate::kubeconfig;

/// The wall clock is looked at this often: a timer would sleep on while the machine sleeps past the end of a certificate.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The common name of the API server as aggregated servers' front proxy.
pub const FRONT_PROXY: &str = "front-proxy-client";

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
    /// Signs service account tokens.
    pub issuer: Arc<Issuer>,
    /// Signs certificates on request. Without its key nothing is signed; everything else works.
    pub signer: Option<Arc<Signer>>,
    /// The authorities that everybody is to believe.
    authorities: watch::Sender<String>,
    names: Names,
    lifetimes: Lifetimes,
    overlap: Duration,
    /// When the next leaf is due; held while anything is exchanged.
    due: Mutex<i64>,
}

/// What may be asked for through the control socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotation {
    Authority(Authority, Step),
    ServiceAccountKey,
}

/// Of the exchange of an authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the next authority, which is trusted from now on.
    Prepare,
    /// It signs from now on, the former one is trusted still.
    Promote,
    /// The former one is trusted no longer.
    Retire,
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
        let signer = Signer::new(&pki.issuing, &pki.ca_key).inspect_err(|error| tracing::error!(%error, "certificates on request"));
        Ok(Self {
            api_server: tls::Server::with_front_proxy(&with_authority(&pki.api_server, &pki.issuing), &pki.ca, Some(&pki.front_proxy_ca))?,
            kubelet: tls::Server::new(&pki.kubelet_server, &pki.ca)?,
            kubelet_client: tls::Client::new(&pki.kubelet_client)?,
            front_proxy: tls::Client::new(&pki.front_proxy_client)?,
            issuer: Arc::new(pki.token_issuer(ISSUER).context("service account tokens")?),
            signer: signer.ok().map(Arc::new),
            authorities: watch::channel(pki.ca.clone()).0,
            due: Mutex::new(pki.renew_at(&lifetimes)),
            overlap: Duration::from_secs(config.authority_overlap_seconds),
            pki,
            names,
            lifetimes,
        })
    }

    /// The authorities as they change.
    pub fn authorities(&self) -> watch::Receiver<String> {
        self.authorities.subscribe()
    }

    /// How this process shows itself to the servers of nodes.
    pub fn to_kubelets(&self) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        Ok(self.kubelet_client.config(&self.pki.ca)?)
    }

    /// Renews what ends soon, and carries an exchange of the authority on, until `drain`.
    pub async fn rotate(&self, config: &Config, server: &apiserver::Server, drain: &Drain) {
        let look_every = LOOK_EVERY.min(Duration::from_secs(self.lifetimes.renew_before.unsigned_abs().div_ceil(4).max(1)));
        while drain.run(tokio::time::sleep(look_every)).await.is_some() {
            for authority in Authority::ALL {
                if let Some(step) = self.next_step(config, authority)
                    && let Err(error) = self.exchange(config, server, Rotation::Authority(authority, step)).await
                {
                    tracing::error!(error = format!("{error:#}"), ?authority, ?step, "exchange an authority");
                }
            }
            let mut due = self.due.lock().await;
            if jiff::Timestamp::now().as_second() < *due {
                continue;
            }
            match self.renew(config, server).await {
                Ok(next) => *due = next,
                Err(error) => tracing::error!(error = format!("{error:#}"), "renew certificates"),
            }
        }
    }

    /// What the time demands of an authority.
    fn next_step(&self, config: &Config, authority: Authority) -> Option<Step> {
        let (dir, passed) = (config.pki_dir(), |since: SystemTime| since.elapsed().unwrap_or_default());
        let longest = Duration::from_secs(config.certificate_lifetime_seconds);
        match authority.phase(&dir) {
            Phase::Prepared(since) => (passed(since) >= self.overlap).then_some(Step::Promote),
            // By then everything that it signed has ended.
            Phase::Promoted(since) => (passed(since) >= longest).then_some(Step::Retire),
            Phase::Steady => {
                let left = authority.ends_at(&dir)? - jiff::Timestamp::now().as_second();
                let needed = 2 * self.lifetimes.leaf + i64::try_from(self.overlap.as_secs()).unwrap_or(i64::MAX / 4);
                (left < needed.min(self.lifetimes.ca / 2)).then_some(Step::Prepare)
            }
        }
    }

    /// Does what is asked; says what is so now.
    pub async fn exchange(&self, config: &Config, server: &apiserver::Server, rotation: Rotation) -> anyhow::Result<String> {
        let mut due = self.due.lock().await;
        let dir = config.pki_dir();
        let said = match rotation {
            Rotation::ServiceAccountKey => {
                auth::pki::rotate_service_account_key(&dir)?;
                "service account tokens are signed with another key; those of the former one are still believed".to_owned()
            }
            Rotation::Authority(authority, step) => self.step(&dir, authority, step)?,
        };
        *due = self.renew(config, server).await?;
        tracing::info!(said, "keys were exchanged");
        Ok(said)
    }

    fn step(&self, dir: &Path, authority: Authority, step: Step) -> anyhow::Result<String> {
        let command = match authority {
            Authority::Cluster => "sternpost rotate ca",
            Authority::FrontProxy => "sternpost rotate front-proxy-ca",
        };
        match (step, authority.phase(dir)) {
            (Step::Prepare, Phase::Steady) => {
                authority.prepare(dir, &self.lifetimes)?;
                let overlap = self.overlap.as_secs();
                Ok(format!("the next authority is trusted from now on; it signs in {overlap} s, or after `{command} --promote`"))
            }
            (Step::Promote, Phase::Prepared(_)) => {
                authority.promote(dir)?;
                Ok(format!(
                    "the next authority signs from now on; the former one is trusted until its certificates have ended, or until \
                     `{command} --retire`"
                ))
            }
            (Step::Retire, Phase::Promoted(_)) => {
                authority.retire(dir)?;
                Ok("the former authority is trusted no longer".to_owned())
            }
            (_, Phase::Steady) => bail!("no exchange of the authority is under way"),
            (_, Phase::Prepared(_)) => bail!("the next authority is trusted already, and does not sign yet (--promote)"),
            (_, Phase::Promoted(_)) => bail!("the next authority signs already, and the former one is trusted still (--retire)"),
        }
    }

    /// Opens everything again, which renews what is due, and hands it to where it is used. Returns when the next leaf is due.
    async fn renew(&self, config: &Config, server: &apiserver::Server) -> anyhow::Result<i64> {
        let pki = Pki::open_with(&config.pki_dir(), &self.names, &self.lifetimes)?;
        // Trust goes before use.
        self.api_server.trust(&pki.ca, Some(&pki.front_proxy_ca))?;
        self.kubelet.trust(&pki.ca, None)?;
        self.kubelet_client.trust(&pki.ca)?;
        self.api_server.rotate(&with_authority(&pki.api_server, &pki.issuing))?;
        self.kubelet.rotate(&pki.kubelet_server)?;
        self.kubelet_client.rotate(&pki.kubelet_client)?;
        self.front_proxy.rotate(&pki.front_proxy_client)?;
        self.issuer.replace(&pki.service_account_key, &pki.service_account_trusted)?;
        if let Some(signer) = &self.signer {
            signer.replace(&pki.issuing, &pki.ca_key)?;
        }
        kubeconfig::write_admin(config, &pki)?;
        kubeconfig::refresh(config, &pki, &kubeconfig::Invoker::current())?;
        // Where nothing changed, nothing is written.
        server.publish_authorities(client_authorities(&pki)).await.context("publish the authorities")?;
        if *self.authorities.borrow() != pki.ca {
            self.authorities.send_replace(pki.ca.clone());
        }
        tracing::info!("certificates were renewed");
        Ok(pki.renew_at(&self.lifetimes))
    }
}

/// What aggregated servers are told.
pub fn client_authorities(pki: &Pki) -> apiserver::ClientAuthorities {
    apiserver::ClientAuthorities {
        client_ca: pki.ca.clone(),
        front_proxy_ca: pki.front_proxy_ca.clone(),
        front_proxies: vec![FRONT_PROXY.into()],
    }
}

/// The API server shows the authority as well: a machine that joins knows it by its hash.
fn with_authority(pair: &Pair, authority: &str) -> Pair {
    Pair { certificate: format!("{}{authority}", pair.certificate), key: pair.key.clone() }
}

/// What the configuration says of them.
pub fn lifetimes(config: &Config) -> Lifetimes {
    let seconds = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX / 4);
    let leaf = seconds(config.certificate_lifetime_seconds);
    Lifetimes { ca: seconds(config.authority_lifetime_seconds), leaf, renew_before: leaf / 6 }
}
