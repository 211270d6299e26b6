//! Pods a second that the scheduler binds, durably and end to end, in the cases of upstream's scheduler_perf.

mod objects;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use client::Client;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceSlice;
use reconcile::EventRecorder;
use serde::Deserialize;
use serde_json::json;
use sim::{Embedded, Parts};

use crate::Options;
use crate::measure::Spread;
use crate::report::{Outcome, number, spread};

const METHOD: &str = "\
The cases of kubernetes/kubernetes test/integration/scheduler_perf, as data in crates/testing/race/src/scheduler/cases.yaml. Store on disk with every \
write durable before it is acknowledged, API server and scheduler in one process on all processors, no network between them. The measured pods \
exist when the scheduler starts; the rate is of bindings seen through a watch, from the first to the last. Claims of volumes and devices are made beforehand. The last \
column is upstream's own lower bound for its CI, on other machines.";

const WRITERS: usize = 64;
/// Nothing bound for so long means that the case does not end.
const STALLED: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Case {
    name: String,
    nodes: usize,
    #[serde(default)]
    zones: usize,
    #[serde(default = "pods_max")]
    pods_max: usize,
    #[serde(default = "cpu")]
    cpu: String,
    #[serde(default = "memory")]
    memory: String,
    #[serde(default)]
    churn: bool,
    /// Of each node.
    #[serde(default)]
    devices: usize,
    init: Vec<objects::Template>,
    measured: objects::Template,
}

fn pods_max() -> usize {
    110
}
fn cpu() -> String {
    "4".into()
}
fn memory() -> String {
    "32Gi".into()
}

/// Upstream's thresholds in pods a second, of 2025 and 2026; 0: switched off there.
const FLOORS: [(&str, u32); 25] = [
    ("SchedulingBasic", 680),
    ("SchedulingBasic50000", 810),
    ("SchedulingPodAntiAffinity", 60),
    ("SchedulingPodMatchingAntiAffinity", 595),
    ("SchedulingPodAffinity", 35),
    ("SchedulingPreferredPodAffinity", 90),
    ("SchedulingPreferredPodAntiAffinity", 90),
    ("SchedulingNodeAffinity", 220),
    ("SchedulingRequiredPodAntiAffinityWithNSSelector", 24),
    ("SchedulingPreferredAntiAffinityWithNSSelector", 55),
    ("SchedulingRequiredPodAffinityWithNSSelector", 35),
    ("SchedulingPreferredAffinityWithNSSelector", 90),
    ("TopologySpreading", 460),
    ("PreferredTopologySpreading", 340),
    ("SchedulingWithNodeInclusionPolicy", 270),
    ("MixedSchedulingBasePod", 140),
    ("PreemptionBasic", 0),
    ("PreemptionAsync", 570),
    ("Unschedulable", 600),
    ("SchedulingWithMixedChurn", 710),
    ("SchedulingWhileGated", 910),
    ("SchedulingDaemonset", 1100),
    ("SchedulingSecrets", 790),
    ("SchedulingCSIPVs", 100),
    ("SchedulingWithResourceClaims", 56),
];

pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let cases: Vec<Case> = serde_saphyr::from_str(include_str!("scheduler/cases.yaml")).context("cases.yaml")?;
    let wanted = |case: &&Case| options.only.as_deref().is_none_or(|only| case.name.contains(only));
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for case in cases.iter().filter(wanted) {
        let case = if options.quick { case.quick() } else { case.clone() };
        let mut rates = Vec::new();
        for round in 1..=options.rounds {
            let folder = dir.join(format!("{}-{round}", case.name));
            let rate = run(&case, &folder).await.with_context(|| case.name.clone())?;
            eprintln!("{} round {round}: {rate:.0} a second", case.name);
            rates.push(rate);
            std::fs::remove_dir_all(&folder).ok();
        }
        let floor = FLOORS.iter().find(|(name, _)| *name == case.name).map_or(0, |(_, floor)| *floor);
        let floor = if floor == 0 { "switched off".to_owned() } else { number(floor.into()) };
        let rate = Spread::of(&rates);
        rows.push(vec![case.name.clone(), case.nodes.to_string(), case.measured.count.to_string(), spread(&rate), floor]);
        figures.push(json!({ "case": case.name, "nodes": case.nodes, "measured": case.measured.count, "per_second": rate }));
    }
    let head = vec!["case", "nodes", "measured pods", "pods a second, median (least–most)", "upstream's CI floor"];
    Ok(Outcome { method: METHOD.into(), head, rows, figures: figures.into() })
}

impl Case {
    fn quick(&self) -> Self {
        let mut case = self.clone();
        case.nodes = (case.nodes / 10).max(1);
        case.init.iter_mut().chain([&mut case.measured]).for_each(|template| template.count = template.count.div_ceil(10));
        case
    }
}

