//! Emptying a namespace.

use std::time::Duration;

use client::{ApiResource, Error};
use http::Method;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus, Pod};
use reconcile::Outcome;
use stdx::Backoff;

use super::observe::World;
use super::{Controller, plan};

/// Sweeps in one reconcile; pods need their grace period, so the worker is given back in between.
const SWEEPS: u32 = 12;
const AGAIN: Duration = Duration::from_secs(2);

impl Controller {
    pub(super) async fn empty(&self, namespace: &Namespace) -> Result<Outcome, Error> {
        let name = namespace.metadata.name.as_deref().unwrap_or_default();
        let mut waits = Backoff::new(Duration::from_millis(20), Duration::from_secs(1));
        let mut found = World::default();
        let everything = self.resources(&mut found).await;
        // Pods go before what they may still need: their accounts, configuration, policies (KEP-5080).
        let pods: Vec<_> = everything.iter().filter(|found| found.resource == ApiResource::of::<Pod>()).cloned().collect();
        let mut world = self.sweep(name, pods.clone()).await;
        for _ in 0..SWEEPS {
            if plan::is_empty(&world) {
                break;
            }
            self.write_conditions(name, &world).await?;
            tokio::time::sleep(waits.next_wait()).await;
            world = self.sweep(name, pods.clone()).await;
        }
        if !plan::is_empty(&world) {
            return Ok(Outcome::RequeueAfter(AGAIN));
        }
        waits.reset();
        let mut world = self.sweep(name, everything.clone()).await;
        world.discovery_errors = std::mem::take(&mut found.discovery_errors);
        for _ in 0..SWEEPS {
            if world.left.is_empty() {
                break;
            }
            self.write_conditions(name, &world).await?;
            tokio::time::sleep(waits.next_wait()).await;
            let rest = world.left.into_iter().map(|left| left.resource).collect();
            world = World { discovery_errors: world.discovery_errors, ..self.sweep(name, rest).await };
        }
        if world.left.is_empty() {
            // Whoever wrote while we looked elsewhere (a controller with a lagging cache) is caught by one more full look.
            world = World { discovery_errors: world.discovery_errors, ..self.sweep(name, everything).await };
        }
        self.write_conditions(name, &world).await?;
        if !plan::is_empty(&world) {
            return Ok(Outcome::RequeueAfter(AGAIN));
        }
        self.finalize(name).await.map(|()| Outcome::Done)
    }

    async fn write_conditions(&self, name: &str, world: &World) -> Result<(), Error> {
        let Some(namespace) = self.fresh(name).await? else { return Ok(()) };
        let current = namespace.status.clone().unwrap_or_default();
        let known = current.conditions.clone().unwrap_or_default();
        let next = plan::conditions(world, &known, jiff::Timestamp::now());
        let others = known.iter().filter(|known| !next.iter().any(|next| next.type_ == known.type_)).cloned();
        let all: Vec<_> = others.chain(next.clone()).collect();
        let unchanged = next.iter().all(|next| known.contains(next));
        if unchanged {
            return Ok(());
        }
        let status = NamespaceStatus { phase: Some("Terminating".into()), conditions: Some(all) };
        let written = self.client.replace_status(&Namespace { status: Some(status), ..namespace }).await;
        client::ignore_not_found(written)
    }

    /// Takes our finalizer off; with the last one, the server removes the namespace.
    async fn finalize(&self, name: &str) -> Result<(), Error> {
        let Some(mut namespace) = self.fresh(name).await?.filter(plan::is_ours) else { return Ok(()) };
        if let Some(finalizers) = namespace.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|name| name != plan::FINALIZER);
        }
        let body = serde_json::to_vec(&namespace).map_err(|error| Error::Request(error.to_string()))?;
        let path = format!("/api/v1/namespaces/{name}/finalize");
        client::ignore_not_found(self.client.request_json::<serde_json::Value>(Method::PUT, &path, Some(body.into())).await)
    }
}
