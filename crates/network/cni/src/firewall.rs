//! The pod network's chains in our nftables table: masquerade on the way out of the cluster, no forged sources.

use nft::{
    Batch, ChainKind, Expression, FIB_INCOMING, FIB_SOURCE, Family, FibResult, Hook, HookPoint, Meta, Register, Socket, Table, Verdict,
};

use crate::{Cidr, Config, Error};

const MASQUERADE_CHAIN: &str = "pods-masquerade";
const SOURCE_CHAIN: &str = "pods-source";
const R: Register = Register::at(0);

/// Makes the chains, or replaces the rules of a previous run's in one transaction.
pub fn install(config: &Config) -> Result<(), Error> {
    let mut socket = Socket::netfilter().map_err(|source| Error::Node { step: "open netfilter socket", source })?;
    let mut batch = Batch::new(&Table::inet(&config.table));
    batch.add_table();
    let postrouting = Hook { kind: ChainKind::Nat, point: HookPoint::Postrouting, priority: 100 };
    // Before connection tracking: a forged packet shall leave no trace.
    let prerouting = Hook { kind: ChainKind::Filter, point: HookPoint::Prerouting, priority: -300 };
    for (chain, hook) in [(MASQUERADE_CHAIN, postrouting), (SOURCE_CHAIN, prerouting)] {
        batch.add_chain(chain, Some(hook));
        batch.flush_chain(chain);
    }
    for pods in [Some(config.pod_cidr), config.pod_cidr_secondary].into_iter().flatten() {
        batch.add_rule(MASQUERADE_CHAIN, &masquerade(config, pods));
        batch.add_rule(SOURCE_CHAIN, &drop_forged(&config.link_prefix, pods));
    }
    let tunnel = crate::peers::link_name(&config.link_prefix);
    for prefix in [config.link_prefix.as_str(), &tunnel] {
        batch.add_rule(SOURCE_CHAIN, &drop_to_loopback(prefix));
    }
    for hidden in &config.hidden_cidrs {
        batch.add_rule(MASQUERADE_CHAIN, &masquerade(config, *hidden));
    }
    batch.commit(&mut socket)?;
    Ok(())
}

/// From a pod of this node to anywhere outside the cluster; multicast stays as it is.
fn masquerade(config: &Config, pods: Cidr) -> Vec<Expression> {
    let family = Family::of(pods.0);
    let multicast: Cidr = match family {
        Family::Ipv4 => ([224, 0, 0, 0].into(), 4),
        Family::Ipv6 => ([0xff00, 0, 0, 0, 0, 0, 0, 0].into(), 8),
    };
    let mut rule = Expression::is_family(family, R).to_vec();
    rule.push(Expression::source(family, R));
    rule.extend(Expression::in_network(R, pods, false));
    let inside = config.cluster_cidrs.iter().copied().filter(|cidr| Family::of(cidr.0) == family);
    for network in inside.chain([pods, multicast]) {
        rule.push(Expression::destination(family, R));
        rule.extend(Expression::in_network(R, network, true));
    }
    rule.push(Expression::Masquerade);
    rule
}

/// A packet from a pod to the node's loopback addresses: on links with `route_localnet` nothing else would stop it (CVE-2020-8558).
fn drop_to_loopback(link_prefix: &str) -> Vec<Expression> {
    let mut rule = vec![
        Expression::Meta { key: Meta::IncomingName, to: R },
        Expression::Equal { register: R, value: link_prefix.as_bytes().to_vec() },
    ];
    rule.extend(Expression::is_family(Family::Ipv4, R));
    rule.push(Expression::destination(Family::Ipv4, R));
    rule.extend(Expression::in_network(R, ([127, 0, 0, 0].into(), 8), false));
    rule.extend([Expression::Counter, Expression::Verdict(Verdict::Drop)]);
    rule
}

/// A packet from a pod whose source the kernel would not route back over the same link. Not `rp_filter`: its strictness depends on what
/// the host chose for all interfaces.
fn drop_forged(link_prefix: &str, pods: Cidr) -> Vec<Expression> {
    let family = Family::of(pods.0);
    let mut rule = vec![
        Expression::Meta { key: Meta::IncomingName, to: R },
        Expression::Equal { register: R, value: link_prefix.as_bytes().to_vec() },
    ];
    rule.extend(Expression::is_family(family, R));
    if family == Family::Ipv6 {
        // Neighbour discovery speaks from link-local and unspecified addresses.
        for (network, prefix) in [([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10), ([0; 8], 128)] {
            rule.push(Expression::source(family, R));
            rule.extend(Expression::in_network(R, (network.into(), prefix), true));
        }
    }
    rule.extend([
        Expression::Fib { result: FibResult::OutgoingIndex, inputs: FIB_SOURCE | FIB_INCOMING, to: R },
        Expression::Equal { register: R, value: vec![0; 4] },
        Expression::Counter,
        Expression::Verdict(Verdict::Drop),
    ]);
    rule
}
