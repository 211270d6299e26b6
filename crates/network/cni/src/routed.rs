//! The embedded network: see the crate's story.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nft::Socket;
use rustix::io::Errno;

use crate::addresses::Pool;
use crate::links::{self, Mac, Refused, Requests};
use crate::state::Files;
use crate::{Attachment, Bandwidth, Config, Error, GATEWAY, GATEWAY_V6, PodNetwork, firewall};

/// Every node end has the same MAC address: each link has one neighbour only.
const NODE_MAC: Mac = [0xee; 6];
/// The kernel serialises most of rtnetlink by one lock; more sockets would only wait for it.
const SOCKETS: usize = 4;
/// Interface group of links about to be deleted.
const DOOMED_GROUP: u32 = 0x7370_0001;
/// Interface names have at most 15 bytes, our prefix at most 4.
const NAME_DIGITS: usize = 11;
const DEFAULT_MTU: u32 = 1500;
/// What a veth takes; the loopback interface, where a default route may point too, has one more.
const VETH_MTUS: std::ops::RangeInclusive<u32> = 576..=65_535;

/// The node's routed pod network, in the network namespace of the thread that opened it; usable from every thread.
#[derive(Debug)]
pub struct Routed {
    link_prefix: String,
    mtu: u32,
    ipv6: bool,
    files: Files,
    ledger: Mutex<Ledger>,
    sockets: Vec<Mutex<Socket>>,
    turn: AtomicUsize,
    /// Links waiting for deletion; whoever holds `deleting` takes all of them along.
    doomed: Mutex<Vec<String>>,
    deleting: Mutex<()>,
}

/// Who has which address. Every address in `attached` is taken in one of the pools, or of a range that is no longer ours.
#[derive(Debug)]
struct Ledger {
    pools: Vec<Pool>,
    attached: HashMap<String, Attachment>,
}

impl Routed {
    /// Reads the state of a previous run, turns forwarding on, installs the firewall chains. To be called once per node, in its namespace.
    pub fn open(config: Config) -> Result<Self, Error> {
        let node = |step| move |source| Error::Node { step, source };
        if config.link_prefix.is_empty() || config.link_prefix.len() > 15 - NAME_DIGITS {
            return Err(node("check the link prefix")(io::Error::new(io::ErrorKind::InvalidInput, "1 to 4 bytes are wanted")));
        }
        let files = Files::open(&config.state_dir).map_err(node("open the state directory"))?;
        let ledger = Ledger::load(&config, &files).map_err(node("read the state directory"))?;
        let mut sockets = (0..SOCKETS).map(|_| Socket::route()).collect::<io::Result<Vec<_>>>().map_err(node("open rtnetlink socket"))?;
        let mtu = match (config.mtu, sockets.first_mut()) {
            (Some(mtu), _) => mtu,
            (None, Some(socket)) => links::default_mtu(socket)
                .map_err(node("read the default route's MTU"))?
                .filter(|mtu| VETH_MTUS.contains(mtu))
                .unwrap_or(DEFAULT_MTU),
            (None, None) => DEFAULT_MTU,
        };
        let ipv6 = [Some(config.pod_cidr), config.pod_cidr_secondary].into_iter().flatten().any(|(address, _)| address.is_ipv6());
        set_sysctl("/proc/sys/net/ipv4/ip_forward").map_err(node("turn IPv4 forwarding on"))?;
        if ipv6 {
            keep_router_advertisements();
            set_sysctl("/proc/sys/net/ipv6/conf/all/forwarding").map_err(node("turn IPv6 forwarding on"))?;
        }
        firewall::install(&config)?;
        Ok(Self {
            link_prefix: config.link_prefix,
            mtu,
            ipv6,
            files,
            ledger: Mutex::new(ledger),
            sockets: sockets.into_iter().map(Mutex::new).collect(),
            turn: AtomicUsize::new(0),
            doomed: Mutex::default(),
            deleting: Mutex::default(),
        })
    }

    /// The attachments known, in no order.
    pub fn attachments(&self) -> Vec<Attachment> {
        lock(&self.ledger).attached.values().cloned().collect()
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        lock(&self.sockets[turn % SOCKETS])
    }

    /// `sp` and eleven hexadecimal digits of the sandbox id's FNV-1a hash.
    fn link_name(&self, sandbox_id: &str) -> String {
        let hash = sandbox_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        format!("{}{:011x}", self.link_prefix, hash >> 20)
    }

