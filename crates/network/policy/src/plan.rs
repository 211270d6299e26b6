//! A world → what each packet to or from a pod of this node has to pass. Pure.
//!
//! A pod that some policy speaks of has a chain per direction. Pods that the same policies speak of share it, and chains are named by
//! what they say: a changed policy makes new chains, a changed pod only moves addresses in and out of sets.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::net::IpAddr;

use sha2::{Digest, Sha256};

use crate::model::{Action, Cidr, Direction, Labels, Namespaces, Peer, Pod, Pods, Policy, Port, Rule, Tier, World};

/// One step of a chain: what matches both meets the verdict, everything else the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    pub whom: Whom,
    pub what: What,
    pub verdict: Verdict,
}

/// The other end: the source for ingress, the destination for egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whom {
    Anyone,
    /// The pod itself: nothing keeps it from itself.
    Itself,
    /// One of the addresses in that set.
    Among(String),
    Within {
        network: Cidr,
        except: Vec<Cidr>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Anything,
    /// Both ends included.
    Ports {
        protocol: u8,
        first: u16,
        last: u16,
    },
    /// A destination, protocol and port in that set.
    Named(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    Drop,
    /// And back, where it decides nothing.
    Jump(String),
    Goto(String),
}

/// What is to be programmed on one node. Packets of pods without a chain pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The first chain of each address.
    pub ingress: BTreeMap<IpAddr, String>,
    pub egress: BTreeMap<IpAddr, String>,
    pub chains: BTreeMap<String, (Direction, Vec<Step>)>,
    pub members: BTreeMap<String, BTreeSet<IpAddr>>,
    pub named: BTreeMap<String, BTreeSet<(IpAddr, u8, u16)>>,
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.ingress.is_empty() && self.egress.is_empty()
    }
    pub fn heads(&self, direction: Direction) -> &BTreeMap<IpAddr, String> {
        match direction {
            Direction::Ingress => &self.ingress,
            Direction::Egress => &self.egress,
        }
    }
}

pub fn plan(world: &World) -> Plan {
    let mut planner = Planner { groups: groups(world), world, plan: Plan::default(), made: HashMap::new() };
    for direction in [Direction::Ingress, Direction::Egress] {
        planner.direction(direction);
    }
    planner.plan
}

/// Pods that no selector can tell apart.
type Groups<'a> = BTreeMap<(&'a str, &'a Labels), Vec<&'a Pod>>;

fn groups(world: &World) -> Groups<'_> {
    let mut groups = Groups::new();
    for pod in &world.pods {
        groups.entry((&pod.namespace, &pod.labels)).or_default().push(pod);
    }
    groups
}

struct Planner<'a> {
    world: &'a World,
    groups: Groups<'a>,
    plan: Plan,
    /// First chains by the policies that speak.
    made: HashMap<(Direction, Vec<usize>), String>,
}

impl<'a> Planner<'a> {
    fn direction(&mut self, direction: Direction) {
        let mut policies: Vec<(usize, &Policy)> = self.world.policies.iter().enumerate().collect();
        policies.retain(|(_, policy)| policy.rules(direction).is_some());
        policies.sort_by(|(_, a), (_, b)| (a.tier, a.priority, &a.name).cmp(&(b.tier, b.priority, &b.name)));
        let groups: Vec<_> = self.groups.iter().map(|(key, pods)| (*key, pods.clone())).collect();
        for ((namespace, labels), pods) in groups {
            let here: Vec<&Pod> = pods.into_iter().filter(|pod| pod.node == self.world.node).collect();
            if here.is_empty() {
                continue;
            }
            let speaking: Vec<usize> = policies
                .iter()
                .filter(|(_, policy)| selects(self.world, &policy.subject, namespace, labels))
                .map(|(index, _)| *index)
                .collect();
            if speaking.is_empty() {
                continue;
            }
            let chain = self.first_chain(direction, speaking);
            for address in here.into_iter().flat_map(|pod| &pod.addresses) {
                let heads = if direction == Direction::Ingress { &mut self.plan.ingress } else { &mut self.plan.egress };
                heads.insert(*address, chain.clone());
            }
        }
    }

    /// The chain for pods of which exactly these policies speak, in their order.
    fn first_chain(&mut self, direction: Direction, speaking: Vec<usize>) -> String {
        let key = (direction, speaking);
        if let Some(known) = self.made.get(&key) {
            return known.clone();
        }
        let policies: Vec<&'a Policy> = key.1.iter().filter_map(|index| self.world.policies.get(*index)).collect();
        let of = |tier: Tier| policies.iter().copied().filter(move |policy| policy.tier == tier).collect::<Vec<_>>();
        let second = match of(Tier::Developer) {
            developers if developers.is_empty() => {
                let rest = self.chain(direction, vec![Step { whom: Whom::Anyone, what: What::Anything, verdict: Verdict::Accept }]);
                self.deciding(direction, &of(Tier::Baseline), &rest)
            }
            developers => self.closed(direction, &developers),
        };
        let mut steps = vec![Step { whom: Whom::Itself, what: What::Anything, verdict: Verdict::Accept }];
        steps.extend(self.deciding_steps(direction, &of(Tier::Admin), &second));
        let name = self.chain(direction, steps);
        self.made.insert(key, name.clone());
        name
    }

