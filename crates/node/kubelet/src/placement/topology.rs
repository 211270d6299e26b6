//! Processors, cores, sockets and NUMA nodes of the machine.

use std::collections::{BTreeMap, BTreeSet};

use super::Cpus;

/// One processor, as the kernel counts them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    pub id: u32,
    /// Unique on the machine.
    pub core: u32,
    pub socket: u32,
    pub node: u32,
}

#[derive(Clone, Debug, Default)]
pub struct Topology {
    pub all: Vec<Cpu>,
    /// Bytes, by NUMA node.
    pub memory: BTreeMap<u32, u64>,
}

const CPUS: &str = "/sys/devices/system/cpu";
const NODES: &str = "/sys/devices/system/node";

impl Topology {
    /// Of this machine; without NUMA it is one node.
    pub fn look(memory_bytes: u64) -> Self {
        let read = |path: String| std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let online = read(format!("{CPUS}/online")).and_then(|text| parse(&text)).unwrap_or_default();
        let nodes = read(format!("{NODES}/online")).and_then(|text| parse(&text)).unwrap_or_default();
        let of_node = |node: u32| read(format!("{NODES}/node{node}/cpulist")).and_then(|text| parse(&text)).unwrap_or_default();
        let by_node: BTreeMap<u32, Cpus> = nodes.iter().map(|node| (*node, of_node(*node))).collect();
        let number = |cpu: u32, file: &str| read(format!("{CPUS}/cpu{cpu}/topology/{file}")).and_then(|text| text.parse::<u32>().ok());
        let cpu = |id: u32| {
            // The first of its siblings names a core, whatever the firmware calls it.
            let siblings = read(format!("{CPUS}/cpu{id}/topology/thread_siblings_list")).and_then(|text| parse(&text));
            let core = siblings.and_then(|siblings| siblings.first().copied()).unwrap_or(id);
            let node = by_node.iter().find(|(_, cpus)| cpus.contains(&id)).map_or(0, |(node, _)| *node);
            Cpu { id, core, socket: number(id, "physical_package_id").unwrap_or(0), node }
        };
        let bytes = |node: u32| {
            let text = read(format!("{NODES}/node{node}/meminfo"))?;
            let line = text.lines().find(|line| line.contains("MemTotal:"))?;
            Some(line.split_whitespace().rev().nth(1)?.parse::<u64>().ok()? * 1024)
        };
        let mut memory: BTreeMap<u32, u64> = nodes.iter().filter_map(|node| Some((*node, bytes(*node)?))).collect();
        if memory.is_empty() {
            memory.insert(0, memory_bytes);
        }
        Self { all: online.into_iter().map(cpu).collect(), memory }
    }

    pub fn cpus(&self) -> Cpus {
        self.all.iter().map(|cpu| cpu.id).collect()
    }

    pub fn nodes(&self) -> BTreeSet<u32> {
        self.all.iter().map(|cpu| cpu.node).chain(self.memory.keys().copied()).collect()
    }

    pub fn threads_per_core(&self) -> usize {
        let cores: BTreeSet<u32> = self.all.iter().map(|cpu| cpu.core).collect();
        (self.all.len() / cores.len().max(1)).max(1)
    }
}

/// The kernel's lists: `0-3,7`.
pub fn parse(text: &str) -> Option<Cpus> {
    let mut all = Cpus::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if last < first || last > 1 << 16 {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

pub fn list(all: &Cpus) -> String {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    for id in all {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *id => *last = *id,
            _ => ranges.push((*id, *id)),
        }
    }
    let text = ranges.iter().map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") });
    text.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Sockets are NUMA nodes of so many bytes; processors are numbered as most machines do: first every first thread, over the sockets in turn.
    pub fn machine(sockets: u32, cores: u32, threads: u32, bytes: u64) -> Topology {
        let physical = sockets * cores;
        let cpu = |id: u32| Cpu { id, core: id % physical, socket: (id % physical) % sockets, node: (id % physical) % sockets };
        Topology { all: (0..physical * threads).map(cpu).collect(), memory: (0..sockets).map(|node| (node, bytes)).collect() }
    }

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for text in ["", "0", "0-3", "0-1,3,5-7"] {
            assert_eq!(list(&parse(text).unwrap()), text);
        }
        assert_eq!((parse("3-1"), parse("x"), parse("0-99999999")), (None, None, None));
        assert!(!Topology::look(1).all.is_empty());
    }
}
