//! A pod's place in the network: DNS, host names, host aliases, the host's ports.

use meta::field::{Error, Path};
use meta::names;
use serde_json::Value;

use super::Context;
use crate::checks::{Errors, sentences};
use crate::value::{at, flag, has, int, list, text};

pub fn dns_config(spec: &Value, path: &Path) -> Errors {
    let (config, here) = (at(spec, "dnsConfig"), path.child("dnsConfig"));
    let servers = list(config, "nameservers");
    if text(spec, "dnsPolicy") == "None" {
        if config.is_null() {
            return vec![Error::required(&here, "must provide `dnsConfig` when `dnsPolicy` is None")];
        }
        if servers.is_empty() {
            let sentence = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            return vec![Error::required(&here.child("nameservers"), sentence)];
        }
    }
    if config.is_null() {
        return Errors::new();
    }
    let mut errors = Errors::new();
    if servers.len() > 3 {
        let sentence = "must not have more than 3 nameservers";
        errors.push(Error::invalid(&here.child("nameservers"), servers.to_vec(), sentence));
    }
    for (index, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        errors.extend(sentences(&here.child("nameservers").index(index), server, names::ip(server)));
    }
    errors.extend(searches(list(config, "searches"), &here.child("searches")));
    for (index, option) in list(config, "options").iter().enumerate() {
        if text(option, "name").is_empty() {
            errors.push(Error::required(&here.child("options").index(index), "must not be empty"));
        }
    }
    errors
}

/// What the resolvers of Linux take: 32 paths of 2,048 characters together.
fn searches(searches: &[Value], path: &Path) -> Errors {
    let mut errors = Errors::new();
    if searches.len() > 32 {
        errors.push(Error::invalid(path, searches.to_vec(), "must not have more than 32 search paths"));
    }
    let words: Vec<&str> = searches.iter().filter_map(Value::as_str).collect();
    if words.join(" ").len() > 2048 {
        let sentence = "must not have more than 2048 characters (including spaces) in the search list";
        errors.push(Error::invalid(path, searches.to_vec(), sentence));
    }
    for (index, word) in words.into_iter().enumerate().filter(|(_, word)| *word != ".") {
        let word = word.strip_suffix('.').unwrap_or(word);
        errors.extend(sentences(&path.index(index), word, names::dns1123_subdomain_with_underscore(word)));
    }
    errors
}

pub fn host_aliases(spec: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (index, alias) in list(spec, "hostAliases").iter().enumerate() {
        let here = path.child("hostAliases").index(index);
        let ip = text(alias, "ip");
        errors.extend(sentences(&here.child("ip"), ip, names::ip(ip)));
        for (index, host) in list(alias, "hostnames").iter().filter_map(Value::as_str).enumerate() {
            errors.extend(sentences(&here.child("hostnames").index(index), host, names::dns1123_subdomain(host)));
        }
    }
    errors
}

/// In the host's network a container's port is the host's. A template may leave the host's out: it is filled in when a pod is made.
pub fn host_network_ports(spec: &Value, context: &Context<'_>, path: &Path) -> Errors {
    let mut errors = Errors::new();
    if !flag(spec, "hostNetwork") {
        return errors;
    }
    for (index, container) in list(spec, "containers").iter().enumerate() {
        for (position, port) in list(container, "ports").iter().enumerate() {
            let (inner, outer) = (int(port, "containerPort").unwrap_or(0), int(port, "hostPort").unwrap_or(0));
            if (context.is_pod || outer != 0) && inner != outer {
                let here = path.child("containers").index(index).child("ports").index(position).child("hostPort");
                errors.push(Error::invalid(&here, outer, "must match `containerPort` when `hostNetwork` is true"));
            }
        }
    }
    errors
}

/// `hostnameOverride` (KEP-4762).
pub fn hostname_override(spec: &Value, path: &Path) -> Errors {
    let Some(name) = at(spec, "hostnameOverride").as_str() else { return Errors::new() };
    let here = path.child("hostnameOverride");
    let mut errors = sentences(&here, name, names::dns1123_subdomain(name));
    if name.len() > 64 {
        errors.push(Error::too_long(&here, 64));
    }
    if flag(spec, "hostNetwork") {
        errors.push(Error::forbidden(&here, "may not be specified when hostNetwork is true"));
    }
    if has(spec, "setHostnameAsFQDN") && flag(spec, "setHostnameAsFQDN") {
        errors.push(Error::forbidden(&here, "may not be specified when setHostnameAsFQDN is true"));
    }
    errors
}