    /// NetworkPolicies: the union of what they accept.
    fn closed(&mut self, direction: Direction, policies: &[&Policy]) -> String {
        let mut steps = Vec::new();
        for policy in policies {
            let rules = policy.rules(direction).unwrap_or_default();
            let accepted: Vec<Step> = rules.iter().flat_map(|rule| self.steps(rule, &Verdict::Accept)).collect();
            if !accepted.is_empty() {
                let chain = self.chain(direction, accepted);
                steps.push(Step { whom: Whom::Anyone, what: What::Anything, verdict: Verdict::Jump(chain) });
            }
        }
        steps.push(Step { whom: Whom::Anyone, what: What::Anything, verdict: Verdict::Drop });
        self.chain(direction, steps)
    }

    fn deciding(&mut self, direction: Direction, policies: &[&Policy], next: &str) -> String {
        let steps = self.deciding_steps(direction, policies, next);
        self.chain(direction, steps)
    }

    /// One tier of administrators' policies, then `next`.
    fn deciding_steps(&mut self, direction: Direction, policies: &[&Policy], next: &str) -> Vec<Step> {
        let mut steps = Vec::new();
        for rule in policies.iter().flat_map(|policy| policy.rules(direction).unwrap_or_default()) {
            let verdict = match rule.action {
                Action::Accept => Verdict::Accept,
                Action::Deny => Verdict::Drop,
                Action::Pass => Verdict::Goto(next.to_owned()),
            };
            steps.extend(self.steps(rule, &verdict));
        }
        steps.push(Step { whom: Whom::Anyone, what: What::Anything, verdict: Verdict::Goto(next.to_owned()) });
        steps
    }

    fn steps(&mut self, rule: &Rule, verdict: &Verdict) -> Vec<Step> {
        let whom = self.whom(rule);
        let what = self.what(rule);
        let step = |whom: &Whom, what: &What| Step { whom: whom.clone(), what: what.clone(), verdict: verdict.clone() };
        whom.iter().flat_map(|whom| what.iter().map(move |what| step(whom, what))).collect()
    }

    /// All selectors of a rule share one set.
    fn whom(&mut self, rule: &Rule) -> Vec<Whom> {
        let Some(peers) = &rule.peers else { return vec![Whom::Anyone] };
        let (blocks, chosen): (Vec<&Peer>, Vec<&Peer>) = peers.iter().partition(|peer| matches!(peer, Peer::Block { .. }));
        let mut whom = Vec::new();
        if !chosen.is_empty() {
            let name = name_of("pol-m-", &chosen);
            if !self.plan.members.contains_key(&name) {
                let members = self.members(&chosen);
                self.plan.members.insert(name.clone(), members);
            }
            whom.push(Whom::Among(name));
        }
        for block in blocks {
            if let Peer::Block { network, except } = block {
                whom.push(Whom::Within { network: *network, except: except.clone() });
            }
        }
        whom
    }

    fn members(&self, chosen: &[&Peer]) -> BTreeSet<IpAddr> {
        let mut members = BTreeSet::new();
        for peer in chosen {
            match peer {
                Peer::Pods(wanted) => {
                    let matching = self.groups.iter().filter(|((namespace, labels), _)| selects(self.world, wanted, namespace, labels));
                    members.extend(matching.flat_map(|(_, pods)| pods.iter().flat_map(|pod| &pod.addresses)));
                }
                Peer::Nodes(wanted) => {
                    let matching = self.world.nodes.iter().filter(|(labels, _)| wanted.matches_map(labels));
                    members.extend(matching.flat_map(|(_, addresses)| addresses));
                }
                Peer::Block { .. } => {}
            }
        }
        members
    }

    fn what(&mut self, rule: &Rule) -> Vec<What> {
        let Some(ports) = &rule.ports else { return vec![What::Anything] };
        let mut what = Vec::new();
        for port in ports {
            what.push(match port {
                Port::Between { protocol, first, last } => What::Ports { protocol: *protocol, first: *first, last: *last },
                Port::Named { protocol, name } => What::Named(self.named(*protocol, name)),
            });
        }
        what
    }

    /// Who has a port of that name, and which it is there.
    fn named(&mut self, protocol: Option<u8>, wanted: &str) -> String {
        let name = name_of("pol-p-", &(protocol, wanted));
        if !self.plan.named.contains_key(&name) {
            let mut found = BTreeSet::new();
            for pod in &self.world.pods {
                let ports = pod.ports.iter().filter(|(name, its, _)| name == wanted && protocol.is_none_or(|protocol| protocol == *its));
                for (_, protocol, port) in ports {
                    found.extend(pod.addresses.iter().map(|address| (*address, *protocol, *port)));
                }
            }
            self.plan.named.insert(name.clone(), found);
        }
        name
    }

    fn chain(&mut self, direction: Direction, steps: Vec<Step>) -> String {
        let name = name_of(if direction == Direction::Ingress { "pol-i-" } else { "pol-e-" }, &steps);
        self.plan.chains.insert(name.clone(), (direction, steps));
        name
    }
}

fn selects(world: &World, wanted: &Pods, namespace: &str, labels: &Labels) -> bool {
    let inside = match &wanted.namespaces {
        Namespaces::Named(name) => name == namespace,
        Namespaces::Matching(selector) => world.namespaces.get(namespace).is_some_and(|labels| selector.matches_map(labels)),
    };
    inside && wanted.pods.matches_map(labels)
}

/// Equal content has an equal name, in every run and on every node.
fn name_of(prefix: &str, content: &impl Debug) -> String {
    let digest = Sha256::digest(format!("{content:?}"));
    digest.iter().take(10).fold(prefix.to_owned(), |name, byte| format!("{name}{byte:02x}"))
}

#[cfg(test)]
mod tests;
