//! The store: versioned keys and values, as bytes. It knows no kinds.
//!
//! [`Store`] is the contract; `tests/contract.rs` is the suite that every backend passes. Backends:
//! [`memory`] (tests and simulation) and [`log`] (the default: an append-only, checksummed, group-committed log).
//!
//! One 64-bit revision per transaction, counted from 1. Keys are laid out by the API server as upstream does
//! (`/registry/pods/<namespace>/<name>`).

pub mod log;
pub mod memory;
mod types;
mod watchers;

use std::pin::Pin;

pub use types::*;

/// A future as the trait returns it.
pub type Call<'a, T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send + 'a>>;

/// The contract of every backend.
///
/// A write that returned `Ok` is durable and is seen by every later read. Revisions grow by one per write that changed
/// something. A watcher sees every event of its prefix in revision order, or its stream ends with [`Error::Compacted`]
/// (it was too slow): it never skips.
pub trait Store: Send + Sync + 'static {
    /// The newest revision. Never waits.
    fn revision(&self) -> u64;
    /// The value of `key`, now.
    fn get<'a>(&'a self, key: &'a [u8]) -> Call<'a, Option<Entry>>;
    /// Keys with a prefix, in key order, at one revision.
    fn range(&self, request: Range) -> Call<'_, RangeResult>;
    /// Writes `value` if the key's current state is what `expect` says; else `Err(Conflict)` with what is there.
    fn put<'a>(&'a self, key: &'a [u8], value: bytes::Bytes, expect: Expect) -> Call<'a, u64>;
    /// Deletes; the deletion has a revision of its own. Returns that revision and the last entry.
    fn delete<'a>(&'a self, key: &'a [u8], expect: Expect) -> Call<'a, (u64, Entry)>;
    /// Events of all keys with `prefix` after `after` (exclusive): first those that already happened, then live.
    fn watch(&self, prefix: &[u8], after: u64) -> Result<Watch, Error>;
    /// The events of all keys with `prefix` after `after` (exclusive) that already happened, in order; [`Error::Compacted`] where some
    /// of them are forgotten.
    fn history(&self, prefix: &[u8], after: u64) -> Result<Vec<Event>, Error>;
    /// Forgets versions older than `revision`: reads and watches below it answer [`Error::Compacted`].
    fn compact(&self, revision: u64) -> Call<'_, ()>;
    /// Writes can still be made: the disk did not fail and the store was not closed. Never waits.
    fn alive(&self) -> bool {
        true
    }
    /// Waits until everything acknowledged is on disk and stops the writer.
    fn close(&self) -> Call<'_, ()>;
}
