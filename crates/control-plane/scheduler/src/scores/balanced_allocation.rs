use super::{Context, MAX};
use crate::class::Class;
use crate::snapshot::Details;

/// 100 where CPU and memory would be used in equal shares. A pod that requests nothing is not scored.
pub(super) fn score(class: &Class, node: &Details, _: &Context) -> i64 {
    if class.requests.milli_cpu == 0 && class.requests.memory == 0 {
        return 0;
    }
    let share = |capacity: i64, used: i64| if capacity == 0 { None } else { Some((used as f64 / capacity as f64).min(1.0)) };
    let cpu = share(node.allocatable.milli_cpu, node.requested.milli_cpu + class.requests.milli_cpu);
    let memory = share(node.allocatable.memory, node.requested.memory + class.requests.memory);
    match (cpu, memory) {
        (Some(cpu), Some(memory)) => ((1.0 - ((cpu - memory) / 2.0).abs()) * MAX as f64) as i64,
        _ => MAX,
    }
}
