//! Requests a second that the API server answers over HTTPS.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, ListParams};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;

use crate::Options;
use crate::cluster::Cluster;
use crate::measure::{Leg, Spread, closed_loop, quantile};
use crate::report::{Outcome, number, spread};

const METHOD: &str = "\
ConfigMaps of 1 KiB in the namespace default of an otherwise idle cluster; a closed loop of so many clients, one HTTP/2 connection per 16 of them, \
client certificates, JSON, answers decoded. The client runs on the same processors. There is no peer: Debian has no Kubernetes control plane.";

const NAMESPACE: &str = "default";
const LISTED: usize = 500;
const CLIENTS_PER_CONNECTION: usize = 16;

#[derive(Clone, Copy, PartialEq)]
enum Verb {
    Get,
    List,
    Create,
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    const LOADS: [(Verb, &str, usize); 5] = [
        (Verb::Get, "GET one", 1),
        (Verb::Get, "GET one", 64),
        (Verb::List, "LIST 500", 8),
        (Verb::Create, "CREATE", 1),
        (Verb::Create, "CREATE", 64),
    ];
    let cluster = Cluster::new(dir)?;
    cluster.up()?;
    let connections: Vec<Client> = (0..4).map(|_| cluster.client()).collect::<anyhow::Result<_>>()?;
    let connections = Arc::new(connections);
    for number in 0..LISTED {
        connections[0].create(&config_map(&format!("listed-{number}"), "listed")?).await?;
    }
    let length = Duration::from_secs_f64(options.leg_seconds);
    let mut legs: Vec<Vec<Leg>> = LOADS.iter().map(|_| Vec::new()).collect();
    for round in 1..=options.rounds {
        for (index, (verb, what, clients)) in LOADS.into_iter().enumerate() {
            let leg = leg(&connections, verb, clients, length).await?;
            eprintln!("round {round}, {what} × {clients}: {:.0} a second", leg.per_second);
            legs[index].push(leg);
        }
    }
    cluster.purge()?;
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for ((_, what, clients), legs) in LOADS.into_iter().zip(&legs) {
        let rate = Spread::of(&legs.iter().map(|leg| leg.per_second).collect::<Vec<_>>());
        let wait = |q: f64| Spread::of(&legs.iter().map(|leg| quantile(&leg.latencies, q)).collect::<Vec<_>>());
        let waits = format!("{} / {}", number(wait(0.5).median), number(wait(0.99).median));
        rows.push(vec![what.to_owned(), clients.to_string(), spread(&rate), waits]);
        figures.push(json!({ "verb": what, "clients": clients, "per_second": rate, "p50_ms": wait(0.5), "p99_ms": wait(0.99) }));
    }
    let head = vec!["request", "clients", "a second, median (least–most)", "p50 / p99 ms"];
    Ok(Outcome { method: METHOD.into(), head, rows, figures: figures.into() })
}

fn config_map(name: &str, app: &str) -> anyhow::Result<ConfigMap> {
    let metadata = json!({ "name": name, "namespace": NAMESPACE, "labels": { "app": app } });
    Ok(serde_json::from_value(json!({ "metadata": metadata, "data": { "settings": "x".repeat(800) } }))?)
}

async fn leg(connections: &Arc<Vec<Client>>, verb: Verb, clients: usize, length: Duration) -> anyhow::Result<Leg> {
    let connections = connections.clone();
    closed_loop(clients, length, move |writer, number| {
        let api = connections[writer / CLIENTS_PER_CONNECTION % connections.len()].clone();
        async move {
            match verb {
                Verb::Get => drop(api.get::<ConfigMap>(Some(NAMESPACE), &format!("listed-{}", number as usize % LISTED)).await?),
                Verb::List => {
                    let listed = api.list::<ConfigMap>(&ListParams::in_namespace(NAMESPACE).labels("app=listed")).await?;
                    anyhow::ensure!(listed.items.len() == LISTED, "{} of {LISTED} listed", listed.items.len());
                }
                Verb::Create => drop(api.create(&config_map(&format!("made-{number}"), "made")?).await?),
            }
            Ok(())
        }
    })
    .await
}
