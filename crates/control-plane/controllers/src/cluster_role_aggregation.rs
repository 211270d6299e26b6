//! ClusterRole aggregation: a role with an aggregation rule has the rules of all roles that its selectors match.
//!
//! Woken by ClusterRoles: each change looks at every aggregated role, of which there are a handful.

use std::sync::Arc;

use client::{Client, Error, Patch};
use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};
use serde_json::json;

use crate::context::Context;
use crate::selector;

pub(crate) const NAME: &str = "clusterrole-aggregation-controller";

pub(crate) async fn run(context: Context) {
    let roles: Cache<ClusterRole> = context.caches.of();
    let queue: Queue<ObjectKey> = Queue::new();
    let (wake, all) = (queue.clone(), roles.clone());
    roles.on_change(move |_, _| {
        let aggregated = all.list().into_iter().filter(|role| role.aggregation_rule.is_some());
        aggregated.for_each(|role| wake.add(key_of(&role.metadata)));
    });
    roles.synced().await;
    let client = context.client.clone();
    reconcile::run(NAME, queue, 4, context.drain, move |key| {
        let (client, roles) = (client.clone(), roles.clone());
        async move {
            let Some(role) = roles.get_key(&key) else { return Outcome::Done };
            match plan(&role, &roles.list()) {
                Some(rules) => act(&client, &role, rules).await.into(),
                None => Outcome::Done,
            }
        }
    })
    .await;
}

/// The rules that the role shall have; `None` where it has them.
fn plan(role: &ClusterRole, all: &[Arc<ClusterRole>]) -> Option<Vec<PolicyRule>> {
    let selectors = role.aggregation_rule.as_ref()?.cluster_role_selectors.as_ref()?;
    let mut rules: Vec<PolicyRule> = Vec::new();
    for selector in selectors.iter().map(|selector| selector::parse(Some(selector))) {
        let selected = all.iter().filter(|other| other.metadata.name != role.metadata.name);
        let selected = selected.filter(|other| selector::selects(&selector, other.metadata.labels.as_ref()));
        for rule in selected.flat_map(|other| other.rules.iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
    }
    (role.rules.as_deref().unwrap_or_default() != rules).then_some(rules)
}

async fn act(client: &Client, role: &ClusterRole, rules: Vec<PolicyRule>) -> Result<(), Error> {
    let meta = &role.metadata;
    let patch = json!({"metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version}, "rules": rules});
    let name = meta.name.as_deref().unwrap_or_default();
    client::ignore_not_found(client.patch::<ClusterRole>(None, name, &Patch::Merge(patch), "").await)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn an_aggregated_role_has_each_rule_of_the_selected_roles_once() {
        let role = |value: Value| Arc::new(serde_json::from_value::<ClusterRole>(value).unwrap());
        let part =
            |name: &str, verb: &str| role(json!({"metadata": {"name": name, "labels": {"to": "view"}}, "rules": [{"verbs": [verb]}]}));
        let rule = json!({"clusterRoleSelectors": [{"matchLabels": {"to": "view"}}]});
        let mut view = ClusterRole::clone(&role(json!({"metadata": {"name": "view"}, "aggregationRule": rule})));
        let all =
            [part("a", "get"), part("b", "list"), part("c", "get"), role(json!({"metadata": {"name": "d"}, "rules": [{"verbs": ["*"]}]}))];
        let rules = plan(&view, &all).unwrap();
        assert_eq!(rules.iter().map(|rule| rule.verbs[0].as_str()).collect::<Vec<_>>(), ["get", "list"]);
        view.rules = Some(rules);
        assert!(plan(&view, &all).is_none());
    }
}
