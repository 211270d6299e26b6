//! What upstream's `SetDefaults_PodSpec` and its relatives fill in.

use serde_json::{Value, json};

use crate::value::{at, entries, flag, has, int, items_mut, object_at, remove, set, set_default, set_default_text, sub, text};

/// The lists of a spec that hold containers.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a pod's spec, alone or in a template.
pub fn spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    set_default_text(spec, "restartPolicy", "Always");
    set_default_text(spec, "dnsPolicy", "ClusterFirst");
    set_default(spec, "terminationGracePeriodSeconds", 30);
    set_default(spec, "securityContext", json!({}));
    set_default_text(spec, "schedulerName", "default-scheduler");
    service_account(spec);
    for list in CONTAINER_LISTS {
        items_mut(spec, list).for_each(container);
    }
    items_mut(spec, "volumes").for_each(volume);
}

/// `serviceAccount` is the old name of `serviceAccountName`: both are written, the new one wins.
fn service_account(spec: &mut Value) {
    let (new, old) = (text(spec, "serviceAccountName").to_owned(), text(spec, "serviceAccount").to_owned());
    let name = if new.is_empty() { old } else { new };
    if !name.is_empty() {
        set(spec, "serviceAccountName", name.clone());
        set(spec, "serviceAccount", name);
    }
}

/// Defaults of a pod itself, on top of its spec's: they do not apply to templates.
pub fn pod(spec: &mut Value) {
    set_default(spec, "enableServiceLinks", true);
    let on_host = flag(spec, "hostNetwork");
    for list in ["initContainers", "containers"] {
        for container in items_mut(spec, list) {
            requests_from_limits(container);
            if on_host {
                items_mut(container, "ports").for_each(host_port);
            }
        }
    }
    crate::resources::default_pod_level(spec);
}

fn requests_from_limits(container: &mut Value) {
    let limits: Vec<(String, Value)> = entries(container, "resources.limits").map(|(key, value)| (key.clone(), value.clone())).collect();
    if limits.is_empty() {
        return;
    }
    if let Some(requests) = object_at(container, "resources.requests") {
        for (name, limit) in limits {
            requests.entry(name).or_insert(limit);
        }
    }
}

fn host_port(port: &mut Value) {
    if int(port, "hostPort").unwrap_or(0) == 0 && has(port, "containerPort") {
        let number = at(port, "containerPort").clone();
        set(port, "hostPort", number);
    }
}

fn container(container: &mut Value) {
    if text(container, "imagePullPolicy").is_empty() {
        let policy = pull_policy(text(container, "image"));
        set(container, "imagePullPolicy", policy);
    }
    set_default_text(container, "terminationMessagePath", "/dev/termination-log");
    set_default_text(container, "terminationMessagePolicy", "File");
    for port in items_mut(container, "ports") {
        set_default_text(port, "protocol", "TCP");
    }
    for variable in items_mut(container, "env") {
        if let Some(reference) = sub(variable, "valueFrom.fieldRef") {
            set_default_text(reference, "apiVersion", "v1");
        }
        if let Some(reference) = sub(variable, "valueFrom.resourceFieldRef") {
            set_default(reference, "divisor", "0");
        }
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(found) = sub(container, name) {
            probe(found);
        }
    }
    for name in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if let Some(found) = sub(container, name) {
            http_get(found);
        }
    }
}

fn pull_policy(image: &str) -> &'static str {
    if is_latest(image) { "Always" } else { "IfNotPresent" }
}

/// Whether an image is named by the tag `latest`, written or not. A digest without a tag is not.
fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, false), |(name, _)| (name, true));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => !digest,
    }
}

fn probe(probe: &mut Value) {
    for (field, value) in [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)] {
        if int(probe, field).unwrap_or(0) == 0 {
            set(probe, field, value);
        }
    }
    if let Some(get) = sub(probe, "httpGet") {
        http_get(get);
    }
    if let Some(call) = sub(probe, "grpc") {
        set_default(call, "service", "");
    }
}

fn http_get(get: &mut Value) {
    set_default_text(get, "path", "/");
    set_default_text(get, "scheme", "HTTP");
}

/// Mode 0644.
const FILE_MODE: i64 = 420;

fn volume(volume: &mut Value) {
    let sources = volume.as_object().map_or(0, |map| map.iter().filter(|(key, value)| *key != "name" && !value.is_null()).count());
    if sources == 0 {
        set(volume, "emptyDir", json!({}));
    }
    if let Some(image) = sub(volume, "image") {
        let policy = pull_policy(text(image, "reference"));
        set_default_text(image, "pullPolicy", policy);
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = sub(volume, source) {
            set_default(source, "defaultMode", FILE_MODE);
        }
    }
    if let Some(path) = sub(volume, "hostPath") {
        set_default(path, "type", "");
    }
    items_mut(volume, "downwardAPI.items").for_each(downward_item);
    for source in items_mut(volume, "projected.sources") {
        if let Some(token) = sub(source, "serviceAccountToken") {
            set_default(token, "expirationSeconds", 3600);
        }
        items_mut(source, "downwardAPI.items").for_each(downward_item);
    }
    if let Some(claim) = sub(volume, "ephemeral.volumeClaimTemplate.spec") {
        set_default_text(claim, "volumeMode", "Filesystem");
    }
}

fn downward_item(item: &mut Value) {
    if let Some(reference) = sub(item, "fieldRef") {
        set_default_text(reference, "apiVersion", "v1");
    }
    if let Some(reference) = sub(item, "resourceFieldRef") {
        set_default(reference, "divisor", "0");
    }
}

/// A template's own metadata never holds a creation time.
pub fn template(template: &mut Value) {
    if at(template, "metadata.creationTimestamp").is_null() {
        drop(remove(template, "metadata.creationTimestamp"));
    }
    if let Some(found) = sub(template, "spec") {
        spec(found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, latest) in [
            ("nginx", true),
            ("nginx:latest", true),
            ("nginx:1.25", false),
            ("localhost:5000/a/b", true),
            ("localhost:5000/a/b:1", false),
            ("a@sha256:00", false),
            ("a:latest@sha256:00", true),
        ] {
            assert_eq!(is_latest(image), latest, "{image}");
        }
    }

    #[test]
    fn a_bare_pod_is_filled_in() {
        let mut object = json!({"containers": [{"name": "a", "image": "b", "resources": {"limits": {"cpu": "1"}},
            "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}}}],
            "volumes": [{"name": "v"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}}],
            "hostNetwork": true, "serviceAccountName": "robot"});
        spec(&mut object);
        pod(&mut object);
        let expected = json!({"containers": [{"name": "a", "image": "b", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}},
                "ports": [{"containerPort": 80, "hostPort": 80, "protocol": "TCP"}],
                "livenessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                    "successThreshold": 1, "failureThreshold": 3}}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
                {"name": "h", "hostPath": {"path": "/", "type": ""}}],
            "hostNetwork": true, "serviceAccountName": "robot", "serviceAccount": "robot", "restartPolicy": "Always",
            "dnsPolicy": "ClusterFirst", "terminationGracePeriodSeconds": 30, "securityContext": {},
            "schedulerName": "default-scheduler", "enableServiceLinks": true});
        assert_eq!(object, expected);
    }
}
