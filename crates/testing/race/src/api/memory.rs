//! What stored objects, large lists and idle watches add to the server's memory.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use client::{Client, WatchParams};
use k8s_openapi::api::core::v1::{ConfigMap, Node};

use super::requests::{self, closed_loop};
use super::wire::Protocol;
use super::{Servers, Table};
use crate::Options;
use crate::cluster::Cluster;
use crate::etcd::Etcd;
use crate::measure::Spread;
use crate::processes::{footprint, running};
use crate::report::number;

const MIB: f64 = 1024.0 * 1024.0;
/// Until the memory of finished requests has gone back.
const SETTLE: Duration = Duration::from_secs(1);

/// Makes the pods of these numbers; then what they cost, and what listing them all costs beside.
pub async fn pods(options: &Options, servers: &Servers, numbers: Range<usize>, table: &mut Table) -> anyhow::Result<()> {
    let program = servers.cluster.as_ref().map(|cluster| cluster.program.clone());
    let anonymous = || program.as_ref().map_or(f64::NAN, |program| footprint(program).anonymous_mib * MIB);
    let before = anonymous();
    let askers = servers.ours.askers(Protocol::Http1, 16).await?;
    let leg =
        closed_loop(askers, Duration::from_secs(600), numbers.len() as u64, &requests::create_pod()).await.context("make the pods")?;
    eprintln!("{} pods made, {:.0} a second", numbers.len(), leg.per_second);
    tokio::time::sleep(SETTLE).await;
    let after = anonymous();
    let whole = program.as_ref().map_or(f64::NAN, |program| footprint(program).rss_mib * MIB);
    let peak_reset = program.as_deref().is_some_and(reset_peak);
    let wire = servers.ours.connect().await?.ask(&requests::list_pods()(0)).await?.body_bytes;
    let share = numbers.len() as f64 / numbers.end as f64;
    eprintln!("{} pods are {:.1} MB on the wire, memory grew by {:.1} MB", numbers.end, wire as f64 / 1e6, (after - before) / 1e6);
    let count = number(numbers.end as f64);
    table.alone("CREATE of pods, a second", "16", leg.per_second);
    table.alone(&format!("memory of {count} pods / their size on the wire"), "–", (after - before) / (wire as f64 * share));
    if let Some(peak) = program.as_deref().and_then(peak).filter(|_| peak_reset && options.wants("memory")) {
        table.alone(&format!("extra memory of a LIST of {count} pods, MiB"), "1", (peak - whole) / MIB);
    }
    Ok(())
}

/// Makes the kernel forget the highest memory so far of the program's processes.
fn reset_peak(program: &Path) -> bool {
    running(program).iter().all(|pid| std::fs::write(format!("/proc/{pid}/clear_refs"), "5").is_ok())
}

/// The sum of their highest memory, in bytes.
fn peak(program: &Path) -> Option<f64> {
    let kib = |pid: &i32| -> Option<f64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?.split_whitespace().next()?.parse().ok()
    };
    Some(running(program).iter().filter_map(kib).sum::<f64>() * 1024.0)
}

/// As many values of a pod's size in etcd, read whole: MB/s.
pub async fn peer_list(options: &Options, etcd: &Etcd, size: usize) -> anyhow::Result<Spread> {
    const WRITERS: usize = 64;
    let connection = etcd.connect().await?;
    let key = |number: usize| Bytes::from(format!("/registry/pods/race/p-{number:06}"));
    let value = Bytes::from(requests::pod("p-000000", "many").to_string().repeat(3)).slice(..2_800);
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (mut connection, value, next) = (connection.clone(), value.clone(), next.clone());
        writers.spawn(async move {
            loop {
                let number = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if number >= size {
                    return anyhow::Ok(());
                }
                connection.put(key(number), value.clone()).await?;
            }
        });
    }
    while let Some(finished) = writers.join_next().await {
        finished??;
    }
    let (mut connection, mut rates) = (connection, Vec::new());
    for _ in 0..options.rounds {
        let (start, mut bytes) = (std::time::Instant::now(), 0);
        while start.elapsed() < super::seconds(options, 4.0) {
            bytes += connection.range(key(0), Bytes::from_static(b"/registry/pods/race/q")).await?;
        }
        rates.push(bytes as f64 / 1e6 / start.elapsed().as_secs_f64());
    }
    Ok(Spread::of(&rates))
}

/// Watches that nothing happens to, many on one HTTP/2 connection as Go's clients have them. A quarter of them is there before the first look,
/// so that what the server had in hand is used up.
pub async fn idle_watches(cluster: &Cluster, number: usize, table: &mut Table) -> anyhow::Result<()> {
    const PER_CONNECTION: usize = 250;
    let anonymous = || footprint(&cluster.program).anonymous_mib * 1024.0;
    let connections: Vec<Client> = (0..number.div_ceil(PER_CONNECTION)).map(|_| cluster.client()).collect::<anyhow::Result<_>>()?;
    for connection in &connections {
        drop(connection.get::<Node>(None, "nobody").await);
    }
    let (mut open, mut before) = (Vec::new(), f64::NAN);
    for index in 0..number {
        if index == number / 4 {
            tokio::time::sleep(SETTLE).await;
            before = anonymous();
        }
        let params = WatchParams { label_selector: Some(format!("idle={index}")), resource_version: None, ..WatchParams::default() };
        open.push(connections[index / PER_CONNECTION].watch::<ConfigMap>(&params).await?);
    }
    tokio::time::sleep(SETTLE).await;
    table.alone("memory of an idle watch, KiB", &number.to_string(), (anonymous() - before) / (number - number / 4) as f64);
    Ok(())
}
