//! Choosing processors: whole sockets, then whole cores, then threads, each where least is broken up. Pure.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::Cpus;
use super::affinity::Nodes;
use super::topology::{Cpu, Topology};

/// `count` of `free`, on `nodes` as far as those have them; `None` where there are too few.
pub fn take(topology: &Topology, free: &Cpus, count: usize, nodes: Nodes) -> Option<Cpus> {
    if free.len() < count {
        return None;
    }
    let on = |cpu: &&Cpu| free.contains(&cpu.id) && nodes.has(cpu.node);
    let aligned: Cpus = topology.all.iter().filter(on).map(|cpu| cpu.id).collect();
    let mut taken = packed(topology, &aligned, count.min(aligned.len()));
    let rest: Cpus = free.difference(&taken).copied().collect();
    taken.extend(packed(topology, &rest, count - taken.len()));
    Some(taken)
}

fn packed(topology: &Topology, free: &Cpus, count: usize) -> Cpus {
    let mut taken = Cpus::new();
    for unit in [|cpu: &Cpu| cpu.socket, |cpu: &Cpu| cpu.core] {
        let whole = groups(&topology.all, unit);
        loop {
            let left: BTreeSet<u32> = free.difference(&taken).copied().collect();
            let sockets = groups_of(topology, &left, |cpu| cpu.socket);
            let fits = whole.values().filter(|group| group.len() <= count - taken.len() && group.iter().all(|cpu| left.contains(&cpu.id)));
            // From the socket that has least left.
            let best = fits.min_by_key(|group| group.first().map(|cpu| (sockets.get(&cpu.socket).copied(), cpu.socket, cpu.id)));
            let Some(group) = best else { break };
            taken.extend(group.iter().map(|cpu| cpu.id));
        }
    }
    let left: Cpus = free.difference(&taken).copied().collect();
    let (sockets, cores) = (groups_of(topology, &left, |cpu| cpu.socket), groups_of(topology, &left, |cpu| cpu.core));
    let used: BTreeSet<u32> = topology.all.iter().filter(|cpu| taken.contains(&cpu.id)).map(|cpu| cpu.socket).collect();
    let mut singles: Vec<&Cpu> = topology.all.iter().filter(|cpu| left.contains(&cpu.id)).collect();
    singles.sort_by_key(|cpu| {
        (
            Reverse(used.contains(&cpu.socket)),
            sockets.get(&cpu.socket).copied(),
            cpu.socket,
            cores.get(&cpu.core).copied(),
            cpu.core,
            cpu.id,
        )
    });
    let missing = count - taken.len();
    taken.extend(singles.iter().take(missing).map(|cpu| cpu.id));
    taken
}

fn groups(all: &[Cpu], unit: fn(&Cpu) -> u32) -> BTreeMap<u32, Vec<Cpu>> {
    let mut groups: BTreeMap<u32, Vec<Cpu>> = BTreeMap::new();
    all.iter().for_each(|cpu| groups.entry(unit(cpu)).or_default().push(*cpu));
    groups
}

/// How many of `left` each unit has.
fn groups_of(topology: &Topology, left: &Cpus, unit: fn(&Cpu) -> u32) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    topology.all.iter().filter(|cpu| left.contains(&cpu.id)).for_each(|cpu| *counts.entry(unit(cpu)).or_default() += 1);
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::topology::{list, parse, tests::machine};

    #[test]
    fn processors_are_taken_where_least_is_broken_up() {
        let machine = machine(2, 2, 2, 0);
        let all = Nodes::of(&machine.nodes());
        let one = Nodes::of(&[1].into());
        // Cores are {0,4} {2,6} on the first socket, {1,5} {3,7} on the second.
        for (free, count, nodes, expected) in [
            ("0-7", 1, all, Some("0")),
            ("0-7", 2, all, Some("0,4")),
            ("0-7", 4, all, Some("0,2,4,6")),
            ("0-7", 5, all, Some("0-2,4,6")),
            ("0-7", 2, one, Some("1,5")),
            ("0-7", 6, one, Some("0-1,3-5,7")),
            ("1-7", 2, all, Some("2,6")),
            ("1-7", 1, all, Some("4")),
            ("1-3", 4, all, None),
        ] {
            let taken = take(&machine, &parse(free).unwrap(), count, nodes);
            assert_eq!(taken.as_ref().map(list).as_deref(), expected, "{count} of {free}");
        }
    }
}
