//! Aggregated API servers: group-versions that somebody else serves, told by APIServices.
//!
//! `services` keeps the remote APIServices at hand, made again when their objects change; `available` asks each of them whether it answers,
//! writes the condition and remembers its discovery; `proxy` hands requests on with the user's identity in headers; `local` keeps an
//! APIService for every group-version that is served here. One task: [`run`].
//!
//! Source: kube-aggregator; upstream's `pkg/controlplane/apiserver/aggregator.go`.

mod available;
mod local;
mod proxy;
mod services;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::ResolvesClientCert;
use serde_json::Value;

use crate::Inner;
use crate::context::Context;
use crate::discovery::{Entry, Group};
use crate::registry::catalog;

pub use proxy::respond;
use services::{Remote, Table};

/// What a remote server said of itself when it was last asked.
#[derive(Clone, Debug, Default)]
struct Known {
    resources: Vec<Entry>,
    /// The place and hash of its OpenAPI document: `/openapi/v3/apis/g/v?hash=…`.
    openapi: Option<String>,
    /// What its version 2 document says of the group and version.
    openapi_v2: Option<Arc<Value>>,
    /// It did not answer the last time.
    stale: bool,
}

/// A remote server by group and version.
type Place = (String, String);

#[derive(Default)]
pub struct Aggregator {
    /// How this server shows itself to aggregated ones.
    identity: Option<Arc<dyn ResolvesClientCert>>,
    table: ArcSwap<Table>,
    known: RwLock<HashMap<Place, Known>>,
    building: Mutex<()>,
    /// Counts changes of the version 2 documents.
    documents: AtomicU64,
}

/// How often changes are looked for, and how often every server is asked without one (as upstream).
const LOOK: Duration = Duration::from_millis(500);
const RESYNC_LOOKS: u32 = 60;

impl Aggregator {
    pub fn new(identity: Option<Arc<dyn ResolvesClientCert>>) -> Self {
        Self { identity, ..Self::default() }
    }

    /// The remote APIServices as the cache has them.
    fn table(&self, server: &Inner) -> Arc<Table> {
        let Some(kind) = catalog::stored(services::GROUP, services::PLURAL) else { return Arc::default() };
        let revision = server.registry.caches.of(kind.storage.prefix.as_bytes()).revision();
        let table = self.table.load_full();
        if table.revision == Some(revision) {
            return table;
        }
        let _one = self.building.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Arc::new(Table::read(server, revision, self.identity.as_ref()));
        self.table.store(fresh.clone());
        fresh
    }

    fn remote(&self, server: &Inner, group: &str, version: &str) -> Option<Arc<Remote>> {
        self.table(server).by_place.get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// Adds the groups and versions of remote servers to what discovery says.
    pub fn extend(&self, server: &Inner, groups: &mut Vec<Group>) {
        let table = self.table(server);
        if table.by_place.is_empty() {
            return;
        }
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        for remote in &table.in_order {
            let group = match groups.iter_mut().position(|group| group.name == remote.group) {
                Some(at) => &mut groups[at],
                None => {
                    groups.push(Group { name: remote.group.clone(), versions: Vec::new() });
                    let last = groups.len() - 1;
                    &mut groups[last]
                }
            };
            let said = known.get(&remote.place());
            let version = group.version(&remote.version);
            version.resources = said.map(|said| said.resources.clone()).unwrap_or_default();
            version.stale = said.is_none_or(|said| said.stale) || !remote.available;
        }
        groups.iter_mut().for_each(Group::sort);
    }

    /// The documents of remote servers for the index of `/openapi/v3`: key and place.
    pub fn openapi(&self, server: &Inner) -> Vec<(String, String)> {
        let table = self.table(server);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let of = |remote: &Arc<Remote>| {
            Some((format!("apis/{}/{}", remote.group, remote.version), known.get(&remote.place())?.openapi.clone()?))
        };
        table.in_order.iter().filter_map(of).collect()
    }

    /// What remote servers' version 2 documents say of what they serve here, in order, with the number of that state.
    pub fn openapi_v2(&self, server: &Inner) -> (u64, Vec<Arc<Value>>) {
        let table = self.table(server);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let said = table.in_order.iter().filter_map(|remote| known.get(&remote.place())?.openapi_v2.clone());
        (self.documents.load(Ordering::Acquire), said.collect())
    }

    /// What is known of the version 2 document, as long as the version 3 document is at the same place.
    fn document(&self, place: &Place, openapi: Option<&str>) -> Option<Arc<Value>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(place).filter(|known| openapi.is_some() && known.openapi.as_deref() == openapi)?.openapi_v2.clone()
    }

    fn remember(&self, place: Place, known: Option<Known>) {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        match known {
            Some(known) => {
                let document = known.openapi_v2.clone();
                let old = all.insert(place, known);
                if old.and_then(|old| old.openapi_v2) != document {
                    self.documents.fetch_add(1, Ordering::AcqRel);
                }
            }
            // What it said before is still the best that is known.
            None => all.entry(place).or_default().stale = true,
        }
    }

    fn forget_others(&self, table: &Table) {
        let mut all = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        all.retain(|place, _| table.by_place.contains_key(place));
        if all.len() != before {
            self.documents.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// Whether the request may be about something that another server serves.
pub fn is_foreign(context: &Context) -> bool {
    let info = &context.info;
    match info.is_resource {
        true => !info.group.is_empty() && catalog::find(&info.group, &info.version, &info.resource).is_none(),
        false => info.path.starts_with("/apis/") || info.path.starts_with("/openapi/v3/apis/"),
    }
}

/// Keeps APIServices and what is known of them, until the server stops.
pub async fn run(server: Arc<Inner>) {
    let mut seen = None;
    let mut looks = 0;
    while server.drain.run(tokio::time::sleep(LOOK)).await.is_some() {
        looks += 1;
        let now = services::revisions(&server);
        let table = server.aggregator.table(&server);
        if seen == Some(now) && (looks < RESYNC_LOOKS || table.by_place.is_empty()) {
            continue;
        }
        looks = 0;
        seen = Some(now);
        local::keep(&server).await;
        let table = server.aggregator.table(&server);
        server.aggregator.forget_others(&table);
        // One that hangs must not delay the word about the others.
        futures_util::future::join_all(table.in_order.iter().map(|remote| available::check(&server, remote))).await;
    }
}
