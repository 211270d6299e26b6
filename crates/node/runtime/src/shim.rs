//! One small process per pod: parent of its containers, holder of its namespaces, writer of its logs.
//!
//! Forked from the [`nursery`], which is our own binary, re-exec'd. One thread, one poll loop, no tokio. It outlives the daemon (own session, own control group) and serves the next one: whoever connects last is served. It ends
//! on [`Request::Shutdown`].
//!
//! [`Request::Shutdown`]: crate::protocol::Request::Shutdown

mod container;
mod init;
mod log;
mod nursery;
mod pipes;
mod sandbox;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, accept_with, socket_with};

use crate::protocol::{self, Call, Message, Reply, Request, Running, Setup};
use container::{Container, Starting};
pub(crate) use nursery::{Spawn, Spawned, TITLE_BYTES};
pub(crate) use sandbox::{SHM, STAGING, instance};

/// What a shim's command line says.
const ARGUMENT: &str = "shim";
/// The first argument that makes our binary the parent of shims.
pub const NURSERY_ARGUMENT: &str = "shims";

/// What containerd gives its shims.
const OOM_SCORE: &str = "-998";

/// Says what went wrong where the daemon's log is. That this cannot be written, on a full disk, must not end the pod.
fn complain(what: std::fmt::Arguments<'_>) {
    use std::io::Write;
    let _ = writeln!(io::stderr(), "shim: {what}");
}

struct Exec {
    number: u64,
    pidfd: OwnedFd,
    /// While it has not said whether it runs: its channel, and the call to answer.
    starting: Option<Starting>,
}

struct Shim {
    directory: OwnedFd,
    listener: OwnedFd,
    signals: OwnedFd,
    connection: Option<OwnedFd>,
    /// The shim's own process, to return to its PID namespace.
    own: OwnedFd,
    network: Option<OwnedFd>,
    users: Option<(OwnedFd, u32)>,
    init: Option<OwnedFd>,
    containers: BTreeMap<String, Container>,
    execs: BTreeMap<i32, Exec>,
    /// Exits of processes that nobody knew, while another program makes a container: its first process may end before we are told of it.
    strangers: BTreeMap<i32, i32>,
    ending: bool,
}

/// Serves as the parent of shims; never returns. `args` are the process's arguments after [`NURSERY_ARGUMENT`].
pub fn main(mut args: impl Iterator<Item = OsString>) -> ! {
    let cgroup_root = args.next().and_then(|root| root.into_string().ok()).unwrap_or_default();
    let code = match nursery::serve(&cgroup_root) {
        Ok(()) => 0,
        Err(error) => {
            complain(format_args!("{error}"));
            1
        }
    };
    std::process::exit(code)
}

