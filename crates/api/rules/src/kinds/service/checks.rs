//! What a Service must be, and what of it an update may change (upstream: `ValidateService`, `ValidateServiceUpdate`).

use std::collections::BTreeSet;
use std::net::IpAddr;

use meta::field::{Error, Path};
use meta::names;
use serde_json::{Value, json};

use super::{needs_address, needs_node_port};
use crate::checks::{Errors, labels, non_special_ip, one_of, port_number_or_name, protocol, sentences};
use crate::value::{annotation, at, has, int, list, text};

const LOAD_BALANCER_ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
const SOURCE_RANGES: &str = "service.beta.kubernetes.io/load-balancer-source-ranges";

pub fn validate(object: &Value) -> Errors {
    let (path, spec) = (Path::new("spec"), at(object, "spec"));
    let mut errors: Errors = topology_annotations(object).into_iter().collect();
    errors.extend(type_rules(spec, &path));
    errors.extend(ports(spec, &path.child("ports")));
    errors.extend(labels(at(spec, "selector"), &path.child("selector")));
    errors.extend(one_of(spec, &path, "sessionAffinity", &["ClientIP", "None"]));
    errors.extend(session_affinity(spec, &path.child("sessionAffinityConfig")));
    if needs_address(spec) {
        errors.extend(cluster_addresses(spec, &path));
    }
    for (index, address) in list(spec, "externalIPs").iter().filter_map(Value::as_str).enumerate() {
        let here = path.child("externalIPs").index(index);
        let complaints = sentences(&here, address, names::ip(address));
        errors.extend(if complaints.is_empty() { non_special_ip(address, &here) } else { complaints });
    }
    errors.extend(one_of(spec, &path, "type", &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]));
    errors.extend(node_ports(spec, &path.child("ports")));
    errors.extend(load_balancer(object, spec, &path));
    errors.extend(traffic(spec, &path));
    errors
}

fn topology_annotations(object: &Value) -> Option<Error> {
    let (old, new) = ("service.kubernetes.io/topology-aware-hints", "service.kubernetes.io/topology-mode");
    let (hints, mode) = (annotation(object, old)?, annotation(object, new)?);
    let path = Path::new("metadata").child("annotations").key(new);
    (hints != mode).then(|| Error::invalid(&path, mode, format!("must match annotations[{old}] when both are specified")))
}

fn is_headless(spec: &Value) -> bool {
    matches!(list(spec, "clusterIPs"), [only] if only == "None")
}

