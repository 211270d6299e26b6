//! AlwaysAdmit and AlwaysDeny: of no use but to see that plugins can be chosen.

use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

pub struct AlwaysAdmit;

impl Plugin for AlwaysAdmit {
    fn name(&self) -> &'static str {
        "AlwaysAdmit"
    }
    fn handles(&self, _: Operation) -> bool {
        false
    }
    fn on_by_default(&self) -> bool {
        false
    }
}

pub struct AlwaysDeny;

impl Plugin for AlwaysDeny {
    fn name(&self) -> &'static str {
        "AlwaysDeny"
    }
    fn handles(&self, _: Operation) -> bool {
        true
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(std::future::ready(Err(attributes.forbidden("admission control is denying all modifications"))))
    }
}
