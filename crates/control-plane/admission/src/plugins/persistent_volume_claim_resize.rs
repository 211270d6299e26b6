//! PersistentVolumeClaimResize: a claim grows only when it is bound and its class allows it.

use meta::gvk::GroupResource;
use meta::quantity;
use meta::status::Status;
use rules::value::{annotation, at, flag, text, text_or};

use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

pub struct PersistentVolumeClaimResize;

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(judge(attributes, lookup))
    }
}

async fn judge(attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let (Some(new), Some(old)) = (&attributes.object, &attributes.old) else { return Ok(()) };
    let size = |claim| quantity::from_json(at(claim, "spec.resources.requests.storage"));
    if !attributes.is("", "persistentvolumeclaims") || size(new) <= size(old) {
        return Ok(());
    }
    if text(old, "status.phase") != "Bound" {
        return Err(attributes.forbidden("Only bound persistent volume claims can be expanded"));
    }
    let annotated = annotation(new, "volume.beta.kubernetes.io/storage-class");
    let name = annotated.unwrap_or_else(|| text_or(new, "spec.storageClassName", ""));
    let classes = GroupResource { group: "storage.k8s.io".into(), resource: "storageclasses".into() };
    let class = if name.is_empty() { None } else { lookup.get(&classes, "", name).await? };
    match class.is_some_and(|class| flag(&class, "allowVolumeExpansion")) {
        true => Ok(()),
        false => Err(attributes
            .forbidden("only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn a_claim_grows_where_its_class_allows_it() {
        let claim = |size: &str, phase: &str, class: &str| {
            let spec = json!({"storageClassName": class, "resources": {"requests": {"storage": size}}});
            json!({"metadata": {"name": "c", "namespace": "a"}, "spec": spec, "status": {"phase": phase}})
        };
        let cases = [
            ("1Gi", "Bound", "fixed", true),
            ("2Gi", "Bound", "grows", true),
            ("2Gi", "Pending", "grows", false),
            ("2Gi", "Bound", "fixed", false),
            ("2Gi", "Bound", "gone", false),
        ];
        for (size, phase, class, passes) in cases {
            let objects = Objects::default()
                .with("storageclasses", json!({"metadata": {"name": "grows"}, "allowVolumeExpansion": true}))
                .with("storageclasses", json!({"metadata": {"name": "fixed"}}));
            let mut attributes = write(Operation::Update, "persistentvolumeclaims", "PersistentVolumeClaim", claim(size, phase, class));
            attributes.old = Some(claim("1Gi", phase, class));
            assert_eq!(run(PersistentVolumeClaimResize, objects, &mut attributes).await.is_ok(), passes, "{size} {phase} {class}");
        }
    }
}
