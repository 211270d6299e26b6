//! ResourcePoolStatusRequest (DRA, KEP-5677): an administrator asks once how full the pools of a driver are, and gets one answer in the
//! status. Answered requests are deleted after an hour, unanswered ones after a day. Only where that alpha resource is served.

use std::sync::Arc;
use std::time::Duration;

use client::{Client, DeleteParams, Error};
use jiff::Timestamp;
use k8s_openapi::api::resource::v1::{DeviceTaintRule, ResourceClaim, ResourceSlice};
use k8s_openapi::api::resource::v1alpha3::ResourcePoolStatusRequest;
use reconcile::{Cache, ObjectKey, Outcome, Queue, key_of};

use crate::context::Context;
use crate::{act, discovery};

mod plan;
mod views;

pub(crate) const NAME: &str = "resourcepoolstatusrequest-controller";
/// A driver that is publishing gets so long before its pool is called incomplete.
const PUBLISHING: Duration = Duration::from_secs(5);
const ANSWERED_FOR: Duration = Duration::from_secs(3_600);
const ASKED_FOR: Duration = Duration::from_secs(86_400);

struct Controller {
    client: Client,
    requests: Cache<ResourcePoolStatusRequest>,
    slices: Cache<ResourceSlice>,
    claims: Cache<ResourceClaim>,
    rules: Cache<DeviceTaintRule>,
}

pub(crate) async fn run(context: Context) {
    if !discovery::is_served(&context, "resource.k8s.io/v1alpha3", "resourcepoolstatusrequests").await {
        return;
    }
    let controller = Arc::new(Controller {
        client: context.client.clone(),
        requests: context.caches.of(),
        slices: context.caches.of(),
        claims: context.caches.of(),
        rules: context.caches.of(),
    });
    let queue: Queue<ObjectKey> = Queue::new();
    let wake = queue.clone();
    controller.requests.on_change(move |_, new| new.into_iter().for_each(|request| wake.add(key_of(&request.metadata))));
    tokio::join!(controller.requests.synced(), controller.slices.synced(), controller.claims.synced(), controller.rules.synced());
    reconcile::run(NAME, queue, 2, context.drain, move |key| controller.clone().reconcile(key)).await;
}

impl Controller {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Outcome {
        let Some(request) = self.requests.get_key(&key) else { return Outcome::Done };
        self.answer(&key, &request).await.into()
    }

    async fn answer(&self, key: &ObjectKey, request: &ResourcePoolStatusRequest) -> Result<Outcome, Error> {
        let now = Timestamp::now();
        let left = plan::lifetime_left(request, now);
        if left.is_zero() {
            let params = DeleteParams::of_uid(request.metadata.uid.as_deref().unwrap_or_default());
            client::ignore_not_found(self.client.delete::<ResourcePoolStatusRequest>(None, &key.name, &params).await)?;
            return Ok(Outcome::Done);
        }
        if request.status.is_some() {
            return Ok(Outcome::RequeueAfter(left));
        }
        let world = plan::World { request, slices: self.slices.list(), claims: self.claims.list(), rules: self.rules.list(), now };
        let (status, incomplete) = plan::plan(&world);
        if incomplete && plan::age(request, now) < PUBLISHING {
            return Ok(Outcome::RequeueAfter(Duration::from_secs(1)));
        }
        act::write_status(&self.client, &ResourcePoolStatusRequest { status: Some(status), ..request.clone() }).await?;
        Ok(Outcome::Done)
    }
}
