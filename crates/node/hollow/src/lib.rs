//! Hollow nodes: they register, send heartbeats, and run pods in memory. To the control plane they are nodes like others.
//!
//! One task watches pods and nodes and gives each change to a bounded set of workers, one registers, one renews Leases. [`plan`] decides for
//! one pod what its node would do next, from the [`Stage`]s of the configuration; [`run`] does it. Nothing is kept between two looks at a pod but
//! when it was first seen in its stage: a restart of the hollow nodes goes on from what the API says.
//!
//! A node with the annotation [`DOWN`] is dead: no heartbeats, and its pods stay as they are until the annotation goes.

mod plan;
mod register;
mod run;
mod view;

use std::collections::BTreeMap;
use std::time::Duration;

pub use run::run;

/// `true` on a Node: it behaves as if its machine had lost its power.
pub const DOWN: &str = "sternpost.io/hollow-down";
/// On each hollow Node, so that they are told from others.
pub const LABEL: &str = "sternpost.io/hollow";

/// How many nodes, what they are like, and what pods on them do.
#[derive(Clone, Debug)]
pub struct Config {
    pub nodes: usize,
    /// Nodes are called by this and a number.
    pub prefix: String,
    pub labels: BTreeMap<String, String>,
    /// They are spread over so many zones; 0: none is named.
    pub zones: usize,
    pub cpu: String,
    pub memory: String,
    pub pods_max: usize,
    /// Leases last four times as long.
    pub heartbeat: Duration,
    pub stages: Vec<Stage>,
    /// Writes under way at once.
    pub workers: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nodes: 10,
            prefix: "hollow-".into(),
            labels: BTreeMap::new(),
            zones: 3,
            cpu: "32".into(),
            memory: "256Gi".into(),
            pods_max: 110,
            heartbeat: Duration::from_secs(10),
            stages: Stage::defaults(),
            workers: 128,
        }
    }
}

/// What happens to pods of a kind after some time; the first stage that matches holds.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stage {
    /// The phase that the pod is in: Pending or Running.
    pub from: String,
    /// Labels that the pod must have.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The kind of its controller, such as Job.
    #[serde(default)]
    pub owner: Option<String>,
    #[serde(default)]
    pub after_seconds: f64,
    /// Running, Succeeded or Failed.
    pub to: String,
    /// Of so many pods in a hundred; the others are as if the stage were not there.
    #[serde(default = "hundred")]
    pub percent: u32,
}

fn hundred() -> u32 {
    100
}

impl Stage {
    /// Pods run at once, and those of Jobs succeed after a second.
    pub fn defaults() -> Vec<Self> {
        let stage = |from: &str, owner: Option<&str>, after_seconds, to: &str| Self {
            from: from.into(),
            labels: BTreeMap::new(),
            owner: owner.map(Into::into),
            after_seconds,
            to: to.into(),
            percent: 100,
        };
        vec![stage("Pending", None, 0.0, "Running"), stage("Running", Some("Job"), 1.0, "Succeeded")]
    }
}
