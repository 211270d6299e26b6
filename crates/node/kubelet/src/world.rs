//! What one look at a pod shows: the API's wish, the runtime's state, and what the kubelet remembers. Values only.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cri::v1;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::probe::Kind;
use crate::resize::Given;

/// One container as the runtime shows it, the dead ones included.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    pub id: String,
    pub name: String,
    pub sandbox_id: String,
    /// How often the container was restarted before this one.
    pub attempt: u32,
    pub state: State,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    /// The runtime's message, or the container's own last words.
    pub message: String,
    pub image: String,
    pub image_id: String,
    /// Of the spec that it was made from; empty where unknown.
    pub hash: String,
    /// The runtime's name, the scheme of the container's id.
    pub runtime: Arc<str>,
    /// What its control group is set to, as far as the runtime says.
    pub resources: Option<v1::LinuxContainerResources>,
    pub user: Option<v1::LinuxContainerUser>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Exited,
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub ips: Vec<String>,
}

/// Why a container that should run does not: `state.waiting`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub reason: &'static str,
    pub message: String,
}

/// Whether the image of a container is there for its next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    Pulling,
    /// The runtime's reference.
    Ready(String),
    Failed {
        reason: &'static str,
        message: String,
        at: Timestamp,
        until: Timestamp,
        wait: Duration,
    },
}

/// CrashLoopBackOff's clock of one container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub wait: Duration,
    pub updated: Timestamp,
}

/// A step that failed and when to try it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    pub until: Timestamp,
    pub wait: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PostStart {
    Running,
    Failed(String),
}

/// The whole pod failed, for a reason that no container shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
    /// The pod was ended for the node's sake: told as its `DisruptionTarget` condition.
    pub disrupts: bool,
    /// Seconds for its containers to end, where the pod's own time does not count.
    pub grace_seconds: Option<i64>,
}

/// What the kubelet remembers of a pod while it runs itself; all of it may be lost.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    pub start_time: Option<Timestamp>,
    pub backoffs: BTreeMap<String, Backoff>,
    /// By container name and the attempt that it is for.
    pub images: BTreeMap<(String, u32), Image>,
    pub starts_failed: BTreeMap<String, Failure>,
    /// By container id.
    pub post_start: BTreeMap<String, PostStart>,
    /// Containers that are being stopped, and within how many seconds.
    pub stopping: BTreeMap<String, i64>,
    /// Containers that were stopped to be started anew, whatever their exit code then says.
    pub replaced: BTreeSet<String>,
    /// Containers of before all of them were to begin anew: none of them counts as having run.
    pub retired: BTreeSet<String>,
    pub volumes_ready: bool,
    pub volumes_failed: Option<Failure>,
    pub sandbox_failed: Option<Failure>,
    pub verdict: Option<Verdict>,
    /// The node has taken the pod: it was checked once, and that was it.
    pub admitted: bool,
    /// Why the resources that the spec asks for now are not granted.
    pub resize_waiting: Option<Waiting>,
    /// Since when.
    pub resize_since: Option<Timestamp>,
    /// What each container was last given, by name.
    pub given: BTreeMap<String, Given>,
    /// Resizes that the runtime refused, by container.
    pub resize_failed: BTreeMap<String, Failure>,
    /// Container ids whose last words were read.
    pub spoken: BTreeMap<String, String>,
    /// Reasons that were told as events, so that each is told once.
    pub told: BTreeSet<(String, &'static str, u32)>,
    /// Until when a pod stays that the API may forget, for its deleter to see it.
    pub last_look: Option<Timestamp>,
    /// Everything was stopped and, for a deletion, the API was told.
    pub finished: bool,
}

impl Memory {
    /// The runtime's references of the image volumes that are here, by volume.
    pub fn volume_images(&self) -> BTreeMap<String, String> {
        let ready = self.images.iter().filter_map(|((name, _), image)| match image {
            Image::Ready(reference) => Some((name.strip_prefix("volume ")?.to_owned(), reference.clone())),
            _ => None,
        });
        ready.collect()
    }
}

/// The input of the plan.
#[derive(Clone, Copy, Debug)]
pub struct World<'a> {
    pub pod: &'a Pod,
    /// The API no longer has the pod.
    pub gone: bool,
    /// Newest first.
    pub sandboxes: &'a [Sandbox],
    pub containers: &'a [Seen],
    pub memory: &'a Memory,
    /// By container id; absent: no result yet.
    pub probes: &'a BTreeMap<(String, Kind), bool>,
    pub now: Timestamp,
}

impl World<'_> {
    /// The newest container of that name, of whatever sandbox.
    pub fn latest(&self, name: &str) -> Option<&Seen> {
        self.containers.iter().filter(|seen| seen.name == name).max_by_key(|seen| seen.attempt)
    }
    /// The one before the newest.
    pub fn former(&self, name: &str) -> Option<&Seen> {
        let latest = self.latest(name)?;
        self.containers.iter().filter(|seen| seen.name == name && seen.attempt < latest.attempt).max_by_key(|seen| seen.attempt)
    }
    pub fn probe(&self, seen: &Seen, kind: Kind) -> Option<bool> {
        self.probes.get(&(seen.id.clone(), kind)).copied()
    }
    pub fn sandbox(&self) -> Option<&Sandbox> {
        self.sandboxes.first()
    }
}
