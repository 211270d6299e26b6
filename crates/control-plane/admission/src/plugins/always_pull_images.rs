//! AlwaysPullImages: every start asks the registry, so that nobody runs an image that only others may pull.

use meta::field::{self, Path};
use meta::status::Status;
use rules::value::{items_mut, list, set, text};

use crate::{Attributes, Lookup, Plugin, Verdict, accept};

const KINDS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub struct AlwaysPullImages;

fn concerns(attributes: &Attributes) -> bool {
    attributes.is("", "pods") || attributes.is_part("", "pods", "ephemeralcontainers")
}

impl Plugin for AlwaysPullImages {
    fn name(&self) -> &'static str {
        "AlwaysPullImages"
    }
    fn on_by_default(&self) -> bool {
        false
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        let concerned = concerns(attributes);
        if let Some(pod) = attributes.object.as_mut().filter(|_| concerned) {
            for kind in KINDS {
                items_mut(pod, &format!("spec.{kind}")).for_each(|container| set(container, "imagePullPolicy", "Always"));
            }
            let images = items_mut(pod, "spec.volumes").filter(|volume| volume.get("image").is_some_and(serde_json::Value::is_object));
            images.for_each(|volume| set(volume, "image.pullPolicy", "Always"));
        }
        accept()
    }
    fn validate<'a>(&'a self, attributes: &'a Attributes, _: &'a dyn Lookup) -> Verdict<'a> {
        Box::pin(std::future::ready(judge(attributes)))
    }
}

fn judge(attributes: &Attributes) -> Result<(), Status> {
    let Some(pod) = attributes.object.as_ref().filter(|_| concerns(attributes)) else { return Ok(()) };
    for kind in KINDS {
        for (index, container) in list(pod, &format!("spec.{kind}")).iter().enumerate() {
            let policy = text(container, "imagePullPolicy");
            if policy != "Always" {
                let path = Path::new("spec").child(kind).index(index).child("imagePullPolicy");
                return Err(attributes.forbidden(field::Error::not_supported(&path, policy, &["Always"]).to_string()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn every_container_pulls_always() {
        let spec = json!({"initContainers": [{"name": "i"}], "containers": [{"name": "c", "imagePullPolicy": "Never"}]});
        let mut attributes = write(Operation::Create, "pods", "Pod", json!({"metadata": {"name": "p"}, "spec": spec}));
        assert_eq!(run(AlwaysPullImages, Objects::default(), &mut attributes).await, Ok(()));
        let pod = attributes.object.expect("object");
        for kind in ["initContainers", "containers"] {
            assert_eq!(pod["spec"][kind][0]["imagePullPolicy"], "Always");
        }
    }
}
