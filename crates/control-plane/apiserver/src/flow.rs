//! API Priority and Fairness: every request belongs to a flow of a priority level, takes seats there, or waits for them.
//!
//! [`schema`] finds the flow, [`level`] has seats and queues. The objects are followed in the watch cache and read anew when one of them changes; a
//! level whose settings stay keeps its queues. Without objects (before bootstrap) nothing is held back.
//!
//! Source: KEP-1040; `apiserver/pkg/util/flowcontrol`. Seats are not lent between levels.

mod level;
pub mod schema;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use meta::Status;
use serde_json::Value;

use crate::access::grants::objects;
use crate::cache::{Cache, Caches};
use crate::context::Context;
use crate::object::meta;
use crate::registry::catalog;
pub use level::Place;
use level::{Entry, Level, Settings};
use schema::Schema;

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const PLURALS: [&str; 2] = ["flowschemas", "prioritylevelconfigurations"];
/// A quarter of the time that a request has, as upstream.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// Objects of a list that one seat serves, and the most seats a list takes.
const OBJECTS_PER_SEAT: usize = 100;
const SEATS_MAX: usize = 10;
/// Subresources whose requests last as long as the client likes.
const LONG_RUNNING: [&str; 5] = ["log", "exec", "attach", "portforward", "proxy"];

pub struct Flow {
    /// Seats of all levels together.
    seats: usize,
    sources: [Arc<Cache>; 2],
    plan: ArcSwap<Plan>,
}

#[derive(Default)]
struct Plan {
    seen: [u64; 2],
    schemas: Vec<Schema>,
    levels: HashMap<String, Arc<Level>>,
}

/// The flow that a request was put into: for its response's headers.
#[derive(Clone, Debug, Default)]
pub struct Flowed {
    pub schema: String,
    pub level: String,
}

impl Flow {
    pub fn new(seats: usize, caches: &Caches) -> Self {
        let cache = |plural| {
            let prefix = catalog::stored(GROUP, plural).map(|kind| kind.storage.prefix.clone()).unwrap_or_default();
            caches.of(prefix.as_bytes())
        };
        Self { seats, sources: PLURALS.map(cache), plan: ArcSwap::default() }
    }

    fn plan(&self, caches: &Caches) -> Arc<Plan> {
        let newest = self.sources.each_ref().map(|cache| cache.revision());
        let plan = self.plan.load_full();
        if plan.seen == newest {
            return plan;
        }
        // Two requests may do this at the same time; they come to the same result, but for queues that are still empty.
        let [schemas, levels] = PLURALS.map(|plural| objects(caches, GROUP, plural));
        let schemas = schemas.iter().map(Schema::parse).collect();
        let plan = Arc::new(Plan::new(newest, schemas, &levels, self.seats, &plan));
        self.plan.store(plan.clone());
        plan
    }

    /// Waits until the request may run. What it took is given back with the place.
    pub async fn enter(&self, caches: &Caches, context: &mut Context) -> Result<Place, Status> {
        if LONG_RUNNING.contains(&context.info.subresource.as_str()) {
            return Ok(Place::free());
        }
        let plan = self.plan(caches);
        let asked = context.attributes();
        let Some(schema) = plan.schemas.iter().find(|schema| schema.matches(&context.user, &asked)) else {
            return Ok(Place::free());
        };
        let Some(level) = plan.levels.get(&schema.level).or_else(|| plan.levels.get("catch-all")) else { return Ok(Place::free()) };
        let entry = level.enter((&schema.name, schema.flow(&context.user, &asked)), seats(caches, context));
        let (flowed, names) =
            (Flowed { schema: schema.uid.clone(), level: level.uid.clone() }, (schema.name.clone(), schema.level.clone()));
        context.flowed = Some(flowed);
        let why = match entry {
            Entry::Now(place) => return Ok(place),
            Entry::Refused(why) => why,
            Entry::Wait(ready) => match tokio::time::timeout(WAIT_MAX, ready).await {
                Ok(Ok(place)) => return Ok(place),
                _ => "time-out",
            },
        };
        tracing::debug!(schema = names.0, level = names.1, why, "a request was rejected");
        Err(Status::too_many_requests("too many requests, please try again later", 1))
    }

    /// Name, seats in use, requests waiting, seats there are.
    pub fn loads(&self, caches: &Caches) -> Vec<(String, usize, usize, usize)> {
        let plan = self.plan(caches);
        let load = |(name, level): (&String, &Arc<Level>)| {
            let (taken, waiting) = level.load();
            (name.clone(), taken, waiting, level.seats_max)
        };
        plan.levels.iter().map(load).collect()
    }
}

impl Plan {
    fn new(seen: [u64; 2], mut schemas: Vec<Schema>, levels: &[Value], seats: usize, before: &Plan) -> Self {
        schemas.sort_by(|a, b| a.order().cmp(&b.order()));
        let settings: Vec<(&Value, Settings)> = levels.iter().map(|level| (level, Settings::parse(level))).collect();
        let shares: u64 = settings.iter().map(|(_, settings)| settings.shares).sum::<u64>().max(1);
        let levels = settings.into_iter().map(|(object, settings)| {
            let (name, uid) = (meta(object, "name").to_owned(), meta(object, "uid").to_owned());
            let seats_max = (seats as u64 * settings.shares).div_ceil(shares).max(1) as usize;
            let same = before.levels.get(&name).filter(|old| old.uid == uid && old.settings == settings && old.seats_max == seats_max);
            let level = same.cloned().unwrap_or_else(|| Level::new(uid, settings, seats_max));
            (name, level)
        });
        Self { seen, schemas, levels: levels.collect() }
    }
}

/// How much of the server a request uses: a list by its length, all else one seat.
fn seats(caches: &Caches, context: &Context) -> usize {
    let info = &context.info;
    if info.verb != "list" || !info.name.is_empty() {
        return 1;
    }
    let Some(kind) = catalog::stored(&info.group, &info.resource) else { return 1 };
    let count = caches.of(kind.storage.prefix.as_bytes()).len();
    let limit = context.query.get("limit").and_then(|limit| limit.parse::<usize>().ok()).filter(|limit| *limit > 0);
    limit.map_or(count, |limit| limit.min(count)).div_ceil(OBJECTS_PER_SEAT).clamp(1, SEATS_MAX)
}
