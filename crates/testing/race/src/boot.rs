//! From exec to a Ready node, and what the idle cluster then costs.

use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::Options;
use crate::cluster::Cluster;
use crate::measure::Spread;
use crate::processes::{Footprint, footprint};
use crate::report::{Outcome, number, spread};

const METHOD: &str = "\
A round starts a cluster on an empty folder, stops it, starts it again on what it left, and purges it; a start's time is from exec to the \
return of `up --detach`, which is after the node became Ready. Then one more cluster rests for 10 s and is watched for 60 s: all processes \
that run the binary, added up (PSS divides shared pages among their users). There is no peer: Debian has no Kubernetes control plane.";

const SETTLE: Duration = Duration::from_secs(10);
const WATCH: Duration = Duration::from_secs(60);

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let cluster = Cluster::new(dir)?;
    let (mut fresh, mut resumed) = (Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        fresh.push(cluster.up()?.as_secs_f64());
        cluster.down()?;
        resumed.push(cluster.up()?.as_secs_f64());
        cluster.purge()?;
        eprintln!("round {round}: fresh {:.3} s, resumed {:.3} s", fresh[round - 1], resumed[round - 1]);
    }
    cluster.up()?;
    tokio::time::sleep(SETTLE).await;
    let before = footprint(&cluster.program);
    tokio::time::sleep(WATCH).await;
    let Footprint { processes, rss_mib, pss_mib, cpu_seconds, .. } = footprint(&cluster.program);
    let cpu_percent = (cpu_seconds - before.cpu_seconds) / WATCH.as_secs_f64() * 100.0;
    let binary_mib = cluster.program.metadata()?.len() as f64 / 1024.0 / 1024.0;
    cluster.purge()?;

    let (fresh_spread, resumed_spread) = (Spread::of(&fresh), Spread::of(&resumed));
    let row = |what: &str, figure: String| vec![what.to_owned(), figure];
    let rows = vec![
        row("exec → Ready, fresh, s", spread(&fresh_spread)),
        row("exec → Ready, resumed, s", spread(&resumed_spread)),
        row("idle memory, RSS, MiB", number(rss_mib)),
        row("idle memory, PSS, MiB", number(pss_mib)),
        row("idle processor, % of one core over 60 s", number(cpu_percent)),
        row("processes", processes.to_string()),
        row("binary, MiB", number(binary_mib)),
    ];
    let figures = json!({ "fresh_seconds": fresh, "resumed_seconds": resumed, "fresh": fresh_spread, "resumed": resumed_spread,
        "idle": { "processes": processes, "rss_mib": rss_mib, "pss_mib": pss_mib, "cpu_percent": cpu_percent }, "binary_mib": binary_mib });
    Ok(Outcome { method: METHOD.into(), head: vec!["what", "median (least–most)"], rows, figures })
}
