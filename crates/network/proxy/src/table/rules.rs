//! The fixed rules, and the chain for each way to balance.

use std::time::Duration;

use nft::Expression as E;
use nft::{
    ADDRESS_TYPE_LOCAL, Batch, CT_STATE_NEW, CT_STATUS_DNAT, ChainKind, Ct, FIB_DESTINATION, FIB_SOURCE, FibResult, Field, Hook, HookPoint,
    MapsTo, Meta, Register, Reject, Set, Verdict,
};

use crate::Config;
use crate::plan::{Family, Frontend, Masquerade};
use crate::program::{Chain, LOCAL_INDEX, PLAIN_MAX, Plain};

pub const PREFIX: &str = "svc-";
pub const REJECT_CHAIN: &str = "svc-reject";
const DISPATCH_CHAIN: &str = "svc-dispatch";
const REFUSE_CHAIN: &str = "svc-refuse";
const POSTROUTING_CHAIN: &str = "svc-postrouting";
/// The packet mark bit that asks for masquerade; upstream's, so that other tools know it.
const MASQUERADE_MARK: u32 = 0x4000;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

pub fn nft_family(family: Family) -> nft::Family {
    match family {
        Family::V4 => nft::Family::Ipv4,
        Family::V6 => nft::Family::Ipv6,
    }
}

fn digit(family: Family) -> char {
    match family {
        Family::V4 => '4',
        Family::V6 => '6',
    }
}

pub fn frontend_map(frontend: &Frontend) -> String {
    let what = if frontend.address.is_some() { "frontends" } else { "nodeports" };
    format!("{PREFIX}{what}{}", digit(frontend.family))
}
/// The plain ones, and the chain that serves them.
pub fn plain_set(frontend: &Frontend, plain: Plain) -> String {
    plain_chain(frontend.family, frontend.address.is_none(), plain)
}
fn plain_chain(family: Family, any_address: bool, plain: Plain) -> String {
    let any = if any_address { "n" } else { "" };
    format!("{PREFIX}plain-{}{any}{}", letter(plain.masquerade()), digit(family))
}
pub fn refusal_map(frontend: &Frontend) -> String {
    let what = if frontend.address.is_some() { "refusals" } else { "nodeport-refusals" };
    format!("{PREFIX}{what}{}", digit(frontend.family))
}
pub fn endpoint_map(family: Family) -> String {
    format!("{PREFIX}endpoints{}", digit(family))
}
pub fn affinity_map(family: Family) -> String {
    format!("{PREFIX}affinity{}", digit(family))
}
pub fn hairpin_set(family: Family) -> String {
    format!("{PREFIX}hairpin{}", digit(family))
}

/// Frontends with loadBalancerSourceRanges.
pub fn guarded_set(family: Family) -> String {
    format!("{PREFIX}guarded{}", digit(family))
}
pub fn source_set(family: Family) -> String {
    format!("{PREFIX}sources{}", digit(family))
}

fn letter(masquerade: Masquerade) -> char {
    match masquerade {
        Masquerade::NonPods => 'c',
        Masquerade::Always => 'x',
        Masquerade::Never => 'h',
    }
}

/// Such as `svc-c4-3`: ClusterIP (x: external, h: source kept), IPv4, three endpoints; `n`: on any address of the node.
pub fn chain_name(chain: &Chain) -> String {
    let masquerade = letter(chain.masquerade);
    let any = if chain.any_address { "n" } else { "" };
    let mut name = format!("{PREFIX}{masquerade}{any}{}-{}", digit(chain.family), chain.endpoints);
    if let Some(local) = chain.local {
        name.push_str(&format!("-local{local}"));
    }
    if let Some(seconds) = chain.affinity_seconds {
        name.push_str(&format!("-affinity{seconds}"));
    }
    name
}

/// Registers of one family: source, destination, protocol, port, index are consecutive, so that each lookup finds its key in place.
#[derive(Clone, Copy)]
struct Layout {
    family: Family,
    words: u32,
}

