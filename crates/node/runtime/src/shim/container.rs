//! One container in its shim: from start to exit.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci::{Channel, Failure, Handles, Progress};
use rustix::event::PollFlags;
use rustix::fs::{Mode, OFlags, openat, renameat};

use super::log::{Log, Stream};
use super::now;
use super::pipes::Output;
use crate::protocol::{Exit, Reply, Running, Start};

/// A child that has not yet said whether it runs.
pub struct Starting {
    pub channel: Channel,
    /// The call to answer.
    pub call: u64,
    pub terminal: Option<OwnedFd>,
}

impl Starting {
    /// Takes one message; `Some` when the matter is decided, with the process where another program made it.
    pub fn advance(&mut self) -> Option<Result<Option<(i32, OwnedFd)>, Failure>> {
        match self.channel.receive() {
            Ok(Progress::Terminal(master)) => {
                self.terminal = Some(master);
                None
            }
            Ok(Progress::Failed(failure)) => Some(Err(failure)),
            Ok(Progress::Running) => Some(Ok(None)),
            Ok(Progress::Adopted(pid, pidfd)) => Some(Ok(Some((pid, pidfd)))),
            Err(error) => Some(Err(Failure::new("hear from the child", error))),
        }
    }
}

/// Which of a container's descriptors is ready.
pub enum What {
    Channel,
    Output(usize),
    Blocked(usize),
}

/// A container that was started.
pub struct Container {
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub log: Log,
    /// `tasks` of every v1 hierarchy, for exec.
    pub join: Vec<OwnedFd>,
    pub birthplace: Option<OwnedFd>,
    kill: Option<OwnedFd>,
    starting: Option<Starting>,
    /// Another program makes the container; until it has, the process is the one that runs that program.
    external: bool,
    /// It could not be started: the caller was told why, and its end is no exit of a container.
    never_ran: bool,
    outputs: Vec<Output>,
    stdin: Option<OwnedFd>,
    stdin_once: bool,
    terminal: Option<OwnedFd>,
    started_at: i64,
    exit: Option<Exit>,
}

/// An answer to an earlier call, with the terminal's master if there is one.
pub type LateReply = (u64, Result<Reply, Failure>, Option<OwnedFd>);

impl Container {
    pub fn start(
        mut start: Start,
        call: u64,
        mut descriptors: impl Iterator<Item = OwnedFd>,
        namespace: Option<&OwnedFd>,
        own: &OwnedFd,
        users: Option<oci::Users<'_>>,
    ) -> io::Result<Self> {
        let missing = || io::Error::other("a descriptor is missing");
        let rootfs = descriptors.next().ok_or_else(missing)?;
        let log = descriptors.next().ok_or_else(missing)?;
        let trees: Vec<OwnedFd> = descriptors.by_ref().take(start.trees).collect();
        let join: Vec<OwnedFd> = descriptors.by_ref().take(start.join).collect();
        let birthplace = if start.birthplace { descriptors.next() } else { None };
        let kill = if start.kill { descriptors.next() } else { None };
        let host = if start.external.is_some() { descriptors.next() } else { None };
        let mut outputs = Vec::new();
        let mut ends = [None, None, None];
        let mut stdin = None;
        if !start.spec.process.terminal {
            for (number, stream) in [(1, Stream::Stdout), (2, Stream::Stderr)] {
                let (ours, theirs) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                outputs.push(Output::new(ours, stream)?);
                if let Some(end) = ends.get_mut(number) {
                    *end = Some(theirs);
                }
            }
            if start.stdin {
                let (theirs, ours) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
                (ends[0], stdin) = (Some(theirs), Some(ours));
            }
        }
        if namespace.is_none() && start.spec.pid_namespace == oci::PidNamespace::Join {
            // The pod has no namespace to share: the container's own is the safe reading.
            start.spec.pid_namespace = oci::PidNamespace::New;
        }
        let handles = Handles {
            rootfs: Some(rootfs.as_fd()),
            trees: &trees,
            join: &join,
            birthplace: birthplace.as_ref().map(AsFd::as_fd),
            stdio: ends.each_ref().map(|end| end.as_ref().map(AsFd::as_fd)),
            users,
            pid_namespace: namespace.map(AsFd::as_fd),
            own_pid_namespace: Some(own.as_fd()),
        };
        // SAFETY: the shim has one thread, and takes orphans.
        let started = match (&start.external, &host) {
            (Some(external), Some(host)) => unsafe { oci::spawn_external(&start.spec, external, host.as_fd(), &handles) }?,
            _ => unsafe { oci::spawn(&start.spec, &handles) }?,
        };
        Ok(Self {
            pid: started.pid,
            pidfd: started.pidfd,
            log: Log::new(Some(log.into())),
            join,
            birthplace,
            kill,
            starting: Some(Starting { channel: started.channel, call, terminal: None }),
            external: start.external.is_some(),
            never_ran: false,
            outputs,
            stdin,
            stdin_once: start.stdin_once,
            terminal: None,
            started_at: 0,
            exit: None,
        })
    }

