//! Creations that differ in their name alone.
//!
//! A ReplicaSet, a Job or a script sends the same pod a thousand times. What defaults, admission, validation and ownership make of it is the
//! same each time, as long as everything that admission has looked at is the same. So the second time the questions that admission asks are
//! written down with what came of it, and from the third time on only those questions are asked again. Whatever depends on more than the
//! text, the user and these questions (a webhook, a policy's expressions, a charged quota, a warning to the client) is never kept.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use admission::{Lookup, Operation};
use auth::UserInfo;
use bytes::Bytes;
use cel::library::authorizer::Authorizer;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use memchr::memmem;
use meta::{GroupResource, GroupVersionKind, GroupVersionResource, Status, names, scan, time};
use serde_json::Value;
use store::Expect;

use super::admit::Reader;
use super::{GENERATED_NAMES_TRIED, Registry, Target, already_exists, storage_error, stored};
use crate::cache::Cache;
use crate::context::{Context, WriteOptions};
use crate::negotiate::Media;
use crate::object::{self, Object, meta, metadata_mut};

/// Texts kept at most; one more, and the one that was not asked for the longest goes.
const TEXTS_MAX: usize = 64;
/// Longer bodies are not kept.
const BODY_BYTES_MAX: usize = 32 << 10;
/// Questions that are asked again at most.
const QUESTIONS_MAX: usize = 64;

/// A creation, as far as it may be a repetition.
pub struct Asked<'a> {
    body: &'a Bytes,
    /// Where `metadata.name` stands in the body, without its quotes; at the end of the body where there is none.
    name: Range<usize>,
    user: &'a Arc<UserInfo>,
    namespace: &'a str,
    options: &'a WriteOptions,
    hash: u64,
}

impl<'a> Asked<'a> {
    /// `None` for what is never kept: only pods are made by the thousand, and a node's own pods are judged by their names.
    pub fn new(context: &'a Context, target: Target<'a>, media: Media, body: &'a Bytes, options: &'a WriteOptions) -> Option<Self> {
        let facts = target.kind.facts;
        let many = facts.plural == "pods" && facts.group.is_empty() && media == Media::Json;
        let of_node = || context.user.groups.iter().any(|group| group == "system:nodes");
        if !many || options.dry_run || body.len() > BODY_BYTES_MAX || of_node() || memmem::find(body, b"\"managedFields\"").is_some() {
            return None;
        }
        let name = scan::find(body, &["metadata", "name"]).and_then(scan::plain).map(|name| {
            let at = name.as_ptr().addr() - body.as_ptr().addr();
            at..at + name.len()
        });
        let name = name.unwrap_or(body.len()..body.len());
        let mut hasher = DefaultHasher::new();
        (&body[..name.start], &body[name.end..], target.namespace).hash(&mut hasher);
        Some(Self { body, name, user: &context.user, namespace: target.namespace, options, hash: hasher.finish() })
    }

    fn name(&self) -> &str {
        std::str::from_utf8(&self.body[self.name.clone()]).unwrap_or_default()
    }
}

/// What is known of a text.
enum Known {
    /// It was sent once: most are never sent again.
    Once,
    Template(Arc<Template>),
}

struct Text {
    hash: u64,
    used: u64,
    known: Known,
}

/// The texts that were sent lately.
#[derive(Default)]
pub struct Repeats(Mutex<(u64, Vec<Text>)>);

/// What to do about a creation.
pub enum Step {
    /// As always.
    Plain,
    /// As always, and write down what admission asks.
    Record,
    Repeat(Arc<Template>),
}

impl Repeats {
    pub fn step(&self, asked: &Asked<'_>) -> Step {
        let (clock, texts) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *clock += 1;
        if let Some(text) = texts.iter_mut().find(|text| text.hash == asked.hash) {
            text.used = *clock;
            return match &text.known {
                Known::Template(template) if template.is_of(asked) => Step::Repeat(template.clone()),
                _ => Step::Record,
            };
        }
        make_room(texts);
        texts.push(Text { hash: asked.hash, used: *clock, known: Known::Once });
        Step::Plain
    }

    fn keep(&self, hash: u64, template: Template) {
        let (_, texts) = &mut *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = texts.iter_mut().find(|text| text.hash == hash) {
            text.known = Known::Template(Arc::new(template));
        }
    }
}

