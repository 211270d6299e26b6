//! DenyServiceExternalIPs: nobody claims addresses by `externalIPs` (CVE-2020-8554); those that are there may stay or go.

use rules::value::list;

use crate::{Attributes, Lookup, Plugin, Verdict, accept};

pub struct DenyServiceExternalIps;

impl Plugin for DenyServiceExternalIps {
    fn name(&self) -> &'static str {
        "DenyServiceExternalIPs"
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        let Some(service) = attributes.object.as_ref().filter(|_| attributes.is("", "services")) else { return accept() };
        let old = attributes.old.as_ref().map(|old| list(old, "spec.externalIPs")).unwrap_or_default();
        if list(service, "spec.externalIPs").iter().all(|address| old.contains(address)) {
            return accept();
        }
        Box::pin(std::future::ready(Err(attributes.forbidden("Use of external IPs is denied by admission control"))))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn no_new_external_address_is_taken() {
        for (old, new, passes) in
            [(json!([]), json!(["1.1.1.1"]), false), (json!(["1.1.1.1"]), json!(["1.1.1.1"]), true), (json!(["1.1.1.1"]), json!([]), true)]
        {
            let service = |addresses| json!({"metadata": {"name": "s"}, "spec": {"externalIPs": addresses}});
            let mut attributes = write(Operation::Update, "services", "Service", service(new));
            attributes.old = Some(service(old));
            assert_eq!(run(DenyServiceExternalIps, Objects::default(), &mut attributes).await.is_ok(), passes);
        }
    }
}
