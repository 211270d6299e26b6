//! What a pod's `/etc/resolv.conf` says, by its DNS policy. Pure but for reading the host's file.

use std::path::{Path, PathBuf};

use cri::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::config::Config;
use crate::podspec;

/// Upstream's limits (KEP-2595).
const NAMESERVERS_MAX: usize = 3;
const SEARCHES_MAX: usize = 32;
const SEARCH_CHARACTERS_MAX: usize = 2048;
/// Names with fewer dots are tried with the search list first.
const CLUSTER_OPTION: &str = "ndots:5";

/// systemd-resolved's stub listens on the host's loopback, which no pod can reach: its upstream servers are in another file.
pub fn host_file(path: &Path) -> PathBuf {
    let real = Path::new("/run/systemd/resolve/resolv.conf");
    let stub = std::fs::read_to_string(path).is_ok_and(|text| parse(&text).servers == ["127.0.0.53"]);
    if stub && real.exists() { real.to_owned() } else { path.to_owned() }
}

pub fn parse(text: &str) -> DnsConfig {
    let mut config = DnsConfig::default();
    for line in text.lines() {
        let line = line.split(['#', ';']).next().unwrap_or_default();
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => config.servers.extend(words.next().map(str::to_owned)),
            Some("search") => {
                config.searches = words.filter(|word| *word != ".").map(|word| word.trim_end_matches('.').to_owned()).collect()
            }
            Some("options") => config.options = words.map(str::to_owned).collect(),
            _ => {}
        }
    }
    config
}

/// The pod's resolver settings; `host` is the node's.
pub fn of_pod(pod: &Pod, config: &Config, host: &DnsConfig) -> DnsConfig {
    let spec = podspec::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let host_network = spec.host_network == Some(true);
    let mut dns = match policy {
        "None" => DnsConfig::default(),
        "ClusterFirstWithHostNet" if !config.cluster_dns.is_empty() => cluster(pod, config, host),
        "ClusterFirst" if !host_network && !config.cluster_dns.is_empty() => cluster(pod, config, host),
        _ => host.clone(),
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or_default();
            dns.options.retain(|known| known.split(':').next() != Some(name));
            dns.options.push(option.value.as_ref().map_or(name.to_owned(), |value| format!("{name}:{value}")));
        }
    }
    limit(dns)
}

fn cluster(pod: &Pod, config: &Config, host: &DnsConfig) -> DnsConfig {
    let (namespace, domain) = (podspec::namespace(pod), config.cluster_domain.as_str());
    let mut searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
    searches.extend(host.searches.iter().cloned());
    DnsConfig { servers: config.cluster_dns.iter().map(ToString::to_string).collect(), searches, options: vec![CLUSTER_OPTION.into()] }
}

fn limit(mut dns: DnsConfig) -> DnsConfig {
    let unique = |list: Vec<String>| {
        let mut seen = std::collections::HashSet::new();
        list.into_iter().filter(|entry| seen.insert(entry.clone())).collect::<Vec<_>>()
    };
    dns.servers = unique(dns.servers);
    dns.servers.truncate(NAMESERVERS_MAX);
    dns.searches = unique(dns.searches);
    dns.searches.truncate(SEARCHES_MAX);
    while dns.searches.join(" ").len() > SEARCH_CHARACTERS_MAX {
        dns.searches.pop();
    }
    dns
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn settings(spec: serde_json::Value) -> DnsConfig {
        let mut config = Config::new("node", "192.0.2.1".parse().unwrap());
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        of_pod(&podspec::tests::pod(spec), &config, &parse("# c\nnameserver 9.9.9.9\nsearch example.com .\noptions edns0\n"))
    }

    #[test]
    fn policies_choose_between_cluster_host_and_own_settings() {
        let cluster = settings(json!({"containers": []}));
        assert_eq!(cluster.servers, ["10.96.0.10"]);
        assert_eq!(cluster.searches, ["default.svc.cluster.local", "svc.cluster.local", "cluster.local", "example.com"]);
        assert_eq!(cluster.options, ["ndots:5"]);
        assert_eq!(settings(json!({"containers": [], "dnsPolicy": "Default"})).servers, ["9.9.9.9"]);
        assert_eq!(settings(json!({"containers": [], "hostNetwork": true})).servers, ["9.9.9.9"]);
        assert_eq!(
            settings(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"})).servers,
            ["10.96.0.10"]
        );
        let own = settings(
            json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"], "options": [{"name": "ndots", "value": "2"}]}}),
        );
        assert_eq!((own.servers, own.options), (vec!["1.1.1.1".to_owned()], vec!["ndots:2".to_owned()]));
        let merged = settings(json!({"containers": [], "dnsConfig": {"searches": ["x.y"], "options": [{"name": "ndots", "value": "2"}]}}));
        assert_eq!((merged.searches.len(), merged.options), (5, vec!["ndots:2".to_owned()]));
    }
}