fn make_room(texts: &mut Vec<Text>) {
    if texts.len() >= TEXTS_MAX
        && let Some(oldest) = (0..texts.len()).min_by_key(|at| texts[*at].used)
    {
        texts.swap_remove(oldest);
    }
}

/// Something that admission looked at, and how it was.
enum Question {
    /// An object of the store: its revision, 0 where it was not there.
    One { key: Vec<u8>, revision: u64 },
    /// All objects of a resource, or those of a namespace: the newest change of the resource, and what stands for the objects.
    All { cache: Arc<Cache>, prefix: Vec<u8>, revision: AtomicU64, fingerprint: u64 },
}

impl Question {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Question::One { key, revision }, Question::One { key: other, revision: seen }) => key == other && revision == seen,
            (Question::All { cache, prefix, fingerprint, .. }, Question::All { cache: other, prefix: below, fingerprint: seen, .. }) => {
                Arc::ptr_eq(cache, other) && prefix == below && fingerprint == seen
            }
            _ => false,
        }
    }

    /// Whether the answer is what it was.
    async fn holds(&self, registry: &Registry) -> bool {
        match self {
            Question::One { key, revision } => match registry.store.get(key).await {
                Ok(entry) => entry.map_or(0, |entry| entry.mod_revision) == *revision,
                Err(_) => false,
            },
            Question::All { cache, prefix, revision, fingerprint } => {
                let newest = cache.revision();
                if newest == revision.load(Ordering::Relaxed) {
                    return true;
                }
                // Something changed, maybe in other namespaces only.
                let same = cache.fingerprint(prefix) == *fingerprint;
                if same {
                    revision.store(newest, Ordering::Relaxed);
                }
                same
            }
        }
    }
}

/// Asks in the plugins' stead, and writes down what is asked.
pub struct Recorder {
    reader: Arc<Reader>,
    asked: Mutex<Vec<Question>>,
    /// Something was asked that cannot be asked again this way.
    more: AtomicBool,
}

impl Recorder {
    pub fn new(reader: Arc<Reader>) -> Self {
        Self { reader, asked: Mutex::default(), more: AtomicBool::new(false) }
    }

    fn add(&self, question: Question) {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if !asked.iter().any(|other| question.is_same(other)) {
            asked.push(question);
        }
    }

    fn add_all(&self, resource: &GroupResource, namespace: &str) {
        match self.reader.cache(resource, namespace) {
            Some((cache, prefix)) => {
                // The revision first: what changes meanwhile makes the answer an old one.
                let revision = cache.revision().into();
                let fingerprint = cache.fingerprint(&prefix);
                self.add(Question::All { cache, prefix, revision, fingerprint });
            }
            None => self.depends_on_more(),
        }
    }
}

