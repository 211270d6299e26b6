//! What controllers do, recorded as text: `scenarios/<controller>.txt` holds steps, each a command with its input, `----`, and what of the
//! cluster is different once the controllers are through with it.
//!
//! `STERNPOST_RECORD=1` writes what happens into the files, `STERNPOST_SCENARIO=<name>` takes one of them, `STERNPOST_SETTLED=<seconds>` is how long
//! to wait for more to happen; read the difference before it is committed.

#[path = "scenarios/cluster.rs"]
mod cluster;
#[path = "scenarios/facts.rs"]
mod facts;
#[path = "scenarios/script.rs"]
mod script;

use std::path::Path;
use std::time::Duration;

use cluster::Cluster;
use facts::{Facts, difference};
use script::Script;

/// How long the controllers may take on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(60);
/// So long nothing more may happen.
const REST: Duration = Duration::from_millis(300);
/// What is recorded has not changed for so long.
const SETTLED: Duration = Duration::from_millis(1500);
const LOOK: Duration = Duration::from_millis(50);

fn recording() -> bool {
    std::env::var_os("STERNPOST_RECORD").is_some()
}

async fn play(path: &Path) -> Result<(), String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    let mut script = Script::parse(&text)?;
    let cluster = Cluster::start(&script.settings).await;
    let mut before = cluster.facts().await;
    for step in &mut script.steps {
        cluster.carry_out(step).await.map_err(|error| format!("{}: {error:#}", step.command))?;
        let after = match recording() {
            true => settled(&cluster, &before).await,
            false => until(&cluster, &before, &step.expected).await,
        };
        let seen = difference(&before, &after);
        if recording() {
            step.expected = seen;
        } else if seen != step.expected {
            return Err(format!("{}\nexpected:\n{}\nseen:\n{}", step.command, step.expected.join("\n"), seen.join("\n")));
        }
        before = after;
    }
    if recording() {
        std::fs::write(path, script.to_string()).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The state as soon as it is the expected one and stays so for a moment, or at the end of the patience.
async fn until(cluster: &Cluster, before: &Facts, expected: &[String]) -> Facts {
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let now = cluster.facts().await;
        if difference(before, &now) == expected {
            tokio::time::sleep(REST).await;
            let later = cluster.facts().await;
            if later == now || tokio::time::Instant::now() > end {
                return later;
            }
        }
        if tokio::time::Instant::now() > end {
            return now;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn settled(cluster: &Cluster, before: &Facts) -> Facts {
    let (mut last, mut since) = (before.clone(), tokio::time::Instant::now());
    let long = std::env::var("STERNPOST_SETTLED").ok().and_then(|seconds| seconds.parse().ok());
    let settled = long.map_or(SETTLED, Duration::from_secs);
    while since.elapsed() < settled {
        tokio::time::sleep(LOOK).await;
        let now = cluster.facts().await;
        if now != last {
            (last, since) = (now, tokio::time::Instant::now());
        }
    }
    last
}

#[tokio::test(flavor = "multi_thread")]
async fn the_controllers_do_what_is_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let only = std::env::var("STERNPOST_SCENARIO").ok();
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    paths.retain(|path| only.as_ref().is_none_or(|only| path.file_stem().is_some_and(|stem| stem == only.as_str())));
    paths.sort();
    assert!(!paths.is_empty());
    let plays = paths.into_iter().map(|path| async move {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        tokio::spawn(async move { play(&path).await })
            .await
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|why| format!("{name}: {why}"))
    });
    let ended: Vec<Result<(), String>> =
        futures_util::StreamExt::collect(futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(plays), 4)).await;
    let failed: Vec<String> = ended.into_iter().filter_map(Result::err).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n\n"));
}