fn type_rules(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let kind = text(spec, "type");
    if list(spec, "ports").is_empty() && !is_headless(spec) && kind != "ExternalName" {
        errors.push(Error::required(&path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(spec) => {
            let sentence = format!("may not be set to 'None' for {kind} services");
            errors.push(Error::invalid(&path.child("clusterIPs").index(0), "None", sentence));
        }
        "ExternalName" => {
            let set = ["clusterIPs", "ipFamilies"].into_iter().filter(|field| !list(spec, field).is_empty());
            let set = set.chain(has(spec, "ipFamilyPolicy").then_some("ipFamilyPolicy"));
            errors.extend(set.map(|field| Error::forbidden(&path.child(field), "may not be set for ExternalName services")));
            let name = text(spec, "externalName");
            match name.strip_suffix('.').unwrap_or(name) {
                "" => errors.push(Error::required(&path.child("externalName"), "")),
                name => errors.extend(sentences(&path.child("externalName"), name, names::dns1123_subdomain(name))),
            }
        }
        _ => {}
    }
    errors
}

fn ports(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let all = list(spec, "ports");
    let mut taken = BTreeSet::new();
    for (index, port) in all.iter().enumerate() {
        let here = path.index(index);
        let (name, number) = (text(port, "name"), int(port, "port").unwrap_or(0));
        if name.is_empty() {
            if all.len() > 1 {
                errors.push(Error::required(&here.child("name"), ""));
            }
        } else {
            errors.extend(sentences(&here.child("name"), name, names::dns1123_label(name)));
            if !taken.insert(name) {
                errors.push(Error::duplicate(&here.child("name"), name));
            }
        }
        errors.extend(sentences(&here.child("port"), number, names::port_number(number)));
        errors.extend(protocol(port, &here));
        errors.extend(port_number_or_name(at(port, "targetPort"), &here.child("targetPort")));
        if let Some(app) = at(port, "appProtocol").as_str() {
            errors.extend(sentences(&here.child("appProtocol"), app, names::qualified_name(app)));
        }
    }
    errors
}

/// No port and no node port twice with one protocol.
fn node_ports(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let node_port = |port: &Value| int(port, "nodePort").filter(|number| *number != 0);
    if text(spec, "type") == "ClusterIP" {
        for (index, _) in list(spec, "ports").iter().enumerate().filter(|(_, port)| node_port(port).is_some()) {
            let sentence = "may not be used when `type` is 'ClusterIP'";
            errors.push(Error::forbidden(&path.index(index).child("nodePort"), sentence));
        }
    }
    let mut taken = BTreeSet::new();
    for (index, port) in list(spec, "ports").iter().enumerate() {
        if let Some(number) = node_port(port).filter(|number| !taken.insert((text(port, "protocol"), *number))) {
            errors.push(Error::duplicate(&path.index(index).child("nodePort"), number));
        }
    }
    let mut taken = BTreeSet::new();
    for (index, port) in list(spec, "ports").iter().enumerate() {
        let (protocol, number) = (text(port, "protocol"), int(port, "port").unwrap_or(0));
        if !taken.insert((protocol, number)) {
            // Upstream prints its inner struct.
            let shown = json!({"AppProtocol": null, "Name": "", "NodePort": 0, "Port": number, "Protocol": protocol, "TargetPort": 0});
            errors.push(Error::duplicate(&path.index(index), shown));
        }
    }
    errors
}

fn session_affinity(spec: &Value, path: &Path) -> Errors {
    const WHEN: &str = "when session affinity type is ClientIP";
    let config = at(spec, "sessionAffinityConfig");
    match text(spec, "sessionAffinity") {
        "None" if !config.is_null() => vec![Error::forbidden(path, "must not be set when session affinity is None")],
        "ClientIP" if config.is_null() => vec![Error::required(path, WHEN)],
        "ClientIP" if !has(config, "clientIP") => vec![Error::required(&path.child("clientIP"), WHEN)],
        "ClientIP" => {
            let here = path.child("clientIP").child("timeoutSeconds");
            match int(config, "clientIP.timeoutSeconds") {
                None => vec![Error::required(&here, WHEN)],
                Some(seconds) if !(1..=86400).contains(&seconds) => {
                    vec![Error::invalid(&here, seconds, "must be greater than 0 and less than 86400")]
                }
                Some(_) => Errors::new(),
            }
        }
        _ => Errors::new(),
    }
}

/// `clusterIP`, `clusterIPs`, `ipFamilies` and `ipFamilyPolicy` against each other.
fn cluster_addresses(spec: &Value, path: &Path) -> Errors {
    let here = path.child("clusterIPs");
    let (one, all) = (text(spec, "clusterIP"), list(spec, "clusterIPs"));
    let invalid = |sentence: &str| Error::invalid(&here, all.to_vec(), sentence);
    let mut errors = Errors::new();
    match all.first() {
        None if !one.is_empty() => errors.push(Error::required(&here, "")),
        Some(first) if !one.is_empty() && first != one => errors.push(invalid("first value must match `clusterIP`")),
        Some(_) if one.is_empty() => errors.push(invalid("must be empty when `clusterIP` is not specified")),
        _ => {}
    }
    errors.extend(families(spec, path));
    let before = errors.len();
    for (index, address) in all.iter().filter_map(Value::as_str).enumerate() {
        if (index, address) != (0, "None") {
            errors.extend(sentences(&here.index(index), address, names::ip(address)));
        } else if all.len() > 1 {
            errors.push(invalid("'None' must be the first and only value"));
        }
    }
    let broken = errors.len() > before;
    if all.len() > 2 {
        errors.push(invalid("may only hold up to 2 values"));
    }
    if broken {
        return errors;
    }
    let parsed: Vec<IpAddr> = all.iter().filter_map(|address| address.as_str()?.parse().ok()).collect();
    if all.len() > 1 && !(parsed.iter().any(IpAddr::is_ipv4) && parsed.iter().any(IpAddr::is_ipv6)) {
        errors.push(invalid("may specify no more than one IP for each IP family"));
    }
    for (index, (address, family)) in parsed.iter().zip(list(spec, "ipFamilies")).enumerate() {
        let wanted = if family == "IPv4" { "IPv4" } else { "IPv6" };
        if address.is_ipv4() != (wanted == "IPv4") {
            let sentence = format!("expected an {wanted} value as indicated by `ipFamilies[{index}]`");
            errors.push(Error::invalid(&here.index(index), all[index].clone(), sentence));
        }
    }
    errors
}

fn families(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, family) in list(spec, "ipFamilies").iter().filter_map(Value::as_str).enumerate() {
        let here = path.child("ipFamilies").index(index);
        if !matches!(family, "IPv4" | "IPv6") {
            errors.push(Error::not_supported(&here, family, &["IPv4", "IPv6"]));
        }
        if !seen.insert(family) {
            errors.push(Error::duplicate(&here, family));
        }
    }
    let policies = ["PreferDualStack", "RequireDualStack", "SingleStack"];
    errors.extend(crate::checks::supported(spec, path, "ipFamilyPolicy", &policies));
    errors
}

fn load_balancer(object: &Value, spec: &Value, path: &Path) -> Errors {
    let is_balancer = text(spec, "type") == "LoadBalancer";
    let mut errors = Errors::new();
    let ranges = list(spec, "loadBalancerSourceRanges");
    if !ranges.is_empty() {
        let here = path.child("LoadBalancerSourceRanges");
        if !is_balancer {
            errors.push(Error::forbidden(&here, LOAD_BALANCER_ONLY));
        }
        for (index, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
            errors.extend(sentences(&here.index(index), range.trim(), names::cidr(range.trim())));
        }
    } else if let Some(given) = annotation(object, SOURCE_RANGES) {
        let here = Path::new("metadata").child("annotations").key(SOURCE_RANGES);
        if !is_balancer {
            errors.push(Error::forbidden(&here, LOAD_BALANCER_ONLY));
        }
        let given = given.trim().split(',').map(str::trim).filter(|_| !given.trim().is_empty());
        errors.extend(given.flat_map(|range| sentences(&here, range, names::cidr(range))));
    }
    if has(spec, "allocateLoadBalancerNodePorts") && !is_balancer {
        errors.push(Error::forbidden(&path.child("allocateLoadBalancerNodePorts"), LOAD_BALANCER_ONLY));
    }
    let (class, here) = (at(spec, "loadBalancerClass").as_str(), path.child("loadBalancerClass"));
    match class {
        Some(class) if is_balancer => errors.extend(sentences(&here, class, names::qualified_name(class))),
        Some(_) => errors.push(Error::forbidden(&here, LOAD_BALANCER_ONLY)),
        None => {}
    }
    errors
}

fn is_external(spec: &Value) -> bool {
    needs_node_port(spec) || text(spec, "type") == "ClusterIP" && !list(spec, "externalIPs").is_empty()
}

fn needs_health_check(spec: &Value) -> bool {
    text(spec, "type") == "LoadBalancer" && text(spec, "externalTrafficPolicy") == "Local"
}

/// Traffic policies and distribution. The port of the health check is given by the allocator later.
fn traffic(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    let (external, here) = (text(spec, "externalTrafficPolicy"), path.child("externalTrafficPolicy"));
    if is_external(spec) {
        errors.extend(one_of(spec, path, "externalTrafficPolicy", &["Cluster", "Local"]));
    } else if !external.is_empty() {
        errors.push(Error::invalid(&here, external, "may only be set for externally-accessible services"));
    }
    let (check, here) = (int(spec, "healthCheckNodePort").unwrap_or(0), path.child("healthCheckNodePort"));
    if check != 0 && !needs_health_check(spec) {
        let sentence = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        errors.push(Error::invalid(&here, check, sentence));
    } else if check != 0 {
        errors.extend(sentences(&here, check, names::port_number(check)));
    }
    if has(spec, "internalTrafficPolicy") || needs_address(spec) {
        errors.extend(one_of(spec, path, "internalTrafficPolicy", &["Cluster", "Local"]));
    }
    let distributions = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    errors.extend(crate::checks::supported(spec, path, "trafficDistribution", &distributions));
    errors
}

pub fn update(new: &Value, old: &Value) -> Errors {
    let (after, before) = (at(new, "spec"), at(old, "spec"));
    let path = Path::new("spec");
    let mut errors = Errors::new();
    if needs_address(after) && needs_address(before) {
        errors.extend(addresses_kept(after, before, &path));
        errors.extend(families_kept(after, before, &path));
    }
    let balancers = [after, before].iter().all(|spec| text(spec, "type") == "LoadBalancer");
    if balancers && at(after, "loadBalancerClass") != at(before, "loadBalancerClass") {
        let class = at(after, "loadBalancerClass").clone();
        errors.push(Error::invalid(&path.child("loadBalancerClass"), class, "may not change once set"));
    }
    let check = |spec: &Value| int(spec, "healthCheckNodePort").unwrap_or(0);
    if needs_health_check(after) && needs_health_check(before) && check(after) != check(before) {
        errors.push(Error::forbidden(&path.child("healthCheckNodePort"), "field is immutable"));
    }
    errors
}

/// A second address may come and, with `SingleStack`, go; the first stays.
fn addresses_kept(new: &Value, old: &Value, path: &Path) -> Errors {
    if is_headless(new) && is_headless(old) {
        return Errors::new();
    }
    let here = path.child("clusterIPs");
    let (after, before) = (list(new, "clusterIPs"), list(old, "clusterIPs"));
    let invalid = |index: usize, sentence: &str| Error::invalid(&here.index(index), after.to_vec(), sentence);
    if after.len() == before.len() {
        let changed = after.iter().zip(before).enumerate().filter(|(_, (new, old))| new != old);
        return changed.map(|(index, _)| invalid(index, "may not change once set")).collect();
    }
    let mut errors = Errors::new();
    if after.is_empty() {
        errors.push(invalid(0, "primary clusterIP can not be unset"));
    } else if !before.is_empty() && after.first() != before.first() {
        errors.push(invalid(0, "may not change once set"));
    }
    if after.len() < before.len() && after.len() == 1 && text(new, "ipFamilyPolicy") != "SingleStack" {
        let sentence = "must be set to 'SingleStack' when releasing the secondary clusterIP";
        errors.push(Error::invalid(&path.child("ipFamilyPolicy"), at(new, "ipFamilyPolicy").clone(), sentence));
    }
    errors
}

fn families_kept(new: &Value, old: &Value, path: &Path) -> Errors {
    if is_headless(new) || is_headless(old) {
        return Errors::new();
    }
    let here = path.child("ipFamilies").index(0);
    let (after, before) = (list(new, "ipFamilies"), list(old, "ipFamilies"));
    let mut errors = Errors::new();
    if after.len() == before.len() {
        let changed = after.iter().zip(before).filter(|(new, old)| new != old);
        return changed.map(|_| Error::invalid(&here, after.to_vec(), "may not change once set")).collect();
    }
    if !before.is_empty() && !after.is_empty() && after.first() != before.first() {
        errors.push(Error::invalid(&here, list(new, "clusterIPs").to_vec(), "may not change once set"));
    }
    if after.len() < before.len() && after.len() == 1 && text(new, "ipFamilyPolicy") != "SingleStack" {
        let sentence = "must be set to 'SingleStack' when releasing the secondary ipFamily";
        errors.push(Error::invalid(&path.child("ipFamilyPolicy"), at(new, "ipFamilyPolicy").clone(), sentence));
    }
    errors
}

/// `status.loadBalancer` (upstream: `ValidateLoadBalancerStatus`).
pub fn status(object: &Value) -> Errors {
    let path = Path::new("status").dotted("loadBalancer.ingress");
    let ingress = list(object, "status.loadBalancer.ingress");
    if !ingress.is_empty() && text(object, "spec.type") != "LoadBalancer" {
        return vec![Error::forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'")];
    }
    let mut errors = Errors::new();
    for (index, one) in ingress.iter().enumerate() {
        let here = path.index(index);
        let (ip, mode) = (text(one, "ip"), at(one, "ipMode").as_str());
        errors.extend(crate::checks::formed(one, &here, "ip", names::ip));
        match mode {
            None if !ip.is_empty() => errors.push(Error::required(&here.child("ipMode"), "must be specified when `ip` is set")),
            Some(_) if ip.is_empty() => {
                errors.push(Error::forbidden(&here.child("ipMode"), "may not be specified when `ip` is not set"));
            }
            Some(mode) if !matches!(mode, "VIP" | "Proxy") => {
                errors.push(Error::not_supported(&here.child("ipMode"), mode, &["Proxy", "VIP"]));
            }
            _ => {}
        }
        let host = text(one, "hostname");
        errors.extend(crate::checks::formed(one, &here, "hostname", names::dns1123_subdomain));
        if host.parse::<IpAddr>().is_ok() {
            errors.push(Error::invalid(&here.child("hostname"), host, "must be a DNS name, not an IP address"));
        }
    }
    errors
}

/// What is most likely not meant (upstream: `GetWarningsForService`).
pub fn warnings(object: &Value) -> Vec<String> {
    let (spec, path) = (at(object, "spec"), Path::new("spec"));
    let mut found = Vec::new();
    if annotation(object, "service.kubernetes.io/topology-aware-hints").is_some() {
        let key = "service.kubernetes.io/topology-aware-hints";
        found.push(format!("metadata.annotations[{key}]: deprecated in v1.27+; use \"service.kubernetes.io/topology-mode\" instead"));
    }
    if is_headless(spec) {
        if !text(spec, "loadBalancerIP").is_empty() {
            found.push("spec.loadBalancerIP is ignored when spec.clusterIP is set to \"None\"".to_owned());
        }
        if !list(spec, "externalIPs").is_empty() {
            found.push("spec.externalIPs is ignored when spec.clusterIP is set to \"None\"".to_owned());
        }
        if text(spec, "sessionAffinity") == "ClientIP" {
            found.push("spec.SessionAffinity is ignored for headless services".to_owned());
        }
    }
    for field in ["clusterIPs", "externalIPs"] {
        for (index, address) in list(spec, field).iter().filter_map(Value::as_str).enumerate() {
            found.extend(crate::checks::ip_warning(address, &path.child(field).index(index)));
        }
    }
    found
}
