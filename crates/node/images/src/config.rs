//! An image's configuration: what the OCI image specification calls `config`.

use serde::{Deserialize, Deserializer, Serialize};

/// Defaults that an image brings for its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    pub user: String,
    #[serde(deserialize_with = "null_is_empty")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
}

/// The configuration blob, as far as it is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ConfigFile {
    pub architecture: String,
    pub os: String,
    pub config: ImageConfig,
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct RootFs {
    pub diff_ids: Vec<String>,
}

/// Docker writes `null` for empty lists.
fn null_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn null_lists_and_absent_fields_are_empty() {
        let file: ConfigFile =
            serde_json::from_str(r#"{"config":{"Cmd":["sh"],"Entrypoint":null},"rootfs":{"type":"layers","diff_ids":["sha256:a"]}}"#)
                .unwrap();
        assert_eq!(file.config, ImageConfig { cmd: vec!["sh".into()], ..ImageConfig::default() });
        assert_eq!(file.rootfs.diff_ids, ["sha256:a"]);
    }
}