impl Layout {
    fn of(family: Family) -> Self {
        Self { family, words: nft_family(family).address_field().registers() }
    }
    fn source(self) -> Register {
        Register::at(0)
    }
    fn destination(self) -> Register {
        Register::at(self.words)
    }
    fn protocol(self) -> Register {
        Register::at(2 * self.words)
    }
    fn port(self) -> Register {
        Register::at(2 * self.words + 1)
    }
    fn index(self) -> Register {
        Register::at(2 * self.words + 2)
    }
    fn endpoint_address(self) -> Register {
        Register::at(2 * self.words + 3)
    }
    fn endpoint_port(self) -> Register {
        Register::at(3 * self.words + 3)
    }
    /// Uses the source's registers.
    fn is_family(self) -> [E; 2] {
        E::is_family(nft_family(self.family), self.source())
    }
    fn load_source(self) -> E {
        E::source(nft_family(self.family), self.source())
    }
    fn load_destination(self) -> E {
        E::destination(nft_family(self.family), self.destination())
    }
    fn load_protocol_and_port(self) -> [E; 2] {
        [E::Meta { key: Meta::Protocol, to: self.protocol() }, E::destination_port(self.port())]
    }
    /// Ends the rule unless the packet's destination (or source) is an address of this node. Uses the source's registers.
    fn is_local(self, input: u32) -> [E; 2] {
        let register = self.source();
        [
            E::Fib { result: FibResult::AddressType, inputs: input, to: register },
            E::Equal { register, value: ADDRESS_TYPE_LOCAL.to_ne_bytes().to_vec() },
        ]
    }
    fn address_field(self) -> Field {
        nft_family(self.family).address_field()
    }
}

/// The maps, the base chains and what they always hold; endpoints and frontends come as elements.
pub fn install(batch: &mut Batch, config: &Config) {
    FAMILIES.into_iter().flat_map(sets).for_each(|set| batch.add_set(&set));
    for chain in [DISPATCH_CHAIN, REFUSE_CHAIN, REJECT_CHAIN] {
        batch.add_chain(chain, None);
    }
    batch.add_rule(REJECT_CHAIN, &[E::Reject(Reject::PortUnreachable)]);
    for layout in FAMILIES.map(Layout::of) {
        Plain::ALL.into_iter().for_each(|plain| dispatch_plain(batch, config, layout, plain));
        dispatch(batch, config, layout, DISPATCH_CHAIN, frontend_map);
        dispatch(batch, config, layout, REFUSE_CHAIN, refusal_map);
        batch.add_rule(REFUSE_CHAIN, &drop_other_sources(layout));
    }
    for (point, name) in [(HookPoint::Prerouting, "prerouting"), (HookPoint::Output, "output")] {
        let nat = format!("{PREFIX}{name}");
        batch.add_chain(&nat, Some(Hook { kind: ChainKind::Nat, point, priority: -100 }));
        batch.add_rule(&nat, &[E::Verdict(Verdict::Jump(DISPATCH_CHAIN.to_owned()))]);
        let filter = format!("{PREFIX}filter-{name}");
        batch.add_chain(&filter, Some(Hook { kind: ChainKind::Filter, point, priority: -110 }));
        let mut new_only = has_bit(E::Ct { key: Ct::State, to: Register::at(0) }, CT_STATE_NEW).to_vec();
        new_only.push(E::Verdict(Verdict::Jump(REFUSE_CHAIN.to_owned())));
        batch.add_rule(&filter, &new_only);
    }
    install_postrouting(batch);
}

fn sets(family: Family) -> Vec<Set> {
    let layout = Layout::of(family);
    let address = layout.address_field();
    let on_address =
        |name: String, maps_to| Set { name, key: vec![address, Field::Protocol, Field::Port], maps_to, dynamic: false, intervals: false };
    let on_any = |name: String| Set {
        name,
        key: vec![Field::Protocol, Field::Port],
        maps_to: Some(MapsTo::Verdict),
        dynamic: false,
        intervals: false,
    };
    let some = Frontend { family, address: Some(super::unspecified(family)), protocol: 0, port: 0 };
    let any = Frontend { address: None, ..some };
    let endpoint = MapsTo::Fields(vec![address, Field::Port]);
    let plain = Plain::ALL.map(|plain| {
        let on_any = Set { maps_to: None, ..on_any(plain_set(&any, plain)) };
        [on_address(plain_set(&some, plain), None), on_any]
    });
    let others = vec![
        on_address(frontend_map(&some), Some(MapsTo::Verdict)),
        on_address(refusal_map(&some), Some(MapsTo::Verdict)),
        on_any(frontend_map(&any)),
        on_any(refusal_map(&any)),
        Set {
            name: endpoint_map(family),
            key: vec![address, Field::Protocol, Field::Port, Field::Mark],
            maps_to: Some(endpoint.clone()),
            dynamic: false,
            intervals: false,
        },
        Set {
            name: affinity_map(family),
            key: vec![address, address, Field::Protocol, Field::Port],
            maps_to: Some(endpoint),
            dynamic: true,
            intervals: false,
        },
        Set {
            name: guarded_set(family),
            key: vec![address, Field::Protocol, Field::Port],
            maps_to: None,
            dynamic: false,
            intervals: false,
        },
        Set {
            name: source_set(family),
            key: vec![address, Field::Protocol, Field::Port, address],
            maps_to: None,
            dynamic: false,
            intervals: true,
        },
        Set { name: hairpin_set(family), key: vec![address, address], maps_to: None, dynamic: false, intervals: false },
    ];
    plain.into_iter().flatten().chain(others).collect()
}

