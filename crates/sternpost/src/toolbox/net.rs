//! The applets that are clients: an HTTP GET and a name look-up that follows `/etc/resolv.conf` (search list, ndots) without libc.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

pub(super) fn fetch(args: &[String]) -> Result<i32, String> {
    let (mut timeout_seconds, mut count, mut url) = (10, 1, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut number = || rest.next().and_then(|text| text.parse().ok()).ok_or_else(|| format!("{arg} wants a number"));
        match arg.as_str() {
            "-t" => timeout_seconds = number()?,
            "-n" => count = number()?,
            other => url = Some(other.to_owned()),
        }
    }
    let url: http::Uri = url.ok_or("which URL?")?.parse().map_err(|error| format!("invalid URL: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let mut code = 0;
    for _ in 0..count {
        code = runtime.block_on(get_within(Duration::from_secs(timeout_seconds), &url))?;
    }
    Ok(code)
}

async fn get_within(limit: Duration, url: &http::Uri) -> Result<i32, String> {
    tokio::time::timeout(limit, get(url)).await.unwrap_or_else(|_| Err("timed out".into()))
}

/// Prints the body; 0 for a 2xx answer, 22 for any other.
async fn get(url: &http::Uri) -> Result<i32, String> {
    if url.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err("only http:// is spoken here".into());
    }
    let host = url.host().ok_or("the URL names no host")?;
    let address = look_up(host.trim_matches(['[', ']']))?.into_iter().next().ok_or_else(|| format!("{host}: no address"))?;
    let address = SocketAddr::new(address, url.port_u16().unwrap_or(80));
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = http::Request::get(path).header("Host", url.authority().map_or("", |authority| authority.as_str()));
    let request = request.header("User-Agent", "toolbox").body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| format!("{address}: {error}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    use std::io::Write;
    std::io::stdout().write_all(&body).map_err(|error| error.to_string())?;
    if !status.is_success() {
        eprintln!("fetch: HTTP {status}");
    }
    Ok(if status.is_success() { 0 } else { 22 })
}

pub(super) fn resolve(args: &[String]) -> Result<i32, String> {
    let name = args.first().ok_or("which name?")?;
    let addresses = look_up(name)?;
    addresses.iter().for_each(|address| println!("{address}"));
    if addresses.is_empty() {
        return Err(format!("{name}: no such name"));
    }
    Ok(0)
}

struct ResolvConf {
    servers: Vec<IpAddr>,
    search: Vec<String>,
    ndots: usize,
}

fn resolv_conf() -> ResolvConf {
    let mut conf = ResolvConf { servers: Vec::new(), search: Vec::new(), ndots: 1 };
    for line in std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default().lines() {
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

/// Addresses of a name, IPv4 first: a literal, `/etc/hosts`, then the name servers with the search list.
pub(crate) fn look_up(name: &str) -> Result<Vec<IpAddr>, String> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    if let Some(address) = from_hosts(name) {
        return Ok(vec![address]);
    }
    let conf = resolv_conf();
    let mut candidates: Vec<String> = conf.search.iter().map(|domain| format!("{name}.{domain}.")).collect();
    let absolute = format!("{}.", name.trim_end_matches('.'));
    if name.ends_with('.') {
        candidates.clear();
    }
    let first = if name.matches('.').count() >= conf.ndots { 0 } else { candidates.len() };
    candidates.insert(first, absolute);
    for candidate in candidates {
        let mut found = ask(&conf, &candidate, RecordType::A)?;
        if found.is_empty() {
            found = ask(&conf, &candidate, RecordType::AAAA)?;
        }
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

fn from_hosts(name: &str) -> Option<IpAddr> {
    let hosts = std::fs::read_to_string("/etc/hosts").ok()?;
    hosts.lines().filter_map(|line| line.split('#').next()).find_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word == name).then_some(address)
    })
}

/// One question to the first name server that answers. A name that does not exist is an empty answer.
fn ask(conf: &ResolvConf, name: &str, kind: RecordType) -> Result<Vec<IpAddr>, String> {
    let name = Name::from_ascii(name).map_err(|error| format!("{name}: {error}"))?;
    let mut query = Message::new(std::process::id() as u16, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name, kind));
    let question = query.to_vec().map_err(|error| error.to_string())?;
    let mut last = "no name server in /etc/resolv.conf".to_owned();
    for server in conf.servers.iter().cycle().take(conf.servers.len() * 2) {
        match exchange(*server, &question) {
            Ok(answer) if matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) => {
                return Ok(addresses(&answer));
            }
            Ok(answer) => last = format!("{server}: {}", answer.metadata.response_code),
            Err(error) => last = format!("{server}: {error}"),
        }
    }
    Err(last)
}

fn exchange(server: IpAddr, question: &[u8]) -> std::io::Result<Message> {
    let local: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { (std::net::Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(local)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect((server, 53))?;
    socket.send(question)?;
    let mut buffer = [0u8; 4096];
    let len = socket.recv(&mut buffer)?;
    Message::from_vec(&buffer[..len]).map_err(std::io::Error::other)
}

fn addresses(answer: &Message) -> Vec<IpAddr> {
    answer
        .answers
        .iter()
        .filter_map(|record| match record.data {
            RData::A(address) => Some(IpAddr::V4(address.0)),
            RData::AAAA(address) => Some(IpAddr::V6(address.0)),
            _ => None,
        })
        .collect()
}
