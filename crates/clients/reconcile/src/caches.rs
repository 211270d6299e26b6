//! One cache per kind and process, started when it is first asked for.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use client::{Client, Object};
use stdx::Drain;

use crate::cache::{Cache, Scope};

/// The caches that the components of a process share. Cloning shares them.
#[derive(Clone)]
pub struct Caches {
    client: Client,
    drain: Drain,
    started: Arc<Mutex<HashMap<TypeId, Box<dyn Any + Send>>>>,
}

impl Caches {
    /// `client` must be allowed to list and watch whatever is asked for.
    pub fn new(client: &Client, drain: Drain) -> Self {
        Self { client: client.clone(), drain, started: Arc::default() }
    }

    /// The cache of all `K`.
    pub fn of<K: Object>(&self) -> Cache<K> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        let known = started.get(&TypeId::of::<K>()).and_then(|cache| cache.downcast_ref::<Cache<K>>());
        if let Some(cache) = known {
            return cache.clone();
        }
        let cache = Cache::start(&self.client, Scope::all(), self.drain.clone());
        started.insert(TypeId::of::<K>(), Box::new(cache.clone()));
        cache
    }

    /// Makes `cache` the one of its kind, such as a detached one in a test; an earlier one stays with whoever has it.
    pub fn set<K: Object>(&self, cache: Cache<K>) {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).insert(TypeId::of::<K>(), Box::new(cache));
    }
}
