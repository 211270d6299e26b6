//! DefaultIngressClass: an Ingress that names no class gets the default one.

use meta::gvk::GroupResource;
use meta::status::Status;
use rules::value::{annotation, has, name, set, text};

use crate::{Attributes, Lookup, Operation, Plugin, Verdict};

pub struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, lookup: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(choose(attributes, lookup))
    }
}

async fn choose(attributes: &mut Attributes, lookup: &dyn Lookup) -> Result<(), Status> {
    let concerned = attributes.is("networking.k8s.io", "ingresses");
    let Some(ingress) = attributes.object.as_mut().filter(|_| concerned) else { return Ok(()) };
    if has(ingress, "spec.ingressClassName") || annotation(ingress, "kubernetes.io/ingress.class").is_some() {
        return Ok(());
    }
    let classes = GroupResource { group: "networking.k8s.io".into(), resource: "ingressclasses".into() };
    let all = lookup.list(&classes, "").await?;
    let marked = all.iter().filter(|class| annotation(class, "ingressclass.kubernetes.io/is-default-class") == Some("true"));
    // Of several the newest, then by name.
    let chosen = marked.max_by(|a, b| {
        let age = |class| text(class, "metadata.creationTimestamp");
        age(a).cmp(age(b)).then_with(|| name(b).cmp(name(a)))
    });
    if let Some(class) = chosen {
        set(ingress, "spec.ingressClassName", name(class));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn an_ingress_without_a_class_gets_the_default() {
        let class = |name: &str, default: &str| json!({"metadata": {"name": name, "annotations": {"ingressclass.kubernetes.io/is-default-class": default}}});
        let cases = [
            (json!({"metadata": {"name": "i"}, "spec": {}}), "b"),
            (json!({"metadata": {"name": "i"}, "spec": {"ingressClassName": "own"}}), "own"),
            (json!({"metadata": {"name": "i", "annotations": {"kubernetes.io/ingress.class": "old"}}, "spec": {}}), ""),
        ];
        for (object, expected) in cases {
            let objects = Objects::default().with("ingressclasses", class("a", "false")).with("ingressclasses", class("b", "true"));
            let mut attributes = write(Operation::Create, "ingresses", "Ingress", object);
            attributes.gvr.group = "networking.k8s.io".into();
            assert_eq!(run(DefaultIngressClass, objects, &mut attributes).await, Ok(()));
            assert_eq!(text(&attributes.object.expect("object"), "spec.ingressClassName"), expected);
        }
    }
}
