//! API Priority and Fairness: every request belongs to a flow of a priority level, takes seats there, or waits for them.
//!
//! [`schema`] finds the flow, [`level`] has seats and [`queues`]; [`borrow`] divides the seats anew every 10 s by the [`demand`] of each level;
//! [`counted`] are the metrics and `dump` the tables for people. The objects are followed in the watch cache and read anew when one of them
//! changes: a level keeps those who run and wait. Without objects (before bootstrap) nothing is held back. One task, [`run`]: it lends seats
//! and tells FlowSchemas whether their level exists (`dangling`).
//!
//! Seats are for requests that last; the processors are divided below, among connections (`serve::turns`).
//!
//! Source: KEP-1040; `apiserver/pkg/util/flowcontrol`. Unlike there a write takes no further seats for the watchers it wakes: they are served
//! with bytes that are encoded once.

mod borrow;
mod counted;
mod dangling;
mod demand;
mod dump;
mod level;
mod queues;
pub mod schema;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::{ArcSwap, Guard};
use jiff::Timestamp;
use meta::Status;
use serde_json::Value;

use crate::Inner;
use crate::access::grants::objects;
use crate::cache::{Cache, Caches, Changes};
use crate::context::Context;
use crate::object::meta;
use crate::registry::catalog;
use borrow::Limits;
use counted::{Counted, Families};
pub use dump::respond;
pub use level::Place;
use level::{Entry, Level, Settings, Ticket};
use schema::Schema;

pub const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const PLURALS: [&str; 2] = ["flowschemas", "prioritylevelconfigurations"];
/// A quarter of the time that a request has, as upstream.
const WAIT_MAX: Duration = Duration::from_secs(15);
/// How often seats are divided anew.
const ADJUST_PERIOD: Duration = Duration::from_secs(10);
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
    planning: Mutex<()>,
    families: Families,
}

#[derive(Default)]
struct Plan {
    seen: [u64; 2],
    /// In the order in which they are asked; those without a level are not among them.
    routes: Vec<Arc<Route>>,
    levels: BTreeMap<String, Arc<Level>>,
}

/// Where the requests of one FlowSchema go.
struct Route {
    schema: Schema,
    level: Arc<Level>,
    flowed: Arc<Flowed>,
    exempt: bool,
    widest: usize,
    counted: Arc<Counted>,
}

/// The flow that a request was put into, by uids: for its response's headers.
#[derive(Debug, Default)]
pub struct Flowed {
    pub schema: String,
    pub level: String,
}

impl Flow {
    pub fn new(seats: usize, caches: &Caches) -> Result<Self, telemetry::prometheus::Error> {
        let cache = |plural| {
            let prefix = catalog::stored(GROUP, plural).map(|kind| kind.storage.prefix.clone()).unwrap_or_default();
            caches.of(prefix.as_bytes())
        };
        let families = Families::new()?;
        Ok(Self { seats, sources: PLURALS.map(cache), plan: ArcSwap::default(), planning: Mutex::default(), families })
    }

    fn plan(&self, caches: &Caches) -> Guard<Arc<Plan>> {
        let newest = || self.sources.each_ref().map(|cache| cache.revision());
        let plan = self.plan.load();
        if plan.seen == newest() {
            return plan;
        }
        let _one = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, seen) = (self.plan.load(), newest());
        if before.seen == seen {
            return before;
        }
        let [schemas, levels] = PLURALS.map(|plural| objects(caches, GROUP, plural));
        let plan = Arc::new(Plan::new(seen, &schemas, &levels, self, &before));
        self.plan.store(plan.clone());
        self.divide(&plan);
        Guard::from_inner(plan)
    }

    /// Waits until the request may run. What it took is given back with the place.
    pub async fn enter(&self, caches: &Caches, context: &mut Context) -> Result<Place, Status> {
        if LONG_RUNNING.contains(&context.info.subresource.as_str()) {
            return Ok(Place::free());
        }
        let Some(entry) = self.enter_now(caches, context) else { return Ok(Place::free()) };
        let why = match entry {
            Entry::Now(place) => return Ok(place),
            Entry::Wait(waiting) => match Box::pin(waiting.place(WAIT_MAX)).await {
                Some(place) => return Ok(place),
                None => "time-out",
            },
            Entry::Refused(why) => why,
        };
        tracing::debug!(flowed = ?context.flowed, why, "a request was rejected");
        Err(Status::too_many_requests("too many requests, please try again later", 1))
    }

    /// Finds the request's flow; `None` where there are no flows. Whoever waits afterwards does so without holding the plan.
    fn enter_now(&self, caches: &Caches, context: &mut Context) -> Option<Entry> {
        let plan = self.plan(caches);
        let route = plan.route(context)?;
        context.flowed = Some(route.flowed.clone());
        let ticket = route.ticket(caches, context);
        route.counted.estimated(ticket.seats);
        let entry = route.level.enter(ticket);
        if let Entry::Refused(why) = entry {
            route.counted.rejected(why);
        }
        Some(entry)
    }

    /// Divides the seats by what each level could have used since the last time.
    fn divide(&self, plan: &Plan) {
        let levels: Vec<&Arc<Level>> = plan.levels.values().collect();
        let wants: Vec<_> = levels.iter().map(|level| level.want()).collect();
        let (seats, fair) = borrow::divide(&wants);
        self.families.set_fair(fair);
        for ((level, want), seats) in levels.into_iter().zip(&wants).zip(seats) {
            self.families.set_demand(&level.name, want);
            self.families.set_limits(&level.name, &want.limits, seats);
            level.limit(seats);
        }
    }

    /// Brings the metrics up to date with objects that no request has made anybody read.
    pub fn measure(&self, caches: &Caches) {
        self.plan(caches);
    }
}

