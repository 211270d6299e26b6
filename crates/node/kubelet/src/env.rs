//! A container's environment, from its spec, ConfigMaps, Secrets, the pod's own fields and the cluster's Services. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret, Service};
use meta::quantity::Quantity;

use crate::podspec;

/// A referenced object, or `None` where it is known not to exist.
pub type Found<K> = Option<Arc<K>>;

/// What a container's configuration may refer to.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub config_maps: BTreeMap<String, Found<ConfigMap>>,
    pub secrets: BTreeMap<String, Found<Secret>>,
    /// The Services of the pod's namespace, and `kubernetes` of `default`.
    pub services: Vec<Arc<Service>>,
    /// Env files by volume and path (KEP-3721); an error is a sentence.
    pub files: BTreeMap<(String, String), Result<BTreeMap<String, String>, String>>,
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    pub node_name: String,
    /// Stands in for a limit that is not set.
    pub allocatable_cpu_milli: i64,
    pub allocatable_memory_bytes: i64,
}

/// Why a container cannot be configured; shown as `CreateContainerConfigError`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(pub String);

/// Name and value, each name once, in order of first mention.
pub fn of_container(pod: &Pod, container: &Container, facts: &Facts) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut env = Env::default();
    let links = podspec::spec(pod).enable_service_links.unwrap_or(true);
    for (name, value) in service_variables(pod, &facts.services, links) {
        env.set(name, value.into_bytes());
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        for (key, value) in env_from(pod, source, facts)? {
            env.set(format!("{prefix}{key}"), value);
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) if !value.is_empty() => Some(expand(value, |name| env.text(name)).into_bytes()),
            (_, Some(source)) => value_from(pod, container, source, facts)?,
            _ => Some(Vec::new()),
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    Ok(env.into_list())
}

#[derive(Default)]
struct Env {
    order: Vec<String>,
    values: BTreeMap<String, Vec<u8>>,
}

impl Env {
    fn set(&mut self, name: String, value: Vec<u8>) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }
    fn text(&self, name: &str) -> Option<String> {
        self.values.get(name).map(|value| String::from_utf8_lossy(value).into_owned())
    }
    fn into_list(mut self) -> Vec<(String, Vec<u8>)> {
        self.order.into_iter().map(|name| (name.clone(), self.values.remove(&name).unwrap_or_default())).collect()
    }
}

/// Replaces `$(NAME)` by its value where it has one and leaves it as it is where not; `$$` is a plain `$`.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(end) = rest.strip_prefix('(').and_then(|inner| inner.find(')')) {
            let name = &rest[1..=end];
            match lookup(name) {
                Some(value) => out.push_str(&value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = &rest[end + 2..];
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

/// An env file: lines of `NAME='value'`; a value may go over lines, and a line may be blank or a comment. `Err` is a sentence.
pub fn parse_file(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut found = BTreeMap::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = rest.split_once('\n').unwrap_or((rest, ""));
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            rest = after;
            continue;
        }
        let Some((name, value)) = rest.split_once('=').filter(|(name, _)| !name.contains('\n')) else {
            return Err(format!("line {line:?} has no '='"));
        };
        let name = name.trim();
        if !is_variable_name(name) {
            return Err(format!("{name:?} is no name of a variable"));
        }
        let Some((value, tail)) = value.trim_start_matches([' ', '\t']).strip_prefix('\'').and_then(|value| value.split_once('\'')) else {
            return Err(format!("the value of {name} is not in single quotes"));
        };
        let (end, after) = tail.split_once('\n').unwrap_or((tail, ""));
        if !end.trim().is_empty() && !end.trim_start().starts_with('#') {
            return Err(format!("{end:?} follows the value of {name}"));
        }
        found.insert(name.to_owned(), value.to_owned());
        rest = after;
    }
    Ok(found)
}

/// Is the name fit for a variable (upstream since 1.30: any printable ASCII but `=`)?
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