/// Looks the destination up in the map of addresses, then (when it is the node's) in the map of ports.
fn dispatch(batch: &mut Batch, config: &Config, layout: Layout, chain: &str, map: fn(&Frontend) -> String) {
    let some = Frontend { family: layout.family, address: Some(super::unspecified(layout.family)), protocol: 0, port: 0 };
    let any = Frontend { address: None, ..some };
    let mut by_address = layout.is_family().to_vec();
    by_address.push(layout.load_destination());
    by_address.extend(layout.load_protocol_and_port());
    by_address.push(E::LookupVerdict { map: map(&some), key: layout.destination() });
    batch.add_rule(chain, &by_address);
    for restriction in node_port_addresses(config, layout) {
        let mut by_port = layout.is_family().to_vec();
        by_port.extend(layout.is_local(FIB_DESTINATION));
        by_port.extend(restriction);
        by_port.extend(layout.load_protocol_and_port());
        by_port.push(E::LookupVerdict { map: map(&any), key: layout.protocol() });
        batch.add_rule(chain, &by_port);
    }
}

/// The same for plain frontends, by sets.
fn dispatch_plain(batch: &mut Batch, config: &Config, layout: Layout, plain: Plain) {
    let [on_address, on_any] = [false, true].map(|any| plain_chain(layout.family, any, plain));
    for (chain, any_address) in [(&on_address, false), (&on_any, true)] {
        install_plain(batch, config, chain, layout, any_address, plain);
    }
    let goto = |set: String, key| [E::Contains { set: set.clone(), key, invert: false }, E::Verdict(Verdict::Goto(set))];
    let mut by_address = layout.is_family().to_vec();
    by_address.push(layout.load_destination());
    by_address.extend(layout.load_protocol_and_port());
    by_address.extend(goto(on_address, layout.destination()));
    batch.add_rule(DISPATCH_CHAIN, &by_address);
    for restriction in node_port_addresses(config, layout) {
        let mut by_port = layout.is_family().to_vec();
        by_port.extend(layout.is_local(FIB_DESTINATION));
        by_port.extend(restriction);
        by_port.extend(layout.load_protocol_and_port());
        by_port.extend(goto(on_any.clone(), layout.protocol()));
        batch.add_rule(DISPATCH_CHAIN, &by_port);
    }
}

/// Balances over as many endpoints as there are indexes; one chain for up to half of the most, and one above.
fn install_plain(batch: &mut Batch, config: &Config, name: &str, layout: Layout, any_address: bool, plain: Plain) {
    let most = u32::try_from(PLAIN_MAX).unwrap_or(u32::MAX);
    let (half, above) = (most / 2, format!("{name}-many"));
    let balance = |count: u32, unless_fewer| {
        let mut rule = if unless_fewer { is_there(layout, any_address, count - 1) } else { Vec::new() };
        rule.extend(choose(layout, any_address, count));
        rule
    };
    batch.add_chain(&above, None);
    (half + 1..=most).rev().for_each(|count| batch.add_rule(&above, &balance(count, count > half + 1)));
    batch.add_chain(name, None);
    mark_for_masquerade(config, layout, plain.masquerade()).iter().for_each(|rule| batch.add_rule(name, rule));
    let mut many = is_there(layout, any_address, half);
    many.push(E::Verdict(Verdict::Goto(above)));
    batch.add_rule(name, &many);
    (1..=half).rev().for_each(|count| batch.add_rule(name, &balance(count, count > 1)));
}

/// Ends the rule unless the frontend has an endpoint of this index.
fn is_there(layout: Layout, any_address: bool, index: u32) -> Vec<E> {
    let mut rule = frontend_key(layout, any_address);
    rule.push(E::Immediate { to: layout.index(), value: index.to_ne_bytes().to_vec() });
    rule.push(E::Lookup { map: endpoint_map(layout.family), key: layout.destination(), to: layout.endpoint_address() });
    // A key that is not there ends the rule. The comparison (no endpoint is nowhere) is for who lists the rules: the condition shows.
    rule.push(E::NotEqual { register: layout.endpoint_address(), value: vec![0; layout.words as usize * 4] });
    rule
}

