//! What to do next about one pod. Pure: the same world gives the same plan. Upstream: `computePodActions` and the pod worker's phases.

use std::collections::BTreeMap;
use std::time::Duration;

use cri::v1;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Container;

use crate::podspec::{self, Role};
use crate::probe::Kind;
use crate::resize;
use crate::world::{Backoff, Failure, Image, PostStart, Seen, State, Verdict, Waiting, World};

const BACKOFF_FIRST: Duration = Duration::from_secs(10);
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// How long a pod with a grace period stays after its last status. A client that deletes and then reads finds it on its way out, which
/// upstream's conformance tests rely on, whose client may wait for its turn in between: upstream's kubelet is never as fast as ours.
pub const LAST_LOOK: Duration = Duration::from_millis(300);
/// How long a failed pull is shown as such before it is shown as backing off.
const PULL_FAILURE_SHOWN: SignedDuration = SignedDuration::from_secs(2);

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    MountVolumes,
    RunSandbox {
        attempt: u32,
    },
    StopSandbox(String),
    EnsureImage {
        container: String,
        attempt: u32,
    },
    Start {
        container: String,
        attempt: u32,
        restart: bool,
    },
    Kill {
        id: String,
        container: String,
        grace_seconds: i64,
        why: KillReason,
    },
    /// A dead container that nobody looks at any more, or one that was made and never started.
    Remove {
        id: String,
        log: Option<(String, u32)>,
    },
    /// Tells the runtime what a running container was granted since it was made.
    Resize {
        id: String,
        container: String,
        resources: Box<v1::LinuxContainerResources>,
    },
    /// All containers of now are done with: every one of them begins anew.
    Retire,
    Fail(Verdict),
    /// Everything is stopped: say the last status and have the API forget the pod.
    Finish,
    /// The API forgot the pod: remove what is left of it.
    Forget,
}

/// Why a container is stopped; it is the message of the `Killing` event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KillReason {
    PodEnds,
    Changed,
    Liveness,
    Startup,
    PostStart,
    SandboxChanged,
    /// The container asked to be restarted for other resources.
    Resized,
    /// Another container's end makes the pod begin anew.
    RestartAll,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Why a container that should run does not.
    pub waiting: BTreeMap<String, Waiting>,
    /// When to look again although nothing happened.
    pub wake_at: Option<Timestamp>,
    /// The pod will not start anything any more.
    pub ending: bool,
}

impl Plan {
    fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |other| other.min(at)));
    }
    fn wait(&mut self, container: &str, reason: &'static str, message: impl Into<String>) {
        self.waiting.insert(container.into(), Waiting { reason, message: message.into() });
    }
}

pub fn plan(world: &World<'_>) -> Plan {
    let mut plan = Plan::default();
    if let Some(verdict) = deadline(world, &mut plan) {
        plan.actions.push(Action::Fail(verdict));
        return plan;
    }
    if is_ending(world) {
        plan.ending = true;
        end(world, &mut plan);
        return plan;
    }
    if run(world, &mut plan).is_some() {
        resize(world, &mut plan);
        collect_garbage(world, &mut plan);
    }
    plan
}

/// Control groups follow what the containers were granted.
fn resize(world: &World<'_>, plan: &mut Plan) {
    for pending in resize::pending(world) {
        let (seen, name) = (pending.seen, &pending.seen.name);
        if world.memory.stopping.contains_key(&seen.id) {
            continue;
        }
        if pending.restart {
            kill(world, plan, seen, podspec::grace_seconds(world.pod), KillReason::Resized);
        } else if !blocked(world, plan, world.memory.resize_failed.get(name)) {
            plan.actions.push(Action::Resize { id: seen.id.clone(), container: name.clone(), resources: Box::new(pending.wanted) });
        }
    }
}

