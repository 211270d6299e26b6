//! A pod's READY, STATUS and RESTARTS as `kubectl get` shows them, and its quality-of-service class.

use meta::{Quantity, quantity, time};
use serde_json::Value;

use crate::value::{at, entries, flag, has, int, list, text};

/// What a row of `kubectl get pods` says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    pub ready: usize,
    pub total: usize,
    pub status: String,
    /// `3 (5m ago)`.
    pub restarts: String,
}

#[derive(Default)]
struct Restarts {
    count: i64,
    /// Seconds since the epoch of the last one.
    last: Option<i64>,
}

impl Restarts {
    fn add(&mut self, status: &Value) {
        self.count += int(status, "restartCount").unwrap_or(0);
        let finished = time::epoch(text(status, "lastState.terminated.finishedAt"));
        self.last = self.last.max(finished);
    }
}

/// Follows upstream's `printPod` step by step: the order of its cases is what users know.
pub fn summary(pod: &Value, now: i64) -> Summary {
    let init = list(pod, "spec.initContainers");
    let is_sidecar = |name: &str| init.iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always");
    let phase = text(pod, "status.phase");
    let mut shown = Summary {
        total: list(pod, "spec.containers").len() + init.iter().filter(|c| text(c, "restartPolicy") == "Always").count(),
        status: first_word(pod, phase),
        ..Summary::default()
    };

    let (mut restarts, mut sidecar_restarts) = (Restarts::default(), Restarts::default());
    let mut initializing = false;
    for (index, status) in list(pod, "status.initContainerStatuses").iter().enumerate() {
        restarts.add(status);
        let sidecar = is_sidecar(text(status, "name"));
        if sidecar {
            sidecar_restarts.add(status);
            if flag(status, "started") && !finished_well(status) {
                shown.ready += usize::from(flag(status, "ready"));
                continue;
            }
        }
        if finished_well(status) {
            continue;
        }
        shown.status = initializing_word(status, index, init.len());
        initializing = true;
        break;
    }

    if !initializing || condition(pod, "Initialized") == "True" {
        restarts = sidecar_restarts;
        let mut running = false;
        for status in list(pod, "status.containerStatuses").iter().rev() {
            restarts.add(status);
            match stopped_word(status) {
                Some(word) => shown.status = word,
                None if flag(status, "ready") && has(status, "state.running") => {
                    running = true;
                    shown.ready += 1;
                }
                None => {}
            }
        }
        if shown.status == "Completed" && running {
            shown.status = if condition(pod, "Ready") == "True" { "Running".into() } else { "NotReady".into() };
        }
    }

    if has(pod, "metadata.deletionTimestamp") {
        if text(pod, "status.reason") == "NodeLost" {
            shown.status = "Unknown".into();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            shown.status = "Terminating".into();
        }
    }
    shown.restarts = match restarts.last {
        Some(last) if restarts.count != 0 => format!("{} ({} ago)", restarts.count, time::human(now - last)),
        _ => restarts.count.to_string(),
    };
    shown
}

/// The phase, unless the status gives a reason or scheduling is gated.
fn first_word(pod: &Value, phase: &str) -> String {
    let gated = |c: &Value| text(c, "type") == "PodScheduled" && text(c, "reason") == "SchedulingGated";
    if list(pod, "status.conditions").iter().any(gated) {
        return "SchedulingGated".into();
    }
    match text(pod, "status.reason") {
        "" => phase.into(),
        reason => reason.into(),
    }
}

fn finished_well(status: &Value) -> bool {
    has(status, "state.terminated") && int(status, "state.terminated.exitCode").unwrap_or(0) == 0
}

fn initializing_word(status: &Value, index: usize, total: usize) -> String {
    if has(status, "state.terminated") {
        return format!("Init:{}", terminated_word(status));
    }
    match text(status, "state.waiting.reason") {
        "" | "PodInitializing" => format!("Init:{index}/{total}"),
        reason => format!("Init:{reason}"),
    }
}

/// Why a container does not run, where it says so.
fn stopped_word(status: &Value) -> Option<String> {
    match text(status, "state.waiting.reason") {
        "" => has(status, "state.terminated").then(|| terminated_word(status)),
        reason => Some(reason.into()),
    }
}

fn terminated_word(status: &Value) -> String {
    let ended = at(status, "state.terminated");
    match (text(ended, "reason"), int(ended, "signal").unwrap_or(0)) {
        ("", 0) => format!("ExitCode:{}", int(ended, "exitCode").unwrap_or(0)),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

fn condition<'a>(pod: &'a Value, kind: &str) -> &'a str {
    let found = list(pod, "status.conditions").iter().find(|condition| text(condition, "type") == kind);
    found.map_or("", |condition| text(condition, "status"))
}

/// `Guaranteed` where cpu and memory of every container have equal requests and limits, `BestEffort` where none has any,
/// else `Burstable`.
pub fn qos_class(pod: &Value) -> &'static str {
    // Resources of the pod as a whole decide alone, where there are any (KEP-2837).
    let whole = [at(pod, "spec")];
    let of_whole = ["requests", "limits"].into_iter().any(|kind| entries(whole[0], &format!("resources.{kind}")).next().is_some());
    let containers = || {
        let (whole, parts) = if of_whole {
            (&whole[..], (&[][..], &[][..]))
        } else {
            (&[][..], (list(pod, "spec.containers"), list(pod, "spec.initContainers")))
        };
        whole.iter().copied().chain(parts.0).chain(parts.1)
    };
    let amount = |container: &Value, kind: &str, name: &str| -> Option<Quantity> {
        let found = quantity::from_json(at(at(container, "resources"), kind).get(name)?)?;
        (!found.is_zero()).then_some(found)
    };
    let counted = ["cpu", "memory"];
    let any = containers().any(|c| counted.iter().any(|name| amount(c, "requests", name).or(amount(c, "limits", name)).is_some()));
    if !any {
        return "BestEffort";
    }
    let guaranteed = |container: &Value| {
        counted.iter().all(|name| {
            let limit = amount(container, "limits", name);
            limit.is_some() && amount(container, "requests", name).is_none_or(|request| Some(request) == limit)
        })
    };
    if containers().all(guaranteed) { "Guaranteed" } else { "Burstable" }
}
