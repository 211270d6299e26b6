//! Services in the kernel: how long the whole table takes, and one change of it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::Instant;

use proxy::plan::{Action, Balance, Endpoint, Family, Frontend, Masquerade, Plan};
use proxy::{Config, Owner, Proxier};

use super::lab::{TABLE, inside, namespace};
use super::{Rows, note};
use crate::Options;
use crate::measure::{quantile, sorted};

/// Services and endpoints of each: upstream's sizes.
const SIZES: [(u32, u8); 3] = [(5_000, 2), (44_125, 2), (5_006, 50)];
const CHANGES: u8 = 200;
/// The peer's table of this many takes seconds already.
const PEER: (u32, u8) = (5_000, 2);

pub fn config() -> Config {
    let mut config = Config::new("race", vec![([10, 244, 0, 0].into(), 16)]);
    config.table = TABLE.to_owned();
    config
}

pub fn owner(number: u32) -> Owner {
    Owner::Service("race".into(), format!("s{number}"))
}

pub fn address(number: u32) -> IpAddr {
    IpAddr::from((0x0a60_0000 + number + 1).to_be_bytes())
}

/// Service `number` with endpoints that nobody is behind.
pub fn plan(number: u32, endpoints: u8) -> Plan {
    let [_, _, high, low] = number.to_be_bytes();
    let endpoints = (0..endpoints).map(|index| Endpoint { address: [10, 128 + index, high, low].into(), port: 8080 }).collect();
    balanced(number, endpoints)
}

pub fn balanced(number: u32, endpoints: Vec<Endpoint>) -> Plan {
    let frontend = Frontend { family: Family::V4, address: Some(address(number)), protocol: 6, port: 80 };
    let balance = Balance { endpoints, local: None, masquerade: Masquerade::NonPods, affinity_seconds: None };
    Plan { frontends: [(frontend, Action::Balance(balance))].into(), ..Plan::default() }
}

pub fn measure(options: &Options, rows: &mut Rows, round: usize) -> anyhow::Result<()> {
    let divisor = if options.quick { 10 } else { 1 };
    for (services, endpoints) in SIZES {
        let services = services / divisor;
        let netns = namespace()?;
        let (full, changes) = inside(&netns, || fill(services, endpoints))?;
        note(rows, &format!("{services} Services of {endpoints} endpoints programmed, s"), full);
        note(rows, &format!("one endpoint changed among {services} Services, p50 ms"), quantile(&changes, 0.5));
        note(rows, &format!("one endpoint changed among {services} Services, p99 ms"), quantile(&changes, 0.99));
    }
    if round == 0 {
        let (services, endpoints) = (PEER.0 / divisor, PEER.1);
        if let Some(seconds) = chains(&namespace()?, services, endpoints)? {
            note(rows, &format!("peer: {services} Services of {endpoints} endpoints as chains by nft -f, s"), seconds);
        }
    }
    Ok(())
}

/// Seconds for the whole, and sorted milliseconds for changes.
fn fill(services: u32, endpoints: u8) -> anyhow::Result<(f64, Vec<f64>)> {
    let mut proxier = Proxier::open(config())?;
    let plans: Vec<(Owner, Plan)> = (0..services).map(|number| (owner(number), plan(number, endpoints))).collect();
    let started = Instant::now();
    proxier.replace(plans)?;
    let full = started.elapsed().as_secs_f64();
    let mut changes = Vec::new();
    for change in 0..CHANGES {
        // One endpoint more or less is another chain, the dearer kind of change: the kernel walks all that lead to chains.
        let fewer = vec![(owner(7), plan(7, endpoints - change % 2))];
        let started = Instant::now();
        proxier.update(fewer)?;
        changes.push(started.elapsed().as_secs_f64() * 1e3);
    }
    Ok((full, sorted(&changes)))
}

/// A chain for every Service and endpoint, dispatched by one verdict map, as upstream's nftables mode makes them. `None` without nft.
fn chains(netns: &OwnedFd, services: u32, endpoints: u8) -> anyhow::Result<Option<f64>> {
    let mut text = String::from("table ip peer {\n");
    let mut map = String::new();
    for number in 0..services {
        let [_, _, high, low] = number.to_be_bytes();
        let mut choices = Vec::new();
        for index in 0..endpoints {
            writeln!(text, "chain e-{number}-{index} {{ meta l4proto tcp dnat to 10.{}.{high}.{low}:8080; }}", 128 + index)?;
            choices.push(format!("{index} : goto e-{number}-{index}"));
        }
        writeln!(text, "chain s-{number} {{ numgen random mod {endpoints} vmap {{ {} }}; }}", choices.join(", "))?;
        writeln!(map, "{} . tcp . 80 : goto s-{number},", address(number))?;
    }
    writeln!(text, "map ips {{ type ipv4_addr . inet_proto . inet_service : verdict; elements = {{ {map} }}; }}")?;
    text.push_str("chain nat { type nat hook prerouting priority dstnat; ip daddr . meta l4proto . th dport vmap @ips; }\n}\n");
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    inside(netns, || {
        let started = Instant::now();
        let run = Command::new("nft").arg("-f").arg(file.path()).stdout(Stdio::null()).stderr(Stdio::inherit()).status();
        Ok(run.is_ok_and(|status| status.success()).then(|| started.elapsed().as_secs_f64()))
    })
}