    fn is_our_link(&self, name: &str) -> bool {
        name.strip_prefix(&self.link_prefix)
            .is_some_and(|digits| digits.len() == NAME_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
    }

    /// The address in the ledger and on disk before anything is made, so that a crash leaves a trace.
    /// Also whether it is new.
    fn reserve(&self, sandbox_id: &str) -> Result<(Attachment, bool), Error> {
        let state = |source| Error::State { sandbox_id: sandbox_id.to_owned(), source };
        let attachment = {
            let mut ledger = lock(&self.ledger);
            if let Some(known) = ledger.attached.get(sandbox_id) {
                return Ok((known.clone(), false));
            }
            let addresses = ledger.take_addresses()?;
            let attachment = Attachment { sandbox_id: sandbox_id.to_owned(), addresses, host_link: self.link_name(sandbox_id) };
            ledger.attached.insert(sandbox_id.to_owned(), attachment.clone());
            // Under the lock, so that the file names the last one.
            if let Err(error) = self.files.save_last(&attachment.addresses) {
                ledger.forget(sandbox_id);
                return Err(state(error));
            }
            attachment
        };
        self.files.save(&attachment).map_err(|error| {
            lock(&self.ledger).forget(sandbox_id);
            state(error)
        })?;
        Ok((attachment, true))
    }

    fn release(&self, sandbox_id: &str) -> Result<(), Error> {
        self.files.remove(sandbox_id).map_err(|source| Error::State { sandbox_id: sandbox_id.to_owned(), source })?;
        lock(&self.ledger).forget(sandbox_id);
        Ok(())
    }

    /// `inside`: a socket of the namespace, where there is one already.
    fn connect(&self, attachment: &Attachment, netns: BorrowedFd<'_>, inside: Option<&mut Socket>) -> Result<(), Refused> {
        let pod_mac = pod_mac(attachment);
        let name = &attachment.host_link;
        let index = {
            let mut socket = self.socket();
            let mut create = Requests::new(&mut socket, 1);
            create.add_veth(name, NODE_MAC, self.mtu, netns, pod_mac);
            create.send(&[])?;
            links::index_of(&mut socket, name)
                .and_then(|index| index.ok_or_else(|| Errno::NODEV.into()))
                .map_err(|source| Refused { step: "find veth", source })?
        };
        match inside {
            Some(socket) => self.configure_pod_end(socket, attachment)?,
            None => in_namespace(netns, |socket| self.configure_pod_end(socket, attachment))
                .map_err(|source| Refused { step: "enter the namespace", source })??,
        }
        let mut socket = self.socket();
        let mut requests = Requests::new(&mut socket, 8);
        requests.make_router_end(index);
        if !self.ipv6 {
            requests.no_link_local(index);
        }
        requests.up(index);
        for address in &attachment.addresses {
            requests.add_link_route(index, *address);
            requests.add_neighbour(index, *address, pod_mac);
        }
        // A kernel without IPv6 has no address generation to set.
        requests.send(&[Errno::AFNOSUPPORT])
    }

    fn configure_pod_end(&self, socket: &mut Socket, attachment: &Attachment) -> Result<(), Refused> {
        const LO: u32 = 1;
        let index = links::index_of(socket, "eth0")
            .and_then(|index| index.ok_or_else(|| Errno::NODEV.into()))
            .map_err(|source| Refused { step: "find eth0", source })?;
        let mut requests = Requests::new(socket, 12);
        if !self.ipv6 {
            requests.no_link_local(index);
        }
        requests.up(LO);
        requests.up(index);
        for address in &attachment.addresses {
            let gateway = if address.is_ipv4() { IpAddr::V4(GATEWAY) } else { IpAddr::V6(GATEWAY_V6) };
            requests.add_address(index, *address);
            requests.add_neighbour(index, gateway, NODE_MAC);
            if address.is_ipv4() {
                requests.add_link_route(index, gateway);
            }
            requests.add_default_route(index, gateway);
        }
        requests.send(&[Errno::AFNOSUPPORT])
    }

    fn attach_by(&self, sandbox_id: &str, netns: BorrowedFd<'_>, mut inside: Option<Socket>) -> Result<Attachment, Error> {
        let refused = |Refused { step, source }| Error::Kernel { step, sandbox_id: sandbox_id.to_owned(), source };
        let (attachment, new) = self.reserve(sandbox_id)?;
        if !new && self.is_connected(&attachment, netns).map_err(|source| refused(Refused { step: "look at the namespace", source }))? {
            return Ok(attachment);
        }
        let mut connect = || match self.connect(&attachment, netns, inside.as_mut()) {
            // What a crash left half made under this name.
            Err(Refused { source, .. }) if source.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {
                self.delete_links(std::slice::from_ref(&attachment.host_link))?;
                self.connect(&attachment, netns, inside.as_mut())
            }
            other => other,
        };
        if let Err(error) = connect() {
            let cleanup = self.detach(sandbox_id);
            if let Err(cleanup) = cleanup {
                tracing::warn!(sandbox_id, error = %cleanup, "a half-made pod link stays until the next retain");
            }
            return Err(refused(error));
        }
        Ok(attachment)
    }

    /// Whether both ends are there and the pod's has its address.
    fn is_connected(&self, attachment: &Attachment, netns: BorrowedFd<'_>) -> io::Result<bool> {
        if links::index_of(&mut self.socket(), &attachment.host_link)?.is_none() {
            return Ok(false);
        }
        in_namespace(netns, |socket| {
            let Some(index) = links::index_of(socket, "eth0")? else { return Ok(false) };
            attachment.addresses.iter().try_fold(true, |all, address| Ok(all && links::has_address(socket, index, *address)?))
        })?
    }

    /// Deletes links, together with those that other threads want deleted now.
    fn delete_links(&self, wanted: &[String]) -> Result<(), Refused> {
        lock(&self.doomed).extend_from_slice(wanted);
        let _turn = lock(&self.deleting);
        let mut names = std::mem::take(&mut *lock(&self.doomed));
        if names.is_empty() {
            // An earlier holder took ours along; what it could not delete is ours to report.
            let still_there = |name: &&String| !matches!(links::index_of(&mut self.socket(), name), Ok(None));
            names = wanted.iter().filter(still_there).cloned().collect();
        }
        if names.is_empty() {
            return Ok(());
        }
        let mut socket = self.socket();
        for chunk in names.chunks(256) {
            let mut requests = Requests::new(&mut socket, 257);
            for name in chunk {
                requests.set_group(name, DOOMED_GROUP);
            }
            requests.delete_group(DOOMED_GROUP);
            requests.send(&[Errno::NODEV])?;
        }
        Ok(())
    }
}

impl PodNetwork for Routed {
    fn attach(&self, sandbox_id: &str, netns: BorrowedFd<'_>) -> Result<Attachment, Error> {
        self.attach_by(sandbox_id, netns, None)
    }

