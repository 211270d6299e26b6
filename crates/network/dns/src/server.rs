//! Sockets and tasks.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use stdx::Drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::answer::{self, Received, Request};
use crate::corefile::{self, Block, Way};
use crate::datagrams::{Inbox, Outbox};
use crate::fast::{Fast, Generation, ID_BYTES};
use crate::forward::Forwarder;
use crate::metrics::Tally;
use crate::sockets::Sockets;
use crate::zone::{Answer, Zone};
use crate::{Caches, Clients, Config, Error, Homes, metrics, watch, zone};

const TCP_CONNECTIONS_MAX: usize = 256;
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Questions waiting for resolvers, over all sockets; more are dropped, which a stub resolver takes as loss.
const FORWARDS_WAITING_MAX: usize = 2000;
/// Names that an ExternalName may lead through.
const ALIASES_MAX: usize = 8;

/// Bound sockets and the zone.
#[derive(Debug)]
pub struct Server {
    zone: Arc<RwLock<Zone>>,
    /// Before the caches are complete, a missing name proves nothing.
    ready: AtomicBool,
    patience: Duration,
    clients: Clients,
    homes: Homes,
    forwarder: Forwarder,
    /// What the Corefile says, where there is one.
    blocks: RwLock<Arc<Vec<Block>>>,
    /// Goes up with every change of what may be answered.
    generation: Arc<Generation>,
    waiting: Arc<Semaphore>,
    udp: Vec<Arc<UdpSocket>>,
    tcp: Vec<Arc<TcpListener>>,
    /// Turns the order of addresses.
    turn: AtomicUsize,
}

impl Server {
    /// Binds every configured address. Needs a tokio runtime.
    pub fn bind(config: Config) -> Result<Self, Error> {
        let sockets = Sockets::bind(&config)?;
        Self::on(sockets, config)
    }

    /// Serves on these sockets, whatever addresses are configured. Needs a tokio runtime.
    pub fn on(sockets: Sockets, config: Config) -> Result<Self, Error> {
        let zone = Zone::new(&config.domain).ok_or_else(|| Error::Domain(config.domain.clone()))?;
        let udp = sockets.udp.into_iter().map(|socket| UdpSocket::from_std(socket).map(Arc::new));
        let udp = udp.collect::<Result<_, _>>().map_err(Error::Sockets)?;
        let tcp = sockets.tcp.into_iter().map(|listener| TcpListener::from_std(listener).map(Arc::new));
        let tcp: Vec<Arc<TcpListener>> = tcp.collect::<Result<_, _>>().map_err(Error::Sockets)?;
        let bound = tcp.iter().filter_map(|listener| listener.local_addr().ok());
        let own: Vec<SocketAddr> = config.own_addresses.iter().copied().chain(bound).collect();
        Ok(Self {
            zone: Arc::new(RwLock::new(zone)),
            ready: AtomicBool::new(false),
            patience: config.patience,
            clients: config.clients,
            homes: config.homes,
            forwarder: Forwarder::new(config.resolv_conf, own),
            blocks: RwLock::default(),
            generation: Arc::default(),
            waiting: Arc::new(Semaphore::new(FORWARDS_WAITING_MAX)),
            udp,
            tcp,
            turn: AtomicUsize::new(0),
        })
    }

    /// One per configured address, with the ports really taken.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.tcp.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Forwarders and hosts from now on, in the words of a Corefile; `None`: none. One that cannot be read changes nothing.
    pub fn configure(&self, text: Option<&str>) -> Result<(), corefile::Error> {
        let blocks = text.map(corefile::parse).transpose()?.unwrap_or_default();
        *self.blocks.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(blocks);
        self.forwarder.forget();
        self.generation.advance();
        Ok(())
    }

