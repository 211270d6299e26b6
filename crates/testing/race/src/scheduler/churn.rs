//! What goes on while pods are measured: objects that come and go.

use std::time::Duration;

use client::{Client, DeleteParams};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use serde_json::json;
use stdx::Drain;

use super::case::Churn;
use super::objects::{NAMESPACE, Template};

/// Objects come, or come and go, until `drain`.
pub async fn churn(admin: Client, churn: Churn, drain: Drain) {
    let mut ticks = tokio::time::interval(Duration::from_millis(churn.every_milliseconds.max(1)));
    for number in 0.. {
        if drain.run(ticks.tick()).await.is_none() {
            return;
        }
        if let Err(error) = turn(&admin, &churn, number).await {
            eprintln!("churn: {error}");
        }
    }
}

async fn turn(admin: &Client, churn: &Churn, number: usize) -> anyhow::Result<()> {
    let name = format!("churn-{number}");
    if churn.recreate {
        let status = json!({ "allocatable": { "cpu": "0", "memory": "0", "pods": "0" } });
        admin.create::<Node>(&serde_json::from_value(json!({ "metadata": { "name": name }, "status": status }))?).await?;
        let spec = json!({ "ports": [{ "port": 80 }], "selector": { "app": name } });
        let service = json!({ "metadata": { "name": name, "namespace": NAMESPACE }, "spec": spec });
        admin.create::<Service>(&serde_json::from_value(service)?).await?;
    }
    admin.create::<Pod>(&churn.pod.pod(&name, 0)?).await?;
    if let Some(before) = number.checked_sub(1).filter(|_| churn.recreate) {
        let (before, params) = (format!("churn-{before}"), DeleteParams::default());
        admin.delete::<Node>(None, &before, &params).await?;
        admin.delete::<Service>(Some(NAMESPACE), &before, &params).await?;
        admin.delete::<Pod>(Some(NAMESPACE), &before, &params).await?;
    }
    Ok(())
}

/// Deletes the template's pods at their rate, ten times a second, until `drain`.
pub async fn delete(admin: Client, template: Template, prefix: String, drain: Drain) {
    const TICK: Duration = Duration::from_millis(100);
    let mut ticks = tokio::time::interval(TICK);
    let portion = (template.deleted_per_second / 10).max(1) as usize;
    let mut left = 0..template.count;
    while !left.is_empty() {
        if drain.run(ticks.tick()).await.is_none() {
            return;
        }
        for number in left.by_ref().take(portion) {
            let deleted =
                admin.delete::<Pod>(Some(&template.namespace(number)), &format!("{prefix}-{number}"), &DeleteParams::default()).await;
            if let Err(error) = deleted
                && !error.is_not_found()
            {
                return eprintln!("deletion: {error}");
            }
        }
    }
}
