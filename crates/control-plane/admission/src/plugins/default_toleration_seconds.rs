//! DefaultTolerationSeconds: a pod stays five minutes on a node that is not ready or not reachable, unless it says otherwise.

use rules::value::{list, text};
use serde_json::json;

use super::service_account::push;
use crate::{Attributes, Lookup, Plugin, Verdict, accept};

const SECONDS: i64 = 300;
const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];

pub struct DefaultTolerationSeconds;

impl Plugin for DefaultTolerationSeconds {
    fn name(&self) -> &'static str {
        "DefaultTolerationSeconds"
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, _lookup: &'a dyn Lookup) -> Verdict<'a> {
        let is_pod = attributes.is("", "pods");
        if let Some(pod) = attributes.object.as_mut().filter(|_| is_pod) {
            for taint in TAINTS {
                let tolerated = list(pod, "spec.tolerations").iter().any(|toleration| {
                    matches!(text(toleration, "key"), key if key == taint || key.is_empty())
                        && matches!(text(toleration, "effect"), "NoExecute" | "")
                });
                if !tolerated {
                    let toleration = json!({"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS});
                    push(pod, "spec.tolerations", toleration);
                }
            }
        }
        accept()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Operation;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn tolerations_are_added_where_the_pod_has_none_for_the_taint() {
        let cases = [
            (json!([]), 2),
            (json!([{"operator": "Exists"}]), 1),
            (json!([{"key": TAINTS[0], "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5}]), 2),
            (json!([{"key": TAINTS[0], "operator": "Exists", "effect": "NoSchedule"}]), 3),
        ];
        for (tolerations, count) in cases {
            let object = json!({"metadata": {"name": "p"}, "spec": {"tolerations": tolerations}});
            let mut attributes = write(Operation::Create, "pods", "Pod", object);
            assert_eq!(run(DefaultTolerationSeconds, Objects::default(), &mut attributes).await, Ok(()));
            assert_eq!(list(&attributes.object.expect("object"), "spec.tolerations").len(), count, "{tolerations}");
        }
    }
}
