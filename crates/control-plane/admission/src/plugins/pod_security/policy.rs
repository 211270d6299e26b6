//! The policy of a namespace: a level and a version for each of the three modes, from its labels.
//!
//! Source: pod-security-admission `api/helpers.go`.

use std::fmt;

use meta::field::{self, Path};
use rules::value::{at, text};
use serde_json::Value;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

/// `latest`, or the minor of `v1.x`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Version {
    #[default]
    Latest,
    Minor(u32),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Standard {
    pub level: Level,
    pub version: Version,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub enforce: Standard,
    pub audit: Standard,
    pub warn: Standard,
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

fn level(text: &str) -> Result<Level, &'static str> {
    match text {
        "privileged" => Ok(Level::Privileged),
        "baseline" => Ok(Level::Baseline),
        "restricted" => Ok(Level::Restricted),
        _ => Err("must be one of privileged, baseline, restricted"),
    }
}

fn version(text: &str) -> Result<Version, &'static str> {
    if text == "latest" {
        return Ok(Version::Latest);
    }
    let minor = text.strip_prefix("v1.").filter(|minor| *minor == "0" || !minor.starts_with(['0', '+']));
    minor.and_then(|minor| minor.parse().ok()).map(Version::Minor).ok_or("must be \"latest\" or \"v1.x\"")
}

/// The prefix of the labels and of the audit annotations.
pub const PREFIX: &str = "pod-security.kubernetes.io/";

impl Policy {
    /// From the plugin's configuration (`defaults`).
    pub fn read(defaults: &Value) -> Result<Self, String> {
        let standard = |mode: &str| -> Result<Standard, String> {
            let word = |field: &str, other: &str| match text(defaults, field) {
                "" => other.to_owned(),
                given => given.to_owned(),
            };
            let (given_level, given_version) = (word(mode, "privileged"), word(&format!("{mode}-version"), "latest"));
            let wrong = |field: &str, why: &str| format!("defaults.{field}: {why}");
            Ok(Standard {
                level: level(&given_level).map_err(|why| wrong(mode, why))?,
                version: version(&given_version).map_err(|why| wrong(&format!("{mode}-version"), why))?,
            })
        };
        Ok(Self { enforce: standard("enforce")?, audit: standard("audit")?, warn: standard("warn")? })
    }

    /// What a namespace's labels make of the default. A label that cannot be read counts as the strictest for `enforce` and as none for
    /// the others; the complaints come along.
    pub fn of(namespace: &Value, defaults: Policy) -> (Self, Vec<field::Error>) {
        let labels = at(namespace, "metadata.labels");
        let mut errors = Vec::new();
        let mut read = Reader { labels, errors: &mut errors };
        let mut policy = defaults;
        let enforced = read.standard("enforce", &mut policy.enforce, Level::Restricted);
        read.standard("audit", &mut policy.audit, Level::Privileged);
        read.standard("warn", &mut policy.warn, Level::Privileged);
        // Who enforces more than is warned of is warned of the same.
        let silent = |mode: &str| labels.get(format!("{PREFIX}{mode}")).is_none();
        if enforced && silent("warn") && policy.enforce.level > policy.warn.level {
            policy.warn.level = policy.enforce.level;
            if silent("warn-version") {
                policy.warn.version = policy.enforce.version;
            }
        }
        (policy, errors)
    }

    pub fn is_privileged(&self) -> bool {
        [self.enforce, self.audit, self.warn].iter().all(|standard| standard.level == Level::Privileged)
    }
}

struct Reader<'a> {
    labels: &'a Value,
    errors: &'a mut Vec<field::Error>,
}

impl Reader<'_> {
    /// Whether the label of the level is there and in order.
    fn standard(&mut self, mode: &str, standard: &mut Standard, otherwise: Level) -> bool {
        let given_level = self.label(mode, level);
        if let Some(found) = given_level {
            standard.level = found.unwrap_or(otherwise);
        }
        if let Some(found) = self.label(&format!("{mode}-version"), version) {
            standard.version = found.unwrap_or_default();
        }
        matches!(given_level, Some(Some(_)))
    }

    /// `None` where the label is absent, `Some(None)` where it is wrong.
    fn label<T>(&mut self, name: &str, parse: fn(&str) -> Result<T, &'static str>) -> Option<Option<T>> {
        let key = format!("{PREFIX}{name}");
        let given = self.labels.get(&key)?.as_str()?;
        match parse(given) {
            Ok(found) => Some(Some(found)),
            Err(why) => {
                let path = Path::new("metadata").child("labels").key(&key);
                self.errors.push(field::Error::invalid(&path, given, why));
                Some(None)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_set_level_and_version_of_each_mode() {
        let cases = [
            (json!({}), "privileged:latest privileged:latest privileged:latest", 0),
            (json!({"enforce": "baseline"}), "baseline:latest privileged:latest baseline:latest", 0),
            (json!({"enforce": "restricted", "enforce-version": "v1.24"}), "restricted:v1.24 privileged:latest restricted:v1.24", 0),
            (json!({"enforce": "baseline", "warn": "privileged"}), "baseline:latest privileged:latest privileged:latest", 0),
            (json!({"enforce": "strict"}), "restricted:latest privileged:latest privileged:latest", 1),
            (json!({"audit": "x", "warn": "y", "warn-version": "v1.05"}), "privileged:latest privileged:latest privileged:latest", 3),
        ];
        for (modes, expected, complaints) in cases {
            let labels: serde_json::Map<String, Value> =
                modes.as_object().expect("object").iter().map(|(mode, word)| (format!("{PREFIX}{mode}"), word.clone())).collect();
            let (policy, errors) = Policy::of(&json!({"metadata": {"labels": labels}}), Policy::default());
            assert_eq!(
                (format!("{} {} {}", policy.enforce, policy.audit, policy.warn).as_str(), errors.len()),
                (expected, complaints),
                "{modes}"
            );
        }
    }
}
