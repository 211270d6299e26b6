//! `sternpost token`: what a machine needs to join as a node (bootstrap tokens, KEP-130).

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use clap::Subcommand;
use client::{Client, DeleteParams, Https, ListParams};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::config::{Config, outward_address};
use crate::join::ca_hash;

const NAMESPACE: &str = "kube-system";
const KIND: &str = "bootstrap.kubernetes.io/token";
const GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

#[derive(Subcommand)]
pub enum Command {
    /// Make a token and print the line that joins a machine with it.
    Create {
        /// What it is for; only nodes join.
        #[arg(long, default_value = "node", value_parser = ["node"])]
        role: String,
        /// How long it is good for, such as 30m, 24h or 7d.
        #[arg(long, default_value = "24h", value_name = "DURATION")]
        ttl: String,
    },
    /// The tokens that there are, without their secrets.
    List,
    /// Make a token useless.
    Delete { id: String },
}

pub fn run(config: &Config, command: Command) -> anyhow::Result<i32> {
    let https = Https::from_kubeconfig(&config.kubeconfig(), None).context("no cluster here yet")?;
    let client = Client::new(Arc::new(https));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Create { role: _, ttl } => create(config, &client, &ttl).await,
            Command::List => list(&client).await,
            Command::Delete { id } => delete(&client, &id).await,
        }
    })?;
    Ok(0)
}

async fn create(config: &Config, client: &Client, ttl: &str) -> anyhow::Result<()> {
    let ttl: SignedDuration = days(ttl).map_or_else(|| ttl.parse(), Ok).with_context(|| format!("--ttl {ttl:?}"))?;
    anyhow::ensure!(ttl > SignedDuration::ZERO, "--ttl must be longer than nothing");
    let (id, secret) = (random(6)?, random(16)?);
    let expiration = Timestamp::now().checked_add(ttl).context("--ttl is too long")?;
    let data = [
        ("token-id", id.clone()),
        ("token-secret", secret.clone()),
        ("expiration", meta::time::seconds(expiration)),
        ("usage-bootstrap-authentication", "true".to_owned()),
        ("auth-extra-groups", GROUP.to_owned()),
        ("description", "joins a node".to_owned()),
    ];
    let wanted = Secret {
        metadata: ObjectMeta { name: Some(format!("bootstrap-token-{id}")), namespace: Some(NAMESPACE.into()), ..ObjectMeta::default() },
        type_: Some(KIND.into()),
        data: Some(data.into_iter().map(|(key, value)| (key.to_owned(), ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    };
    client.create(&wanted).await?;
    let pem = std::fs::read(config.pki_dir().join("ca.crt")).context("the cluster's CA")?;
    let hash = auth::pki::der(&pem).and_then(|der| ca_hash(&der)).context("the cluster's CA cannot be read")?;
    let address = config.node_ip.or_else(outward_address).context("this host has no address")?;
    println!("sternpost agent --server https://{address}:{} --token {id}.{secret} --ca-hash {hash}", config.api_port);
    Ok(())
}

async fn list(client: &Client) -> anyhow::Result<()> {
    let secrets = client.list::<Secret>(&ListParams { namespace: Some(NAMESPACE.to_owned()), ..ListParams::default() }).await?.items;
    println!("ID\tEXPIRES\tDESCRIPTION");
    for secret in secrets.iter().filter(|secret| secret.type_.as_deref() == Some(KIND)) {
        let empty = BTreeMap::new();
        let data = secret.data.as_ref().unwrap_or(&empty);
        let text = |key: &str| data.get(key).map(|value| String::from_utf8_lossy(&value.0).into_owned()).unwrap_or_default();
        println!("{}\t{}\t{}", text("token-id"), text("expiration"), text("description"));
    }
    Ok(())
}

async fn delete(client: &Client, token: &str) -> anyhow::Result<()> {
    let id = token.split('.').next().unwrap_or_default();
    client.delete::<Secret>(Some(NAMESPACE), &format!("bootstrap-token-{id}"), &DeleteParams::default()).await?;
    println!("token {id} is gone");
    Ok(())
}

/// `7d`: the parser knows no days, because they are not always as long.
fn days(text: &str) -> Option<SignedDuration> {
    text.strip_suffix('d')?.parse::<i64>().ok()?.checked_mul(24).map(SignedDuration::from_hours)
}

/// So many of `[a-z0-9]`, all equally likely.
fn random(count: usize) -> anyhow::Result<String> {
    const LETTERS: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::new();
    while text.len() < count {
        let mut byte = [0];
        getrandom::fill(&mut byte).map_err(|error| anyhow::anyhow!("random bytes: {error}"))?;
        // 252 is a multiple of 36.
        if byte[0] < 252 {
            text.push(LETTERS[usize::from(byte[0]) % LETTERS.len()].into());
        }
    }
    Ok(text)
}
