//! Who owns what: `metadata.managedFields` in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields_v1;
use super::node::Node;
use super::set::Set;

/// Update managers that an object keeps; older ones are merged into [`ANCIENT`].
const UPDATE_MANAGERS_MAX: usize = 10;
const ANCIENT: &str = "ancient-changes";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// What makes two entries of managedFields the same owner. An applier is the same in every version of the API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Identity<'a> {
    manager: Cow<'a, str>,
    operation: Operation,
    /// Empty for appliers.
    api_version: Cow<'a, str>,
    subresource: Cow<'a, str>,
}

impl<'a> Identity<'a> {
    pub(super) fn new(manager: &'a str, operation: Operation, api_version: &'a str, subresource: &'a str) -> Self {
        let api_version = if operation == Operation::Apply { "" } else { api_version };
        Identity {
            manager: if manager.is_empty() { "unknown".into() } else { manager.into() },
            operation,
            api_version: api_version.into(),
            subresource: subresource.into(),
        }
    }

    /// As conflicts name it: `"kubectl-edit" with subresource "scale" using apps/v1`.
    pub(super) fn words(&self) -> String {
        let mut words = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            words.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            words.push_str(&format!(" using {}", self.api_version));
        }
        words
    }
}

/// What one owner owns.
#[derive(Clone, Debug)]
pub(super) struct Owned<'a> {
    pub set: Set<'a>,
    pub api_version: Cow<'a, str>,
    pub time: Option<Cow<'a, str>>,
}

impl Owned<'_> {
    fn seconds(&self) -> i64 {
        seconds(self.time.as_deref())
    }
}

fn seconds(time: Option<&str>) -> i64 {
    time.and_then(|time| time.parse::<jiff::Timestamp>().ok()).map_or(0, |time| time.as_second())
}

/// All owners of one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Managers<'a>(BTreeMap<Identity<'a>, Owned<'a>>);

impl<'a> Managers<'a> {
    /// Reads `managedFields`; absent and null are nobody.
    pub(super) fn decode(entries: Option<&'a Value>) -> Result<Self, String> {
        let mut managers = Managers::default();
        let entries = match entries {
            None | Some(Value::Null) => return Ok(managers),
            Some(Value::Array(entries)) => entries,
            Some(_) => return Err("managedFields must be a list".to_owned()),
        };
        for (position, entry) in entries.iter().enumerate() {
            let (identity, owned) = decode_entry(entry, position)?;
            managers.0.insert(identity, owned);
        }
        Ok(managers)
    }

    /// The list for `metadata.managedFields`; `None` where nobody owns anything.
    pub(super) fn encode(&self) -> Option<Value> {
        let mut owners: Vec<(&Identity<'a>, &Owned<'a>)> = self.0.iter().collect();
        owners.sort_by_cached_key(|(identity, owned)| (identity.operation, owned.seconds()));
        let entries: Vec<Value> = owners.into_iter().map(|(identity, owned)| encode_entry(identity, owned)).collect();
        (!entries.is_empty()).then_some(Value::Array(entries))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Identity<'a>, &Owned<'a>)> {
        self.0.iter()
    }

