//! DefaultStorageClass: a claim that names no class gets the default one.

use meta::gvk::GroupResource;
use meta::status::Status;
use rules::value::{annotation, has, name, set, text};

use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

pub struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(choose(attributes, lookup))
    }
}

async fn choose(attributes: &mut Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    if !attributes.is("", "persistentvolumeclaims") {
        return Ok(());
    }
    let Some(claim) = attributes.object.as_mut() else { return Ok(()) };
    // An empty name is a choice: no class at all.
    if has(claim, "spec.storageClassName") || annotation(claim, "volume.beta.kubernetes.io/storage-class").is_some() {
        return Ok(());
    }
    let classes = GroupResource { group: "storage.k8s.io".into(), resource: "storageclasses".into() };
    let all = lookup.list(&classes, "").await?;
    let marked = all.iter().filter(|class| annotation(class, "storageclass.kubernetes.io/is-default-class") == Some("true"));
    // Of several the newest, then by name.
    let chosen = marked.max_by(|a, b| {
        let age = |class| text(class, "metadata.creationTimestamp");
        age(a).cmp(age(b)).then_with(|| name(b).cmp(name(a)))
    });
    if let Some(class) = chosen {
        set(claim, "spec.storageClassName", name(class));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn a_claim_without_a_class_gets_the_newest_default() {
        let class = |name: &str, created: &str, default: &str| json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {"storageclass.kubernetes.io/is-default-class": default}}});
        for (given, expected) in [(Value::Null, "new"), (json!(""), ""), (json!("own"), "own")] {
            let objects = Objects::default()
                .with("storageclasses", class("old", "2025-01-01T00:00:00Z", "true"))
                .with("storageclasses", class("new", "2026-01-01T00:00:00Z", "true"))
                .with("storageclasses", class("newer", "2027-01-01T00:00:00Z", "false"));
            let object = json!({"metadata": {"name": "c"}, "spec": {"storageClassName": given}});
            let mut attributes = write(Operation::Create, "persistentvolumeclaims", "PersistentVolumeClaim", object);
            assert_eq!(run(DefaultStorageClass, objects, &mut attributes).await, Ok(()));
            assert_eq!(text(&attributes.object.expect("object"), "spec.storageClassName"), expected);
        }
    }
}
