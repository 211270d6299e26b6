//! Events for users: what happened to which object and why, written in the background and kept few.
//!
//! As upstream's `EventCorrelator`: a repeated event becomes a higher count of the first; more than ten different messages of one
//! reason about one object within ten minutes become one "(combined from similar events)"; and each object has a budget of 25
//! events at once and one more every five minutes.

use std::collections::HashMap;
use std::time::Duration;

use client::{Client, Error, Patch};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use stdx::Drain;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

/// Events that wait to be written, one after the other; more are dropped. A node that starts a thousand pods tells three of each.
const PENDING_MAX: usize = 4096;
/// Events written at once, and how many more each second: what a thousand pods do in a second shall not wait for what is said of it.
const WRITES_BURST: f64 = 5000.0;
const WRITES_PER_SECOND: f64 = 1000.0;
/// Objects and messages remembered; when full, all is forgotten, which costs duplicates and nothing else.
const REMEMBERED_MAX: usize = 4096;
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW: Duration = Duration::from_secs(600);

/// An Event's `type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventKind {
    Normal,
    Warning,
}

impl EventKind {
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::Normal => "Normal",
            EventKind::Warning => "Warning",
        }
    }
}

#[derive(Clone, Debug)]
struct Occurrence {
    about: ObjectReference,
    kind: EventKind,
    reason: String,
    action: Option<String>,
    message: String,
    at: Timestamp,
}

/// Where a component says what it did; cloning shares the writer.
#[derive(Clone)]
pub struct EventRecorder(mpsc::Sender<Occurrence>);

impl EventRecorder {
    /// Starts the writer's task. `component` is the source, such as `deployment-controller`; `host` the node's name where the
    /// component belongs to one.
    pub fn start(client: &Client, component: &str, host: Option<&str>, drain: Drain) -> Self {
        let (sender, receiver) = mpsc::channel(PENDING_MAX);
        let writer = Writer {
            pace: Pace::new(),
            client: client.clone(),
            component: component.into(),
            host: host.map(str::to_owned),
            memory: Memory::default(),
        };
        tokio::spawn(async move { drain.run(writer.run(receiver)).await });
        Self(sender)
    }

    /// A recorder that nobody reads, for tests.
    pub fn discard() -> Self {
        Self(mpsc::channel(1).0)
    }

    /// Never waits; drops the event where too many are pending.
    pub fn event(&self, about: &ObjectReference, kind: EventKind, reason: &str, message: impl Into<String>) {
        self.send(about, kind, reason, None, message.into());
    }

    /// The same with the `action` of events.k8s.io, such as `Binding`.
    pub fn event_with_action(&self, about: &ObjectReference, kind: EventKind, reason: &str, action: &str, message: impl Into<String>) {
        self.send(about, kind, reason, Some(action.to_owned()), message.into());
    }

    fn send(&self, about: &ObjectReference, kind: EventKind, reason: &str, action: Option<String>, message: String) {
        let occurrence = Occurrence { about: about.clone(), kind, reason: reason.to_owned(), action, message, at: Timestamp::now() };
        if self.0.try_send(occurrence).is_err() {
            debug!(reason, "event dropped");
        }
    }
}

struct Writer {
    pace: Pace,
    client: Client,
    component: String,
    host: Option<String>,
    memory: Memory,
}

/// A bucket of writes that fills up again.
struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { left: WRITES_BURST, at: Instant::now() }
    }

    async fn wait(&mut self, now: Instant) {
        let gained = now.saturating_duration_since(self.at).as_secs_f64() * WRITES_PER_SECOND;
        (self.left, self.at) = ((self.left + gained).min(WRITES_BURST) - 1.0, now);
        if self.left < 0.0 {
            tokio::time::sleep(Duration::from_secs_f64(-self.left / WRITES_PER_SECOND)).await;
        }
    }
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = receiver.recv().await {
            let now = Instant::now();
            let Some(decision) = self.memory.decide(&occurrence, now) else { continue };
            self.pace.wait(now).await;
            let message = decision.message.clone();
            let written = match &decision.repeats {
                Some((name, count)) => self.bump(&occurrence, name, *count, &message).await,
                None => self.create(&occurrence, &message).await.map(|name| (name, 1)),
            };
            match written {
                Ok(known) => self.memory.remember(&occurrence, &decision, known),
                Err(error) => debug!(reason = %occurrence.reason, %error, "event not written"),
            }
        }
    }

    async fn bump(&self, occurrence: &Occurrence, name: &str, count: i32, message: &str) -> Result<(String, i32), Error> {
        let namespace = namespace_of(&occurrence.about);
        let patch = json!({"count": count + 1, "lastTimestamp": Time(occurrence.at), "message": message});
        match self.client.patch::<Event>(Some(namespace), name, &Patch::Merge(patch), "").await {
            // It lived out its hour: start anew.
            Err(error) if error.is_not_found() => self.create(occurrence, message).await.map(|name| (name, 1)),
            Err(error) => Err(error),
            Ok(_) => Ok((name.to_owned(), count + 1)),
        }
    }

    async fn create(&self, occurrence: &Occurrence, message: &str) -> Result<String, Error> {
        let event = self.event_of(occurrence, message);
        let name = event.metadata.name.clone().unwrap_or_default();
        self.client.create(&event).await?;
        Ok(name)
    }

    fn event_of(&self, occurrence: &Occurrence, message: &str) -> Event {
        let name = format!("{}.{:x}", occurrence.about.name.as_deref().unwrap_or_default(), occurrence.at.as_nanosecond());
        let metadata = ObjectMeta { namespace: Some(namespace_of(&occurrence.about).into()), name: Some(name), ..ObjectMeta::default() };
        Event {
            metadata,
            involved_object: occurrence.about.clone(),
            type_: Some(occurrence.kind.as_str().into()),
            reason: Some(occurrence.reason.clone()),
            action: occurrence.action.clone(),
            message: Some(message.to_owned()),
            first_timestamp: Some(Time(occurrence.at)),
            last_timestamp: Some(Time(occurrence.at)),
            count: Some(1),
            source: Some(EventSource { component: Some(self.component.clone()), host: self.host.clone() }),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone().unwrap_or_default()),
            ..Event::default()
        }
    }
}

