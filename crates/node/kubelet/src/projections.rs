//! The files of volumes that are made of the API's words: ConfigMaps, Secrets, downward fields, tokens, trust bundles, certificates.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume, VolumeProjection};
use volumes::payload::{self, Item, Source};
use volumes::{File, Payload};

use crate::env::{self, Facts};
use crate::objects::Objects;
use crate::podspec;

const MODE_DEFAULT: u32 = 0o644;
const TOKEN_SECONDS_DEFAULT: i64 = 3600;

/// What one look makes the files of; `refresh` is when the first of them is due again.
pub struct Look<'a> {
    pub objects: &'a Objects,
    pub pod: &'a Pod,
    pub facts: &'a Facts,
    pub now: Timestamp,
    pub refresh: Option<Timestamp>,
}

impl Look<'_> {
    fn due(&mut self, at: Timestamp) {
        self.refresh = Some(self.refresh.map_or(at, |known| known.min(at)));
    }

    /// The files of a volume that has any of its own; `None` for directories.
    pub async fn files(&mut self, volume: &Volume) -> Result<Option<Payload>, String> {
        if let Some(source) = &volume.config_map {
            let config_map = k8s_openapi::api::core::v1::ConfigMapProjection {
                name: source.name.clone(),
                items: source.items.clone(),
                optional: source.optional,
            };
            let projection = VolumeProjection { config_map: Some(config_map), ..Default::default() };
            return self.projected(&volume.name, &[projection], mode(source.default_mode)).await.map(Some);
        }
        if let Some(source) = &volume.secret {
            let secret = k8s_openapi::api::core::v1::SecretProjection {
                name: source.secret_name.clone().unwrap_or_default(),
                items: source.items.clone(),
                optional: source.optional,
            };
            let projection = VolumeProjection { secret: Some(secret), ..Default::default() };
            return self.projected(&volume.name, &[projection], mode(source.default_mode)).await.map(Some);
        }
        if let Some(source) = &volume.downward_api {
            return downward(self.pod, source.items.as_deref().unwrap_or_default(), mode(source.default_mode), self.facts).map(Some);
        }
        if let Some(source) = &volume.projected {
            let sources = source.sources.as_deref().unwrap_or_default();
            return self.projected(&volume.name, sources, mode(source.default_mode)).await.map(Some);
        }
        Ok(None)
    }

    async fn projected(&mut self, volume: &str, sources: &[VolumeProjection], mode: u32) -> Result<Payload, String> {
        let (uid, namespace) = (podspec::uid(self.pod), podspec::namespace(self.pod));
        let objects = self.objects;
        let mut payload = Payload::new();
        for (at, source) in sources.iter().enumerate() {
            if let Some(source) = &source.config_map {
                let optional = source.optional == Some(true);
                let data = match objects.config_maps.get(uid, namespace, &source.name).await? {
                    Some(object) => env::config_map_data(&object),
                    None if optional => BTreeMap::new(),
                    None => return Err(format!("configmap {:?} not found", source.name)),
                };
                let files = payload::of_keys(Source::ConfigMap, &data, &items(source.items.as_ref()), mode, optional);
                payload.extend(files.map_err(|error| error.to_string())?);
            } else if let Some(source) = &source.secret {
                let optional = source.optional == Some(true);
                let data = match objects.secrets.get(uid, namespace, &source.name).await? {
                    Some(object) => env::secret_data(&object),
                    None if optional => BTreeMap::new(),
                    None => return Err(format!("secret {:?} not found", source.name)),
                };
                let files = payload::of_keys(Source::Secret, &data, &items(source.items.as_ref()), mode, optional);
                payload.extend(files.map_err(|error| error.to_string())?);
            } else if let Some(source) = &source.downward_api {
                payload.extend(downward(self.pod, source.items.as_deref().unwrap_or_default(), mode, self.facts)?);
            } else if let Some(source) = &source.service_account_token {
                let seconds = source.expiration_seconds.unwrap_or(TOKEN_SECONDS_DEFAULT);
                let token = objects.tokens.get(self.pod, source.audience.as_deref().unwrap_or_default(), seconds, self.now).await?;
                self.due(token.refresh_at);
                payload.insert(source.path.clone(), private_file(self.pod, token.text.into_bytes(), mode, None));
            } else if let Some(source) = &source.cluster_trust_bundle {
                let anchors = objects.trust.anchors(uid, source).await?;
                payload.insert(source.path.clone(), private_file(self.pod, anchors.into_bytes(), mode, source.user));
            } else if let Some(source) = &source.pod_certificate {
                let made = objects.certificates.get(self.pod, (volume, at), source, self.now).await?;
                self.due(made.refresh_at);
                for (path, text) in made.files(source) {
                    payload.insert(path, private_file(self.pod, text.into_bytes(), mode, source.user));
                }
            } else {
                return Err("this source of a projected volume is not supported".into());
            }
        }
        Ok(payload)
    }
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE_DEFAULT)
}

