//! StorageObjectInUseProtection: claims and volumes that are used are not deleted under their pods.

use rules::value::list;

use super::service_account::push;
use crate::{Attributes, Lookup, Operation, Plugin, Verdict, accept};

pub struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, _lookup: &'a dyn Lookup) -> Verdict<'a> {
        let finalizer = match attributes.gvr.resource.as_str() {
            "persistentvolumeclaims" => "kubernetes.io/pvc-protection",
            "persistentvolumes" => "kubernetes.io/pv-protection",
            _ => return accept(),
        };
        let itself = attributes.gvr.group.is_empty() && attributes.subresource.is_empty();
        if let Some(object) = attributes.object.as_mut().filter(|_| itself)
            && !list(object, "metadata.finalizers").iter().any(|found| found == finalizer)
        {
            push(object, "metadata.finalizers", finalizer.into());
        }
        accept()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn claims_get_their_finalizer() {
        let object = json!({"metadata": {"name": "c"}});
        let mut attributes = write(Operation::Create, "persistentvolumeclaims", "PersistentVolumeClaim", object);
        assert_eq!(run(StorageObjectInUseProtection, Objects::default(), &mut attributes).await, Ok(()));
        assert_eq!(attributes.object.expect("object")["metadata"]["finalizers"], json!(["kubernetes.io/pvc-protection"]));
    }
}