/// Sends the connection to one of so many endpoints.
fn choose(layout: Layout, any_address: bool, count: u32) -> Vec<E> {
    let mut rule = frontend_key(layout, any_address);
    rule.push(E::Random { to: layout.index(), modulus: count, offset: 0 });
    rule.push(E::Lookup { map: endpoint_map(layout.family), key: layout.destination(), to: layout.endpoint_address() });
    rule.push(E::Dnat { family: nft_family(layout.family), address: layout.endpoint_address(), port: Some(layout.endpoint_port()) });
    rule
}

/// The destination, protocol and port by which the maps know the frontend.
fn frontend_key(layout: Layout, any_address: bool) -> Vec<E> {
    let mut key = vec![match any_address {
        true => E::Immediate { to: layout.destination(), value: vec![0; layout.words as usize * 4] },
        false => layout.load_destination(),
    }];
    key.extend(layout.load_protocol_and_port());
    key
}

/// Drops what comes to a guarded frontend from none of its networks.
fn drop_other_sources(layout: Layout) -> Vec<E> {
    let mut rule = layout.is_family().to_vec();
    rule.push(layout.load_destination());
    rule.extend(layout.load_protocol_and_port());
    rule.push(E::Contains { set: guarded_set(layout.family), key: layout.destination(), invert: false });
    // The source again, right after the port: destination, protocol, port and source are one key.
    rule.push(E::source(nft_family(layout.family), layout.index()));
    rule.push(E::Contains { set: source_set(layout.family), key: layout.destination(), invert: true });
    rule.push(E::Verdict(Verdict::Drop));
    rule
}

/// The destinations on which node ports answer, a rule for each.
fn node_port_addresses(config: &Config, layout: Layout) -> Vec<Vec<E>> {
    let restrict = |network, invert| {
        let mut steps = vec![layout.load_destination()];
        steps.extend(E::in_network(layout.destination(), network, invert));
        steps
    };
    if config.nodeport_addresses.is_empty() {
        // A packet to ::1 cannot leave the loopback interface; one to 127.0.0.1 may, where the pods' links allow it.
        let loopback = ([0u16, 0, 0, 0, 0, 0, 0, 1].into(), 128);
        return vec![if layout.family == Family::V6 { restrict(loopback, true) } else { Vec::new() }];
    }
    let networks = config.nodeport_addresses.iter().filter(|network| Family::of(network.0) == layout.family);
    networks.map(|network| restrict(*network, false)).collect()
}

fn install_postrouting(batch: &mut Batch) {
    let register = Register::at(0);
    batch.add_chain(POSTROUTING_CHAIN, Some(Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100 }));
    let mut marked = has_bit(E::Meta { key: Meta::Mark, to: register }, MASQUERADE_MARK).to_vec();
    // Cleared, so that a tunnel's outer packet does not inherit it.
    marked.extend(change_mark(!MASQUERADE_MARK, 0));
    marked.push(E::Masquerade);
    batch.add_rule(POSTROUTING_CHAIN, &marked);
    for layout in FAMILIES.map(Layout::of) {
        let mut hairpin = has_bit(E::Ct { key: Ct::Status, to: register }, CT_STATUS_DNAT).to_vec();
        hairpin.extend(layout.is_family());
        hairpin.extend([layout.load_source(), layout.load_destination()]);
        hairpin.push(E::Contains { set: hairpin_set(layout.family), key: layout.source(), invert: false });
        hairpin.push(E::Masquerade);
        batch.add_rule(POSTROUTING_CHAIN, &hairpin);
    }
    // From 127.0.0.1 to a pod: the pod could only answer to itself.
    let v4 = Layout::of(Family::V4);
    let mut from_loopback = has_bit(E::Ct { key: Ct::Status, to: register }, CT_STATUS_DNAT).to_vec();
    from_loopback.extend(v4.is_family());
    from_loopback.push(v4.load_source());
    from_loopback.extend(E::in_network(v4.source(), ([127, 0, 0, 0].into(), 8), false));
    from_loopback.push(v4.load_destination());
    from_loopback.extend(E::in_network(v4.destination(), ([127, 0, 0, 0].into(), 8), true));
    from_loopback.push(E::Masquerade);
    batch.add_rule(POSTROUTING_CHAIN, &from_loopback);
}

/// The chain that balances over so many endpoints.
pub fn install_chain(batch: &mut Batch, config: &Config, chain: &Chain) {
    let name = chain_name(chain);
    batch.add_chain(&name, None);
    chain_rules(config, chain).iter().for_each(|rule| batch.add_rule(&name, rule));
}

