//! Pods a second that the scheduler binds, durably and end to end, in the cases of upstream's scheduler_perf.

mod case;
mod churn;
mod objects;

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use client::Client;
use futures_util::StreamExt;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::resource::v1::ResourceSlice;
use k8s_openapi::api::storage::v1::CSINode;
use reconcile::EventRecorder;
use serde_json::json;
use sim::{Embedded, Parts};
use tokio::sync::Notify;

use crate::Options;
use crate::measure::Spread;
use crate::report::{self, Outcome, number, spread};
use case::Case;

const METHOD: &str = "\
The cases of kubernetes/kubernetes test/integration/scheduler_perf, as data in crates/testing/race/src/scheduler/cases.yaml. Store on disk with every \
write durable before it is acknowledged, API server and scheduler in one process on all processors, no network between them. The measured pods \
exist when the scheduler starts; the rate is of bindings seen through a watch, from the first to the last. Claims of volumes and devices are made \
beforehand, those from templates by the controllers meanwhile. SteadyState: ten pods at once, each ten deleted when they are bound. The last column \
is upstream's own lower bound for its CI, on other machines.";

const WRITERS: usize = 64;
/// Nothing bound for so long means that the case does not end.
const STALLED: Duration = Duration::from_secs(30);

/// Rounds go over all cases before the next begins, so that a run that is cut short has something of each.
pub async fn race(options: &Options, dir: &Path) -> anyhow::Result<Outcome> {
    let start = Instant::now();
    let wanted = case::all().context("cases.yaml")?.into_iter().filter(|case| options.wants(&case.name));
    let cases: Vec<Case> = wanted.map(|case| if options.quick { case.quick() } else { case }).collect();
    let mut rates = vec![Vec::new(); cases.len()];
    let mut failures = vec![String::new(); cases.len()];
    for round in 1..=options.rounds {
        for ((case, rates), failure) in cases.iter().zip(&mut rates).zip(&mut failures) {
            if !failure.is_empty() || (round > 1 && options.is_over(start)) {
                continue;
            }
            let began = Instant::now();
            let folder = dir.join(format!("{}-{round}", case.name));
            match run(case, &folder).await {
                Ok(rate) => {
                    eprintln!("{} round {round}: {rate:.0} a second, {:.1} s in all", case.name, began.elapsed().as_secs_f64());
                    rates.push(rate);
                }
                Err(error) => {
                    eprintln!("{} round {round}: {error:#}", case.name);
                    *failure = format!("{error:#}");
                }
            }
            std::fs::remove_dir_all(&folder).ok();
        }
        report::keep("scheduler", &outcome(&cases, &rates, &failures))?;
    }
    Ok(outcome(&cases, &rates, &failures))
}

fn outcome(cases: &[Case], rates: &[Vec<f64>], failures: &[String]) -> Outcome {
    let (mut rows, mut figures) = (Vec::new(), Vec::new());
    for ((case, rates), failure) in cases.iter().zip(rates).zip(failures) {
        let floor = match (case.switched_off, case.floor) {
            (true, _) => "switched off".to_owned(),
            (false, 0) => "none".to_owned(),
            (false, floor) => number(floor.into()),
        };
        let rate = Spread::of(rates);
        let shown = if failure.is_empty() { spread(&rate) } else { format!("failed: {failure}") };
        rows.push(vec![case.name.clone(), case.nodes.to_string(), case.measured.count.to_string(), shown, rates.len().to_string(), floor]);
        figures.push(
            json!({ "case": case.name, "nodes": case.nodes, "measured": case.measured.count, "per_second": rate, "failure": failure }),
        );
    }
    let head = vec!["case", "nodes", "measured pods", "pods a second, median (least–most)", "rounds", "upstream's CI floor"];
    Outcome { method: METHOD.into(), head, rows, figures: figures.into() }
}

async fn run(case: &Case, dir: &Path) -> anyhow::Result<f64> {
    std::fs::create_dir_all(dir)?;
    let store = Arc::new(store::log::Log::open(dir, store::log::Options::default())?);
    let controllers = case.controllers.then(controllers::Config::default);
    let cluster = Embedded::start(store.clone(), Parts { controllers, scheduler: None, taints: false }).await?;
    let rate = measure(case, &cluster).await;
    cluster.stop();
    tokio::time::sleep(Duration::from_millis(200)).await;
    store::Store::close(&*store).await.ok();
    rate
}

async fn measure(case: &Case, cluster: &Embedded) -> anyhow::Result<f64> {
    let admin = cluster.admin();
    surroundings(&admin, case).await?;
    let pods = cluster.caches.of::<Pod>();
    pods.synced().await;
    let counts = Arc::new(Counts::default());
    let seen = counts.clone();
    pods.on_change(move |old, new| seen.observe(old.map(|pod| &**pod), new.map(|pod| &**pod)));
    for (at, template) in case.init.iter().enumerate() {
        create(&admin, template, &format!("init-{at}"), 0..template.count).await?;
    }
    let expected: usize = case.init.iter().filter(|template| !template.waits).map(|template| template.count).sum();
    let before = schedule(cluster);
    wait(&counts, &counts.init, expected).await.context("before the measurement")?;
    before.stop();
    let others = stdx::drain();
    let start_others = || {
        if let Some(churn) = &case.churn {
            tokio::spawn(churn::churn(admin.clone(), churn.clone(), others.clone()));
        }
        for (at, template) in case.init.iter().enumerate().filter(|(_, template)| template.deleted_per_second > 0) {
            tokio::spawn(churn::delete(admin.clone(), template.clone(), format!("init-{at}"), others.clone()));
        }
    };
    let result = if case.portion > 0 {
        let after = schedule(cluster);
        start_others();
        let result = steadily(case, &admin, &counts).await;
        after.stop();
        result
    } else {
        create(&admin, &case.measured, "measured", 0..case.measured.count).await?;
        start_others();
        let after = schedule(cluster);
        let result = wait(&counts, &counts.measured, case.measured.count).await;
        after.stop();
        result.and_then(|()| counts.span().context("nothing was bound")).map(|(first, last)| last - first)
    };
    others.stop();
    Ok(case.measured.count as f64 / result?.as_secs_f64())
}