fn env_from(pod: &Pod, source: &k8s_openapi::api::core::v1::EnvFromSource, facts: &Facts) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut found = if let Some(reference) = &source.config_map_ref {
        let name = reference.name.as_str();
        match facts.config_maps.get(name).and_then(Option::as_ref) {
            Some(object) => config_map_data(object),
            None if reference.optional == Some(true) => BTreeMap::new(),
            None => return Err(Error(format!("configmap {name:?} not found"))),
        }
    } else if let Some(reference) = &source.secret_ref {
        let name = reference.name.as_str();
        match facts.secrets.get(name).and_then(Option::as_ref) {
            Some(object) => secret_data(object),
            None if reference.optional == Some(true) => BTreeMap::new(),
            None => return Err(Error(format!("secret {name:?} not found"))),
        }
    } else {
        return Err(Error(format!("an envFrom of pod {} names no source", podspec::name(pod))));
    };
    found.retain(|key, _| is_variable_name(key));
    Ok(found)
}

/// All keys of a ConfigMap, text and binary.
pub fn config_map_data(object: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = object.data.iter().flatten().map(|(key, value)| (key.clone(), value.clone().into_bytes()));
    text.chain(object.binary_data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone()))).collect()
}
pub fn secret_data(object: &Secret) -> BTreeMap<String, Vec<u8>> {
    object.data.iter().flatten().map(|(key, value)| (key.clone(), value.0.clone())).collect()
}

fn value_from(pod: &Pod, container: &Container, source: &EnvVarSource, facts: &Facts) -> Result<Option<Vec<u8>>, Error> {
    let namespace = podspec::namespace(pod);
    if let Some(field) = &source.field_ref {
        return pod_field(pod, &field.field_path, facts).map(|value| Some(value.into_bytes()));
    }
    if let Some(field) = &source.resource_field_ref {
        return resource_field(pod, Some(container), field, facts).map(|value| Some(value.into_bytes()));
    }
    if let Some(key) = &source.config_map_key_ref {
        let optional = key.optional == Some(true);
        return match facts.config_maps.get(&key.name).and_then(Option::as_ref).map(|object| config_map_data(object)) {
            Some(mut data) => match data.remove(&key.key) {
                None if !optional => Err(Error(format!("couldn't find key {} in ConfigMap {namespace}/{}", key.key, key.name))),
                value => Ok(value),
            },
            None if optional => Ok(None),
            None => Err(Error(format!("configmap {:?} not found", key.name))),
        };
    }
    if let Some(key) = &source.secret_key_ref {
        let optional = key.optional == Some(true);
        return match facts.secrets.get(&key.name).and_then(Option::as_ref).map(|object| secret_data(object)) {
            Some(mut data) => match data.remove(&key.key) {
                None if !optional => Err(Error(format!("couldn't find key {} in Secret {namespace}/{}", key.key, key.name))),
                value => Ok(value),
            },
            None if optional => Ok(None),
            None => Err(Error(format!("secret {:?} not found", key.name))),
        };
    }
    if let Some(key) = &source.file_key_ref {
        let optional = key.optional == Some(true);
        return match facts.files.get(&(key.volume_name.clone(), key.path.clone())) {
            Some(Ok(file)) => match file.get(&key.key) {
                None if !optional => Err(Error(format!("environment variable key {:?} not found in file {:?}", key.key, key.path))),
                value => Ok(value.map(|value| value.clone().into_bytes())),
            },
            Some(Err(_)) | None if optional => Ok(None),
            Some(Err(why)) => Err(Error(format!("couldn't parse env file {:?} of volume {:?}: {why}", key.path, key.volume_name))),
            None => Err(Error(format!("volume {:?} of an env file not found", key.volume_name))),
        };
    }
    Err(Error("the source of a variable is not supported".into()))
}