fn items(list: Option<&Vec<KeyToPath>>) -> Vec<Item> {
    let item = |item: &KeyToPath| Item { key: item.key.clone(), path: item.path.clone(), mode: item.mode.map(|bits| mode(Some(bits))) };
    list.into_iter().flatten().map(item).collect()
}

/// A token is for the pod's user alone where there is one user or a group; without either the mode of the volume stands.
/// Source: `pkg/volume/projected`, `pkg/volume/util.FsUserFrom`. (A group may read besides: the volume's own doing.) Some sources name
/// the user themselves.
fn private_file(pod: &Pod, bytes: Vec<u8>, mode: u32, user: Option<i64>) -> File {
    let uid = user.and_then(|user| u32::try_from(user).ok()).or_else(|| one_user(pod));
    let grouped = podspec::spec(pod).security_context.as_ref().is_some_and(|security| security.fs_group.is_some());
    File { bytes, mode: if uid.is_some() || grouped { 0o600 } else { mode }, uid }
}

/// The user that all containers run as, if they say so and agree.
fn one_user(pod: &Pod) -> Option<u32> {
    let spec = podspec::spec(pod);
    let general = spec.security_context.as_ref().and_then(|security| security.run_as_user);
    let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
    let mut users = containers.map(|container| container.security_context.as_ref().and_then(|own| own.run_as_user).or(general));
    let first = users.next()??;
    users.all(|user| user == Some(first)).then(|| u32::try_from(first).ok()).flatten()
}

fn downward(pod: &Pod, files: &[DownwardAPIVolumeFile], default_mode: u32, facts: &Facts) -> Result<Payload, String> {
    let mut payload = Payload::new();
    for file in files {
        let text = match (&file.field_ref, &file.resource_field_ref) {
            (Some(field), _) => env::pod_field(pod, &field.field_path, facts),
            (_, Some(field)) => env::resource_field(pod, None, field, facts),
            _ => return Err(format!("{} names no field", file.path)),
        };
        let bytes = text.map_err(|error| error.0)?.into_bytes();
        payload.insert(file.path.clone(), File { bytes, mode: file.mode.map_or(default_mode, |bits| mode(Some(bits))), uid: None });
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    #[test]
    fn a_token_is_for_the_one_user_of_the_pod_or_for_all() {
        let file = |spec: serde_json::Value| {
            let file = private_file(&pod(spec), b"t".to_vec(), 0o644, None);
            (file.mode, file.uid)
        };
        let container = |user: serde_json::Value| json!({"name": "c", "securityContext": {"runAsUser": user}});
        let cases = [
            (json!({"containers": [container(json!(null))]}), (0o644, None)),
            (json!({"containers": [container(json!(7))]}), (0o600, Some(7))),
            (json!({"containers": [container(json!(7)), container(json!(8))]}), (0o644, None)),
            (json!({"containers": [container(json!(null))], "securityContext": {"runAsUser": 7}}), (0o600, Some(7))),
            (json!({"containers": [container(json!(8))], "securityContext": {"runAsUser": 7}}), (0o600, Some(8))),
            (json!({"containers": [container(json!(null))], "securityContext": {"fsGroup": 7}}), (0o600, None)),
        ];
        for (spec, expected) in cases {
            assert_eq!(file(spec.clone()), expected, "{spec}");
        }
    }
}