    fn attach_through(&self, sandbox_id: &str, netns: BorrowedFd<'_>, inside: OwnedFd) -> Result<Attachment, Error> {
        let adopted = Socket::adopt_route(inside);
        let socket = adopted.map_err(|source| Error::Kernel { step: "adopt the socket", sandbox_id: sandbox_id.to_owned(), source })?;
        self.attach_by(sandbox_id, netns, Some(socket))
    }

    fn limit(&self, sandbox_id: &str, netns: BorrowedFd<'_>, bandwidth: Bandwidth) -> Result<(), Error> {
        if bandwidth.is_unlimited() {
            return Ok(());
        }
        let refused = |Refused { step, source }| Error::Kernel { step, sandbox_id: sandbox_id.to_owned(), source };
        let Some(attachment) = lock(&self.ledger).attached.get(sandbox_id).cloned() else { return Ok(()) };
        let limit = |socket: &mut Socket, link: &str, bytes_per_second: Option<u64>| {
            let Some(bytes_per_second) = bytes_per_second else { return Ok(()) };
            let found = links::index_of(socket, link).and_then(|index| index.ok_or_else(|| Errno::NODEV.into()));
            let index = found.map_err(|source| Refused { step: "find the link", source })?;
            let mut requests = Requests::new(socket, 1);
            requests.limit(index, bytes_per_second, self.mtu);
            requests.send(&[])
        };
        limit(&mut self.socket(), &attachment.host_link, bandwidth.ingress).map_err(refused)?;
        let inside = in_namespace(netns, |socket| limit(socket, "eth0", bandwidth.egress));
        inside.map_err(|source| refused(Refused { step: "enter the namespace", source }))?.map_err(refused)
    }

