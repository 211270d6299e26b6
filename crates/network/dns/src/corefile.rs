//! What a Corefile may say here: forwarders and fixed hosts, by zone.
//!
//! Of CoreDNS' plugins `forward` and `hosts` are followed, and which zones a server block is for. What is about the server itself (`errors`,
//! `health`, `ready`, `kubernetes`, `prometheus`, `cache`, `loop`, `reload`, `loadbalance`, `log`, `autopath`, …) is the way it is here whatever
//! is written. Anything else is refused with its line, and what was read before stays.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use hickory_proto::rr::Name;

/// Plugins that change nothing here.
const BUILT_IN: [&str; 19] = [
    "errors",
    "health",
    "ready",
    "kubernetes",
    "prometheus",
    "cache",
    "loop",
    "reload",
    "loadbalance",
    "log",
    "autopath",
    "debug",
    "lameduck",
    "bufsize",
    "minimal",
    "metadata",
    "whoami",
    "pprof",
    "bind",
];
/// As CoreDNS.
const FORWARDERS_MAX: usize = 15;

/// One server block for one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    pub zone: Name,
    /// Zones below it, and who is asked for them; an empty list is the host's resolvers.
    pub forwards: Vec<(Name, Vec<SocketAddr>)>,
    pub hosts: BTreeMap<Name, Vec<IpAddr>>,
    /// Whether a name that `hosts` does not have may be found elsewhere.
    pub fallthrough: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("Corefile:{line}: {problem}")]
pub struct Error {
    pub line: usize,
    pub problem: String,
}

/// Words with the line that they are in; braces are words.
struct Words<'a> {
    lines: Vec<(usize, Vec<&'a str>)>,
    next: usize,
}

impl<'a> Words<'a> {
    fn of(text: &'a str) -> Self {
        let lines = text.lines().enumerate().map(|(number, line)| {
            let code = line.split('#').next().unwrap_or_default();
            (number + 1, code.split_whitespace().collect::<Vec<_>>())
        });
        Self { lines: lines.filter(|(_, words)| !words.is_empty()).collect(), next: 0 }
    }
    fn line(&mut self) -> Option<(usize, Vec<&'a str>)> {
        let line = self.lines.get(self.next).cloned();
        self.next += 1;
        line
    }
}

fn error<T>(line: usize, problem: impl Into<String>) -> Result<T, Error> {
    Err(Error { line, problem: problem.into() })
}

/// Every block of a Corefile, one for each of its zones.
pub fn parse(text: &str) -> Result<Vec<Block>, Error> {
    let mut words = Words::of(text);
    let mut blocks = Vec::new();
    while let Some((line, mut head)) = words.line() {
        if head.pop() != Some("{") || head.is_empty() {
            return error(line, "a server block begins with its zones and `{`");
        }
        let zones = head.iter().map(|zone| zone_name(line, zone)).collect::<Result<Vec<Name>, Error>>()?;
        let body = block(&mut words, line)?;
        blocks.extend(zones.into_iter().map(|zone| Block { zone, ..body.clone() }));
    }
    Ok(blocks)
}

fn block(words: &mut Words<'_>, start: usize) -> Result<Block, Error> {
    let mut block = Block { zone: Name::root(), forwards: Vec::new(), hosts: BTreeMap::new(), fallthrough: true };
    loop {
        let Some((line, directive)) = words.line() else { return error(start, "this block has no end") };
        let opens = directive.last() == Some(&"{");
        match directive.as_slice() {
            ["}"] => return Ok(block),
            ["forward", from, to @ ..] => {
                let to = if opens { to.get(..to.len().saturating_sub(1)).unwrap_or_default() } else { to };
                block.forwards.push((zone_name(line, from)?, forwarders(line, to)?));
                if opens {
                    // How upstreams are asked is the same for all here.
                    skip(words, line)?;
                }
            }
            ["hosts", "{"] => hosts(words, line, &mut block)?,
            ["hosts", ..] => return error(line, "hosts are read from the block itself, not from a file"),
            [plugin, ..] if BUILT_IN.contains(plugin) => {
                if opens {
                    skip(words, line)?;
                }
            }
            [plugin, ..] => return error(line, format!("the plugin {plugin:?} is not supported")),
            [] => {}
        }
    }
}

fn skip(words: &mut Words<'_>, start: usize) -> Result<(), Error> {
    let mut depth = 1;
    while depth > 0 {
        let Some((_, line)) = words.line() else { return error(start, "this block has no end") };
        if line.last() == Some(&"{") {
            depth += 1;
        } else if line == ["}"] {
            depth -= 1;
        }
    }
    Ok(())
}

fn hosts(words: &mut Words<'_>, start: usize, block: &mut Block) -> Result<(), Error> {
    block.fallthrough = false;
    loop {
        let Some((line, entry)) = words.line() else { return error(start, "this block has no end") };
        match entry.as_slice() {
            ["}"] => return Ok(()),
            ["fallthrough", ..] => block.fallthrough = true,
            ["ttl" | "reload" | "no_reverse", ..] => {}
            [address, names @ ..] if !names.is_empty() => {
                let Ok(address) = address.parse::<IpAddr>() else { return error(line, format!("{address:?} is not an IP address")) };
                for name in names {
                    block.hosts.entry(zone_name(line, name)?).or_default().push(address);
                }
            }
            _ => return error(line, "an address and its names are expected"),
        }
    }
}