/// A field of the downward API as text; maps come as `key="value"` lines.
pub fn pod_field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, Error> {
    let map = |map: &Option<BTreeMap<String, String>>| {
        map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect::<Vec<_>>().join("\n")
    };
    let entry = |map: &Option<BTreeMap<String, String>>, key: &str| map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default();
    let subscript = |prefix: &str| path.strip_prefix(prefix).and_then(|rest| rest.strip_suffix("']"));
    if let Some(key) = subscript("metadata.labels['") {
        return Ok(entry(&pod.metadata.labels, key));
    }
    if let Some(key) = subscript("metadata.annotations['") {
        return Ok(entry(&pod.metadata.annotations, key));
    }
    Ok(match path {
        "metadata.name" => podspec::name(pod).into(),
        "metadata.namespace" => podspec::namespace(pod).into(),
        "metadata.uid" => podspec::uid(pod).into(),
        "metadata.labels" => map(&pod.metadata.labels),
        "metadata.annotations" => map(&pod.metadata.annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => podspec::spec(pod).service_account_name.clone().unwrap_or_default(),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        _ => return Err(Error(format!("unsupported fieldPath: {path}"))),
    })
}

/// A container's request or limit, divided and rounded up.
pub fn resource_field(pod: &Pod, own: Option<&Container>, field: &ResourceFieldSelector, facts: &Facts) -> Result<String, Error> {
    let other = field.container_name.as_deref().filter(|name| !name.is_empty());
    let found = other.and_then(|name| podspec::container(pod, name)).map(|(_, container)| container.into_owned());
    let container = match (&found, other, own) {
        (Some(container), ..) => container,
        (None, None, Some(container)) => container,
        _ => return Err(Error(format!("container {} not found", other.unwrap_or_default()))),
    };
    let divisor = field.divisor.as_ref().and_then(podspec::quantity).filter(|divisor| !divisor.is_zero());
    let (of, resource) = field.resource.split_once('.').unwrap_or_default();
    let value = match of {
        "limits" => podspec::limit(container, resource),
        "requests" => podspec::request(container, resource),
        _ => return Err(Error(format!("unsupported container resource : {}", field.resource))),
    };
    // A limit that is not set is the node's whole; a request that is not set is nothing.
    let milli = match (value, of, resource) {
        (Some(value), ..) => i128::from(value.milli_value()),
        (None, "limits", "cpu") => i128::from(facts.allocatable_cpu_milli),
        (None, "limits", "memory") => i128::from(facts.allocatable_memory_bytes) * 1000,
        _ => 0,
    };
    let divisor = divisor.map_or(1000, |divisor: Quantity| i128::from(divisor.milli_value())).max(1);
    Ok(((milli + divisor - 1) / divisor).to_string())
}

/// `NAME_SERVICE_HOST` and its relatives. Without links only those of the `kubernetes` Service.
fn service_variables(pod: &Pod, services: &[Arc<Service>], links: bool) -> Vec<(String, String)> {
    let mut chosen: Vec<&Arc<Service>> = services
        .iter()
        .filter(|service| {
            let master = service.metadata.name.as_deref() == Some("kubernetes") && service.metadata.namespace.as_deref() == Some("default");
            master || (links && service.metadata.namespace.as_deref() == Some(podspec::namespace(pod)))
        })
        .collect();
    chosen.sort_by_key(|service| service.metadata.name.clone());
    chosen.iter().flat_map(|service| variables_of(service)).collect()
}

fn variables_of(service: &Service) -> Vec<(String, String)> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return Vec::new() };
    let name = service.metadata.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return Vec::new() };
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let protocol = |port: &k8s_openapi::api::core::v1::ServicePort| port.protocol.as_deref().unwrap_or("TCP").to_owned();
    let url = |port: &k8s_openapi::api::core::v1::ServicePort| format!("{}://{host}:{}", protocol(port).to_lowercase(), port.port);
    let mut variables = vec![(format!("{name}_SERVICE_HOST"), ip.to_owned()), (format!("{name}_SERVICE_PORT"), first.port.to_string())];
    for port in ports.iter().filter(|port| port.name.as_deref().is_some_and(|name| !name.is_empty())) {
        let port_name = port.name.as_deref().unwrap_or_default().to_uppercase().replace('-', "_");
        variables.push((format!("{name}_SERVICE_PORT_{port_name}"), port.port.to_string()));
    }
    variables.push((format!("{name}_PORT"), url(first)));
    for port in ports {
        let prefix = format!("{name}_PORT_{}_{}", port.port, protocol(port).to_uppercase());
        variables.push((prefix.clone(), url(port)));
        variables.push((format!("{prefix}_PROTO"), protocol(port).to_lowercase()));
        variables.push((format!("{prefix}_PORT"), port.port.to_string()));
        variables.push((format!("{prefix}_ADDR"), ip.to_owned()));
    }
    variables
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::podspec::tests::pod;

    fn facts() -> Facts {
        let config: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "config"}, "data": {"COLOR": "red", "a=b": "no"}})).unwrap();
        let secret: Secret = serde_json::from_value(json!({"metadata": {"name": "secret"}, "data": {"TOKEN": "czNj"}})).unwrap();
        let service = json!({"metadata": {"name": "my-db", "namespace": "default"},
            "spec": {"clusterIP": "10.96.0.5", "ports": [{"name": "sql", "port": 5432, "protocol": "TCP"}]}});
        Facts {
            config_maps: BTreeMap::from([("config".to_owned(), Some(Arc::new(config)))]),
            secrets: BTreeMap::from([("secret".to_owned(), Some(Arc::new(secret)))]),
            services: vec![Arc::new(serde_json::from_value(service).unwrap())],
            files: BTreeMap::from([(("v".to_owned(), "a.env".to_owned()), parse_file("A='one'\n"))]),
            pod_ips: vec!["10.244.0.7".into()],
            host_ips: vec!["192.0.2.1".into()],
            node_name: "node".into(),
            allocatable_cpu_milli: 4000,
            allocatable_memory_bytes: 8 << 30,
        }
    }

    fn env(container: serde_json::Value) -> Result<BTreeMap<String, String>, Error> {
        let pod = pod(json!({"containers": [container]}));
        let list = of_container(&pod, &podspec::spec(&pod).containers[0], &facts())?;
        Ok(list.into_iter().map(|(name, value)| (name, String::from_utf8(value).unwrap())).collect())
    }

    #[test]
    fn an_env_file_has_quoted_values_over_lines_and_comments() {
        let file = parse_file("# first\nA='1'\n\n B='two\nlines' # said\nC=''\n").unwrap();
        assert_eq!(file, BTreeMap::from([("A".into(), "1".into()), ("B".into(), "two\nlines".into()), ("C".into(), String::new())]));
        for bad in ["A=1", "A='1", "A", "A='1' x", "='1'"] {
            assert!(parse_file(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_variable_comes_from_a_file_of_a_volume() {
        let variable = |key: &str, optional: bool| {
            env(
                json!({"name": "c", "env": [{"name": "X", "valueFrom": {"fileKeyRef": {"volumeName": "v", "path": "a.env", "key": key, "optional": optional}}}]}),
            )
        };
        assert_eq!(variable("A", false).unwrap()["X"], "one");
        assert!(!variable("B", true).unwrap().contains_key("X"));
        assert!(variable("B", false).unwrap_err().0.contains("\"B\" not found"));
    }

    #[test]
    fn expansion_knows_escapes_unknown_names_and_open_ends() {
        let lookup = |name: &str| (name == "A").then(|| "1".to_owned());
        for (text, expected) in [
            ("$(A)", "1"),
            ("x$(A)y$(B)", "x1y$(B)"),
            ("$$(A)", "$(A)"),
            ("$A", "$A"),
            ("$(A", "$(A"),
            ("100$", "100$"),
            ("$$$(A)", "$1"),
            ("$()", "$()"),
        ] {
            assert_eq!(expand(text, lookup), expected, "{text}");
        }
    }

    #[test]
    fn every_source_of_a_variable_is_resolved() {
        let env = env(json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "config"}}], "resources": {"limits": {"cpu": "1500m"}}, "env": [
            {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)-$(MY_DB_SERVICE_HOST)"},
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "secret", "key": "TOKEN"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
            {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
            {"name": "MEM", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "none", "key": "x", "optional": true}}}]}))
        .unwrap();
        let get = |name: &str| env.get(name).map(String::as_str);
        assert_eq!([get("P_COLOR"), get("B"), get("TOKEN")], [Some("red"), Some("1-10.96.0.5"), Some("s3c")]);
        assert_eq!([get("IP"), get("APP"), get("CPU"), get("MEM")], [Some("10.244.0.7"), Some("web"), Some("2"), Some("8192")]);
        assert_eq!([get("MY_DB_SERVICE_PORT_SQL"), get("MY_DB_PORT_5432_TCP")], [Some("5432"), Some("tcp://10.96.0.5:5432")]);
        assert_eq!([get("GONE"), get("P_a=b")], [None, None]);
    }

    #[test]
    fn what_is_missing_is_named_as_upstream_does() {
        let missing = |source: serde_json::Value| env(json!({"name": "c", "env": [{"name": "A", "valueFrom": source}]})).unwrap_err().0;
        assert_eq!(missing(json!({"configMapKeyRef": {"name": "none", "key": "x"}})), "configmap \"none\" not found");
        assert_eq!(missing(json!({"configMapKeyRef": {"name": "config", "key": "x"}})), "couldn't find key x in ConfigMap default/config");
        assert_eq!(missing(json!({"secretKeyRef": {"name": "secret", "key": "x"}})), "couldn't find key x in Secret default/secret");
    }
}