impl Lookup for Recorder {
    fn get<'a>(
        &'a self,
        resource: &'a GroupResource,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Arc<Value>>, Status>> {
        async move {
            let found = self.reader.get(resource, namespace, name).await?;
            match self.reader.key(resource, namespace, name) {
                Some(key) => {
                    let revision = found.as_ref().map_or(0, |found| meta(found, "resourceVersion").parse().unwrap_or(u64::MAX));
                    self.add(Question::One { key, revision });
                }
                None => self.depends_on_more(),
            }
            Ok(found)
        }
        .boxed()
    }

    fn list<'a>(&'a self, resource: &'a GroupResource, namespace: &'a str) -> BoxFuture<'a, Result<Vec<Arc<Value>>, Status>> {
        self.add_all(resource, namespace);
        self.reader.list(resource, namespace)
    }

    fn revision(&self, resource: &GroupResource) -> Option<u64> {
        self.add_all(resource, "");
        self.reader.revision(resource)
    }

    fn depends_on_more(&self) {
        self.more.store(true, Ordering::Relaxed);
    }

    fn write_status<'a>(&'a self, resource: &'a GroupResource, object: Value) -> BoxFuture<'a, Result<bool, Status>> {
        self.depends_on_more();
        self.reader.write_status(resource, object)
    }

    fn equivalents(&self, gvr: &GroupVersionResource, subresource: &str) -> Vec<(GroupVersionResource, GroupVersionKind)> {
        self.reader.equivalents(gvr, subresource)
    }

    fn resource_of(&self, kind: &GroupVersionKind) -> Option<(GroupVersionResource, bool)> {
        self.depends_on_more();
        self.reader.resource_of(kind)
    }

    fn type_of(&self, kind: &GroupVersionKind) -> Option<cel::Type> {
        self.depends_on_more();
        self.reader.type_of(kind)
    }

    fn convert<'a>(&'a self, object: Value, to: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        self.depends_on_more();
        self.reader.convert(object, to)
    }

    fn restore<'a>(&'a self, object: Value, from: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        self.depends_on_more();
        self.reader.restore(object, from)
    }

    fn merge<'a>(&'a self, object: Value, applied: Value, gvk: &'a GroupVersionKind) -> BoxFuture<'a, Result<Value, Status>> {
        self.depends_on_more();
        self.reader.merge(object, applied, gvk)
    }

    fn authorizer(&self, user: &UserInfo) -> Arc<dyn Authorizer> {
        self.depends_on_more();
        self.reader.authorizer(user)
    }

    fn resolve_host<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Vec<std::net::IpAddr>> {
        self.depends_on_more();
        self.reader.resolve_host(host)
    }

    fn allows<'a>(&'a self, user: &'a UserInfo, asked: auth::authorize::Attributes<'a>) -> BoxFuture<'a, bool> {
        self.depends_on_more();
        self.reader.allows(user, asked)
    }
}

/// What a creation said before it was recorded, to find what was said meanwhile.
pub struct Before {
    warnings: usize,
    annotations: BTreeMap<String, String>,
}

impl Before {
    pub fn of(context: &Context) -> Self {
        Self { warnings: context.warnings(), annotations: context.annotations() }
    }
}

/// What is put between the pieces of a stored form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    Name,
    Uid,
    Time,
}

/// What came of a creation, without its name, its uid and its time.
pub struct Template {
    before: Bytes,
    after: Bytes,
    has_name: bool,
    base: String,
    user: Arc<UserInfo>,
    namespace: String,
    options: WriteOptions,
    questions: Vec<Question>,
    annotations: Vec<(String, String)>,
    /// The stored form, and after which of its bytes what is to be put.
    text: Bytes,
    marks: Vec<(usize, Mark)>,
}

impl Template {
    /// `object` as it was stored. `None` where it depends on more than was asked.
    fn new(asked: &Asked<'_>, recorder: &Recorder, before: &Before, context: &Context, target: Target<'_>, object: Value) -> Option<Self> {
        if recorder.more.load(Ordering::Relaxed) || context.warnings() != before.warnings {
            return None;
        }
        let (has_name, base) = (!asked.name.is_empty(), meta(&object, "generateName").to_owned());
        if has_name && asked.name() != meta(&object, "name") || !has_name && base.is_empty() {
            return None;
        }
        let questions = std::mem::take(&mut *recorder.asked.lock().unwrap_or_else(PoisonError::into_inner));
        if questions.len() > QUESTIONS_MAX {
            return None;
        }
        let (text, marks) = cut(target, object)?;
        let annotations = context.annotations().into_iter().filter(|(key, _)| !before.annotations.contains_key(key));
        Some(Self {
            before: asked.body.slice(..asked.name.start),
            after: asked.body.slice(asked.name.end..),
            has_name,
            base,
            user: asked.user.clone(),
            namespace: asked.namespace.to_owned(),
            options: asked.options.clone(),
            questions,
            annotations: annotations.collect(),
            text,
            marks,
        })
    }

    fn is_of(&self, asked: &Asked<'_>) -> bool {
        self.before == asked.body[..asked.name.start]
            && self.after == asked.body[asked.name.end..]
            && self.has_name != asked.name.is_empty()
            && self.namespace == asked.namespace
            && self.options == *asked.options
            && (Arc::ptr_eq(&self.user, asked.user) || self.user == *asked.user)
    }

    /// Whether everything that admission looked at is as it was.
    async fn holds(&self, registry: &Registry) -> bool {
        for question in &self.questions {
            if !question.holds(registry).await {
                return false;
            }
        }
        true
    }