    pub fn poll<'a>(&'a self, mut add: impl FnMut(BorrowedFd<'a>, PollFlags, What)) {
        if let Some(starting) = &self.starting {
            add(starting.channel.as_fd(), PollFlags::IN, What::Channel);
        }
        for (number, output) in self.outputs.iter().enumerate() {
            let mut blocked = false;
            for end in output.blocked() {
                blocked = true;
                add(end.as_fd(), PollFlags::OUT, What::Blocked(number));
            }
            if !blocked {
                add(output.source.as_fd(), PollFlags::IN, What::Output(number));
            }
        }
    }

    /// Handles a ready descriptor.
    pub fn ready(&mut self, what: What) -> Option<LateReply> {
        match what {
            What::Channel => return self.progress(),
            What::Blocked(number) => self.outputs.get_mut(number)?.flush(),
            What::Output(number) => {
                let more = self.outputs.get_mut(number)?.pump(&mut self.log, now());
                if !more {
                    self.outputs.remove(number);
                }
            }
        }
        None
    }

    fn progress(&mut self) -> Option<LateReply> {
        let starting = self.starting.as_mut()?;
        let mut result = starting.advance()?;
        if self.external && matches!(result, Ok(None)) {
            result = Err(Failure::new("run the container's program", io::Error::other("it ended without a word")));
        }
        let (call, terminal) = (starting.call, starting.terminal.take());
        self.starting = None;
        self.never_ran = result.is_err();
        self.started_at = now();
        if let Some(master) = terminal {
            self.outputs = master.try_clone().and_then(|copy| Output::new(copy, Stream::Stdout)).into_iter().collect();
            self.terminal = Some(master);
        }
        if let Ok(Some((pid, pidfd))) = &mut result {
            self.pid = *pid;
            std::mem::swap(&mut self.pidfd, pidfd);
        }
        Some((call, result.map(|_| Reply::Started { pid: self.pid, started_at: self.started_at }), None))
    }

    /// Is another program about to make the container?
    pub fn is_made_elsewhere(&self) -> bool {
        self.external && self.starting.is_some()
    }

    pub fn never_ran(&self) -> bool {
        self.never_ran
    }

    /// The first process is gone: the rest of its output, its log's end, its leftovers. A start that was never answered is answered now.
    pub fn ended(&mut self, code: i32) -> (Option<(u64, Result<Reply, Failure>)>, Exit) {
        let mut reply = None;
        while self.starting.is_some() {
            reply = self.progress().map(|(call, result, _)| (call, result));
        }
        self.kill();
        let at = now();
        for mut output in std::mem::take(&mut self.outputs) {
            output.flush();
            output.drain(&mut self.log, at);
        }
        self.log.finish(at);
        (self.stdin, self.terminal, self.kill, self.birthplace) = (None, None, None, None);
        self.join.clear();
        let exit = Exit { code, started_at: self.started_at, finished_at: at, ..Exit::default() };
        self.exit = Some(exit.clone());
        (reply, exit)
    }

    /// Connects `ends` to the outputs and hands out the input. The terminal's master serves for resizing, too.
    pub fn attach(&mut self, stdin: bool, ends: [Option<OwnedFd>; 2]) -> io::Result<Option<OwnedFd>> {
        for (end, stream) in ends.into_iter().zip([Stream::Stdout, Stream::Stderr]) {
            let output = self.outputs.iter_mut().find(|o| o.stream == stream);
            if let (Some(end), Some(output)) = (end, output) {
                output.attach(end)?;
            }
        }
        if let Some(master) = &self.terminal {
            return master.try_clone().map(Some);
        }
        match &self.stdin {
            Some(_) if stdin && self.stdin_once => Ok(self.stdin.take()),
            Some(end) if stdin => end.try_clone().map(Some),
            _ => Ok(None),
        }
    }

    pub fn has_exited(&self) -> bool {
        self.exit.is_some()
    }

    pub fn running(&self, id: &str) -> Option<Running> {
        let (pid, started_at) = (self.pid, self.started_at);
        self.starting.is_none().then(|| Running { container: id.to_owned(), pid, started_at, exit: self.exit.clone() })
    }

    /// Kills everything in the container's control group, the first process at least.
    pub fn kill(&self) {
        if self.exit.is_some() {
            return;
        }
        let killed = self.kill.as_ref().is_some_and(|file| rustix::io::write(file, b"1").is_ok());
        if !killed {
            let _ = signal(&self.pidfd, libc::SIGKILL);
        }
    }
}

/// Signals the process behind a pidfd; one that is gone is fine.
pub fn signal(pidfd: &OwnedFd, number: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // SAFETY: plain system call on an owned descriptor; real-time signals have no name in rustix.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), number, std::ptr::null::<libc::siginfo_t>(), 0) };
    match io::Error::last_os_error() {
        error if result < 0 && error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}

/// Writes `<directory>/<container>/exit`, whole or not at all, for a daemon that comes when this process is gone.
pub fn persist(directory: &OwnedFd, id: &str, exit: &Exit) -> io::Result<()> {
    let (new, name) = (format!("{id}/exit.new"), format!("{id}/exit"));
    let fd =
        openat(directory, new.as_str(), OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::CLOEXEC, Mode::from_raw_mode(0o600))?;
    io::Write::write_all(&mut std::fs::File::from(fd), &serde_json::to_vec(exit)?)?;
    Ok(renameat(directory, new.as_str(), directory, name.as_str())?)
}