    fn detach(&self, sandbox_id: &str) -> Result<(), Error> {
        let refused = |Refused { step, source }| Error::Kernel { step, sandbox_id: sandbox_id.to_owned(), source };
        let Some(attachment) = lock(&self.ledger).attached.get(sandbox_id).cloned() else { return Ok(()) };
        self.delete_links(&[attachment.host_link]).map_err(refused)?;
        self.release(sandbox_id)
    }

    fn retain(&self, living: &[String]) -> Result<(), Error> {
        let living: HashSet<&str> = living.iter().map(String::as_str).collect();
        let (kept, gone): (Vec<_>, Vec<_>) =
            self.attachments().into_iter().partition(|attachment| living.contains(attachment.sandbox_id.as_str()));
        let kept: HashSet<&str> = kept.iter().map(|attachment| attachment.host_link.as_str()).collect();
        let links = links::names(&mut self.socket()).map_err(|source| Error::Node { step: "list links", source })?;
        let stray: Vec<String> = links.into_iter().filter(|name| self.is_our_link(name) && !kept.contains(name.as_str())).collect();
        self.delete_links(&stray).map_err(|Refused { step, source }| Error::Node { step, source })?;
        gone.iter().try_for_each(|attachment| self.release(&attachment.sandbox_id))
    }
}

impl Ledger {
    fn load(config: &Config, files: &Files) -> io::Result<Self> {
        let mut pools: Vec<Pool> = [Some(config.pod_cidr), config.pod_cidr_secondary].into_iter().flatten().map(Pool::new).collect();
        let mut attached = HashMap::new();
        for attachment in files.load()? {
            for address in &attachment.addresses {
                pools.iter_mut().any(|pool| pool.claim(*address));
            }
            attached.insert(attachment.sandbox_id.clone(), attachment);
        }
        for address in files.load_last() {
            pools.iter_mut().for_each(|pool| pool.resume_after(address));
        }
        Ok(Self { pools, attached })
    }
    /// One of every pool, or none.
    fn take_addresses(&mut self) -> Result<Vec<IpAddr>, Error> {
        let mut taken = Vec::new();
        for index in 0..self.pools.len() {
            match self.pools[index].take() {
                Some(address) => taken.push(address),
                None => {
                    let full = self.pools[index].name();
                    taken.iter().for_each(|address| self.release(*address));
                    return Err(Error::Exhausted(full));
                }
            }
        }
        Ok(taken)
    }
    fn forget(&mut self, sandbox_id: &str) {
        if let Some(attachment) = self.attached.remove(sandbox_id) {
            attachment.addresses.iter().for_each(|address| self.release(*address));
        }
    }
    fn release(&mut self, address: IpAddr) {
        self.pools.iter_mut().for_each(|pool| pool.release(address));
    }
}

/// A locally administered MAC address made of the primary address, as upstream's plugins make it.
fn pod_mac(attachment: &Attachment) -> Mac {
    let [a, b, c, d] = match attachment.addresses.first() {
        Some(IpAddr::V4(address)) => address.octets(),
        Some(IpAddr::V6(address)) => (address.to_bits() as u32).to_be_bytes(),
        None => [0; 4],
    };
    [0x0a, 0x58, a, b, c, d]
}

/// Runs `work` with an rtnetlink socket of that namespace. On a thread of its own, which ends: the caller's never leaves its namespace.
pub(crate) fn in_namespace<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce(&mut Socket) -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let entered = std::thread::Builder::new().name("pod-netns".into()).spawn_scoped(scope, move || {
            rustix::thread::move_into_link_name_space(netns, Some(rustix::thread::LinkNameSpaceType::Network))?;
            Ok(work(&mut Socket::route()?))
        })?;
        entered.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the pod's namespace panicked")))
    })
}

/// A host that forwards stops listening to routers, and would lose its own way out, unless it is told to go on.
fn keep_router_advertisements() {
    for link in fs::read_dir("/proc/sys/net/ipv6/conf").into_iter().flatten().flatten() {
        let path = link.path().join("accept_ra");
        if fs::read(&path).is_ok_and(|value| value.trim_ascii() == b"1")
            && let Err(error) = fs::write(&path, "2")
        {
            tracing::warn!(path = %path.display(), %error, "this link may lose its IPv6 routes");
        }
    }
}

fn set_sysctl(path: &str) -> io::Result<()> {
    // Reading first: a read-only /proc/sys is fine when the value is right.
    if fs::read(path).is_ok_and(|value| value.trim_ascii() == b"1") { Ok(()) } else { fs::write(path, "1") }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
