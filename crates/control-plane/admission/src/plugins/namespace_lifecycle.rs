//! NamespaceLifecycle: objects are written into namespaces that exist, created only where nothing is being torn down.

use meta::status::Status;
use rules::value::text;

use crate::{Attributes, Lookup, Operation, Plugin, Verdict, because, core};

/// Namespaces that nobody may delete.
const IMMORTAL: [&str; 3] = ["default", "kube-system", "kube-public"];

pub struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation != Operation::Connect
    }
    /// Judges in the mutating pass, as upstream does: no later plugin then works on an object that has no namespace.
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(judge(attributes, lookup))
    }
}

async fn judge(attributes: &Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let is_namespace = attributes.gvr.group.is_empty() && attributes.gvr.resource == "namespaces";
    let deleting = attributes.operation == Operation::Delete;
    if is_namespace && deleting && IMMORTAL.contains(&attributes.name.as_str()) {
        return Err(attributes.forbidden("this namespace may not be deleted"));
    }
    // Deletions are what empties a terminating namespace; access reviews must answer anywhere.
    if is_namespace || deleting || attributes.namespace.is_empty() || attributes.gvr.resource == "localsubjectaccessreviews" {
        return Ok(());
    }
    let name = &attributes.namespace;
    let Some(namespace) = lookup.get(&core("namespaces"), "", name).await? else {
        return Err(Status::not_found(&core("namespaces"), name));
    };
    if attributes.operation != Operation::Create || text(&namespace, "status.phase") != "Terminating" {
        return Ok(());
    }
    let status = attributes.forbidden(format!("unable to create new content in namespace {name} because it is being terminated"));
    Err(because(status, "NamespaceTerminating", format!("namespace {name} is being terminated"), "metadata.namespace"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::Chain;
    use crate::fixture::{Objects, run, write};

    fn objects() -> Objects {
        Objects::default()
            .with("namespaces", json!({"metadata": {"name": "a"}, "status": {"phase": "Active"}}))
            .with("namespaces", json!({"metadata": {"name": "going"}, "status": {"phase": "Terminating"}}))
    }

    #[tokio::test]
    async fn writes_need_a_living_namespace() {
        use Operation::{Create, Delete, Update};
        let cases = [
            (Create, "a", Ok(())),
            (Create, "b", Err("namespaces \"b\" not found")),
            (Update, "b", Err("namespaces \"b\" not found")),
            (Delete, "b", Ok(())),
            (Update, "going", Ok(())),
            (
                Create,
                "going",
                Err("pods \"p\" is forbidden: unable to create new content in namespace going because it is being terminated"),
            ),
            (Create, "", Ok(())),
        ];
        for (operation, namespace, expected) in cases {
            let mut attributes = write(operation, "pods", "Pod", json!({"metadata": {"name": "p", "namespace": namespace}}));
            let found = run(NamespaceLifecycle, objects(), &mut attributes).await;
            assert_eq!(found, expected.map_err(str::to_owned), "{operation:?} {namespace}");
        }
    }

    #[tokio::test]
    async fn a_terminating_namespace_is_named_as_cause() {
        let mut attributes = write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p", "namespace": "going"}}));
        let chain = Chain::of(vec![Box::new(NamespaceLifecycle)], Arc::new(objects()));
        let status = chain.mutate(&mut attributes).await.expect_err("refused");
        let cause = status.details.expect("details").causes.remove(0);
        assert_eq!((status.code, cause.reason.as_str(), cause.field.as_str()), (403, "NamespaceTerminating", "metadata.namespace"));
    }

    #[tokio::test]
    async fn system_namespaces_stay() {
        let mut attributes = write(Operation::Delete, "namespaces", "Namespace", json!({"metadata": {"name": "kube-system"}}));
        let found = run(NamespaceLifecycle, objects(), &mut attributes).await;
        assert_eq!(found, Err("namespaces \"kube-system\" is forbidden: this namespace may not be deleted".to_owned()));
        let mut attributes = write(Operation::Delete, "namespaces", "Namespace", json!({"metadata": {"name": "a"}}));
        assert_eq!(run(NamespaceLifecycle, objects(), &mut attributes).await, Ok(()));
    }
}
