//! Devices by name: what the files of the Container Device Interface (specification 1.0.0) say that a container needs for one. Pure but for
//! reading the files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// One file.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    kind: String,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Device {
    name: String,
    #[serde(default)]
    container_edits: Edits,
}

/// What changes in a container.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    #[serde(rename = "additionalGids")]
    pub additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    pub path: String,
    pub host_path: String,
    pub r#type: String,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
    pub r#type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hook {
    hook_name: String,
    path: String,
}

impl Edits {
    fn add(&mut self, other: &Self) {
        self.env.extend(other.env.iter().cloned());
        self.device_nodes.extend(other.device_nodes.iter().cloned());
        self.mounts.extend(other.mounts.iter().cloned());
        self.hooks.extend(other.hooks.iter().cloned());
        self.additional_gids.extend(other.additional_gids.iter().copied().filter(|gid| *gid != 0));
    }

    /// What cannot be done here.
    fn check(&self) -> Result<(), String> {
        if let Some(hook) = self.hooks.first() {
            return Err(format!("the {} hook {:?} of a CDI device is not supported by this runtime", hook.hook_name, hook.path));
        }
        match self.mounts.iter().find(|mount| !matches!(mount.r#type.as_str(), "" | "bind" | "none")) {
            Some(mount) => Err(format!("a mount of type {:?} of a CDI device is not supported by this runtime", mount.r#type)),
            None => Ok(()),
        }
    }
}

/// The edits for the devices with these names, such as `vendor.com/class=name`. A file in a later folder counts before one in an earlier.
pub fn resolve(folders: &[PathBuf], names: &[String]) -> Result<Edits, String> {
    let mut edits = Edits::default();
    if names.is_empty() {
        return Ok(edits);
    }
    let files = read(folders);
    let mut missing = Vec::new();
    let mut seen: Vec<&PathBuf> = Vec::new();
    for name in names {
        let found = name.split_once('=').and_then(|(kind, device)| {
            let holds = |file: &&(usize, PathBuf, File)| file.2.kind == kind && file.2.devices.iter().any(|known| known.name == device);
            let best = files.iter().filter(holds).map(|(folder, ..)| *folder).max()?;
            let mut all = files.iter().filter(holds).filter(|(folder, ..)| *folder == best);
            let first = all.next()?;
            // Two files of one folder that both define it leave it undefined.
            all.next().is_none().then_some((first, device))
        });
        let Some(((_, path, file), device)) = found else {
            missing.push(name.as_str());
            continue;
        };
        if !seen.contains(&path) {
            seen.push(path);
            edits.add(&file.container_edits);
        }
        file.devices.iter().filter(|known| known.name == device).for_each(|known| edits.add(&known.container_edits));
    }
    if !missing.is_empty() {
        return Err(format!("failed to inject devices: unresolvable CDI devices {}", missing.join(", ")));
    }
    edits.check().map(|()| edits)
}

fn read(folders: &[PathBuf]) -> Vec<(usize, PathBuf, File)> {
    let mut files = BTreeMap::new();
    for (number, folder) in folders.iter().enumerate() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match read_file(&path) {
                Some(Ok(file)) => drop(files.insert(path, (number, file))),
                Some(Err(error)) => tracing::warn!(file = %path.display(), error, "a CDI file cannot be read"),
                None => {}
            }
        }
    }
    files.into_iter().map(|(path, (number, file))| (number, path, file)).collect()
}

fn read_file(path: &Path) -> Option<Result<File, String>> {
    if !path.extension().is_some_and(|end| end == "json" || end == "yaml") {
        return None;
    }
    // Every JSON text is YAML.
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string());
    Some(text.and_then(|text| serde_saphyr::from_str(&text).map_err(|error| error.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_brings_its_own_edits_and_once_those_of_its_file() {
        let (early, late) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = "cdiVersion: 0.6.0\nkind: acme.com/gpu\ncontainerEdits: {env: [COMMON=1]}\ndevices:\n\
             - {name: '0', containerEdits: {env: [ZERO=1], deviceNodes: [{path: /dev/null}]}}\n- {name: '1', containerEdits: {env: [ONE=1], additionalGids: [0, 7]}}\n";
        std::fs::write(early.path().join("acme.yaml"), file).unwrap();
        std::fs::write(early.path().join("broken.json"), "{").unwrap();
        std::fs::write(early.path().join("hooked.json"), r#"{"kind": "acme.com/hooked", "devices": [{"name": "h", "containerEdits": {"hooks": [{"hookName": "createRuntime", "path": "/x"}]}}]}"#).unwrap();
        let folders = [early.path().to_owned(), late.path().to_owned()];
        let of = |names: &[&str]| resolve(&folders, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        let both = of(&["acme.com/gpu=0", "acme.com/gpu=1"]).unwrap();
        assert_eq!((both.env.join(" "), both.additional_gids), ("COMMON=1 ZERO=1 ONE=1".into(), vec![7]));
        assert_eq!(of(&["acme.com/gpu=2", "else"]).unwrap_err(), "failed to inject devices: unresolvable CDI devices acme.com/gpu=2, else");
        assert!(of(&["acme.com/hooked=h"]).unwrap_err().contains("createRuntime hook"));
        std::fs::write(late.path().join("acme.yaml"), file.replace("ZERO", "LATER")).unwrap();
        assert_eq!(of(&["acme.com/gpu=0"]).unwrap().env, ["COMMON=1", "LATER=1"]);
        std::fs::write(late.path().join("twice.yaml"), file).unwrap();
        assert!(of(&["acme.com/gpu=0"]).is_err());
    }
}