fn chain_rules(config: &Config, chain: &Chain) -> Vec<Vec<E>> {
    let layout = Layout::of(chain.family);
    let mut rules = mark_for_masquerade(config, layout, chain.masquerade);
    let Some(local) = chain.local else {
        rules.extend(balance(chain, layout, &[], chain.endpoints, 0));
        return rules;
    };
    // Pods and the node itself are not "external": they may use every endpoint.
    for network in pods(config, layout) {
        let mut from_pod = vec![layout.load_source()];
        from_pod.extend(E::in_network(layout.source(), network, false));
        rules.extend(balance(chain, layout, &from_pod, chain.endpoints, 0));
    }
    let mut from_node = layout.is_local(FIB_SOURCE).to_vec();
    from_node.extend(change_mark(u32::MAX, MASQUERADE_MARK));
    rules.extend(balance(chain, layout, &from_node, chain.endpoints, 0));
    if local == 0 {
        rules.push(vec![E::Verdict(Verdict::Drop)]);
    } else {
        rules.extend(balance(chain, layout, &[], local, LOCAL_INDEX));
    }
    rules
}

fn mark_for_masquerade(config: &Config, layout: Layout, masquerade: Masquerade) -> Vec<Vec<E>> {
    match masquerade {
        Masquerade::Always => vec![change_mark(u32::MAX, MASQUERADE_MARK).to_vec()],
        Masquerade::Never => Vec::new(),
        Masquerade::NonPods => {
            let mut outside = Vec::new();
            for network in pods(config, layout) {
                outside.push(layout.load_source());
                outside.extend(E::in_network(layout.source(), network, true));
            }
            outside.extend(change_mark(u32::MAX, MASQUERADE_MARK));
            vec![outside]
        }
    }
}

fn pods(config: &Config, layout: Layout) -> impl Iterator<Item = crate::plan::Cidr> {
    config.node.pod_cidrs.iter().copied().filter(move |cidr| Family::of(cidr.0) == layout.family)
}

/// Rules that begin with `condition` and send the connection to one of `modulus` endpoints from `offset` on.
///
/// Session affinity remembers what the map of endpoints said. nftables 1.0.6 fails an assertion when it lists such a rule; the kernel
/// and newer listings do not mind. Upstream's set per endpoint would avoid that, and cost a chain per endpoint.
fn balance(chain: &Chain, layout: Layout, condition: &[E], modulus: u32, offset: u32) -> Vec<Vec<E>> {
    let key = frontend_key(layout, chain.any_address);
    let dnat = E::Dnat { family: nft_family(chain.family), address: layout.endpoint_address(), port: Some(layout.endpoint_port()) };
    let mut choose = condition.to_vec();
    choose.extend(key.iter().cloned());
    choose.push(E::Random { to: layout.index(), modulus, offset });
    choose.push(E::Lookup { map: endpoint_map(chain.family), key: layout.destination(), to: layout.endpoint_address() });
    let Some(seconds) = chain.affinity_seconds else {
        choose.push(dnat);
        return vec![choose];
    };
    let map = affinity_map(chain.family);
    let timeout = Duration::from_secs(seconds.into());
    let remember =
        [layout.load_source(), E::Remember { set: map.clone(), key: layout.source(), data: Some(layout.endpoint_address()), timeout }];
    let mut known = condition.to_vec();
    known.extend(key);
    known.push(layout.load_source());
    known.push(E::Lookup { map, key: layout.source(), to: layout.endpoint_address() });
    for rule in [&mut known, &mut choose] {
        rule.extend(remember.iter().cloned());
        rule.push(dnat.clone());
    }
    vec![known, choose]
}

/// Ends the rule unless `load` gives a word with that bit. `load` must write register 0.
fn has_bit(load: E, bit: u32) -> [E; 3] {
    let register = Register::at(0);
    [
        load,
        E::Bitwise { from: register, to: register, mask: bit.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        E::NotEqual { register, value: vec![0; 4] },
    ]
}

/// Keeps the mark's bits in `keep` and sets those in `set`. Uses register 0.
fn change_mark(keep: u32, set: u32) -> [E; 3] {
    let register = Register::at(0);
    let mask = keep & !set;
    [
        E::Meta { key: Meta::Mark, to: register },
        E::Bitwise { from: register, to: register, mask: mask.to_ne_bytes().to_vec(), xor: set.to_ne_bytes().to_vec() },
        E::SetMeta { key: Meta::Mark, from: register },
    ]
}
