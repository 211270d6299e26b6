//! The network of a node: Services programmed, connections through them, names, bytes between pods, policies.
//!
//! Everything happens in network namespaces made here, on threads that end; nothing of the machine's own is touched.

use std::path::Path;

use serde_json::{Map, json};

use crate::Options;
use crate::measure::Spread;
use crate::report::{Outcome, spread};

mod lab;
mod names;
mod paths;
mod policies;
mod services;

const METHOD: &str = "\
In network namespaces of the race's own. Services: plans are given to the proxy's own programmer, from an empty table to the kernel's acknowledgement; \
the peer is the shape of kube-proxy's nftables mode (a chain per Service and per endpoint) by `nft -f`, where nft is there. One endpoint: \
the same Service changed back and forth in the full table. Connections: TCP connect from a pod to a pod, by its address and \
through one of so many Services, in turn. DNS: two threads serve, two ask, with 32 questions of each client under way over loopback; peers \
are started beside with as many threads and the same names where they are on PATH. Throughput: one TCP stream.";

/// Rows: what, and a value for each round.
type Rows = Vec<(String, Vec<f64>)>;

fn note(rows: &mut Rows, what: &str, value: f64) {
    match rows.iter_mut().find(|(name, _)| name == what) {
        Some((_, values)) => values.push(value),
        None => rows.push((what.to_owned(), vec![value])),
    }
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let mut rows = Rows::new();
    for round in 0..options.rounds {
        tokio::task::block_in_place(|| -> anyhow::Result<()> {
            if options.wants("services") {
                services::measure(options, &mut rows, round)?;
            }
            if options.wants("paths") {
                paths::measure(options, &mut rows)?;
            }
            if options.wants("policies") {
                policies::measure(&mut rows)?;
            }
            if options.wants("names") {
                names::measure(options, dir, &mut rows)?;
            }
            Ok(())
        })?;
    }
    let mut figures = Map::new();
    let mut table = Vec::new();
    for (name, values) in &rows {
        let found = Spread::of(values);
        table.push(vec![name.clone(), spread(&found)]);
        figures.insert(name.clone(), json!({ "values": values, "spread": found }));
    }
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "median (least–most)"], rows: table, figures: figures.into() })
}