/// `activeDeadlineSeconds` counts from the pod's start on the node.
fn deadline(world: &World<'_>, plan: &mut Plan) -> Option<Verdict> {
    let seconds = podspec::spec(world.pod).active_deadline_seconds?;
    if world.gone || world.memory.verdict.is_some() || podspec::is_terminal(world.pod) {
        return None;
    }
    let end = world.memory.start_time? + SignedDuration::from_secs(seconds);
    if world.now < end {
        plan.wake(end);
        return None;
    }
    let message = "Pod was active on the node longer than the specified deadline".into();
    Some(Verdict { reason: "DeadlineExceeded".into(), message, disrupts: false, grace_seconds: None })
}

/// Nothing of the pod will be started any more.
pub fn is_ending(world: &World<'_>) -> bool {
    let deleted = world.pod.metadata.deletion_timestamp.is_some();
    world.gone || deleted || world.memory.verdict.is_some() || podspec::is_terminal(world.pod) || is_complete(world)
}

/// Every main container ended for good, or an init container failed for good.
fn is_complete(world: &World<'_>) -> bool {
    let containers = podspec::containers(world.pod);
    let for_good = |role: Role, container: &Container| {
        let seen = world.latest(&container.name)?;
        (seen.state == State::Exited && !restarts(world, role, container, seen)).then_some(seen.exit_code)
    };
    let mut mains = containers.iter().filter(|(role, _)| *role == Role::Main).peekable();
    let all_done = mains.peek().is_some() && mains.all(|(role, container)| for_good(*role, container).is_some());
    let init_failed =
        || containers.iter().any(|(role, container)| *role == Role::Init && for_good(*role, container).is_some_and(|code| code != 0));
    all_done || init_failed()
}

fn restarts(world: &World<'_>, role: Role, container: &Container, seen: &Seen) -> bool {
    world.memory.replaced.contains(&seen.id) || podspec::restarts(world.pod, role, container, seen.exit_code)
}

/// Stops everything: main containers at once, then sidecars in reverse order, then the sandbox.
fn end(world: &World<'_>, plan: &mut Plan) {
    let grace = if let Some(seconds) = world.memory.verdict.as_ref().and_then(|verdict| verdict.grace_seconds).filter(|_| !world.gone) {
        seconds
    } else if world.gone {
        world.pod.metadata.deletion_grace_period_seconds.unwrap_or(1).max(1)
    } else {
        podspec::grace_seconds(world.pod).max(1)
    };
    let alive: Vec<&Seen> = world.containers.iter().filter(|seen| seen.state != State::Exited).collect();
    let sidecar_order = |seen: &Seen| {
        let inits = podspec::spec(world.pod).init_containers.iter().flatten();
        inits
            .enumerate()
            .find(|(_, container)| container.name == seen.name && container.restart_policy.as_deref() == Some("Always"))
            .map(|(at, _)| at)
    };
    let (sidecars, others): (Vec<&Seen>, Vec<&Seen>) = alive.iter().partition(|seen| sidecar_order(seen).is_some());
    let now: Vec<&Seen> =
        if others.is_empty() { sidecars.into_iter().max_by_key(|seen| sidecar_order(seen)).into_iter().collect() } else { others };
    for seen in &now {
        if seen.state == State::Created {
            plan.actions.push(Action::Remove { id: seen.id.clone(), log: None });
        } else {
            kill(world, plan, seen, grace, KillReason::PodEnds);
        }
    }
    if !alive.is_empty() {
        return;
    }
    let ready = world.sandboxes.iter().filter(|sandbox| sandbox.ready);
    plan.actions.extend(ready.map(|sandbox| Action::StopSandbox(sandbox.id.clone())));
    if plan.actions.is_empty() {
        if world.gone {
            plan.actions.push(Action::Forget);
        } else if world.pod.metadata.deletion_timestamp.is_some() && !world.memory.finished {
            match world.memory.last_look.filter(|until| is_ahead(world.now, *until, LAST_LOOK)) {
                Some(until) => plan.wake(until),
                None => plan.actions.push(Action::Finish),
            }
        }
    }
}

