//! The search for devices on one node: every request of every claim, in order, the first solution wins (as upstream).

use std::collections::HashMap;

use k8s_openapi::api::resource::v1::{DeviceAttribute, DeviceConstraint};
use meta::Quantity;

use super::capacity::{self, Amounts};
use super::inventory::{Device, Inventory};
use super::wanted::{Ask, Count, RESULTS_MAX, Wanted};
use crate::snapshot::Details;

/// Devices looked at for one pod on one node at most: constraints that hardly anything fulfils make the search exponential.
const STEPS_MAX: usize = 200_000;

/// How a device is used by claims that are allocated.
#[derive(Clone, Debug, Default)]
pub(crate) struct Use {
    pub exclusive: u32,
    /// What each share took.
    pub shares: Vec<Amounts>,
}

impl Use {
    pub fn is_used(&self) -> bool {
        self.exclusive > 0 || !self.shares.is_empty()
    }
}

/// A device given to a request.
#[derive(Clone)]
pub(crate) struct Taken<'w> {
    pub claim: usize,
    pub request: usize,
    pub alternative: usize,
    pub ask: &'w Ask,
    pub device: usize,
    /// Of a device that may be shared.
    pub share: Option<Amounts>,
}

pub(crate) struct Search<'w> {
    inventory: &'w Inventory,
    usage: &'w [Use],
    wanted: &'w [Wanted],
    /// Devices of whole pools that the node reaches.
    candidates: Vec<usize>,
    /// A pool that the node reaches and that is being updated or contradicts itself.
    broken: Option<(&'w str, &'static str)>,
    taken: Vec<Taken<'w>>,
    steps: usize,
}

/// Whether a solution was found; or what is wrong with the claim, in upstream's words.
type Found = Result<bool, String>;

