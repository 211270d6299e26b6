//! Names outside the cluster: asked at the host's resolvers.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Message, MessageType, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::answer::{self, PAYLOAD_BYTES, Request};
use crate::cache::{Cache, Key};
use crate::metrics;

/// As CoreDNS in kubeadm: more are refused.
const IN_FLIGHT_MAX: usize = 1000;
const TRY_SECONDS: Duration = Duration::from_secs(2);
/// Every resolver twice at most, as a stub resolver does.
const ROUNDS: usize = 2;
const RELOAD_EVERY: Duration = Duration::from_secs(5);
/// What resolv.conf(5) allows.
const RESOLVERS_MAX: usize = 3;

/// The way outside. Shared by all sockets.
#[derive(Debug)]
pub struct Forwarder {
    resolvers: Mutex<Resolvers>,
    cache: Mutex<Cache>,
    in_flight: Arc<Semaphore>,
}

#[derive(Debug)]
struct Resolvers {
    path: PathBuf,
    own: Vec<SocketAddr>,
    addresses: Arc<[SocketAddr]>,
    /// Modification time of the file that `addresses` came from.
    modified: Option<SystemTime>,
    checked: Option<Instant>,
}

impl Forwarder {
    pub fn new(resolv_conf: PathBuf, own: Vec<SocketAddr>) -> Self {
        let resolvers = Resolvers { path: resolv_conf, own, addresses: Arc::new([]), modified: None, checked: None };
        Self { resolvers: Mutex::new(resolvers), cache: Mutex::default(), in_flight: Arc::new(Semaphore::new(IN_FLIGHT_MAX)) }
    }

    /// An answer that is still fresh.
    pub fn cached(&self, request: &Request) -> Option<Message> {
        let found = self.lock_cache().get(&Key::of(&request.query, &request.message), Instant::now());
        metrics::count_cache(found.is_some());
        found.map(|message| adopt(request, message))
    }

    /// Forgets what resolvers said, because others are asked from now on.
    pub fn forget(&self) {
        *self.lock_cache() = Cache::default();
    }

    /// Asks one resolver after the other (the host's where `upstreams` is empty); SERVFAIL when none answers, REFUSED when too many questions
    /// are under way.
    pub async fn ask(&self, request: &Request, upstreams: &[SocketAddr]) -> Message {
        let Ok(_permit) = self.in_flight.try_acquire() else { return answer::reply(&request.message, ResponseCode::Refused) };
        let resolvers = match upstreams {
            [] => self.resolvers.lock().unwrap_or_else(PoisonError::into_inner).current(),
            chosen => chosen.into(),
        };
        for resolver in resolvers.iter().cycle().take(resolvers.len() * ROUNDS) {
            match exchange(request, *resolver).await {
                // Another resolver may know better; the last round's answer would be no different.
                Ok(message) if message.metadata.response_code == ResponseCode::ServFail && resolvers.len() > 1 => {}
                Ok(message) => {
                    self.lock_cache().put(Key::of(&request.query, &request.message), &message, Instant::now());
                    return adopt(request, message);
                }
                Err(error) => tracing::debug!(%resolver, name = %request.query.name(), %error, "a resolver did not answer"),
            }
        }
        answer::reply(&request.message, ResponseCode::ServFail)
    }