impl Plan {
    fn new(seen: [u64; 2], schemas: &[Value], levels: &[Value], flow: &Flow, before: &Self) -> Self {
        let settings: Vec<(&Value, Settings)> = levels.iter().map(|level| (level, Settings::parse(level))).collect();
        let shares: u64 = settings.iter().map(|(_, settings)| settings.shares).sum::<u64>().max(1);
        let mut made: BTreeMap<String, Arc<Level>> = BTreeMap::new();
        let mut uids: BTreeMap<&str, String> = BTreeMap::new();
        for (object, settings) in settings {
            let nominal = (flow.seats as u64 * settings.shares).div_ceil(shares) as usize;
            let limits = Limits::new(nominal, settings.lendable_percent, settings.borrowing_percent, flow.seats);
            let name = meta(object, "name");
            uids.insert(name, meta(object, "uid").into());
            let level = match before.levels.get(name) {
                Some(level) => {
                    level.configure(settings, limits);
                    level.clone()
                }
                None => Level::new(name, settings, limits),
            };
            made.insert(name.to_owned(), level);
        }
        before.levels.keys().filter(|name| !made.contains_key(*name)).for_each(|name| flow.families.forget(name));
        let mut schemas: Vec<Schema> = schemas.iter().map(Schema::parse).collect();
        schemas.sort_by(|a, b| a.order().cmp(&b.order()));
        let route = |schema: Schema| {
            let level = made.get(&schema.level)?.clone();
            let uid = uids.get(schema.level.as_str()).cloned().unwrap_or_default();
            Some(Arc::new(Route::new(schema, level, uid, &flow.families)))
        };
        let routes = schemas.into_iter().filter_map(route).collect();
        Self { seen, routes, levels: made }
    }

    /// The flow of a request; those that no schema names go where the last resort leads.
    fn route(&self, context: &Context) -> Option<&Arc<Route>> {
        let asked = context.attributes();
        let found = self.routes.iter().find(|route| route.schema.matches(&context.user, &asked));
        found.or_else(|| self.routes.iter().find(|route| route.schema.name == "catch-all"))
    }
}

impl Route {
    fn new(schema: Schema, level: Arc<Level>, level_uid: String, families: &Families) -> Self {
        let settings = level.settings();
        Self {
            flowed: Arc::new(Flowed { schema: schema.uid.clone(), level: level_uid }),
            exempt: settings.exempt,
            widest: settings.widest(level.limits().nominal),
            counted: families.of(&level.name, &schema.name),
            schema,
            level,
        }
    }

    fn ticket(&self, caches: &Caches, context: &Context) -> Ticket {
        let (info, user) = (&context.info, &context.user);
        let (flow, details) = match self.exempt {
            // Nobody asks who they are.
            true => Default::default(),
            false => (self.schema.flow(user, &context.attributes()).to_owned(), dump::details(user, info)),
        };
        Ticket {
            seats: seats(caches, context, self.widest),
            flow,
            details,
            arrived: Timestamp::now(),
            is_watch: info.verb == "watch",
            counted: self.counted.clone(),
        }
    }
}

/// How much of the server a request uses: what sends a list, by its length; all else one seat.
fn seats(caches: &Caches, context: &Context, widest: usize) -> usize {
    let (info, query) = (&context.info, &context.query);
    let is_list = match info.verb.as_str() {
        "list" => true,
        // A watch may begin with all objects.
        "watch" => query.flag("sendInitialEvents") || matches!(query.get("resourceVersion").unwrap_or_default(), "" | "0"),
        _ => false,
    };
    if !is_list || !info.name.is_empty() {
        return 1;
    }
    let Some(kind) = catalog::stored(&info.group, &info.resource) else { return 1 };
    let count = caches.of(kind.storage.prefix.as_bytes()).len();
    let limit = query.get("limit").and_then(|limit| limit.parse::<usize>().ok()).filter(|limit| *limit > 0);
    limit.map_or(count, |limit| limit.min(count)).div_ceil(OBJECTS_PER_SEAT).clamp(1, SEATS_MAX.min(widest))
}

/// Tells FlowSchemas whether their levels exist: of those that every cluster has, before anybody asks.
pub async fn tell(server: &Inner) {
    dangling::tell(server).await;
}

/// What every cluster has comes back when it was deleted. `false` where a write failed: it is tried again.
async fn restored(server: &Inner) -> bool {
    let outcome = crate::bootstrap::flows(server).await;
    if let Err(status) = &outcome {
        tracing::warn!(%status, "the flows and levels that every cluster has cannot be written");
    }
    outcome.is_ok()
}

/// Lends seats, and tells FlowSchemas what became of their levels, until the server stops.
pub async fn run(server: Arc<Inner>) {
    let mut told = None;
    loop {
        let Some(mut changes) = Changes::of(&server.registry.caches, &PLURALS.map(|plural| (GROUP, plural))) else { return };
        let mut due = tokio::time::Instant::now() + ADJUST_PERIOD;
        loop {
            let seen = server.flow.sources.each_ref().map(|cache| cache.revision());
            if told != Some(seen) && restored(&server).await && dangling::tell(&server).await {
                told = Some(seen);
            }
            let open = tokio::select! {
                open = changes.next() => open,
                () = tokio::time::sleep_until(due) => {
                    due = tokio::time::Instant::now() + ADJUST_PERIOD;
                    server.flow.divide(&server.flow.plan(&server.registry.caches));
                    true
                }
            };
            if server.drain.is_stopping() {
                return;
            }
            if !open {
                break;
            }
        }
    }
}
