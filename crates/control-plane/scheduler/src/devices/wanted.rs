//! What claims ask for, in the form in which the search goes through it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::resource::v1::{
    CapacityRequirements, DeviceClass, DeviceRequest, DeviceSelector, DeviceTaint, DeviceToleration, ResourceClaim,
};
use meta::Quantity;
use reconcile::{Cache, Cached};

use super::selector::{Selector, Selectors};

/// Devices that one claim gets at most.
pub(crate) const RESULTS_MAX: usize = 32;

pub(crate) struct Wanted {
    pub claim: Arc<ResourceClaim>,
    pub requests: Vec<Request>,
}

pub(crate) struct Request {
    /// The first that can be fulfilled; more than one where the request gives alternatives.
    pub asks: Vec<Ask>,
}

/// One request, or one alternative of a request.
pub(crate) struct Ask {
    /// The request's name.
    pub request: String,
    /// `request`, or `request/alternative`.
    pub name: String,
    pub class: Arc<DeviceClass>,
    /// With who says it, for errors.
    pub selectors: Vec<(String, Arc<Selector>)>,
    pub count: Count,
    pub admin: bool,
    pub tolerations: Vec<DeviceToleration>,
    pub capacity: BTreeMap<String, Quantity>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    Exactly(usize),
    All,
}

/// A request's fields that alternatives have as well.
struct Fields<'a> {
    name: String,
    class: &'a str,
    selectors: Option<&'a Vec<DeviceSelector>>,
    mode: Option<&'a str>,
    count: Option<i64>,
    admin: bool,
    tolerations: Option<&'a Vec<DeviceToleration>>,
    capacity: Option<&'a CapacityRequirements>,
}

impl Wanted {
    /// What stands in the way whatever the node comes as the reason.
    pub fn of(claim: &Arc<ResourceClaim>, classes: &Cache<DeviceClass>, selectors: &Selectors) -> Result<Self, String> {
        let devices = claim.spec.as_ref().and_then(|spec| spec.devices.as_ref());
        let requests = devices.and_then(|devices| devices.requests.as_deref()).unwrap_or_default();
        let request = |request: &DeviceRequest| -> Result<Request, String> {
            let asks = fields(request).into_iter().map(|fields| ask(claim, &request.name, fields, classes, selectors));
            Ok(Request { asks: asks.collect::<Result<_, _>>()? })
        };
        Ok(Self { claim: claim.clone(), requests: requests.iter().map(request).collect::<Result<_, _>>()? })
    }

    /// Some request gives alternatives, so that nodes differ in how good their devices are.
    pub fn has_alternatives(&self) -> bool {
        self.requests.iter().any(|request| request.asks.len() > 1)
    }
}

fn fields(request: &DeviceRequest) -> Vec<Fields<'_>> {
    let exactly = request.exactly.iter().map(|exactly| Fields {
        name: request.name.clone(),
        class: &exactly.device_class_name,
        selectors: exactly.selectors.as_ref(),
        mode: exactly.allocation_mode.as_deref(),
        count: exactly.count,
        admin: exactly.admin_access.unwrap_or(false),
        tolerations: exactly.tolerations.as_ref(),
        capacity: exactly.capacity.as_ref(),
    });
    let alternatives = request.first_available.iter().flatten().map(|one| Fields {
        name: format!("{}/{}", request.name, one.name),
        class: &one.device_class_name,
        selectors: one.selectors.as_ref(),
        mode: one.allocation_mode.as_deref(),
        count: one.count,
        admin: false,
        tolerations: one.tolerations.as_ref(),
        capacity: one.capacity.as_ref(),
    });
    exactly.chain(alternatives).collect()
}

fn ask(
    claim: &ResourceClaim,
    request: &str,
    fields: Fields<'_>,
    classes: &Cache<DeviceClass>,
    selectors: &Selectors,
) -> Result<Ask, String> {
    let name = fields.name;
    let class = classes.get("", fields.class);
    let class = class.ok_or_else(|| format!("request {name}: device class {} does not exist", fields.class))?;
    let of_class = class.spec.as_ref().and_then(|spec| spec.selectors.as_deref()).unwrap_or_default();
    let of_class = of_class.iter().enumerate().map(|(at, selector)| (format!("class {}: selector #{at}", class.name()), selector));
    let own = fields.selectors.into_iter().flatten().enumerate();
    let own = own.map(|(at, selector)| (format!("claim {}: selector #{at}", claim.key()), selector));
    let compiled = of_class.chain(own).map(|(who, selector)| match &selector.cel {
        Some(cel) => Ok((who, selectors.of(&cel.expression))),
        None => Err(format!("{who}: CEL expression empty (unsupported selector type?)")),
    });
    let count = match fields.mode.unwrap_or("ExactCount") {
        "ExactCount" => Count::Exactly(usize::try_from(fields.count.unwrap_or(1)).unwrap_or(usize::MAX)),
        "All" => Count::All,
        other => return Err(format!("claim {}, request {name}: unsupported count mode {other}", claim.key())),
    };
    let amounts = fields.capacity.and_then(|capacity| capacity.requests.as_ref()).into_iter().flatten();
    Ok(Ask {
        request: request.to_owned(),
        selectors: compiled.collect::<Result<_, _>>()?,
        count,
        admin: fields.admin,
        tolerations: fields.tolerations.cloned().unwrap_or_default(),
        capacity: amounts.filter_map(|(name, amount)| Some((name.clone(), Quantity::parse(&amount.0).ok()?))).collect(),
        name,
        class,
    })
}

impl Ask {
    /// Every taint that keeps pods away is tolerated.
    pub fn tolerates(&self, taints: &[DeviceTaint]) -> bool {
        let mut hard = taints.iter().filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"));
        hard.all(|taint| self.tolerations.iter().any(|toleration| tolerates(toleration, taint)))
    }

    /// A constraint or configuration that names those requests is about this one.
    pub fn is_named_in(&self, requests: Option<&Vec<String>>) -> bool {
        requests.is_none_or(|names| names.is_empty() || names.iter().any(|name| *name == self.request || *name == self.name))
    }
}

fn tolerates(toleration: &DeviceToleration, taint: &DeviceTaint) -> bool {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (text(&toleration.effect), text(&toleration.key));
    if !effect.is_empty() && effect != taint.effect || !key.is_empty() && key != taint.key {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or("Equal") {
        "Exists" => true,
        "Equal" | "" => !key.is_empty() && text(&toleration.value) == text(&taint.value),
        _ => false,
    }
}
