use super::{Context, MAX};
use crate::class::Class;
use crate::snapshot::Details;

/// The mean of the free shares of CPU and memory after the pod came.
pub(super) fn score(class: &Class, node: &Details, _: &Context) -> i64 {
    let share = |capacity: i64, used: i64| if capacity == 0 || used > capacity { 0 } else { (capacity - used) * MAX / capacity };
    let cpu = share(node.allocatable.milli_cpu, node.scored.milli_cpu + class.scored.milli_cpu);
    let memory = share(node.allocatable.memory, node.scored.memory + class.scored.memory);
    let counted = i64::from(node.allocatable.milli_cpu > 0) + i64::from(node.allocatable.memory > 0);
    if counted == 0 { 0 } else { (cpu + memory) / counted }
}