    fn blocks(&self) -> Arc<Vec<Block>> {
        self.blocks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Services in the zone.
    pub fn services(&self) -> usize {
        self.read_zone().services()
    }

    /// Serves until `drain`.
    pub async fn run(self: Arc<Self>, caches: Caches, drain: Drain) {
        watch::follow(&self.zone, &self.generation, &caches);
        let synced = async {
            caches.namespaces.synced().await;
            caches.services.synced().await;
            caches.slices.synced().await;
            self.ready.store(true, Ordering::Release);
        };
        let mut synced = std::pin::pin!(synced);
        // Questions wait meanwhile: a stub resolver has more patience than it takes failures.
        let Some(early) = drain.run(timeout(self.patience, &mut synced)).await else { return };
        let mut tasks = JoinSet::new();
        for socket in self.udp.clone() {
            let (server, drain) = (self.clone(), drain.clone());
            tasks.spawn(async move { drain.run(server.serve_udp(socket)).await });
        }
        for listener in self.tcp.clone() {
            let (server, drain) = (self.clone(), drain.clone());
            tasks.spawn(async move { drain.run(server.serve_tcp(listener)).await });
        }
        if early.is_err() {
            drain.run(synced).await;
        }
        while tasks.join_next().await.is_some() {}
    }

    async fn serve_udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let (mut inbox, mut outbox) = (Inbox::new(), Outbox::default());
        let (mut fast, mut tally) = (Fast::default(), Tally::default());
        loop {
            let count = match inbox.receive(&socket).await {
                Ok(count) => count,
                Err(error) => {
                    // ICMP errors of clients that went away arrive here too.
                    tracing::debug!(%error, "receive DNS datagrams");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let started = Instant::now();
            // Before anything is looked up: what changes meanwhile makes these answers old ones.
            let generation = self.generation.now();
            for index in 0..count {
                let Some((datagram, client)) = inbox.get(index) else { continue };
                if !(self.clients.0)(client.ip().to_canonical()) {
                    metrics::count_ignored();
                } else if let Some(kept) = fast.get(datagram, generation) {
                    if let (Some(answer), Some(id)) =
                        (outbox.answer(index, &kept.bytes).first_chunk_mut(), datagram.first_chunk::<ID_BYTES>())
                    {
                        *answer = *id;
                    }
                    tally.count(kept.kind, kept.code);
                } else if let Some(bytes) = self.answer_datagram(datagram, &socket, client, (&mut fast, generation), started) {
                    outbox.answer(index, &bytes);
                }
            }
            outbox.send(&socket, &inbox).await;
            tally.publish("udp", started.elapsed());
        }
    }

    /// The bytes of the answer, where it can be given at once; else it goes by itself, later or never.
    fn answer_datagram(
        self: &Arc<Self>,
        datagram: &[u8],
        socket: &Arc<UdpSocket>,
        client: SocketAddr,
        (fast, generation): (&mut Fast, u64),
        started: Instant,
    ) -> Option<Vec<u8>> {
        let request = match answer::receive(datagram) {
            Received::Ignore => {
                metrics::count_ignored();
                return None;
            }
            Received::Reject(message) => {
                metrics::count_response(message.metadata.response_code, started.elapsed());
                return message.to_vec().ok();
            }
            Received::Request(request) => request,
        };
        metrics::count_request("udp", request.query.query_type());
        let Some(message) = self.at_once(&request) else {
            self.clone().reply_later(socket.clone(), client, *request, started);
            return None;
        };
        let home = self.home_in_question(&request, &message, client);
        let found = home.as_ref().and_then(|home| self.along_the_search_path(&request, home));
        let message = found.unwrap_or(message);
        let bytes = answer::encode_udp(&request.message, &message);
        metrics::count_response(message.metadata.response_code, started.elapsed());
        // What may be another answer for another client, or soon, is made each time.
        if let Some(bytes) = bytes.as_ref().filter(|_| home.is_none()) {
            fast.put(datagram, &message, bytes, generation);
        }
        bytes
    }

    fn reply_later(self: Arc<Self>, socket: Arc<UdpSocket>, client: SocketAddr, request: Request, started: Instant) {
        let Ok(permit) = self.waiting.clone().try_acquire_owned() else { return };
        tokio::spawn(async move {
            let message = self.resolve(&request).await;
            reply_udp(&socket, client, &request, &message, started).await;
            drop(permit);
        });
    }

    async fn serve_tcp(self: Arc<Self>, listener: Arc<TcpListener>) {
        let connections = Arc::new(Semaphore::new(TCP_CONNECTIONS_MAX));
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            match listener.accept().await {
                Ok((_, client)) if !(self.clients.0)(client.ip().to_canonical()) => metrics::count_ignored(),
                Ok((stream, _)) => {
                    let server = self.clone();
                    tokio::spawn(async move {
                        if let Err(error) = server.serve_connection(stream).await {
                            tracing::debug!(%error, "DNS over TCP");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "accept a DNS connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn serve_connection(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let Ok(length) = timeout(TCP_IDLE, stream.read_u16()).await else { return Ok(()) };
            let length = match length {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                other => other?,
            };
            let mut bytes = vec![0; length.into()];
            timeout(TCP_IDLE, stream.read_exact(&mut bytes)).await??;
            let started = Instant::now();
            let message = match answer::receive(&bytes) {
                Received::Ignore => {
                    metrics::count_ignored();
                    return Ok(());
                }
                Received::Reject(message) => *message,
                Received::Request(request) => {
                    metrics::count_request("tcp", request.query.query_type());
                    match self.at_once(&request) {
                        Some(message) => message,
                        None => self.resolve(&request).await,
                    }
                }
            };
            metrics::count_response(message.metadata.response_code, started.elapsed());
            let Some(bytes) = answer::encode_tcp(&message) else { return Ok(()) };
            timeout(TCP_IDLE, stream.write_all(&bytes)).await??;
        }
    }

    /// The answer, where nobody else has to be asked.
    fn at_once(&self, request: &Request) -> Option<Message> {
        match corefile::way(&self.blocks(), request.query.name()) {
            Way::Fixed(addresses) => return Some(answer::fixed(request, &addresses)),
            Way::NoName => return Some(answer::reply(&request.message, ResponseCode::NXDomain)),
            Way::Upstream(_) => return self.forwarder.cached(request),
            Way::Usual(_) => {}
        }
        let message = {
            let zone = self.read_zone();
            let found = zone.answer(request.query.name(), request.query.query_type());
            if found == Answer::NotOurs {
                None
            } else if !self.ready.load(Ordering::Acquire) && matches!(found, Answer::NoName | Answer::NoData) {
                return Some(answer::reply(&request.message, ResponseCode::ServFail));
            } else {
                let turn = self.turn.fetch_add(1, Ordering::Relaxed);
                Some(answer::from_zone(request, &found, &zone, turn)?)
            }
        };
        message.or_else(|| self.forwarder.cached(request))
    }

    /// The client's namespace, where the name is not there because the client's resolver has put its first search domain behind another name.
    fn home_in_question(&self, request: &Request, message: &Message, client: SocketAddr) -> Option<String> {
        let missing = message.metadata.response_code == ResponseCode::NXDomain;
        let home = missing.then(|| (self.homes.0)(client.ip().to_canonical())).flatten()?;
        (!self.read_zone().search_path(request.query.name(), &home).is_empty()).then_some(home)
    }

    /// What the client would find in the end, as an alias of what it asked (as CoreDNS' autopath); only of what is known here, so that nobody waits
    /// for others and a missing name is missing at once.
    fn along_the_search_path(&self, request: &Request, home: &str) -> Option<Message> {
        let path = self.read_zone().search_path(request.query.name(), home);
        let (target, found) = path.into_iter().find_map(|target| {
            let found = self.at_once(&request.about(&target, request.query.query_type()))?;
            (found.metadata.response_code != ResponseCode::NXDomain).then_some((target, found))
        })?;
        // A client that has one family's answer goes no further for the other.
        let other = match request.query.query_type() {
            RecordType::A => RecordType::AAAA,
            RecordType::AAAA => RecordType::A,
            kind => kind,
        };
        self.at_once(&request.about(&target, other)).filter(|_| found.metadata.response_code == ResponseCode::NoError)?;
        let mut message = answer::reply(&request.message, ResponseCode::NoError);
        message.add_answer(zone::alias_record(request.query.name(), target));
        message.add_answers(found.answers);
        message.add_authorities(found.authorities);
        Some(message)
    }

    /// Who is asked for a name that is not ours.
    async fn ask(&self, request: &Request) -> Message {
        let upstreams = match corefile::way(&self.blocks(), request.query.name()) {
            Way::Upstream(to) | Way::Usual(to) => to,
            Way::Fixed(_) | Way::NoName => Vec::new(),
        };
        self.forwarder.ask(request, &upstreams).await
    }

    /// The answer with the help of others: names outside, and Services that are aliases of names anywhere.
    async fn resolve(&self, request: &Request) -> Message {
        let mut aliases = Vec::new();
        let mut name = request.query.name().clone();
        let diverted = matches!(corefile::way(&self.blocks(), &name), Way::Upstream(_));
        while !diverted {
            let found = self.read_zone().answer(&name, request.query.query_type());
            let Answer::Alias { record, target } = found else { break };
            aliases.push(*record);
            name = target;
            if request.query.query_type() == RecordType::CNAME {
                // The alias itself is what was asked for.
                let mut message = answer::reply(&request.message, ResponseCode::NoError);
                message.metadata.authoritative = true;
                message.add_answers(aliases);
                return message;
            }
            if aliases.len() == ALIASES_MAX {
                return answer::reply(&request.message, ResponseCode::ServFail);
            }
        }
        if aliases.is_empty() {
            return self.ask(request).await;
        }
        let rest = self.resolve_target(request, name).await;
        let mut message = answer::reply(&request.message, rest.metadata.response_code);
        message.metadata.authoritative = true;
        message.add_answers(aliases.into_iter().chain(rest.answers));
        message.add_authorities(rest.authorities);
        message
    }

    async fn resolve_target(&self, request: &Request, target: Name) -> Message {
        let request = request.about(&target, request.query.query_type());
        match self.at_once(&request) {
            Some(message) => message,
            None => self.ask(&request).await,
        }
    }

    fn read_zone(&self) -> std::sync::RwLockReadGuard<'_, Zone> {
        self.zone.read().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn reply_udp(socket: &UdpSocket, client: SocketAddr, request: &Request, message: &Message, started: Instant) {
    if let Some(bytes) = answer::encode_udp(&request.message, message)
        && let Err(error) = socket.send_to(&bytes, client).await
    {
        tracing::debug!(%client, %error, "send a DNS answer");
    }
    metrics::count_response(message.metadata.response_code, started.elapsed());
}
