use super::MAX;
use crate::class::Class;
use crate::profile::Profile;
use crate::snapshot::Details;

/// How much the pod evens out the shares in which the node's resources are used: 75 where it changes nothing. A pod that requests nothing
/// is not scored.
pub(super) fn score(profile: &Profile, class: &Class, node: &Details) -> i64 {
    if profile.balanced_resources.iter().all(|name| class.requests.get(name) == 0) {
        return 0;
    }
    let capacity = &node.facts.allocatable;
    let (with, without) = match &profile.balanced_resources[..] {
        [cpu, memory] if cpu == "cpu" && memory == "memory" => {
            let (cpu, memory) = (node.requested.milli_cpu, node.requested.memory);
            let with = [(capacity.milli_cpu, cpu + class.requests.milli_cpu), (capacity.memory, memory + class.requests.memory)];
            (balance(&with), balance(&[(capacity.milli_cpu, cpu), (capacity.memory, memory)]))
        }
        names => {
            // What the pod does not ask for of the uncommon resources does not count.
            let counted = |name: &&String| matches!(name.as_str(), "cpu" | "memory" | "ephemeral-storage") || class.requests.get(name) != 0;
            let used = |plus: bool| -> Vec<(i64, i64)> {
                let amount =
                    |name: &String| (capacity.get(name), node.requested.get(name) + if plus { class.requests.get(name) } else { 0 });
                names.iter().filter(counted).map(amount).collect()
            };
            (balance(&used(true)), balance(&used(false)))
        }
    };
    MAX / 2 + (MAX / 2 + with - without) / 2
}

/// 100 where all are used in equal shares; pairs of capacity and use.
fn balance(amounts: &[(i64, i64)]) -> i64 {
    let shares = amounts.iter().filter(|(capacity, _)| *capacity != 0).map(|(capacity, used)| (*used as f64 / *capacity as f64).min(1.0));
    let (mut count, mut sum, mut first, mut second) = (0usize, 0.0, 0.0, 0.0);
    for share in shares.clone() {
        match count {
            0 => first = share,
            1 => second = share,
            _ => {}
        }
        (count, sum) = (count + 1, sum + share);
    }
    let deviation = match count {
        0 | 1 => 0.0,
        2 => f64::abs((first - second) / 2.0),
        _ => {
            let mean = sum / count as f64;
            (shares.map(|share| (share - mean) * (share - mean)).sum::<f64>() / count as f64).sqrt()
        }
    };
    ((1.0 - deviation) * MAX as f64) as i64
}
