//! Whether they may: `system:masters` first, then what is open to all, then whoever the configuration names, in its order; by default the Node
//! authorizer, then RBAC.
//!
//! Roles, bindings and pods are followed in the watch cache; a decision costs two hash look-ups per group of the user and no allocation but its
//! reason. Both locks are held for the look-up alone, never across an await.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use admission::Lookup as Server;
use arc_swap::ArcSwap;
use auth::UserInfo;
use auth::authorize::{Attributes, Decision, configuration};
use auth::node::{self, Graph, Lookup};
use auth::rbac::{Policy, Rule};
use serde_json::Value;

use super::MASTERS;
use super::follow::{Follower, Lost};
use super::webhook::Webhook;
use crate::bootstrap;
use crate::cache::{Caches, Change};
use crate::object::meta;
use crate::registry::catalog;

/// Answered for everybody, before any role exists (upstream: always-allow-paths).
const OPEN_PATHS: [&str; 3] = ["/healthz", "/livez", "/readyz"];
pub const RBAC_GROUP: &str = "rbac.authorization.k8s.io";
const ROLES: [&str; 2] = ["roles", "clusterroles"];
const BINDINGS: [&str; 2] = ["rolebindings", "clusterrolebindings"];

pub struct Authorizer {
    rbac: RwLock<Rbac>,
    pods: Mutex<Pods>,
    node_rules: Vec<Rule>,
    chain: ArcSwap<Chain>,
    /// Where webhooks behind Services and names are.
    server: Arc<dyn Server>,
}

/// Who is asked, one after the other, until somebody has an opinion.
pub struct Chain {
    steps: Vec<Step>,
    /// Somebody in another process is among them.
    outside: bool,
}

enum Step {
    AlwaysAllow,
    AlwaysDeny,
    Node,
    Rbac,
    Webhook(Box<Webhook>),
}

impl Chain {
    pub fn new(steps: Vec<configuration::Step>) -> Result<Self, String> {
        let step = |step| {
            Ok(match step {
                configuration::Step::AlwaysAllow => Step::AlwaysAllow,
                configuration::Step::AlwaysDeny => Step::AlwaysDeny,
                configuration::Step::Node => Step::Node,
                configuration::Step::Rbac => Step::Rbac,
                configuration::Step::Webhook(settings) => Step::Webhook(Box::new(Webhook::new(settings)?)),
            })
        };
        let steps = steps.into_iter().map(step).collect::<Result<Vec<Step>, String>>()?;
        Ok(Self { outside: steps.iter().any(|step| matches!(step, Step::Webhook(_))), steps })
    }
}

struct Rbac {
    policy: Policy,
    roles: [Follower; 2],
    bindings: [Follower; 2],
    /// The revision of each cache that the policy reflects, in that order.
    seen: [u64; 4],
}

struct Pods {
    graph: Graph,
    pods: Follower,
}

impl Authorizer {
    pub fn new(caches: &Caches, server: Arc<dyn Server>, chain: Chain) -> Self {
        let follow = |plural| Follower::new(caches, RBAC_GROUP, plural);
        let rbac = Rbac { policy: Policy::default(), roles: ROLES.map(follow), bindings: BINDINGS.map(follow), seen: [u64::MAX; 4] };
        let pods = Pods { graph: Graph::default(), pods: Follower::new(caches, "", "pods") };
        let node_rules = bootstrap::roles::of_nodes();
        Self { rbac: RwLock::new(rbac), pods: Mutex::new(pods), node_rules, chain: ArcSwap::from_pointee(chain), server }
    }

    /// Asks others from now on.
    pub fn set_chain(&self, chain: Chain) {
        self.chain.store(Arc::new(chain));
    }

    /// Whether somebody decides whose rules cannot be listed.
    pub fn asks_outside(&self) -> bool {
        self.chain.load().outside
    }