    fn fill(&self, name: &str) -> Bytes {
        let (uid, now) = (names::uid(), time::now());
        let mut out = Vec::with_capacity(self.text.len() + self.marks.len() * 64);
        let mut at = 0;
        for (place, mark) in &self.marks {
            out.extend_from_slice(&self.text[at..*place]);
            at = *place;
            let word: &str = match mark {
                Mark::Name => name,
                Mark::Uid => &uid,
                Mark::Time => &now,
            };
            out.extend_from_slice(word.as_bytes());
        }
        out.extend_from_slice(&self.text[at..]);
        // Kept for as long as the object lives: in a place of just its size.
        Bytes::copy_from_slice(&out)
    }
}

/// The stored form of the object without what differs from one to the next, and where that belongs.
fn cut(target: Target<'_>, mut object: Value) -> Option<(Bytes, Vec<(usize, Mark)>)> {
    // A word that stands nowhere in the object.
    let secret = names::uid();
    let word = |mark: Mark| format!("{secret}-{mark:?}");
    let metadata = metadata_mut(&mut object);
    metadata.insert("name".into(), word(Mark::Name).into());
    metadata.insert("uid".into(), word(Mark::Uid).into());
    metadata.insert("creationTimestamp".into(), word(Mark::Time).into());
    for entry in metadata.get_mut("managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
        entry["time"] = word(Mark::Time).into();
    }
    let marked = target.kind.encode(&object).ok()?;
    let (mut text, mut marks, mut at) = (Vec::with_capacity(marked.len()), Vec::new(), 0);
    for place in memmem::find_iter(&marked, secret.as_bytes()) {
        text.extend_from_slice(&marked[at..place]);
        let mark = [Mark::Name, Mark::Uid, Mark::Time].into_iter().find(|mark| marked[place..].starts_with(word(*mark).as_bytes()))?;
        marks.push((text.len(), mark));
        at = place + word(mark).len();
    }
    text.extend_from_slice(&marked[at..]);
    Some((text.into(), marks))
}

impl Registry {
    /// Creates what was created before under another name. `None`: it has to go the long way.
    pub async fn repeat(
        &self,
        context: &Context,
        target: Target<'_>,
        asked: &Asked<'_>,
        template: &Template,
    ) -> Option<Result<Arc<Object>, Status>> {
        if !template.holds(self).await {
            return None;
        }
        let mut refused = None;
        for _ in 0..GENERATED_NAMES_TRIED {
            let name = if template.has_name { asked.name().to_owned() } else { names::generate_name(&template.base) };
            // Everything else about a pod's name is said by the long way.
            if !names::dns1123_label(&name).is_empty() {
                return None;
            }
            let target = Target { name: &name, ..target };
            let (key, bytes) = (Bytes::from(target.key()), template.fill(&name));
            match self.store.put(&key, bytes.clone(), Expect::Absent).await {
                Ok(revision) => {
                    admission::repeated(Operation::Create);
                    template.annotations.iter().for_each(|(key, value)| context.annotate(key, value));
                    return Some(stored(key, bytes, revision));
                }
                Err(store::Error::Conflict { current }) => {
                    let existing = current.and_then(|entry| Object::new(entry.key, entry.value, entry.mod_revision));
                    let plain = || Status::already_exists(&target.kind.group_resource(), &name);
                    refused = Some(existing.map_or_else(plain, |existing| already_exists(target, &existing)));
                    if template.has_name {
                        break;
                    }
                }
                Err(error) => return Some(Err(storage_error(error))),
            }
        }
        // A generated name that is taken so often is for the long way to explain.
        refused.filter(|_| template.has_name).map(Err)
    }

    /// Creates, and keeps what came of it for the next.
    pub async fn create_recorded(
        &self,
        context: &Context,
        target: Target<'_>,
        object: Value,
        asked: &Asked<'_>,
        before: &Before,
    ) -> Result<Arc<Object>, Status> {
        let recorder = Arc::new(Recorder::new(self.reader.clone()));
        let created = self.create_by(context, target, object, asked.options, super::Owners::Update, Some(&recorder)).await?;
        let tree = object::decode(&created.bytes, 0);
        if let Some(template) = Template::new(asked, &recorder, before, context, target, tree) {
            self.repeats.keep(asked.hash, template);
        }
        Ok(created)
    }
}
