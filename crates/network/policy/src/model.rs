//! Policies of every kind in one form: a NetworkPolicy is a list of rules that all accept, in the tier between the administrators' two.

use std::collections::BTreeMap;
use std::net::IpAddr;

use meta::LabelSelector;

/// A network: address and prefix length.
pub type Cidr = (IpAddr, u8);
pub type Labels = BTreeMap<String, String>;

/// What the plan of one node is made from.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The node that the plan is for.
    pub node: String,
    pub namespaces: BTreeMap<String, Labels>,
    /// Pods with an address of their own, on any node.
    pub pods: Vec<Pod>,
    pub nodes: Vec<(Labels, Vec<IpAddr>)>,
    pub policies: Vec<Policy>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub labels: Labels,
    pub addresses: Vec<IpAddr>,
    pub node: String,
    /// Its containers' named ports: name, protocol, number.
    pub ports: Vec<(String, u8, u16)>,
}

/// Who speaks first: earlier tiers decide before later ones are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// ClusterNetworkPolicy of the Admin tier, AdminNetworkPolicy.
    Admin,
    /// NetworkPolicy: whoever is selected is closed to what no rule accepts.
    Developer,
    /// ClusterNetworkPolicy of the Baseline tier, BaselineAdminNetworkPolicy: for pods that no NetworkPolicy selects.
    Baseline,
}

#[derive(Clone, Debug)]
pub struct Policy {
    pub tier: Tier,
    /// Within a tier the lowest comes first; without meaning for NetworkPolicies.
    pub priority: i64,
    /// Ties are broken by it, so that every node decides the same.
    pub name: String,
    pub subject: Pods,
    /// `None`: the policy says nothing of this direction.
    pub ingress: Option<Vec<Rule>>,
    pub egress: Option<Vec<Rule>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Ingress,
    Egress,
}

impl Policy {
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Accept,
    Deny,
    /// The rest of the tier is passed over.
    Pass,
}

#[derive(Clone, Debug)]
pub struct Rule {
    pub action: Action,
    /// `None`: everybody; an empty list: nobody.
    pub peers: Option<Vec<Peer>>,
    /// `None`: all protocols and ports; an empty list: none.
    pub ports: Option<Vec<Port>>,
}

/// Pods by their namespace and their labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pods {
    pub namespaces: Namespaces,
    pub pods: LabelSelector,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Namespaces {
    Named(String),
    Matching(LabelSelector),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    Pods(Pods),
    Nodes(LabelSelector),
    Block { network: Cidr, except: Vec<Cidr> },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Port {
    /// Both ends included.
    Between { protocol: u8, first: u16, last: u16 },
    /// What the destination's containers call so; `None`: whichever protocol it has there.
    Named { protocol: Option<u8>, name: String },
}

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const SCTP: u8 = 132;

pub fn protocol_number(name: &str) -> Option<u8> {
    match name {
        "TCP" => Some(TCP),
        "UDP" => Some(UDP),
        "SCTP" => Some(SCTP),
        _ => None,
    }
}
