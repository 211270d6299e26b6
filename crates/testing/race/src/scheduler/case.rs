//! What one case of `cases.yaml` says.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::objects::Template;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Case {
    pub name: String,
    /// Upstream's own threshold for its CI in pods a second, of 2025 and 2026; 0: it has none.
    #[serde(default)]
    pub floor: u32,
    /// Upstream has switched it off.
    #[serde(default)]
    pub switched_off: bool,
    pub nodes: usize,
    #[serde(default)]
    pub zones: usize,
    /// So many of the nodes have a taint that no pod tolerates.
    #[serde(default)]
    pub tainted: usize,
    #[serde(default = "pods_max")]
    pub pods_max: usize,
    #[serde(default = "cpu")]
    pub cpu: String,
    #[serde(default = "memory")]
    pub memory: String,
    /// What each node has beside them.
    #[serde(default)]
    pub extended: BTreeMap<String, String>,
    /// Volumes of the CSI driver that a node attaches; 0: no driver says so.
    #[serde(default)]
    pub volumes_max: usize,
    /// The nodes' drivers serve the in-tree volumes of that plugin.
    #[serde(default)]
    pub migrated: bool,
    /// Devices of each node.
    #[serde(default)]
    pub devices: usize,
    /// A Service selects the pods with these labels.
    #[serde(default)]
    pub service: Option<BTreeMap<String, String>>,
    /// The controllers run as well: somebody has to make claims from templates.
    #[serde(default)]
    pub controllers: bool,
    #[serde(default)]
    pub churn: Option<Churn>,
    pub init: Vec<Template>,
    pub measured: Template,
    /// The measured pods come so many at once, and go as soon as all of those are bound.
    #[serde(default)]
    pub portion: usize,
}

/// What comes, or comes and goes, while pods are measured.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Churn {
    pub every_milliseconds: u64,
    pub pod: Template,
    /// The pod goes when the next one comes, and with it a node and a Service that came with it.
    #[serde(default)]
    pub recreate: bool,
}

fn pods_max() -> usize {
    110
}
fn cpu() -> String {
    "4".into()
}
fn memory() -> String {
    "32Gi".into()
}

pub fn all() -> anyhow::Result<Vec<Case>> {
    Ok(serde_saphyr::from_str(include_str!("cases.yaml"))?)
}

impl Case {
    pub fn quick(&self) -> Self {
        let mut case = self.clone();
        case.nodes = (case.nodes / 10).max(1);
        case.tainted /= 10;
        case.init.iter_mut().chain([&mut case.measured]).for_each(|template| template.count = template.count.div_ceil(10));
        case.measured.gang = case.measured.gang.min(case.measured.count);
        if let (Some(most), Some(first)) = ((case.nodes * case.devices).checked_sub(case.portion), case.init.first_mut()) {
            // The portions that come and go need their devices.
            first.count = if first.device.is_some() { first.count.min(most) } else { first.count };
        }
        case
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cases_are_read_and_each_of_their_pods_is_one() {
        let cases = all().unwrap();
        let mut names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), cases.len(), "no name twice");
        for case in &cases {
            for template in case.init.iter().chain([&case.measured]) {
                template.pod("x", 0).unwrap_or_else(|error| panic!("{}: {error}", case.name));
            }
        }
    }
}
