//! Durable puts a second: the embedded log beside Debian's etcd-server on the same disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use serde_json::json;
use store::log::{Log, Options as LogOptions};
use store::{Expect, Store};

use crate::Options;
use crate::etcd::Etcd;
use crate::measure::{Leg, Spread, closed_loop, quantile};
use crate::report::{Outcome, number, spread};

const METHOD: &str = "\
A leg is a closed loop of so many writers, each putting one value and waiting for it to be durable (fdatasync before the answer, on both \
sides); a round is ours, etcd, etcd, ours. Ours is called in the process, as our API server calls it; etcd (Debian's etcd-server, one member, \
default settings but the quota) is called in gRPC over loopback by the same program, one connection per 64 writers, as Kubernetes calls it. \
Values are Pod-like JSON that differs from put to put, over 10,000 keys; “random” does not compress. Figures are puts a second: median (least–most).";

/// Keys, so that versions pile up on each as they do in a cluster.
const KEYS: u64 = 10_000;
const WRITERS: [usize; 3] = [1, 64, 1_000];
/// Distinct values that writers take turns with: making one must not be what is measured.
const VALUES: usize = 512;

struct Load {
    name: &'static str,
    writers: usize,
    values: Arc<Vec<Bytes>>,
}

fn loads() -> Vec<Load> {
    let pods = |bytes: usize| Arc::new((0..VALUES).map(|number| pod(number, bytes)).collect::<Vec<_>>());
    let (small, large) = (pods(1 << 10), pods(3 << 10));
    let noise = Arc::new((0..VALUES).map(|number| Bytes::from(noise(number as u64 + 1, 3 << 10))).collect::<Vec<_>>());
    let mut loads: Vec<Load> = WRITERS.iter().map(|writers| Load { name: "1 KiB", writers: *writers, values: small.clone() }).collect();
    loads.extend(WRITERS.iter().map(|writers| Load { name: "3 KiB", writers: *writers, values: large.clone() }));
    loads.push(Load { name: "3 KiB random", writers: 64, values: noise });
    loads
}

/// A Pod of that many bytes, filled up with environment variables; names, uids and half of every variable are random.
fn pod(number: usize, bytes: usize) -> Bytes {
    let mut random = Random(number as u64 + 7);
    let uid =
        format!("{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}", random.hex(32), random.hex(16), random.hex(12), random.hex(12), random.hex(48));
    let head = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"web-{:010x}","namespace":"default","uid":"{uid}","creationTimestamp":"2026-11-21T00:00:00Z","labels":{{"app":"web","pod-template-hash":"{:010x}"}}}},"spec":{{"nodeName":"node-{}","containers":[{{"name":"web","image":"sternpost.io/toolbox","env":["#,
        random.hex(40),
        random.hex(40),
        number % 97
    );
    let mut text = head;
    while text.len() + 80 < bytes {
        text += &format!(r#"{{"name":"SETTING_{:x}","value":"{:016x}"}},"#, text.len(), random.next());
    }
    text += r#"{"name":"LAST","value":""#;
    let tail = r#""}]}]}}"#;
    while text.len() + tail.len() < bytes {
        text += &format!("{:x}", random.hex(4));
    }
    Bytes::from(text + tail)
}

fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..bytes).map(|_| random.next() as u8).collect()
}

/// SplitMix64: values must be the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    fn hex(&mut self, bits: u32) -> u64 {
        self.next() >> (64 - bits)
    }
}

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let ours: Arc<dyn Store> = Arc::new(Log::open(&dir.join("log"), LogOptions::default()).context("open our store")?);
    let etcd = Etcd::start(options.etcd.as_deref(), &dir.join("etcd")).await?;
    let length = Duration::from_secs_f64(options.leg_seconds);
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for load in loads() {
        let (mut own, mut peer, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            let (a, b) = (own_leg(&ours, &load, length).await?, peer_leg(&etcd, &load, length).await?);
            let (c, d) = (peer_leg(&etcd, &load, length).await?, own_leg(&ours, &load, length).await?);
            ratios.push((a.per_second + d.per_second) / (b.per_second + c.per_second));
            eprintln!("{} × {}, round {round}: {:.0} and {:.0} a second", load.name, load.writers, a.per_second, b.per_second);
            own.extend([a, d]);
            peer.extend([b, c]);
        }
        let rates = |legs: &[Leg]| Spread::of(&legs.iter().map(|leg| leg.per_second).collect::<Vec<_>>());
        let waits = |legs: &[Leg], q: f64| Spread::of(&legs.iter().map(|leg| quantile(&leg.latencies, q)).collect::<Vec<_>>());
        let ratio = Spread::of(&ratios);
        let percentiles = |legs: &[Leg]| format!("{} / {}", number(waits(legs, 0.5).median), number(waits(legs, 0.99).median));
        rows.push(vec![
            load.name.to_owned(),
            load.writers.to_string(),
            spread(&rates(&own)),
            spread(&rates(&peer)),
            format!("**{:.1} ×** ({:.1}–{:.1})", ratio.median, ratio.min, ratio.max),
            percentiles(&own),
            percentiles(&peer),
        ]);
        let side = |legs: &[Leg]| {
            json!({ "puts_per_second": rates(legs), "p50_ms": waits(legs, 0.5), "p99_ms": waits(legs, 0.99),
                    "legs": legs.iter().map(|leg| leg.per_second).collect::<Vec<_>>() })
        };
        figures.push(json!({ "value": load.name, "writers": load.writers, "ratio": ratio, "ours": side(&own), "etcd": side(&peer) }));
    }
    ours.close().await?;
    let head = vec!["value", "writers", "Sternpost", "etcd 3.4", "ratio", "ours p50 / p99 ms", "etcd p50 / p99 ms"];
    Ok(Outcome { method: METHOD.into(), head, rows, figures: figures.into() })
}

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/registry/pods/default/web-{:06}", number % KEYS))
}

async fn own_leg(store: &Arc<dyn Store>, load: &Load, length: Duration) -> anyhow::Result<Leg> {
    let (store, values) = (store.clone(), load.values.clone());
    closed_loop(load.writers, length, move |_, number| {
        let (store, value) = (store.clone(), values[number as usize % VALUES].clone());
        async move {
            store.put(&key(number), value, Expect::Anything).await?;
            Ok(())
        }
    })
    .await
}

async fn peer_leg(etcd: &Etcd, load: &Load, length: Duration) -> anyhow::Result<Leg> {
    const WRITERS_PER_CONNECTION: usize = 64;
    let mut connections = Vec::new();
    for _ in 0..load.writers.div_ceil(WRITERS_PER_CONNECTION) {
        connections.push(etcd.connect().await?);
    }
    let (connections, values) = (Arc::new(connections), load.values.clone());
    closed_loop(load.writers, length, move |writer, number| {
        let mut connection = connections[writer / WRITERS_PER_CONNECTION].clone();
        let value = values[number as usize % VALUES].clone();
        async move { connection.put(key(number), value).await }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_the_promised_size_and_are_json() {
        for bytes in [1 << 10, 3 << 10] {
            let value = pod(3, bytes);
            assert_eq!(value.len(), bytes);
            serde_json::from_slice::<serde_json::Value>(&value).unwrap();
            assert_ne!(value, pod(4, bytes));
        }
        assert_eq!(noise(1, 100).len(), 100);
    }
}