impl<'w> Search<'w> {
    /// Devices for all claims; `None` where there are not enough.
    pub fn run(inventory: &'w Inventory, usage: &'w [Use], wanted: &'w [Wanted], node: &Details) -> Result<Option<Vec<Taken<'w>>>, String> {
        let mut search = Self { inventory, usage, wanted, candidates: Vec::new(), broken: None, taken: Vec::new(), steps: 0 };
        for device in inventory.reached_from(node) {
            let pool = &inventory.pools[inventory.devices[device].pool];
            match (pool.complete, pool.valid) {
                (true, true) => search.candidates.push(device),
                (false, _) => search.broken = Some((&pool.name, "being updated")),
                (_, false) => search.broken = Some((&pool.name, "invalid")),
            }
        }
        if search.claim(0)? {
            return Ok(Some(search.taken));
        }
        match search.broken {
            Some((_, "invalid")) => Err("invalid resource pools were encountered".into()),
            _ => Ok(None),
        }
    }

    fn claim(&mut self, claim: usize) -> Found {
        if claim == self.wanted.len() { Ok(true) } else { self.request(claim, 0) }
    }

    fn request(&mut self, claim: usize, request: usize) -> Found {
        let wanted: &'w Wanted = &self.wanted[claim];
        let Some(asked) = wanted.requests.get(request) else { return self.claim(claim + 1) };
        for (alternative, ask) in asked.asks.iter().enumerate() {
            let at = Place { claim, request, alternative, ask };
            let found = match ask.count {
                Count::Exactly(count) => self.some(at, count, 0)?,
                Count::All => self.all(at)?,
            };
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// `count` more devices, of the candidates from `from` on: each set is tried once, not in every order.
    fn some(&mut self, at: Place<'w>, count: usize, from: usize) -> Found {
        if count == 0 {
            return self.request(at.claim, at.request + 1);
        }
        if self.results(at.claim) + count > RESULTS_MAX {
            return Ok(false);
        }
        for index in from..self.candidates.len() {
            let Some(taken) = self.take(at, self.candidates[index])? else { continue };
            self.taken.push(taken);
            if self.some(at, count - 1, index + 1)? {
                return Ok(true);
            }
            self.taken.pop();
        }
        Ok(false)
    }

    /// Every device that is selected, or none.
    fn all(&mut self, at: Place<'w>) -> Found {
        if let Some((pool, how)) = self.broken {
            let claim = reconcile::Cached::key(&*self.wanted[at.claim].claim);
            return Err(format!(
                "claim {claim}, request {}: asks for all devices, but resource pool {pool} is currently {how}",
                at.ask.name
            ));
        }
        let before = self.taken.len();
        let mut found = false;
        for index in 0..self.candidates.len() {
            let device = self.candidates[index];
            let published = self.inventory.devices[device].published();
            let share = capacity::share(&at.ask.capacity, published, &self.inventory.devices[device].id.driver);
            if !self.is_selected(at.ask, device)? || share.is_none() {
                continue;
            }
            match self.take(at, device)? {
                Some(taken) if self.results(at.claim) < RESULTS_MAX => self.taken.push(taken),
                _ => {
                    self.taken.truncate(before);
                    return Ok(false);
                }
            }
            found = true;
        }
        if found && self.request(at.claim, at.request + 1)? {
            return Ok(true);
        }
        self.taken.truncate(before);
        Ok(false)
    }

    /// The device for that request, if it can have it beside what is taken so far.
    fn take(&mut self, at: Place<'w>, device: usize) -> Result<Option<Taken<'w>>, String> {
        self.steps += 1;
        if self.steps > STEPS_MAX || self.is_in_use(at, device) || !self.is_selected(at.ask, device)? {
            return Ok(None);
        }
        let one = &self.inventory.devices[device];
        let (published, shared) = (one.published(), is_shared(one));
        if !at.ask.tolerates(&one.taints) {
            return Ok(None);
        }
        let Some(share) = capacity::share(&at.ask.capacity, published, &one.id.driver) else { return Ok(None) };
        if shared && !capacity::fits(&share, published, &self.shares(device)) {
            return Ok(None);
        }
        let counted = shared && (self.usage[device].is_used() || self.taken.iter().any(|taken| taken.device == device));
        if !counted && !at.ask.admin && !self.has_counters(device) {
            return Ok(None);
        }
        if !self.constraints_hold(at, device)? {
            return Ok(None);
        }
        let Place { claim, request, alternative, ask } = at;
        Ok(Some(Taken { claim, request, alternative, ask, device, share: shared.then_some(share) }))
    }

    fn is_in_use(&self, at: Place<'_>, device: usize) -> bool {
        if is_shared(&self.inventory.devices[device]) {
            return false;
        }
        let mut now = self.taken.iter().filter(|taken| taken.device == device);
        match at.ask.admin {
            true => now.any(|taken| taken.claim == at.claim),
            false => self.usage[device].exclusive > 0 || now.next().is_some(),
        }
    }

    fn is_selected(&self, ask: &Ask, device: usize) -> Found {
        for (who, selector) in &ask.selectors {
            let selected = selector.selects(self.inventory, device);
            if !selected.map_err(|error| format!("{who}: {error}"))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn shares(&self, device: usize) -> Vec<&Amounts> {
        let now = self.taken.iter().filter(|taken| taken.device == device).filter_map(|taken| taken.share.as_ref());
        self.usage[device].shares.iter().chain(now).collect()
    }

    /// Whether the pool's counters suffice for the device beside the partitions in use.
    fn has_counters(&self, device: usize) -> bool {
        let wanted = consumed(&self.inventory.devices[device]);
        if wanted.is_empty() {
            return true;
        }
        let pool = &self.inventory.pools[self.inventory.devices[device].pool];
        let mut used: HashMap<(&str, &str), Quantity> = wanted;
        let taken =
            |other: &&usize| self.usage[**other].is_used() || self.taken.iter().any(|taken| taken.device == **other && !taken.ask.admin);
        for other in pool.devices.iter().filter(|other| **other != device).filter(taken) {
            for (counter, amount) in consumed(&self.inventory.devices[*other]) {
                if let Some(sum) = used.get_mut(&counter) {
                    *sum = *sum + amount;
                }
            }
        }
        used.iter().all(|((set, name), sum)| pool.counters.get(&((*set).to_owned(), (*name).to_owned())).is_some_and(|total| sum <= total))
    }

    fn constraints_hold(&self, at: Place<'_>, device: usize) -> Found {
        let claim = &self.wanted[at.claim].claim;
        let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
        for (index, constraint) in devices.and_then(|devices| devices.constraints.as_deref()).unwrap_or_default().iter().enumerate() {
            if !at.ask.is_named_in(constraint.requests.as_ref()) {
                continue;
            }
            match self.holds(constraint, at.claim, device) {
                Some(true) => {}
                Some(false) => return Ok(false),
                None => {
                    let claim = reconcile::Cached::key(&**claim);
                    return Err(format!("claim {claim}, constraint #{index}: empty constraint (unsupported constraint type?)"));
                }
            }
        }
        Ok(true)
    }

    /// `None`: it is of a kind that is not known.
    fn holds(&self, constraint: &DeviceConstraint, claim: usize, device: usize) -> Option<bool> {
        let name = constraint.match_attribute.as_ref().or(constraint.distinct_attribute.as_ref())?;
        let Some(own) = attribute(&self.inventory.devices[device], name) else { return Some(false) };
        let others = self.taken.iter().filter(|taken| taken.claim == claim && taken.ask.is_named_in(constraint.requests.as_ref()));
        let mut others = others.map(|taken| attribute(&self.inventory.devices[taken.device], name));
        Some(match constraint.match_attribute {
            Some(_) => others.all(|other| other == Some(own)),
            None => others.all(|other| other != Some(own)),
        })
    }

    fn results(&self, claim: usize) -> usize {
        self.taken.iter().filter(|taken| taken.claim == claim).count()
    }
}

/// Which request of which claim.
#[derive(Clone, Copy)]
struct Place<'w> {
    claim: usize,
    request: usize,
    alternative: usize,
    ask: &'w Ask,
}

fn is_shared(device: &Device) -> bool {
    device.published().allow_multiple_allocations.unwrap_or(false)
}

fn consumed(device: &Device) -> HashMap<(&str, &str), Quantity> {
    let sets = device.published().consumes_counters.iter().flatten();
    let counters = sets.flat_map(|set| {
        set.counters
            .iter()
            .filter_map(|(name, counter)| Some(((set.counter_set.as_str(), name.as_str()), Quantity::parse(&counter.value.0).ok()?)))
    });
    counters.collect()
}

/// By its full name, or by its name in the driver's domain.
fn attribute<'d>(device: &'d Device, name: &str) -> Option<&'d DeviceAttribute> {
    let attributes = device.published().attributes.as_ref()?;
    attributes.get(name).or_else(|| {
        let (domain, id) = name.split_once('/')?;
        (domain == device.id.driver).then(|| attributes.get(id)).flatten()
    })
}
