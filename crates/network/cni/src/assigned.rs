//! The routed network of a node that learns its range from the cluster.
//!
//! The range is kept in a file, so that a node that starts again needs nobody to go on.

use std::fs;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::{Attachment, Bandwidth, Cidr, Config, Error, PodNetwork, Routed};

/// [`Routed`] from the moment on that the ranges are known.
#[derive(Debug)]
pub struct Assigned {
    /// Everything but the ranges.
    config: Config,
    file: PathBuf,
    network: RwLock<Option<Arc<Routed>>>,
    /// What `network` was opened with; one change after the other.
    ranges: Mutex<Vec<Cidr>>,
}

impl Assigned {
    /// Goes on with the ranges that `file` holds, where there is one. The ranges in `config` have no meaning.
    pub fn open(config: Config, file: PathBuf) -> Result<Self, Error> {
        let this = Self { config, file, network: RwLock::default(), ranges: Mutex::default() };
        let known = match fs::read_to_string(&this.file) {
            Ok(text) => text.split(',').filter_map(parse).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(Error::Node { step: "read the pod range", source }),
        };
        this.apply(&known)?;
        Ok(this)
    }

    fn apply(&self, ranges: &[Cidr]) -> Result<bool, Error> {
        let mut current = self.ranges.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((first, rest)) = ranges.split_first() else { return Ok(false) };
        if *current == ranges {
            return Ok(false);
        }
        let config = Config { pod_cidr: *first, pod_cidr_secondary: rest.first().copied(), ..self.config.clone() };
        // What is attached in a former range stays attached: the new one reads the same state.
        let routed = Routed::open(config)?;
        *self.network.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(routed));
        *current = ranges.to_vec();
        Ok(true)
    }

    fn network(&self) -> Option<Arc<Routed>> {
        self.network.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl PodNetwork for Assigned {
    fn attach(&self, sandbox_id: &str, netns: BorrowedFd<'_>) -> Result<Attachment, Error> {
        self.network().ok_or(Error::NoRange)?.attach(sandbox_id, netns)
    }
    fn attach_through(&self, sandbox_id: &str, netns: BorrowedFd<'_>, inside: OwnedFd) -> Result<Attachment, Error> {
        self.network().ok_or(Error::NoRange)?.attach_through(sandbox_id, netns, inside)
    }
    fn limit(&self, sandbox_id: &str, netns: BorrowedFd<'_>, bandwidth: Bandwidth) -> Result<(), Error> {
        self.network().ok_or(Error::NoRange)?.limit(sandbox_id, netns, bandwidth)
    }
    fn detach(&self, sandbox_id: &str) -> Result<(), Error> {
        // Without a range nothing was ever attached.
        self.network().map_or(Ok(()), |network| network.detach(sandbox_id))
    }
    fn retain(&self, living: &[String]) -> Result<(), Error> {
        self.network().map_or(Ok(()), |network| network.retain(living))
    }
    fn set_ranges(&self, ranges: &[Cidr]) -> Result<(), Error> {
        if self.apply(ranges)? {
            let text: Vec<String> = ranges.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect();
            let fresh = self.file.with_extension("new");
            let written = fs::write(&fresh, text.join(",")).and_then(|()| fs::rename(&fresh, &self.file));
            written.map_err(|source| Error::Node { step: "write the pod range", source })?;
        }
        Ok(())
    }
    fn readiness(&self) -> Result<(), String> {
        self.network().map(drop).ok_or_else(|| Error::NoRange.to_string())
    }
}

/// `10.244.8.0/21`; `None` for anything else.
pub(crate) fn parse(text: &str) -> Option<Cidr> {
    let (address, prefix) = text.trim().split_once('/')?;
    let cidr: Cidr = (address.parse().ok()?, prefix.parse().ok()?);
    (cidr.1 <= if cidr.0.is_ipv4() { 32 } else { 128 }).then_some(cidr)
}