/// Events about cluster-scoped objects live in `default`.
fn namespace_of(about: &ObjectReference) -> &str {
    about.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

/// An object by uid (or name), its kind, the event's type, reason and action.
type GroupKey = (String, EventKind, String, Option<String>);

#[derive(Default)]
struct Memory {
    budgets: HashMap<String, (f64, Instant)>,
    groups: HashMap<GroupKey, (Vec<String>, Instant)>,
    /// The Event written for a group and message: its name and count.
    written: HashMap<(GroupKey, String), (String, i32)>,
}

/// How to write an event.
#[derive(Debug, PartialEq)]
struct Decision {
    message: String,
    /// The message, or a constant for combined ones: what tells Events of a group apart.
    identity: String,
    /// The Event that already says this, and its count.
    repeats: Option<(String, i32)>,
}

impl Memory {
    /// `None`: the object's budget is spent.
    fn decide(&mut self, occurrence: &Occurrence, now: Instant) -> Option<Decision> {
        if self.budgets.len() + self.groups.len() + self.written.len() > REMEMBERED_MAX {
            *self = Self::default();
        }
        self.spend(&subject(occurrence), now).then(|| {
            let group = group_of(occurrence);
            let combined = self.is_crowded(&group, &occurrence.message, now);
            let identity = if combined { "(combined)".to_owned() } else { occurrence.message.clone() };
            let message = match combined {
                true => format!("(combined from similar events): {}", occurrence.message),
                false => occurrence.message.clone(),
            };
            let repeats = self.written.get(&(group, identity.clone())).cloned();
            Decision { message, identity, repeats }
        })
    }

    fn remember(&mut self, occurrence: &Occurrence, decision: &Decision, known: (String, i32)) {
        self.written.insert((group_of(occurrence), decision.identity.clone()), known);
    }

    fn spend(&mut self, subject: &str, now: Instant) -> bool {
        let (tokens, since) = self.budgets.entry(subject.to_owned()).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*since).as_secs_f64() * REFILL_PER_SECOND).min(BURST);
        *since = now;
        let enough = *tokens >= 1.0;
        if enough {
            *tokens -= 1.0;
        }
        enough
    }

    /// More different messages than `SIMILAR_MAX` within the window.
    fn is_crowded(&mut self, group: &GroupKey, message: &str, now: Instant) -> bool {
        let (messages, since) = self.groups.entry(group.clone()).or_insert_with(|| (Vec::new(), now));
        if now.duration_since(*since) > SIMILAR_WINDOW {
            messages.clear();
            *since = now;
        }
        if messages.iter().any(|known| known == message) {
            return false;
        }
        if messages.len() >= SIMILAR_MAX {
            return true;
        }
        messages.push(message.to_owned());
        false
    }
}

fn subject(occurrence: &Occurrence) -> String {
    let about = &occurrence.about;
    let part = |text: &Option<String>| text.clone().unwrap_or_default();
    format!("{}/{}/{}/{}/{}", part(&about.kind), part(&about.namespace), part(&about.name), part(&about.uid), part(&about.field_path))
}

fn group_of(occurrence: &Occurrence) -> GroupKey {
    (subject(occurrence), occurrence.kind, occurrence.reason.clone(), occurrence.action.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn occurrence(message: &str) -> Occurrence {
        Occurrence {
            about: ObjectReference { name: Some("p".into()), ..ObjectReference::default() },
            kind: EventKind::Normal,
            reason: "R".into(),
            action: None,
            message: message.into(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn a_repeated_event_raises_the_count_of_the_first() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let first = memory.decide(&occurrence("m"), now).unwrap();
        assert_eq!(first.repeats, None);
        memory.remember(&occurrence("m"), &first, ("p.1".into(), 1));
        assert_eq!(memory.decide(&occurrence("m"), now).unwrap().repeats, Some(("p.1".into(), 1)));
    }

    #[test]
    fn many_similar_events_are_combined_and_an_object_has_a_budget() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let decisions: Vec<_> = (0..30).map(|number| memory.decide(&occurrence(&format!("m{number}")), now)).collect();
        assert_eq!(decisions[9].as_ref().unwrap().message, "m9");
        assert_eq!(decisions[10].as_ref().unwrap().message, "(combined from similar events): m10");
        assert!(decisions[24].is_some() && decisions[25].is_none());
        assert!(memory.decide(&occurrence("later"), now + Duration::from_secs(301)).is_some());
    }
}
