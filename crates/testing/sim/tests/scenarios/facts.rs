//! What of the objects is told, as lines that are the same in every run.

use std::collections::BTreeMap;

use serde_json::Value;

/// Lines, and how often each holds.
pub type Facts = BTreeMap<String, usize>;

/// What is no longer so and what is so now.
pub fn difference(before: &Facts, after: &Facts) -> Vec<String> {
    let mut lines: Vec<&String> = before.keys().chain(after.keys()).collect();
    lines.sort();
    lines.dedup();
    let count = |facts: &Facts, line: &String| facts.get(line).copied().unwrap_or(0);
    let say = |sign: char, times: usize, line: &String| match times {
        1 => format!("{sign} {line}"),
        _ => format!("{sign} {times} × {line}"),
    };
    let changed = lines.into_iter().filter_map(|line| match (count(before, line), count(after, line)) {
        (had, has) if has > had => Some(say('+', has - had, line)),
        (had, has) if has < had => Some(say('-', had - has, line)),
        _ => None,
    });
    changed.collect()
}

/// Beside the status, what of an object controllers decide.
fn told_of_spec(kind: &str) -> &'static [&'static str] {
    match kind {
        "Pod" => &["/spec/nodeName", "/spec/containers/0/image", "/spec/hostname", "/spec/volumes/0/persistentVolumeClaim/claimName"],
        "ReplicaSet" | "ReplicationController" => &["/spec/replicas"],
        "Job" => &["/spec/suspend"],
        "Node" => &["/spec/taints", "/spec/podCIDR"],
        "Lease" => &["/spec/holderIdentity"],
        "ClusterTrustBundle" => &["/spec/signerName"],
        "PersistentVolumeClaim" => &["/spec/volumeName", "/spec/resources/requests/storage"],
        "PersistentVolume" => &["/spec/claimRef/name"],
        "VolumeAttachment" => &["/spec/attacher", "/spec/nodeName", "/spec/source/persistentVolumeName"],
        "ControllerRevision" => &["/revision"],
        "Endpoints" => &["/subsets"],
        "EndpointSlice" => &["/endpoints", "/ports"],
        "ClusterRole" => &["/rules"],
        "ServiceAccount" => &["/secrets"],
        "ResourceClaim" => &["/spec/devices/requests"],
        "IPAddress" => &["/spec/parentRef/name"],
        "Deployment" | "StatefulSet" => &["/spec/replicas"],
        "ConfigMap" => &["/data"],
        _ => &[],
    }
}

/// Generated names by what they are shown as.
pub fn nicknames(objects: &[(String, Value)]) -> Vec<(String, String)> {
    let named = |(kind, object): &(String, Value)| {
        let meta = &object["metadata"];
        let name = meta["name"].as_str()?;
        let owner = &meta["ownerReferences"][0];
        let shown = match (meta["generateName"].as_str().filter(|prefix| !prefix.is_empty()), kind.as_str()) {
            (Some(prefix), _) => format!("{prefix}*"),
            // Whatever was free.
            (None, "IPAddress") => "*".to_owned(),
            // With the time that it is for.
            (None, "Job") if owner["kind"] == "CronJob" => format!("{}-*", owner["name"].as_str()?),
            _ => return None,
        };
        Some((name.to_owned(), shown))
    };
    objects.iter().filter_map(named).collect()
}

pub fn facts_of(kind: &str, object: &Value, nicknames: &BTreeMap<String, String>) -> Vec<String> {
    let meta = &object["metadata"];
    // Longer names first: one may be the beginning of another.
    let mut names: Vec<(&String, &String)> = nicknames.iter().collect();
    names.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
    let plain = |text: String| names.iter().fold(text, |text, (name, nickname)| text.replace(name.as_str(), nickname)).replace('\n', " ⏎ ");
    let name = plain(meta["name"].as_str().unwrap_or_default().to_owned());
    if kind == "Event" {
        let about = &object["involvedObject"];
        let told = [&object["type"], &object["reason"], &about["kind"], &about["name"], &object["message"]]
            .map(|part| part.as_str().unwrap_or_default());
        return vec![plain(format!("Event {} {} {}/{}: {}", told[0], told[1], told[2], told[3], told[4]))];
    }
    let head = match meta["namespace"].as_str().unwrap_or_default() {
        "" | "default" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    };
    let owners: Vec<String> = meta["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|owner| plain(format!("{}/{}", owner["kind"].as_str().unwrap_or_default(), owner["name"].as_str().unwrap_or_default())))
        .collect();
    let mut facts = vec![if owners.is_empty() { head.clone() } else { format!("{head} of {}", owners.join(", ")) }];
    if meta["deletionTimestamp"].is_string() {
        facts.push(format!("{head} is leaving"));
    }
    for finalizer in meta["finalizers"].as_array().into_iter().flatten() {
        facts.push(format!("{head} is held by {}", finalizer.as_str().unwrap_or_default()));
    }
    let mut tell = |path: &str, value: &Value| flatten(path, value, &mut |line| facts.push(plain(format!("{head} {line}"))));
    for pointer in told_of_spec(kind) {
        if let Some(value) = object.pointer(pointer) {
            tell(pointer.trim_start_matches('/').rsplit('/').next().unwrap_or_default(), value);
        }
    }
    match kind {
        "Pod" => {
            tell("phase", &object["status"]["phase"]);
            let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            for condition in conditions.filter(|condition| condition["type"] == "DisruptionTarget") {
                tell("DisruptionTarget", &condition["reason"]);
            }
        }
        // Its address is whatever was free.
        "Service" => tell("loadBalancer", &object["status"]["loadBalancer"]),
        "Node" => {
            let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
            for condition in conditions.filter(|condition| condition["type"] == "Ready") {
                tell("Ready", &condition["status"]);
            }
            tell("volumesAttached", &object["status"]["volumesAttached"]);
            tell("ttl", &meta["annotations"]["node.alpha.kubernetes.io/ttl"]);
        }
        // How many steps a Deployment takes depends on how much it sees at once.
        "ReplicaSet" if !owners.is_empty() => {
            let mut status = object["status"].clone();
            status.as_object_mut().map(|fields| fields.remove("observedGeneration"));
            tell("", &status);
        }
        _ => tell("", &object["status"]),
    }
    facts
}

/// A line for each value that is neither a time nor an identity.
fn flatten(path: &str, value: &Value, tell: &mut impl FnMut(String)) {
    match value {
        Value::Null => {}
        Value::Object(fields) if fields.contains_key("type") && fields.contains_key("status") => {
            let part = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default();
            tell(format!("{path} {}={} {} {:?}", part("type"), part("status"), part("reason"), part("message")).trim().to_owned());
        }
        Value::Object(fields) => {
            for (name, value) in fields.iter().filter(|(name, _)| !matches!(name.as_str(), "uid" | "resourceVersion")) {
                flatten(if path.is_empty() { name.clone() } else { format!("{path}.{name}") }.as_str(), value, tell);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| flatten(path, item, tell)),
        Value::String(text) if path == "certificate" || text.parse::<jiff::Timestamp>().is_ok() => tell(format!("{path} is set")),
        Value::String(text) => tell(format!("{path}={text}")),
        other => tell(format!("{path}={other}")),
    }
}
