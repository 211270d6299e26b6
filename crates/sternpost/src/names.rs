//! Names of hosts, without libc (the binary is static): `/etc/hosts`, then the name servers of `/etc/resolv.conf` with its search list.
//!
//! Nothing is kept: both files are read at every question, so that a change needs no restart.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

/// A stub resolver's patience with one server, and how often it asks all of them.
const PATIENCE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;

struct ResolvConf {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

impl ResolvConf {
    fn parse(text: &str) -> Self {
        let mut conf = Self { servers: Vec::new(), search: Vec::new(), ndots: 1 };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => conf.servers.extend(words.next().and_then(|word| word.parse::<IpAddr>().ok())),
                Some("search") => conf.search = words.map(str::to_owned).collect(),
                Some("options") => conf.ndots = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok()).unwrap_or(conf.ndots),
                _ => {}
            }
        }
        conf
    }

    /// The absolute names that `name` may mean, the likeliest first.
    fn candidates(&self, name: &str) -> Vec<String> {
        let absolute = format!("{}.", name.trim_end_matches('.'));
        if name.ends_with('.') {
            return vec![absolute];
        }
        let mut all: Vec<String> = self.search.iter().map(|domain| format!("{name}.{}.", domain.trim_end_matches('.'))).collect();
        let first = if name.matches('.').count() >= self.ndots { 0 } else { all.len() };
        all.insert(first, absolute);
        all
    }
}

/// Addresses of a host, IPv4 first; empty where the name does not exist. An error where nobody could tell.
pub async fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    let listed = in_hosts(&hosts, name);
    if !listed.is_empty() {
        return Ok(listed);
    }
    let conf = ResolvConf::parse(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default());
    for candidate in conf.candidates(name) {
        let mut found = ask(&conf.servers, &candidate, RecordType::A).await?;
        if found.is_empty() {
            found = ask(&conf.servers, &candidate, RecordType::AAAA).await?;
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().filter_map(|line| line.split('#').next());
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    };
    lines.filter_map(address).collect()
}

/// One question to the first name server that answers. A name that does not exist is an empty answer.
async fn ask(servers: &[IpAddr], name: &str, kind: RecordType) -> Result<Vec<IpAddr>, String> {
    let name = Name::from_ascii(name).map_err(|error| format!("{name}: {error}"))?;
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|error| error.to_string())?;
    let mut query = Message::new(u16::from_ne_bytes(id), MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    let question = query.to_vec().map_err(|error| error.to_string())?;
    let mut last = "no name server in /etc/resolv.conf".to_owned();
    for server in servers.iter().cycle().take(servers.len() * ROUNDS) {
        let exchange = tokio::time::timeout(PATIENCE, exchange(SocketAddr::new(*server, 53), &query, &question)).await;
        match exchange.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())) {
            Ok(answer) if matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                return Ok(addresses(&answer));
            }
            Ok(answer) => last = format!("{server}: {}", answer.metadata.response_code),
            Err(error) => last = format!("{server}: {error}"),
        }
    }
    Err(last)
}

async fn exchange(server: SocketAddr, query: &Message, question: &[u8]) -> std::io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = Message::from_vec(buffer.get(..length).unwrap_or_default()).map_err(std::io::Error::other)?;
        // What answers another question was not meant for us.
        if answer.metadata.id == query.metadata.id && answer.queries == query.queries {
            return Ok(answer);
        }
    }
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    let address = |record: &hickory_proto::rr::Record| match record.data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    answer.answers.iter().filter_map(address).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let hosts = "127.0.0.1 localhost\n10.0.0.7 hook.example.com hook # ours\n#10.0.0.8 gone\nfd00::7 hook";
        let cases = [("hook", vec!["10.0.0.7", "fd00::7"]), ("HOOK.example.com", vec!["10.0.0.7"]), ("gone", vec![]), ("ours", vec![])];
        for (name, expected) in cases {
            let expected: Vec<IpAddr> = expected.into_iter().map(|address| address.parse().unwrap()).collect();
            assert_eq!(in_hosts(hosts, name), expected, "{name}");
        }
    }

    #[test]
    fn the_search_list_is_tried_as_resolv_conf_says() {
        let conf = ResolvConf::parse("nameserver 10.0.0.1\nsearch a.b c\noptions timeout:1 ndots:2\n");
        assert_eq!(conf.candidates("x"), ["x.a.b.", "x.c.", "x."]);
        assert_eq!(conf.candidates("x.y.z"), ["x.y.z.", "x.y.z.a.b.", "x.y.z.c."]);
        assert_eq!(conf.candidates("x."), ["x."]);
    }
}