async fn surroundings(admin: &Client, case: &Case) -> anyhow::Result<()> {
    objects::surroundings(admin, case).await?;
    make(0..case.nodes, |number| {
        let (admin, node) = (admin.clone(), objects::node(case, number));
        async move { admin.create::<Node>(&node?).await.map(drop).map_err(Into::into) }
    })
    .await?;
    make(0..if case.volumes_max > 0 { case.nodes } else { 0 }, |number| {
        let (admin, node) = (admin.clone(), objects::csi_node(case, number));
        async move { admin.create::<CSINode>(&node?).await.map(drop).map_err(Into::into) }
    })
    .await?;
    make(0..if case.devices > 0 { case.nodes } else { 0 }, |number| {
        let (admin, slice) = (admin.clone(), objects::slice(number, case.devices));
        async move { admin.create::<ResourceSlice>(&slice?).await.map(drop).map_err(Into::into) }
    })
    .await
}

/// A portion of pods at a time, each deleted when all of it is bound; how long all took.
async fn steadily(case: &Case, admin: &Client, counts: &Counts) -> anyhow::Result<Duration> {
    let start = Instant::now();
    for first in (0..case.measured.count).step_by(case.portion) {
        let numbers = first..(first + case.portion).min(case.measured.count);
        create(admin, &case.measured, "measured", numbers.clone()).await?;
        wait(counts, &counts.measured, numbers.end).await?;
        make(numbers, |number| {
            let (admin, namespace, name) = (admin.clone(), case.measured.namespace(number), format!("measured-{number}"));
            async move { admin.delete::<Pod>(Some(&namespace), &name, &Default::default()).await.map(drop).map_err(Into::into) }
        })
        .await?;
    }
    Ok(start.elapsed())
}

fn schedule(cluster: &Embedded) -> stdx::Drain {
    let drain = stdx::drain();
    let client = cluster.client("system:kube-scheduler", &[]).named("kube-scheduler");
    let recorder = EventRecorder::start(&client, "default-scheduler", None, drain.clone());
    tokio::spawn(scheduler::run(scheduler::Config::default(), client, cluster.caches.clone(), recorder, drain.clone()));
    drain
}

async fn create(admin: &Client, template: &objects::Template, prefix: &str, numbers: Range<usize>) -> anyhow::Result<()> {
    let gangs = template.count.checked_div(template.gang).unwrap_or(0);
    make(0..gangs, |number| {
        let (admin, size) = (admin.clone(), template.gang);
        async move { objects::group(&admin, number, size).await }
    })
    .await?;
    make(numbers, |number| {
        let (admin, template, name) = (admin.clone(), template.clone(), format!("{prefix}-{number}"));
        async move {
            if let Some(kind) = template.volume {
                objects::volume(&admin, kind, &name).await?;
            }
            if template.device == Some(objects::Device::Claim) {
                objects::claim(&admin, &name).await?;
            }
            admin.create::<Pod>(&template.pod(&name, number)?).await.map(drop).map_err(Into::into)
        }
    })
    .await
}

async fn make<F, Fut>(numbers: Range<usize>, one: F) -> anyhow::Result<()>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let mut results = futures_util::stream::iter(numbers).map(|number| tokio::spawn(one(number))).buffer_unordered(WRITERS);
    while let Some(result) = results.next().await {
        result??;
    }
    Ok(())
}

/// Waits until so many are counted.
async fn wait(counts: &Counts, counted: &AtomicUsize, expected: usize) -> anyhow::Result<()> {
    let (mut last, mut since) = (0, Instant::now());
    loop {
        let now = counted.load(Ordering::Acquire);
        if now >= expected {
            return Ok(());
        }
        if now != last {
            (last, since) = (now, Instant::now());
        }
        anyhow::ensure!(since.elapsed() < STALLED, "{now} of {expected} are bound, and no more");
        let _ = tokio::time::timeout(Duration::from_secs(1), counts.changed.notified()).await;
    }
}

/// Bindings seen.
#[derive(Default)]
struct Counts {
    init: AtomicUsize,
    measured: AtomicUsize,
    /// For the one who waits.
    changed: Notify,
    span: Mutex<Option<(Instant, Instant)>>,
}

impl Counts {
    fn observe(&self, old: Option<&Pod>, new: Option<&Pod>) {
        let bound = |pod: &Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_some();
        let Some(new) = new.filter(|new| bound(new) && !old.is_some_and(bound)) else { return };
        if !new.metadata.name.as_deref().unwrap_or_default().starts_with("measured") {
            self.init.fetch_add(1, Ordering::AcqRel);
            return self.changed.notify_one();
        }
        self.measured.fetch_add(1, Ordering::AcqRel);
        let now = Instant::now();
        let mut span = self.span.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *span = Some((span.map_or(now, |(first, _)| first), now));
        self.changed.notify_one();
    }

    fn span(&self) -> Option<(Instant, Instant)> {
        *self.span.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