    fn lock_cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A resolver's answer as ours: to this question, with its id and spelling.
fn adopt(request: &Request, mut message: Message) -> Message {
    message.metadata.id = request.message.metadata.id;
    message.metadata.recursion_desired = request.message.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.authoritative = false;
    message.queries = request.message.queries.clone();
    match request.message.edns {
        None => message.edns = None,
        Some(_) => {
            if let Some(edns) = &mut message.edns {
                edns.set_max_payload(PAYLOAD_BYTES);
            }
        }
    }
    message
}

/// UDP first; TCP when the answer did not fit.
async fn exchange(request: &Request, resolver: SocketAddr) -> io::Result<Message> {
    let mut question = request.message.clone();
    question.metadata.id = random_id()?;
    question.metadata.recursion_desired = true;
    if let Some(edns) = &mut question.edns {
        edns.set_max_payload(PAYLOAD_BYTES);
    }
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let message = timeout(TRY_SECONDS, over_udp(&question, &bytes, resolver)).await.map_err(|_| io::ErrorKind::TimedOut)??;
    if !message.metadata.truncation {
        return Ok(message);
    }
    timeout(TRY_SECONDS, over_tcp(&question, &bytes, resolver)).await.map_err(|_| io::ErrorKind::TimedOut)?
}

async fn over_udp(question: &Message, bytes: &[u8], resolver: SocketAddr) -> io::Result<Message> {
    let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket of its own: a random port makes forged answers hard, and connecting lets the kernel drop other senders'.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(resolver).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if let Some(message) = buffer.get(..length).and_then(|bytes| matching(question, bytes)) {
            return Ok(message);
        }
    }
}

async fn over_tcp(question: &Message, bytes: &[u8], resolver: SocketAddr) -> io::Result<Message> {
    let mut stream = TcpStream::connect(resolver).await?;
    let length = u16::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes()[..], bytes].concat()).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; length.into()];
    stream.read_exact(&mut answer).await?;
    matching(question, &answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "an answer to another question"))
}

/// The answer, if it is one to this question.
fn matching(question: &Message, bytes: &[u8]) -> Option<Message> {
    let message = Message::from_vec(bytes).ok()?;
    let same = message.metadata.id == question.metadata.id
        && message.metadata.message_type == MessageType::Response
        && message.queries.len() == question.queries.len()
        && message.queries.iter().zip(&question.queries).all(|(theirs, ours)| theirs == ours);
    same.then_some(message)
}

fn random_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(u16::from_ne_bytes(bytes))
}

impl Resolvers {
    /// Looks at the file again, but not at every question.
    fn current(&mut self) -> Arc<[SocketAddr]> {
        let now = Instant::now();
        if self.checked.is_none_or(|checked| now.duration_since(checked) >= RELOAD_EVERY) {
            self.checked = Some(now);
            let modified = fs::metadata(&self.path).and_then(|file| file.modified()).ok();
            if modified != self.modified || self.addresses.is_empty() {
                self.modified = modified;
                self.addresses = fs::read_to_string(&self.path).map(|text| parse(&text, &self.own)).unwrap_or_default().into();
                if self.addresses.is_empty() {
                    tracing::warn!(path = %self.path.display(), "no resolver for names outside the cluster");
                }
            }
        }
        self.addresses.clone()
    }
}

/// The `nameserver` lines without those that lead back here. A port may follow as `address:port` or `[address]:port`.
fn parse(text: &str, own: &[SocketAddr]) -> Vec<SocketAddr> {
    let value = |line: &str| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        let without_scope = address.split('%').next().unwrap_or(address);
        without_scope.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 53)).or_else(|_| address.parse()).ok()
    };
    text.lines().filter_map(value).filter(|resolver| !own.contains(resolver)).take(RESOLVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolvers_are_read_and_our_own_address_is_skipped() {
        let own = ["10.96.0.10:53".parse().unwrap()];
        for (text, expected) in [
            ("nameserver 192.0.2.53\nsearch example.org\n", vec!["192.0.2.53:53"]),
            ("# comment\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\n", vec!["[fe80::1]:53"]),
            ("nameserver 127.0.0.1:5353\nnameserver\nnameserver x\noptions ndots:5", vec!["127.0.0.1:5353"]),
            (
                "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4",
                vec!["1.1.1.1:53", "1.1.1.2:53", "1.1.1.3:53"],
            ),
            ("", vec![]),
        ] {
            let found: Vec<String> = parse(text, &own).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text:?}");
        }
    }
}