/// Once per container, and again only with less patience.
fn kill(world: &World<'_>, plan: &mut Plan, seen: &Seen, grace_seconds: i64, why: KillReason) {
    if world.memory.stopping.get(&seen.id).is_none_or(|under_way| grace_seconds < *under_way) {
        plan.actions.push(Action::Kill { id: seen.id.clone(), container: seen.name.clone(), grace_seconds, why });
    }
}

/// `None` when the sandbox is not there yet.
fn run(world: &World<'_>, plan: &mut Plan) -> Option<()> {
    let sandbox = ready_sandbox(world, plan)?;
    if restart_all(world, plan) {
        return None;
    }
    let containers = podspec::containers(world.pod);
    let current = |name: &str| world.latest(name).filter(|seen| seen.sandbox_id == sandbox && !world.memory.retired.contains(&seen.id));
    let mains_began = containers.iter().any(|(role, container)| *role == Role::Main && current(&container.name).is_some());
    for (role, container) in containers.iter().filter(|(role, _)| *role == Role::Ephemeral) {
        if world.latest(&container.name).is_none() {
            start(world, plan, *role, container);
        }
    }
    let mut initialized = true;
    for (role, container) in containers.iter().filter(|(role, _)| matches!(role, Role::Init | Role::Sidecar)) {
        if *role == Role::Init && mains_began {
            continue;
        }
        let done = advance(world, plan, *role, container, current(&container.name));
        if !done && !mains_began {
            initialized = false;
            break;
        }
    }
    if initialized {
        for (role, container) in containers.iter().filter(|(role, _)| *role == Role::Main) {
            advance(world, plan, *role, container, current(&container.name));
        }
    }
    Some(())
}

/// Did a container end in a way that makes all of them begin anew, in the sandbox that is there (KEP-5532)?
fn restart_all(world: &World<'_>, plan: &mut Plan) -> bool {
    let containers = podspec::containers(world.pod);
    let own = || containers.iter().filter(|(role, _)| *role != Role::Ephemeral);
    let asked = own().find_map(|(_, container)| {
        let seen = world.latest(&container.name).filter(|seen| seen.state == State::Exited && !world.memory.retired.contains(&seen.id))?;
        podspec::restarts_all(container, seen.exit_code).then_some((container, seen))
    });
    let Some((container, asked)) = asked else { return false };
    let alive: Vec<&Seen> =
        own().filter_map(|(_, container)| world.latest(&container.name)).filter(|seen| seen.state == State::Running).collect();
    alive.iter().for_each(|seen| kill(world, plan, seen, podspec::grace_seconds(world.pod), KillReason::RestartAll));
    if alive.is_empty() && !backs_off(world, plan, container, asked) {
        plan.actions.push(Action::Retire);
    }
    true
}

/// The id of the sandbox that containers can be started in; without one, what leads to one is planned.
fn ready_sandbox<'a>(world: &World<'a>, plan: &mut Plan) -> Option<&'a str> {
    if let Some(sandbox) = world.sandboxes.first().filter(|sandbox| sandbox.ready) {
        if !world.memory.volumes_ready {
            mount(world, plan)?;
        }
        return Some(&sandbox.id);
    }
    // What ran in a dead sandbox is stopped before a new one is made.
    let alive: Vec<&Seen> = world.containers.iter().filter(|seen| seen.state == State::Running).collect();
    if !alive.is_empty() {
        alive.iter().for_each(|seen| kill(world, plan, seen, podspec::grace_seconds(world.pod), KillReason::SandboxChanged));
        return None;
    }
    mount(world, plan)?;
    if blocked(world, plan, world.memory.sandbox_failed.as_ref()) {
        return None;
    }
    let attempt = world.sandboxes.first().map_or(0, |sandbox| sandbox.attempt + 1);
    plan.actions.push(Action::RunSandbox { attempt });
    None
}

fn mount(world: &World<'_>, plan: &mut Plan) -> Option<()> {
    if world.memory.volumes_ready {
        return Some(());
    }
    if !blocked(world, plan, world.memory.volumes_failed.as_ref()) {
        plan.actions.push(Action::MountVolumes);
    }
    None
}

