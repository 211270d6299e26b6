//! TaintNodesByCondition: a new node takes no pods until it is found ready.

use rules::value::{list, text};
use serde_json::json;

use super::service_account::push;
use crate::{Attributes, Lookup, Operation, Plugin, Verdict, accept};

const NOT_READY: &str = "node.kubernetes.io/not-ready";

pub struct TaintNodesByCondition;

impl Plugin for TaintNodesByCondition {
    fn name(&self) -> &'static str {
        "TaintNodesByCondition"
    }
    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }
    fn mutate<'a>(&'a self, attributes: &'a mut Attributes, _lookup: &'a dyn Lookup) -> Verdict<'a> {
        let is_node = attributes.is("", "nodes");
        if let Some(node) = attributes.object.as_mut().filter(|_| is_node) {
            let tainted =
                list(node, "spec.taints").iter().any(|taint| text(taint, "key") == NOT_READY && text(taint, "effect") == "NoSchedule");
            if !tainted {
                push(node, "spec.taints", json!({"key": NOT_READY, "effect": "NoSchedule"}));
            }
        }
        accept()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Objects, run, write};

    #[tokio::test]
    async fn a_new_node_is_tainted_once() {
        for taints in [json!([]), json!([{"key": NOT_READY, "effect": "NoSchedule"}])] {
            let object = json!({"metadata": {"name": "n"}, "spec": {"taints": taints}});
            let mut attributes = write(Operation::Create, "nodes", "Node", object);
            assert_eq!(run(TaintNodesByCondition, Objects::default(), &mut attributes).await, Ok(()));
            let expected = json!([{"key": NOT_READY, "effect": "NoSchedule"}]);
            assert_eq!(attributes.object.expect("object")["spec"]["taints"], expected);
        }
    }
}
