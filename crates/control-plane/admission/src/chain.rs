//! Which plugins run, and in which order they are asked.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use meta::status::Status;
use serde_json::Value;

use crate::{Attributes, Lookup, Plugin, metrics, plugins};

/// What the administrator says about admission (upstream: `--enable-admission-plugins`, `--disable-admission-plugins`,
/// `--admission-control-config-file`).
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Plugins to run besides those that run by default.
    pub enable: Vec<String>,
    /// Plugins not to run.
    pub disable: Vec<String>,
    /// Configurations by plugin.
    pub configurations: BTreeMap<String, Value>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("admission plugin {name:?} is unknown")]
    Unknown { name: String },
    #[error("admission plugin {name:?} is both enabled and disabled")]
    Contradiction { name: String },
    #[error("admission configuration {path}: {why}")]
    File { path: String, why: String },
    #[error("configuration of admission plugin {name}: {why}")]
    Plugin { name: &'static str, why: String },
}

impl Options {
    /// Takes the configurations from an `AdmissionConfiguration` (`apiserver.config.k8s.io/v1`); paths in it are relative to its folder.
    pub fn read(&mut self, path: &Path) -> Result<(), ConfigError> {
        let fail = |path: &Path, why: String| ConfigError::File { path: path.display().to_string(), why };
        let load = |path: &Path| -> Result<Value, ConfigError> {
            let text = std::fs::read_to_string(path).map_err(|error| fail(path, error.to_string()))?;
            serde_saphyr::from_str(&text).map_err(|error| fail(path, error.to_string()))
        };
        let document = load(path)?;
        if document["kind"] != "AdmissionConfiguration" || document["apiVersion"] != "apiserver.config.k8s.io/v1" {
            return Err(fail(path, "expected kind AdmissionConfiguration of apiserver.config.k8s.io/v1".into()));
        }
        for plugin in rules::value::list(&document, "plugins") {
            let name = rules::value::text(plugin, "name").to_owned();
            let configuration = match (plugin.get("configuration"), rules::value::text(plugin, "path")) {
                (Some(inline), _) if !inline.is_null() => inline.clone(),
                (_, "") => continue,
                (_, file) => load(&path.parent().unwrap_or(Path::new("")).join(file))?,
            };
            self.configurations.insert(name, configuration);
        }
        Ok(())
    }

    fn check(&self, known: &[&'static str]) -> Result<(), ConfigError> {
        for name in self.enable.iter().chain(&self.disable).chain(self.configurations.keys()) {
            if !known.contains(&name.as_str()) {
                return Err(ConfigError::Unknown { name: name.clone() });
            }
        }
        match self.enable.iter().find(|name| self.disable.contains(name)) {
            Some(name) => Err(ConfigError::Contradiction { name: name.clone() }),
            None => Ok(()),
        }
    }

    fn runs(&self, plugin: &dyn Plugin) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name == plugin.name());
        !named(&self.disable) && (plugin.on_by_default() || named(&self.enable))
    }
}

/// The plugins in their order.
pub struct Chain {
    plugins: Vec<Box<dyn Plugin>>,
    lookup: Arc<dyn Lookup>,
}

impl Chain {
    /// The plugins that are on by default, as the options change them.
    pub fn new(options: &Options, lookup: Arc<dyn Lookup>) -> Result<Self, ConfigError> {
        let mut plugins = plugins::all(options)?;
        options.check(&plugins.iter().map(|plugin| plugin.name()).collect::<Vec<_>>())?;
        plugins.retain(|plugin| options.runs(&**plugin));
        Ok(Self { plugins, lookup })
    }
    pub fn of(plugins: Vec<Box<dyn Plugin>>, lookup: Arc<dyn Lookup>) -> Self {
        Self { plugins, lookup }
    }

    /// Lets every plugin change the object, in a second round again where one asks for it; stops at the first refusal.
    pub async fn mutate(&self, attributes: &mut Attributes) -> Result<(), Status> {
        self.mutate_by(attributes, &*self.lookup).await
    }

    /// The same, with somebody else to ask.
    pub async fn mutate_by(&self, attributes: &mut Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        let step = metrics::Step::begin("admit", attributes);
        let mut outcome = self.round(attributes, lookup).await;
        if outcome.is_ok() && attributes.reinvocation.needed {
            attributes.reinvocation.again = true;
            outcome = self.round(attributes, lookup).await;
        }
        step.end(outcome.is_err());
        outcome
    }

    async fn round(&self, attributes: &mut Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        let operation = attributes.operation;
        for plugin in self.plugins.iter().filter(|plugin| plugin.handles(operation)) {
            plugin.mutate(attributes, lookup).await?;
        }
        Ok(())
    }

    /// Lets every plugin judge the final object; stops at the first refusal.
    pub async fn validate(&self, attributes: &Attributes) -> Result<(), Status> {
        self.validate_by(attributes, &*self.lookup).await
    }

    /// The same, with somebody else to ask.
    pub async fn validate_by(&self, attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
        let step = metrics::Step::begin("validate", attributes);
        let mut outcome = Ok(());
        for plugin in self.plugins.iter().filter(|plugin| plugin.handles(attributes.operation)) {
            outcome = plugin.validate(attributes, lookup).await;
            if outcome.is_err() {
                break;
            }
        }
        step.end(outcome.is_err());
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Objects;

    fn names(options: &Options) -> Result<Vec<&'static str>, String> {
        let chain = Chain::new(options, Arc::new(Objects::default())).map_err(|error| error.to_string())?;
        Ok(chain.plugins.iter().map(|plugin| plugin.name()).collect())
    }

    #[test]
    fn the_administrator_chooses_the_plugins() {
        let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let standard = names(&Options::default()).expect("names");
        assert!(standard.contains(&"PodSecurity") && !standard.contains(&"AlwaysPullImages"));
        let changed = names(&Options { enable: words(&["AlwaysPullImages"]), disable: words(&["PodSecurity"]), ..Options::default() });
        let changed = changed.expect("names");
        assert!(!changed.contains(&"PodSecurity") && changed.contains(&"AlwaysPullImages"));
        let cases = [
            (&["Nothing"][..], &[][..], "admission plugin \"Nothing\" is unknown"),
            (&["PodSecurity"], &["PodSecurity"], "admission plugin \"PodSecurity\" is both enabled and disabled"),
        ];
        for (enable, disable, why) in cases {
            let options = Options { enable: words(enable), disable: words(disable), ..Options::default() };
            assert_eq!(names(&options), Err(why.to_owned()));
        }
    }

    #[test]
    fn configurations_are_read_inline_and_from_files() {
        let folder = std::env::temp_dir().join(format!("admission-{}", meta::names::uid()));
        std::fs::create_dir(&folder).expect("folder");
        let head = "apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:\n";
        std::fs::write(folder.join("a.yaml"), format!("{head}- name: A\n  configuration: {{x: 1}}\n- name: B\n  path: b.yaml\n"))
            .expect("written");
        std::fs::write(folder.join("b.yaml"), "y: 2\n").expect("written");
        let mut options = Options::default();
        let outcome = options.read(&folder.join("a.yaml"));
        std::fs::remove_dir_all(&folder).expect("removed");
        outcome.expect("read");
        assert_eq!(options.configurations["A"], serde_json::json!({"x": 1}));
        assert_eq!(options.configurations["B"], serde_json::json!({"y": 2}));
    }
}
