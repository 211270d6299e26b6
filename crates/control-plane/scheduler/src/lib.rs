//! The scheduler: gives each pod without a node the best node that fits, or says why none does.
//!
//! Read in this order: [`class`] and [`neighbours`] (what of a pod matters for placement), [`snapshot`] (the nodes, as columns), [`filters`] and [`scores`]
//! (a file per plugin, one list each), [`plan`] (pure: snapshot + class → node or reasons), [`queue`] (which pod is next, and
//! when a failed one is tried again), [`run`] (observe → plan → act).
//!
//! One task owns the snapshot and the queue. Pod and node changes reach it as keys from the shared caches; it plans pod after pod, each on
//! the state that the previous one left, and hands the binding to a bounded set of tasks that write it through the API and
//! report back on a bounded channel.

pub mod class;
pub mod filters;
pub mod neighbours;
pub mod plan;
pub mod queue;
mod run;
pub mod scores;
pub mod snapshot;

pub use run::{Caches, Config, run};