    pub async fn decide(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Decision {
        if let Some(decision) = self.decide_here(caches, user, asked) {
            return decision;
        }
        // Boxed: hardly any request has to carry what asking outside needs.
        Box::pin(self.ask_outside(caches, user, asked)).await
    }

    async fn ask_outside(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Decision {
        let chain = self.chain.load_full();
        let mut against = Against::default();
        for step in &chain.steps {
            let decision = match step {
                Step::Webhook(webhook) => webhook.decide(user, asked, &*self.server).await,
                here => self.step(here, caches, user, asked),
            };
            if let Some(decision) = against.hear(decision) {
                return decision;
            }
        }
        against.last_word()
    }

    /// For those who cannot wait (expressions, grants): they hold their thread while somebody outside is asked. On a runtime of one thread, which
    /// must not be held, nobody outside is.
    pub fn decide_now(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Decision {
        if let Some(decision) = self.decide_here(caches, user, asked) {
            return decision;
        }
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if runtime.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread => {
                tokio::task::block_in_place(|| runtime.block_on(self.decide(caches, user, asked)))
            }
            _ => self.ask_here(&self.chain.load(), caches, user, asked),
        }
    }

    /// `None` where somebody outside has a say.
    fn decide_here(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Option<Decision> {
        if user.groups.iter().any(|group| group == MASTERS) {
            return Some(Decision::Allow(String::new()));
        }
        let is_open = |open: &str| asked.path == open || asked.path.strip_prefix(open).is_some_and(|rest| rest.starts_with('/'));
        if !asked.is_resource && OPEN_PATHS.iter().any(|open| is_open(open)) {
            return Some(Decision::Allow(String::new()));
        }
        let chain = self.chain.load();
        (!chain.outside).then(|| self.ask_here(&chain, caches, user, asked))
    }

    fn ask_here(&self, chain: &Chain, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Decision {
        let mut against = Against::default();
        for step in &chain.steps {
            if let Some(decision) = against.hear(self.step(step, caches, user, asked)) {
                return decision;
            }
        }
        against.last_word()
    }

    fn step(&self, step: &Step, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Decision {
        let nothing = || Decision::NoOpinion(String::new());
        match step {
            Step::AlwaysAllow => Decision::Allow(String::new()),
            Step::AlwaysDeny => Decision::NoOpinion("Everything is forbidden.".into()),
            Step::Node => counted(0, self.node(caches, user, asked).unwrap_or_else(nothing)),
            Step::Rbac => counted(1, self.with_policy(|policy| policy.reason(user, asked)).map_or_else(nothing, Decision::Allow)),
            Step::Webhook(_) => nothing(),
        }
    }

    /// The roles and bindings that the caches have now.
    pub fn with_policy<T>(&self, look: impl FnOnce(&Policy) -> T) -> T {
        let rbac = self.rbac.read().unwrap_or_else(PoisonError::into_inner);
        if rbac.newest() == rbac.seen {
            return look(&rbac.policy);
        }
        drop(rbac);
        let mut rbac = self.rbac.write().unwrap_or_else(PoisonError::into_inner);
        rbac.catch_up();
        look(&rbac.policy)
    }

    fn node(&self, caches: &Caches, user: &UserInfo, asked: &Attributes<'_>) -> Option<Decision> {
        node::identity(user)?;
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        // Waits for a change that is being handed out right now: the kubelet may have heard of its pod before us.
        let _ = pods.pods.cache.revision();
        pods.catch_up();
        node::decide(user, asked, &pods.graph, &Stored(caches), &self.node_rules)
    }
}

/// The decision, counted as that of Node (0) or RBAC (1).
fn counted(by: usize, decision: Decision) -> Decision {
    if let (true, Some(metrics)) = (decision.is_allowed(), super::metrics()) {
        metrics.allowed(by);
    }
    decision
}

/// What those said who left it to others.
#[derive(Default)]
struct Against(String);

impl Against {
    /// The decision, if it is one.
    fn hear(&mut self, decision: Decision) -> Option<Decision> {
        let Decision::NoOpinion(why) = decision else { return Some(decision) };
        if !why.is_empty() {
            let line = if self.0.is_empty() { "" } else { "\n" };
            self.0.push_str(line);
            self.0.push_str(&why);
        }
        None
    }
    fn last_word(self) -> Decision {
        Decision::NoOpinion(self.0)
    }
}

impl Rbac {
    fn newest(&self) -> [u64; 4] {
        let [role, cluster_role] = &self.roles;
        let [binding, cluster_binding] = &self.bindings;
        [role, cluster_role, binding, cluster_binding].map(|follower| follower.cache.revision())
    }

    fn catch_up(&mut self) {
        let newest = self.newest();
        if self.apply().is_err() {
            self.policy = Policy::default();
            let policy = &mut self.policy;
            for roles in &mut self.roles {
                roles.restart(|role| policy.set_role(meta(role, "namespace"), meta(role, "name"), Some(role)));
            }
            for bindings in &mut self.bindings {
                bindings.restart(|binding| policy.set_binding(meta(binding, "namespace"), meta(binding, "name"), Some(binding)));
            }
        }
        self.seen = newest;
    }

    fn apply(&mut self) -> Result<(), Lost> {
        let policy = &mut self.policy;
        for roles in &mut self.roles {
            roles.catch_up(|change, event| {
                let role = event.object.value();
                policy.set_role(meta(&role, "namespace"), meta(&role, "name"), (change != Change::Deleted).then_some(&role));
            })?;
        }
        for bindings in &mut self.bindings {
            bindings.catch_up(|change, event| {
                let binding = event.object.value();
                policy.set_binding(meta(&binding, "namespace"), meta(&binding, "name"), (change != Change::Deleted).then_some(&binding));
            })?;
        }
        Ok(())
    }
}

impl Pods {
    fn catch_up(&mut self) {
        let graph = &mut self.graph;
        let followed = self.pods.catch_up(|change, event| {
            let Some((namespace, name)) = place(&event.object.key) else { return };
            // Once bound, a pod's references change by ephemeral containers and resource claims alone: status updates need no look.
            let known = change == Change::Modified && graph.node_of(namespace, name).is_some();
            if known
                && !mentions(&event.object.bytes, b"\"ephemeralContainers\"")
                && !mentions(&event.object.bytes, b"\"resourceClaimStatuses\"")
            {
                return;
            }
            graph.set_pod(namespace, name, (change != Change::Deleted).then(|| event.object.value()).as_ref());
        });
        if followed.is_err() {
            *graph = Graph::default();
            self.pods.restart(|pod| graph.set_pod(meta(pod, "namespace"), meta(pod, "name"), Some(pod)));
        }
    }
}

/// Namespace and name at the end of a key.
fn place(key: &[u8]) -> Option<(&str, &str)> {
    let key = std::str::from_utf8(key).ok()?;
    let mut parts = key.rsplit('/');
    let name = parts.next()?;
    Some((parts.next()?, name))
}

fn mentions(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// Objects as the caches have them.
struct Stored<'a>(&'a Caches);

impl Stored<'_> {
    fn one(&self, group: &str, plural: &str, name: &str) -> Option<Value> {
        let kind = catalog::stored(group, plural)?;
        Some(self.0.of(kind.storage.prefix.as_bytes()).get(&kind.key("", name))?.value())
    }
}

impl Lookup for Stored<'_> {
    fn volume(&self, name: &str) -> Option<Value> {
        self.one("", "persistentvolumes", name)
    }
    fn volumes(&self) -> Vec<Value> {
        super::grants::objects(self.0, "", "persistentvolumes")
    }
    fn attachment(&self, name: &str) -> Option<Value> {
        self.one("storage.k8s.io", "volumeattachments", name)
    }
    fn slice(&self, name: &str) -> Option<Value> {
        self.one("resource.k8s.io", "resourceslices", name)
    }
}