/// The socket that came as standard input, moved away from there; nothing but it and the standard streams is kept over an exec.
fn standard_input() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(std::io::stdin(), 3)?;
    let null = rustix::fs::open("/dev/null", rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
    // SAFETY: plain system call; descriptor 0 is this process's standard input, which nobody owns.
    if unsafe { libc::dup2(null.as_raw_fd(), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    oci::sys::close_on_exec_from(3)?;
    Ok(socket)
}

/// Whoever has it sets up this process's network namespace from elsewhere.
fn route_socket() -> io::Result<OwnedFd> {
    // Netlink's protocol 0 is NETLINK_ROUTE.
    Ok(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?)
}

impl Shim {
    fn open(directory: OwnedFd, listener: OwnedFd) -> io::Result<Self> {
        rustix::process::setsid()?;
        // SAFETY: plain system calls: orphans of the pod's containers come to this process, and its name tells what it is.
        unsafe {
            libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_NAME, c"sternpost-shim".as_ptr());
        }
        pipes::nonblocking(&listener)?;
        Ok(Self {
            directory,
            listener,
            signals: signal_descriptor()?,
            connection: None,
            own: rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())?,
            network: None,
            users: None,
            init: None,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            strangers: BTreeMap::new(),
            ending: false,
        })
    }

    fn serve(&mut self) -> io::Result<()> {
        while !self.ending {
            let ready = self.wait()?;
            for source in ready {
                // Nothing that fails for one container, exec or client may end the pod.
                if let Err(error) = self.handle(source) {
                    complain(format_args!("{error}"));
                }
            }
        }
        Ok(())
    }

    /// Waits for anything to happen; returns what did. What is ready is named, not held, because handling one may end another.
    fn wait(&self) -> io::Result<Vec<Source>> {
        let mut sources = vec![Source::Signal, Source::Listener];
        let mut polled = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&self.listener, PollFlags::IN)];
        if let Some(connection) = &self.connection {
            sources.push(Source::Connection);
            polled.push(PollFd::new(connection, PollFlags::IN));
        }
        for (pid, exec) in &self.execs {
            if let Some(starting) = &exec.starting {
                sources.push(Source::ExecChannel(*pid));
                polled.push(PollFd::new(&starting.channel, PollFlags::IN));
            }
        }
        for (id, container) in &self.containers {
            container.poll(|fd, flags, what| {
                sources.push(Source::Container(id.clone(), what));
                polled.push(PollFd::from_borrowed_fd(fd, flags));
            });
        }
        match poll(&mut polled, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(sources.into_iter().zip(polled).filter(|(_, fd)| !fd.revents().is_empty()).map(|(source, _)| source).collect())
    }

    fn handle(&mut self, source: Source) -> io::Result<()> {
        match source {
            Source::Signal => self.reap(),
            Source::Listener => self.accept(),
            Source::Connection => self.request(),
            Source::ExecChannel(pid) => {
                self.exec_progress(pid);
                Ok(())
            }
            Source::Container(id, what) => self.container_ready(&id, what),
        }
    }

    fn container_ready(&mut self, id: &str, what: container::What) -> io::Result<()> {
        let Some(container) = self.containers.get_mut(id) else { return Ok(()) };
        let Some((number, reply, terminal)) = container.ready(what) else { return Ok(()) };
        let (pid, terminal) = (container.pid, terminal.map(|t| t.try_clone()).transpose()?);
        if reply.is_err() {
            // It never ran: the caller has the reason, and the exit of the child is nobody's news.
            self.containers.remove(id);
        }
        self.reply(number, reply, terminal.as_ref().map(AsFd::as_fd).as_slice());
        if let Some(code) = self.strangers.remove(&pid) {
            self.ended(pid, code);
        }
        if !self.containers.values().any(Container::is_made_elsewhere) {
            self.strangers.clear();
        }
        Ok(())
    }

    fn accept(&mut self) -> io::Result<()> {
        // The listener does not wait: a client may be gone by now.
        let connection = accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        let peer = rustix::net::sockopt::socket_peercred(&connection)?;
        if peer.uid == rustix::process::geteuid() {
            self.connection = Some(connection);
        }
        Ok(())
    }

    fn request(&mut self) -> io::Result<()> {
        let Some(connection) = &self.connection else { return Ok(()) };
        let (call, descriptors) = match protocol::receive::<Call>(connection) {
            Ok(Some(received)) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            _ => {
                self.connection = None;
                // A daemon that dies before the pod is set up leaves nothing to keep.
                self.ending = self.network.is_none();
                return Ok(());
            }
        };
        let number = call.number;
        match self.answer(call, descriptors) {
            Ok(Some((reply, descriptors))) => {
                let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
                self.reply(number, Ok(reply), &borrowed);
            }
            Ok(None) => {}
            Err(failure) => self.reply(number, Err(failure), &[]),
        }
        Ok(())
    }

    /// `None` when the reply comes later.
    fn answer(&mut self, call: Call, descriptors: Vec<OwnedFd>) -> Result<Option<(Reply, Vec<OwnedFd>)>, oci::Failure> {
        let mut descriptors = descriptors.into_iter();
        let step = |name: &'static str| move |error: io::Error| oci::Failure::new(name, error);
        let done = |given: Vec<OwnedFd>| Ok(Some((Reply::Done, given)));
        match call.request {
            Request::Setup(setup) => {
                self.setup(&setup).map_err(step("set up the sandbox"))?;
                let mut descriptors = self.namespaces();
                descriptors.push(route_socket().map_err(step("open a netlink socket"))?);
                Ok(Some((Reply::Ready { shim: rustix::process::getpid().as_raw_pid() }, descriptors)))
            }
            Request::Hello => {
                let running = self.containers.iter().filter_map(|(id, c)| c.running(id)).collect::<Vec<Running>>();
                let shim = rustix::process::getpid().as_raw_pid();
                Ok(Some((Reply::Hello { shim, running }, self.namespaces())))
            }
            Request::Start(start) => {
                let id = start.container.clone();
                if self.find(&id).is_ok() {
                    return Err(oci::Failure::new(format!("container {id}"), io::Error::from_raw_os_error(libc::EEXIST)));
                }
                let namespace = self.pid_namespace(start.pid_target.as_deref())?;
                let users = users(&self.users);
                let container =
                    Container::start(*start, call.number, descriptors, namespace.as_ref(), &self.own, users).map_err(step("start"))?;
                self.containers.insert(id, container);
                Ok(None)
            }
            Request::Exec { exec, container, process, stdio } => {
                let container = self.find(&container)?;
                let ends = stdio.map(|present| if present { descriptors.next() } else { None });
                let handles = oci::Handles {
                    join: &container.join,
                    birthplace: container.birthplace.as_ref().map(AsFd::as_fd),
                    stdio: ends.each_ref().map(|end| end.as_ref().map(AsFd::as_fd)),
                    users: users(&self.users),
                    pid_namespace: Some(container.pidfd.as_fd()),
                    own_pid_namespace: Some(self.own.as_fd()),
                    ..oci::Handles::default()
                };
                // SAFETY: the shim has one thread.
                let started = unsafe { oci::enter(&process, container.pidfd.as_fd(), &handles) }.map_err(step("exec"))?;
                let starting = Some(Starting { channel: started.channel, call: call.number, terminal: None });
                self.execs.insert(started.pid, Exec { number: exec, pidfd: started.pidfd, starting });
                Ok(None)
            }
            Request::SignalExec { exec, signal } => {
                if let Some(exec) = self.execs.values().find(|e| e.number == exec) {
                    container::signal(&exec.pidfd, signal).map_err(step("signal"))?;
                }
                done(Vec::new())
            }
            Request::Signal { container, signal } => {
                container::signal(&self.find(&container)?.pidfd, signal).map_err(step("signal"))?;
                done(Vec::new())
            }
            Request::Attach { container, stdin, stdout, stderr } => {
                let ends = [stdout, stderr].map(|present| if present { descriptors.next() } else { None });
                done(self.find_mut(&container)?.attach(stdin, ends).map_err(step("attach"))?.into_iter().collect())
            }
            Request::ReopenLog { container } => {
                if let (Some(container), Some(file)) = (self.containers.get_mut(&container), descriptors.next()) {
                    container.log.reopen(file.into());
                }
                done(Vec::new())
            }
            Request::Socket { ipv6 } => {
                let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
                let socket = socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None);
                done(vec![socket.map_err(|e| oci::Failure::new("open a socket", e))?])
            }
            Request::Forget { container } => {
                if self.containers.get(&container).is_some_and(Container::has_exited) {
                    self.containers.remove(&container);
                }
                done(Vec::new())
            }
            Request::Shutdown => {
                self.containers.values().for_each(Container::kill);
                if let Some(init) = &self.init {
                    let _ = container::signal(init, libc::SIGKILL);
                }
                self.ending = true;
                done(Vec::new())
            }
        }
    }

    fn setup(&mut self, setup: &Setup) -> io::Result<()> {
        // The kernel should take the containers first. Without CAP_SYS_RESOURCE that cannot be asked for.
        let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        // SAFETY: the shim has one thread.
        let (network, namespace) = unsafe { sandbox::enter(setup) }?;
        self.network = Some(network);
        self.users = namespace.zip(setup.users.map(|range| range.first));
        if setup.shared_pid_namespace {
            // SAFETY: the shim has one thread.
            self.init = Some(unsafe { init::spawn(self.users.as_ref().map(|(namespace, _)| namespace.as_fd())) }?);
        }
        Ok(())
    }

    fn namespaces(&self) -> Vec<OwnedFd> {
        let users = self.users.as_ref().map(|(namespace, _)| namespace);
        self.network.iter().chain(users).filter_map(|fd| fd.try_clone().ok()).collect()
    }

    fn find(&self, id: &str) -> Result<&Container, oci::Failure> {
        self.containers.get(id).filter(|c| !c.has_exited()).ok_or_else(|| not_running(id))
    }

    fn find_mut(&mut self, id: &str) -> Result<&mut Container, oci::Failure> {
        self.containers.get_mut(id).filter(|c| !c.has_exited()).ok_or_else(|| not_running(id))
    }

    fn pid_namespace(&self, target: Option<&str>) -> Result<Option<OwnedFd>, oci::Failure> {
        let pidfd = match target {
            Some(id) => Some(&self.find(id)?.pidfd),
            None => self.init.as_ref(),
        };
        pidfd.map(OwnedFd::try_clone).transpose().map_err(|e| oci::Failure::new("find the PID namespace", e))
    }

    fn exec_progress(&mut self, pid: i32) {
        let Some(exec) = self.execs.get_mut(&pid) else { return };
        let Some(starting) = &mut exec.starting else { return };
        if let Some(result) = starting.advance() {
            let started = starting.call;
            let terminal = starting.terminal.take();
            exec.starting = None;
            let reply = result.map(|_| Reply::Started { pid, started_at: now() });
            self.reply(started, reply, terminal.as_ref().map(AsFd::as_fd).as_slice());
        }
    }

    /// Collects every child that has ended.
    fn reap(&mut self) -> io::Result<()> {
        let mut information = [0_u8; size_of::<libc::signalfd_siginfo>()];
        let _ = rustix::io::read(&self.signals, &mut information);
        loop {
            let mut status = 0;
            // SAFETY: `status` is valid for writing.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return Ok(());
            }
            self.ended(pid, exit_code(status));
        }
    }

    fn ended(&mut self, pid: i32, code: i32) {
        while self.execs.get(&pid).is_some_and(|exec| exec.starting.is_some()) {
            self.exec_progress(pid);
        }
        if let Some(exec) = self.execs.remove(&pid) {
            self.tell(&Message::ExecExited { exec: exec.number, code });
            return;
        }
        // Who runs another program says at its end whom that made.
        let made = self.containers.iter().find(|(_, c)| c.pid == pid && c.is_made_elsewhere()).map(|(id, _)| id.clone());
        if let Some(id) = made {
            if let Err(error) = self.container_ready(&id, container::What::Channel) {
                complain(format_args!("{error}"));
            }
            return;
        }
        let Some((id, container)) = self.containers.iter_mut().find(|(_, c)| c.pid == pid && !c.has_exited()) else {
            if self.containers.values().any(Container::is_made_elsewhere) {
                self.strangers.insert(pid, code);
            }
            return;
        };
        let id = id.clone();
        let (reply, exit) = container.ended(code);
        let never_ran = container.never_ran();
        if let Some((number, reply)) = reply {
            self.reply(number, reply, &[]);
        }
        if never_ran {
            // The caller has the reason, maybe since before the process ended, and there is nothing to remember.
            self.containers.remove(&id);
            return;
        }
        if let Err(error) = container::persist(&self.directory, &id, &exit) {
            complain(format_args!("exit of {id}: {error}"));
        }
        self.tell(&Message::Exited { container: id, exit });
    }

    fn reply(&mut self, number: u64, reply: Result<Reply, oci::Failure>, descriptors: &[BorrowedFd<'_>]) {
        self.send(&Message::Reply { number, reply }, descriptors);
    }

    fn tell(&mut self, event: &Message) {
        self.send(event, &[]);
    }

    /// A daemon that does not read is let go; it learns everything with Hello when it comes back.
    fn send(&mut self, message: &Message, descriptors: &[BorrowedFd<'_>]) {
        if let Some(connection) = &self.connection
            && protocol::send(connection, message, descriptors).is_err()
        {
            self.connection = None;
        }
    }
}

fn users(own: &Option<(OwnedFd, u32)>) -> Option<oci::Users<'_>> {
    own.as_ref().map(|(namespace, first)| oci::Users { namespace: namespace.as_fd(), first: *first })
}

fn not_running(id: &str) -> oci::Failure {
    oci::Failure::new(format!("container {id}"), io::Error::from_raw_os_error(libc::ESRCH))
}

/// What can be ready.
enum Source {
    Signal,
    Listener,
    Connection,
    ExecChannel(i32),
    Container(String, container::What),
}

fn signal_descriptor() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use; signalfd returns a new descriptor or -1.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        // Nobody stops a shim by accident: it goes when it is told to, or by SIGKILL.
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

fn exit_code(status: i32) -> i32 {
    if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) }
}

/// Nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos() as i64)
}
