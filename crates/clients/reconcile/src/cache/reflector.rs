//! The task behind a cache: list, watch, resume; list again when the server says that our revision is too old.

use std::collections::HashSet;
use std::time::Duration;

use client::{ApiResource, Client, Error, ListParams, WatchEvent, WatchParams, WatchStream};
use stdx::Backoff;
use tracing::{debug, warn};

use super::{Cache, Scope, Trim};
use crate::object::{Cached, ObjectKey};

/// Objects per page where the server has no streaming lists.
const PAGE: u32 = 500;

pub(super) struct Source<K> {
    pub client: Client,
    pub resource: ApiResource,
    pub scope: Scope,
    pub metadata_only: bool,
    pub trim: Trim<K>,
}

/// What a watch ended with.
enum End {
    /// Resume from the last revision.
    Closed,
    /// List again.
    Expired,
}

/// Feeds `cache` for ever.
pub(super) async fn follow<K: Cached>(source: Source<K>, cache: Cache<K>) {
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(10));
    let mut revision: Option<String> = None;
    let mut streaming = true;
    loop {
        let before = revision.clone();
        let ended = match &revision {
            Some(_) => source.resume(&cache, &mut revision).await,
            None if streaming => source.stream_list(&cache, &mut revision).await,
            None => source.page_list(&cache, &mut revision).await.map(|()| End::Closed),
        };
        let moved = revision != before;
        match ended {
            Ok(End::Expired) => revision = None,
            Ok(End::Closed) => {}
            Err(error) if error.is_expired() => revision = None,
            // A server without streaming lists refuses the parameter: 400, 403 or 422 by its age.
            Err(error) if streaming && before.is_none() && (error.is_invalid() || error.code() == 400) => {
                debug!(resource = %source.resource.plural, %error, "no streaming list; using pages");
                streaming = false;
                continue;
            }
            Err(error) => log_failure(&source.resource, &error),
        }
        if moved {
            backoff.reset();
        } else {
            tokio::time::sleep(backoff.next_wait()).await;
        }
    }
}

fn log_failure(resource: &ApiResource, error: &Error) {
    match error {
        // Frequent while an API server restarts, or before a resource is served.
        error if matches!(error, Error::Transport(_)) || error.is_not_found() => {
            debug!(resource = %resource.plural, %error, "watch failed")
        }
        _ => warn!(resource = %resource.plural, %error, "watch failed"),
    }
}

impl<K: Cached> Source<K> {
    fn watch_params(&self) -> WatchParams {
        WatchParams {
            namespace: self.scope.namespace.clone(),
            label_selector: self.scope.label_selector.clone(),
            field_selector: self.scope.field_selector.clone(),
            bookmarks: true,
            ..WatchParams::default()
        }
    }

    async fn watch(&self, params: &WatchParams) -> Result<WatchStream<K>, Error> {
        let events = self.client.watch_of(&self.resource, params, self.metadata_only).await?;
        // What keeps few fields skips the others; what keeps all would read the owners only to drop them ([`Cached::trim`]).
        Ok(if self.metadata_only { events } else { events.without_owners() })
    }

    /// List and watch in one request.
    async fn stream_list(&self, cache: &Cache<K>, revision: &mut Option<String>) -> Result<End, Error> {
        let params = WatchParams { send_initial_events: true, ..self.watch_params() };
        let mut events = self.watch(&params).await?;
        let mut seen = HashSet::new();
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    seen.insert(object.key());
                    cache.apply_at(self.trimmed(object), false);
                }
                WatchEvent::Deleted(object) => {
                    seen.remove(&object.key());
                    cache.remove(&object.key(), "");
                }
                WatchEvent::Bookmark { resource_version, initial_events_end: true } => {
                    listed(cache, &seen, resource_version, revision);
                    return self.apply_all(events, cache, revision).await;
                }
                WatchEvent::Bookmark { .. } => {}
                WatchEvent::Error(status) => return failed(status),
            }
        }
        Ok(End::Closed)
    }

    /// The list in pages, all of one revision.
    async fn page_list(&self, cache: &Cache<K>, revision: &mut Option<String>) -> Result<(), Error> {
        let mut params = ListParams {
            namespace: self.scope.namespace.clone(),
            label_selector: self.scope.label_selector.clone(),
            field_selector: self.scope.field_selector.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let mut seen = HashSet::new();
        loop {
            let page = self.client.list_of::<K>(&self.resource, &params, self.metadata_only).await?;
            for object in page.items {
                seen.insert(object.key());
                cache.apply_at(self.trimmed(object), false);
            }
            if page.continue_.is_empty() {
                listed(cache, &seen, page.resource_version, revision);
                return Ok(());
            }
            params.continue_ = Some(page.continue_);
        }
    }

    async fn resume(&self, cache: &Cache<K>, revision: &mut Option<String>) -> Result<End, Error> {
        let params = WatchParams { resource_version: revision.clone(), ..self.watch_params() };
        let events = self.watch(&params).await?;
        self.apply_all(events, cache, revision).await
    }

    async fn apply_all(&self, mut events: WatchStream<K>, cache: &Cache<K>, revision: &mut Option<String>) -> Result<End, Error> {
        while let Some(event) = events.next().await {
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    *revision = Some(object.resource_version().to_owned());
                    cache.apply_at(self.trimmed(object), true);
                }
                WatchEvent::Deleted(object) => {
                    *revision = Some(object.resource_version().to_owned());
                    cache.remove(&object.key(), object.resource_version());
                }
                WatchEvent::Bookmark { resource_version, .. } => {
                    cache.advance(&resource_version);
                    *revision = Some(resource_version);
                }
                WatchEvent::Error(status) => return failed(status),
            }
        }
        Ok(End::Closed)
    }

    fn trimmed(&self, mut object: K) -> K {
        object.trim();
        (self.trim)(&mut object);
        object
    }
}

fn listed<K: Cached>(cache: &Cache<K>, seen: &HashSet<ObjectKey>, at: String, revision: &mut Option<String>) {
    cache.retain(seen);
    cache.mark_synced(&at);
    *revision = Some(at);
}

fn failed(status: Box<meta::Status>) -> Result<End, Error> {
    if status.code == 410 { Ok(End::Expired) } else { Err(Error::Api(status)) }
}