/// `.`, `acme.local`, `acme.local:53`, `dns://acme.local`.
fn zone_name(line: usize, text: &str) -> Result<Name, Error> {
    let text = text.trim_end_matches(',').strip_prefix("dns://").unwrap_or(text.trim_end_matches(','));
    let text = text.split_once(':').map_or(text, |(name, _)| name);
    let name = Name::from_ascii(if text.is_empty() { "." } else { text });
    let Ok(mut name) = name else { return error(line, format!("{text:?} is not a domain name")) };
    name.set_fqdn(true);
    Ok(name.to_lowercase())
}

fn forwarders(line: usize, to: &[&str]) -> Result<Vec<SocketAddr>, Error> {
    if to.is_empty() || to.len() > FORWARDERS_MAX {
        return error(line, format!("forward needs 1 to {FORWARDERS_MAX} addresses"));
    }
    let mut found = Vec::new();
    for text in to {
        let address = text.strip_prefix("dns://").unwrap_or(text);
        if address.starts_with('/') {
            return if to.len() == 1 { Ok(Vec::new()) } else { error(line, "a file stands alone") };
        }
        match address.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| address.parse()) {
            Ok(address) => found.push(address),
            Err(_) => return error(line, format!("forward to {text:?}: an IP address, address:port or /etc/resolv.conf is expected")),
        }
    }
    Ok(found)
}

/// Where a question goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    Fixed(Vec<IpAddr>),
    /// To these, without looking at the cluster's zone.
    Upstream(Vec<SocketAddr>),
    /// `hosts` is all that its zone has.
    NoName,
    /// As without a Corefile; these are asked for names outside, or the host's resolvers where there are none.
    Usual(Vec<SocketAddr>),
}

/// The most specific block's word on `name`.
pub fn way(blocks: &[Block], name: &Name) -> Way {
    let block = blocks.iter().filter(|block| block.zone.zone_of(name)).max_by_key(|block| block.zone.num_labels());
    let Some(block) = block else { return Way::Usual(Vec::new()) };
    if !block.hosts.is_empty() {
        if let Some(addresses) = block.hosts.get(&name.to_lowercase()) {
            return Way::Fixed(addresses.clone());
        }
        if !block.fallthrough {
            return Way::NoName;
        }
    }
    let forward = block.forwards.iter().filter(|(zone, _)| zone.zone_of(name)).max_by_key(|(zone, _)| zone.num_labels());
    match forward {
        Some((zone, to)) if !(zone.is_root() && block.zone.is_root()) => Way::Upstream(to.clone()),
        Some((_, to)) => Way::Usual(to.clone()),
        None => Way::Usual(Vec::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KUBEADM: &str = "
.:53 {
    errors
    health {
       lameduck 5s
    }
    ready
    kubernetes cluster.local in-addr.arpa ip6.arpa {
       pods insecure
       fallthrough in-addr.arpa ip6.arpa
       ttl 30
    }
    hosts {
        192.0.2.8 Printer.example.org printer
        2001:db8::8 printer
        fallthrough
    }
    prometheus :9153
    forward . /etc/resolv.conf {
       max_concurrent 1000
    }
    cache 30 # seconds
    loop
    reload
    loadbalance
}
acme.local:53 example.net {
    forward . 10.1.2.3 10.1.2.4:5353
}
fixed.test {
    hosts {
        192.0.2.9 a.fixed.test
    }
}
";

    #[test]
    fn the_most_specific_block_says_where_a_question_goes() {
        let blocks = parse(KUBEADM).unwrap();
        let upstream = Way::Upstream(vec!["10.1.2.3:53".parse().unwrap(), "10.1.2.4:5353".parse().unwrap()]);
        for (name, expected) in [
            ("web.default.svc.cluster.local.", Way::Usual(Vec::new())),
            ("example.com.", Way::Usual(Vec::new())),
            ("PRINTER.example.org.", Way::Fixed(vec!["192.0.2.8".parse().unwrap()])),
            ("printer.", Way::Fixed(vec!["192.0.2.8".parse().unwrap(), "2001:db8::8".parse().unwrap()])),
            ("db.acme.local.", upstream.clone()),
            ("acme.local.", upstream.clone()),
            ("x.example.net.", upstream),
            ("a.fixed.test.", Way::Fixed(vec!["192.0.2.9".parse().unwrap()])),
            ("b.fixed.test.", Way::NoName),
        ] {
            assert_eq!(way(&blocks, &name.parse().unwrap()), expected, "{name}");
        }
        let other = parse(".:53 {\n forward . 192.0.2.53\n forward corp.test 192.0.2.54\n}").unwrap();
        assert_eq!(way(&other, &"a.b.".parse().unwrap()), Way::Usual(vec!["192.0.2.53:53".parse().unwrap()]));
        assert_eq!(way(&other, &"a.corp.test.".parse().unwrap()), Way::Upstream(vec!["192.0.2.54:53".parse().unwrap()]));
    }

    #[test]
    fn what_is_not_supported_is_refused_with_its_line() {
        for (text, line, word) in [
            (".:53 {\n rewrite name a b\n}", 2, "rewrite"),
            (".:53 {\n forward . tls://9.9.9.9\n}", 2, "tls"),
            (".:53 {\n forward .\n}", 2, "1 to 15"),
            (".:53 {\n hosts {\n  nine a\n }\n}", 3, "nine"),
            (".:53 {\n errors", 1, "no end"),
            ("errors", 1, "begins"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.line == line && error.problem.contains(word), "{text}: {error}");
        }
    }
}