/// Is `until`, which was `wait` away when it was set, still to come? Where it is further away than that, the clock was set back meanwhile, and
/// nobody waits for it to catch up.
fn is_ahead(now: Timestamp, until: Timestamp, wait: Duration) -> bool {
    let left = until.duration_since(now);
    left > SignedDuration::ZERO && left <= SignedDuration::try_from(wait).unwrap_or(SignedDuration::MAX)
}

/// Is the failed step not to be tried again yet?
fn blocked(world: &World<'_>, plan: &mut Plan, failure: Option<&Failure>) -> bool {
    let Some(failure) = failure.filter(|failure| is_ahead(world.now, failure.until, failure.wait)) else { return false };
    plan.wake(failure.until);
    true
}

/// One container's next step; true where those that wait for it may go on.
fn advance(world: &World<'_>, plan: &mut Plan, role: Role, container: &Container, current: Option<&Seen>) -> bool {
    let Some(seen) = current else {
        start(world, plan, role, container);
        return false;
    };
    match seen.state {
        State::Running => {
            keep(world, plan, container, seen);
            role == Role::Sidecar && is_started(world, container, seen)
        }
        State::Exited if role == Role::Init && seen.exit_code == 0 => true,
        State::Exited => {
            if restarts(world, role, container, seen) {
                restart(world, plan, role, container, seen);
            }
            false
        }
        State::Created => {
            // Made by a kubelet that ended before it could start it.
            plan.actions.push(Action::Remove { id: seen.id.clone(), log: None });
            false
        }
        State::Unknown => {
            kill(world, plan, seen, podspec::grace_seconds(world.pod), KillReason::Changed);
            false
        }
    }
}

/// Has the container got past its startup probe and its postStart hook?
pub fn is_started(world: &World<'_>, container: &Container, seen: &Seen) -> bool {
    seen.state == State::Running
        && !world.memory.post_start.contains_key(&seen.id)
        && (container.startup_probe.is_none() || world.probe(seen, Kind::Startup) == Some(true))
}

fn keep(world: &World<'_>, plan: &mut Plan, container: &Container, seen: &Seen) {
    let grace = |kind: Kind| {
        let probe = if kind == Kind::Startup { &container.startup_probe } else { &container.liveness_probe };
        let own = probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds);
        own.or(podspec::spec(world.pod).termination_grace_period_seconds).unwrap_or(30)
    };
    if !seen.hash.is_empty() && seen.hash != podspec::container_hash(container) {
        kill(world, plan, seen, podspec::grace_seconds(world.pod), KillReason::Changed);
    } else if matches!(world.memory.post_start.get(&seen.id), Some(PostStart::Failed(_))) {
        kill(world, plan, seen, podspec::grace_seconds(world.pod), KillReason::PostStart);
    } else if container.startup_probe.is_some() && world.probe(seen, Kind::Startup) == Some(false) {
        kill(world, plan, seen, grace(Kind::Startup), KillReason::Startup);
    } else if container.liveness_probe.is_some() && world.probe(seen, Kind::Liveness) == Some(false) {
        kill(world, plan, seen, grace(Kind::Liveness), KillReason::Liveness);
    }
}

/// Starts a dead container again, unless it is backing off.
fn restart(world: &World<'_>, plan: &mut Plan, role: Role, container: &Container, seen: &Seen) {
    if !backs_off(world, plan, container, seen) {
        start(world, plan, role, container);
    }
}

fn backs_off(world: &World<'_>, plan: &mut Plan, container: &Container, seen: &Seen) -> bool {
    let backoff = world.memory.backoffs.get(&container.name);
    let finished = seen.finished_at.unwrap_or(world.now);
    let Some(backoff) = backoff.filter(|backoff| !is_expired(backoff, world.now)) else { return false };
    let until = finished + SignedDuration::try_from(backoff.wait).unwrap_or(SignedDuration::ZERO);
    if !is_ahead(world.now, until, backoff.wait) {
        return false;
    }
    let (wait, pod) = (go_duration(backoff.wait), podspec::format_pod(world.pod));
    plan.wait(&container.name, "CrashLoopBackOff", format!("back-off {wait} restarting failed container={} pod={pod}", container.name));
    plan.wake(until);
    true
}