async fn run(case: &Case, dir: &Path) -> anyhow::Result<f64> {
    std::fs::create_dir_all(dir)?;
    let store = Arc::new(store::log::Log::open(dir, store::log::Options::default())?);
    let cluster = Embedded::start(store.clone(), Parts { controllers: None, scheduler: None, taints: false }).await?;
    let admin = cluster.admin();
    objects::surroundings(&admin).await?;
    make(case.nodes, |number| {
        let (admin, node) = (admin.clone(), objects::node(case, number));
        async move { admin.create::<Node>(&node?).await.map(drop).map_err(Into::into) }
    })
    .await?;
    make(if case.devices > 0 { case.nodes } else { 0 }, |number| {
        let (admin, slice) = (admin.clone(), objects::slice(number, case.devices));
        async move { admin.create::<ResourceSlice>(&slice?).await.map(drop).map_err(Into::into) }
    })
    .await?;
    let pods = cluster.caches.of::<Pod>();
    pods.synced().await;
    let counts = Arc::new(Counts::default());
    let seen = counts.clone();
    pods.on_change(move |old, new| seen.observe(old.map(|pod| &**pod), new.map(|pod| &**pod)));
    for (at, template) in case.init.iter().enumerate() {
        create(&admin, template, &format!("init-{at}")).await?;
    }
    let expected: usize = case.init.iter().filter(|template| !template.waits).map(|template| template.count).sum();
    let before = schedule(&cluster);
    wait(&counts.init, expected).await?;
    before.stop();
    create(&admin, &case.measured, "measured").await?;
    let churn = stdx::drain();
    if case.churn {
        tokio::spawn(objects::churn(admin.clone(), churn.clone()));
    }
    let after = schedule(&cluster);
    let result = wait(&counts.measured, case.measured.count).await;
    after.stop();
    churn.stop();
    result?;
    let (first, last) = counts.span().context("nothing was bound")?;
    cluster.stop();
    tokio::time::sleep(Duration::from_millis(200)).await;
    store::Store::close(&*store).await.ok();
    Ok(case.measured.count as f64 / (last - first).as_secs_f64())
}

fn schedule(cluster: &Embedded) -> stdx::Drain {
    let drain = stdx::drain();
    let client = cluster.client("system:kube-scheduler", &[]).named("kube-scheduler");
    let recorder = EventRecorder::start(&client, "default-scheduler", None, drain.clone());
    tokio::spawn(scheduler::run(scheduler::Config::default(), client, cluster.caches.clone(), recorder, drain.clone()));
    drain
}

async fn create(admin: &Client, template: &objects::Template, prefix: &str) -> anyhow::Result<()> {
    make(template.count, |number| {
        let (admin, template, name) = (admin.clone(), template.clone(), format!("{prefix}-{number}"));
        async move {
            if template.volume {
                objects::volume(&admin, &name).await?;
            }
            if template.device {
                objects::claim(&admin, &name).await?;
            }
            admin.create::<Pod>(&template.pod(&name, number)?).await.map(drop).map_err(Into::into)
        }
    })
    .await
}

async fn make<F, Fut>(count: usize, one: F) -> anyhow::Result<()>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut results = futures_util::stream::iter(0..count).map(|number| tokio::spawn(one(number))).buffer_unordered(WRITERS);
    while let Some(result) = results.next().await {
        result??;
    }
    Ok(())
}

/// Waits until so many are counted.
async fn wait(counted: &AtomicUsize, expected: usize) -> anyhow::Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    while counted.load(Ordering::Acquire) < expected {
        let now = counted.load(Ordering::Acquire);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        anyhow::ensure!(since.elapsed() < STALLED, "{now} of {expected} are bound, and no more");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Bindings seen.
#[derive(Default)]
struct Counts {
    init: AtomicUsize,
    measured: AtomicUsize,
    span: Mutex<Option<(Instant, Instant)>>,
}

impl Counts {
    fn observe(&self, old: Option<&Pod>, new: Option<&Pod>) {
        let bound = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some();
        let Some(new) = new.filter(|new| bound(new) && !old.is_some_and(bound)) else { return };
        if !new.metadata.name.as_deref().unwrap_or_default().starts_with("measured") {
            self.init.fetch_add(1, Ordering::AcqRel);
            return;
        }
        self.measured.fetch_add(1, Ordering::AcqRel);
        let now = Instant::now();
        let mut span = self.span.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *span = Some((span.map_or(now, |(first, _)| first), now));
    }

    fn span(&self) -> Option<(Instant, Instant)> {
        *self.span.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