    pub(super) fn take(&mut self, identity: &Identity<'a>) -> Option<Owned<'a>> {
        self.0.remove(identity)
    }

    /// Sets what `identity` owns; owning nothing is not to be in the list.
    pub(super) fn put(&mut self, identity: Identity<'a>, owned: Owned<'a>) {
        if !owned.set.is_empty() {
            self.0.insert(identity, owned);
        }
    }

    /// Nobody here owns these paths any more; who owns nothing then leaves the list.
    pub(super) fn lose(&mut self, changed: &Set<'_>, removed: &Set<'_>) {
        self.0.retain(|_, owned| {
            owned.set = std::mem::take(&mut owned.set).difference(changed).difference(removed);
            !owned.set.is_empty()
        });
    }

    /// Owners of parts of what the schema takes as one value (by now) own that value.
    /// Returns whether that changed anything.
    pub(super) fn reconcile(&mut self, node: Node<'_>) -> bool {
        let mut changed = false;
        self.0.values_mut().for_each(|owned| collapse(&mut owned.set, node, &mut changed));
        changed
    }

    /// Merges the oldest updaters of each version into one owner, until few enough are left.
    pub(super) fn cap(&mut self) {
        let updaters = |identity: &Identity<'a>| identity.operation == Operation::Update;
        let mut oldest: Vec<(i64, Identity<'a>)> =
            self.0.iter().filter(|(identity, _)| updaters(identity)).map(|(identity, owned)| (owned.seconds(), identity.clone())).collect();
        oldest.sort();
        let mut count = oldest.len();
        // The first updater of a version opens that version's bucket; it is renamed when a second one joins.
        let mut openers: BTreeMap<String, Identity<'a>> = BTreeMap::new();
        for (_, identity) in oldest {
            if count <= UPDATE_MANAGERS_MAX {
                return;
            }
            let Some(version) = self.0.get(&identity).map(|owned| owned.api_version.to_string()) else { continue };
            let Some(opener) = openers.get(&version) else {
                openers.insert(version, identity);
                continue;
            };
            let bucket =
                Identity { manager: ANCIENT.into(), operation: Operation::Update, api_version: version.into(), subresource: "".into() };
            if identity == bucket {
                continue;
            }
            let earlier = self.0.remove(&bucket).or_else(|| self.0.remove(opener));
            if let (Some(owned), Some(earlier)) = (self.0.remove(&identity), earlier) {
                self.0.insert(bucket, Owned { set: owned.set.union(earlier.set), ..owned });
                count -= 1;
            }
        }
    }
}

fn collapse(set: &mut Set<'_>, node: Node<'_>, changed: &mut bool) {
    set.retain(|entry| {
        if entry.children.is_empty() {
            return;
        }
        let (child, _) = node.step(&entry.element);
        if child.is_atomic() {
            entry.children = Set::new();
            entry.member = true;
            *changed = true;
        } else {
            collapse(&mut entry.children, child, changed);
        }
    });
}

fn decode_entry(entry: &Value, position: usize) -> Result<(Identity<'_>, Owned<'_>), String> {
    let text = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
    let operation = match text("operation") {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return Err("operation must be `Apply` or `Update`".to_owned()),
    };
    let api_version = text("apiVersion");
    if api_version.is_empty() {
        return Err("apiVersion must not be empty".to_owned());
    }
    match text("fieldsType") {
        "FieldsV1" => {}
        "" => return Err(format!("missing fieldsType in managed fields entry {position}")),
        other => return Err(format!("invalid fieldsType {other:?} in managed fields entry {position}")),
    }
    let set = match entry.get("fieldsV1") {
        None | Some(Value::Null) => Set::new(),
        Some(fields) => fields_v1::decode(fields).map_err(|error| error.to_string())?,
    };
    let identity = Identity {
        manager: text("manager").into(),
        operation,
        api_version: if operation == Operation::Apply { "".into() } else { api_version.into() },
        subresource: text("subresource").into(),
    };
    let time = entry.get("time").and_then(Value::as_str).map(Cow::Borrowed);
    Ok((identity, Owned { set, api_version: api_version.into(), time }))
}

fn encode_entry(identity: &Identity<'_>, owned: &Owned<'_>) -> Value {
    let mut entry = Map::new();
    let mut text = |name: &str, value: &str| {
        if !value.is_empty() {
            entry.insert(name.to_owned(), Value::String(value.to_owned()));
        }
    };
    text("manager", &identity.manager);
    text("operation", identity.operation.name());
    text("apiVersion", &owned.api_version);
    text("time", owned.time.as_deref().unwrap_or_default());
    text("fieldsType", "FieldsV1");
    text("subresource", &identity.subresource);
    entry.insert("fieldsV1".to_owned(), fields_v1::encode(&owned.set));
    Value::Object(entry)
}

/// Does the request ask to forget all owners: `[]` or `[{}]`?
pub(super) fn is_reset(entries: &Value) -> bool {
    entries.as_array().is_some_and(|entries| entries.is_empty() || *entries == [json!({})])
}