fn is_expired(backoff: &Backoff, now: Timestamp) -> bool {
    now.duration_since(backoff.updated) > SignedDuration::try_from(BACKOFF_MAX * 2).unwrap_or(SignedDuration::MAX)
}

/// The clock after one more restart.
pub fn next_backoff(former: Option<&Backoff>, now: Timestamp) -> Backoff {
    let wait = match former.filter(|backoff| !is_expired(backoff, now)) {
        Some(backoff) => (backoff.wait * 2).min(BACKOFF_MAX),
        None => BACKOFF_FIRST,
    };
    Backoff { wait, updated: now }
}

/// The failure of a step, waiting twice as long as after its last one.
pub fn next_failure(former: Option<Duration>, first: Duration, reason: &'static str, message: String, now: Timestamp) -> Failure {
    let wait = former.map_or(first, |wait| (wait * 2).min(BACKOFF_MAX));
    Failure { reason, message, until: now + SignedDuration::try_from(wait).unwrap_or(SignedDuration::ZERO), wait }
}

fn start(world: &World<'_>, plan: &mut Plan, _role: Role, container: &Container) {
    let name = &container.name;
    let attempt = world.latest(name).map_or(0, |seen| seen.attempt + 1);
    if let Some(failure) = world.memory.starts_failed.get(name) {
        plan.wait(name, failure.reason, failure.message.clone());
        if blocked(world, plan, Some(failure)) {
            return;
        }
    }
    for volume in podspec::image_volumes(world.pod, container) {
        let image = volume.image.as_ref().and_then(|source| source.reference.as_deref()).unwrap_or_default();
        if !is_image_ready(world, plan, name, (podspec::volume_image(&volume.name), 0), image) {
            return;
        }
    }
    if is_image_ready(world, plan, name, (name.clone(), attempt), container.image.as_deref().unwrap_or_default()) {
        plan.actions.push(Action::Start { container: name.clone(), attempt, restart: attempt > 0 });
    }
}

/// Where the image that `blamed` waits for is not here, what leads to it is planned.
fn is_image_ready(world: &World<'_>, plan: &mut Plan, blamed: &str, key: (String, u32), image: &str) -> bool {
    let ensure = |(container, attempt): (String, u32)| Action::EnsureImage { container, attempt };
    match world.memory.images.get(&key) {
        Some(Image::Ready(_)) => return true,
        Some(Image::Pulling) => {}
        Some(Image::Failed { reason, message, at, until, wait }) if is_ahead(world.now, *until, *wait) => {
            let shown_until = *at + PULL_FAILURE_SHOWN;
            if *reason != "ErrImagePull" || world.now < shown_until {
                plan.wait(blamed, reason, message.clone());
                plan.wake(if *reason == "ErrImagePull" { shown_until } else { *until });
            } else {
                plan.wait(blamed, "ImagePullBackOff", format!("Back-off pulling image {image:?}: ErrImagePull: {message}"));
                plan.wake(*until);
            }
        }
        Some(Image::Failed { reason, message, .. }) => {
            plan.wait(blamed, reason, message.clone());
            plan.actions.push(ensure(key));
        }
        None => plan.actions.push(ensure(key)),
    }
    false
}

/// Keeps the newest container of each name and the one before it (for `logs --previous`), and the newest sandbox.
fn collect_garbage(world: &World<'_>, plan: &mut Plan) {
    for seen in world.containers.iter().filter(|seen| seen.state == State::Exited) {
        let newer = world.containers.iter().filter(|other| other.name == seen.name && other.attempt > seen.attempt).count();
        if newer >= 2 {
            plan.actions.push(Action::Remove { id: seen.id.clone(), log: Some((seen.name.clone(), seen.attempt)) });
        }
    }
}

/// A duration as Go prints it: `10s`, `1m20s`, `5m0s`.
pub fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
