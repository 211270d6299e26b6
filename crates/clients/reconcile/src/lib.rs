//! What every loop over the API shares: a cache of a kind, a work queue, expectations, events, leadership.
//!
//! A component starts one [`Cache`] per kind and process (one tokio task each: list, then watch, for ever), registers with
//! [`Cache::on_change`] which keys a change wakes, and runs a [`Queue`] of those keys: one key, one running reconcile. A wake-up
//! carries a key and no hint; the reconcile reads the cache, so that restart and event share one code path. Before it acts again on
//! what it wrote itself, it asks [`Expectations`] whether the cache has seen those writes.
//!
//! What flows where: server → cache task → callbacks (synchronous, in the order of the revisions) → queue → reconcile → client.
//! [`EventRecorder`] has one task and a bounded channel; when that is full, events are dropped: they are advice, never state.
//!
//! Read in this order: [`cache`], [`trim`], [`queue`], [`expectations`], [`events`], [`leader`].

pub mod cache;
pub mod caches;
pub mod events;
pub mod expectations;
pub mod leader;
pub mod object;
pub mod queue;
pub mod trim;

pub use cache::{Cache, Scope, Wakeups};
pub use caches::Caches;
pub use events::{EventKind, EventRecorder};
pub use expectations::Expectations;
pub use object::{Cached, ObjectKey, PartialObject, key_of, reference_to};
pub use queue::{Outcome, Queue, run};
