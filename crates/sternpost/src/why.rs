//! `sternpost why pod/NAME`: why a pod has no node, node by node, and what would help.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use client::{Client, Https, ListParams};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use reconcile::key_of;
use scheduler::devices::{self, Devices};
use scheduler::explain::{Text, World, explain};
use scheduler::volumes::{self, Volumes};

use crate::config::Config;

#[derive(Args)]
pub struct WhyArgs {
    /// pod/NAME
    what: String,
    #[arg(long, short, default_value = "default")]
    namespace: String,
    /// The cluster to ask [default: the one on this machine]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

pub fn run(config: &Config, args: &WhyArgs) -> anyhow::Result<i32> {
    let Some(name) = args.what.strip_prefix("pod/").or_else(|| args.what.strip_prefix("pods/")) else {
        bail!("{:?} is not pod/NAME", args.what);
    };
    let kubeconfig = args.kubeconfig.clone().unwrap_or_else(|| config.kubeconfig());
    let https = Https::from_kubeconfig(&kubeconfig, None).with_context(|| kubeconfig.display().to_string())?;
    let client = Client::new(Arc::new(https)).named("sternpost-why");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let pod: Pod = client.get(Some(&args.namespace), name).await?;
        let wanted = pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or("default-scheduler");
        let profiles = config.scheduler()?.profiles;
        let profile = profiles.iter().find(|profile| profile.scheduler_name == wanted).or(profiles.first()).cloned().unwrap_or_default();
        let everything = ListParams::default();
        let mut world = World {
            nodes: client.list::<Node>(&everything).await?.items,
            pods: client.list::<Pod>(&everything).await?.items,
            namespaces: client.list::<Namespace>(&everything).await?.items,
            volumes: Volumes::of(volumes::Lists {
                claims: client.list(&everything).await?.items,
                volumes: client.list(&everything).await?.items,
                classes: client.list(&everything).await?.items,
                csi_nodes: client.list(&everything).await?.items,
                drivers: client.list(&everything).await?.items,
                capacities: client.list(&everything).await?.items,
            }),
            devices: Devices::of(devices::Lists {
                claims: client.list(&everything).await?.items,
                slices: client.list(&everything).await?.items,
                classes: client.list(&everything).await?.items,
                rules: client.list(&everything).await?.items,
            }),
            profile,
        };
        print!("{}", Text(&key_of(&pod.metadata), &explain(&mut world, &pod)));
        Ok(0)
    })
}
