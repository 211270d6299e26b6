//! The scheduler: gives each pod without a node the best node that fits, or says why none does.
//!
//! Read in this order: [`class`] and [`neighbours`] (what of a pod matters for placement; [`classes`] recognises pods of one template),
//! [`snapshot`] (the nodes, as columns, with a log of what changed), [`profile`] (which plugins judge, and how much each counts),
//! [`filters`] and [`scores`] (a file per plugin that looks at one node), `board` (what is computed for a class over all nodes, and kept: after
//! a bind only that node is judged again; counts by topology domain for what depends on other pods), [`plan`] (pure: snapshot + class →
//! node or reasons), [`preemption`] (who would have to go), [`volumes`], [`devices`], [`gang`] and [`extender`] (one pod's needs beyond its class's), [`queue`]
//! (which pod is next, and when a failed one is tried again), `run` (observe → plan → act), [`config`] (upstream's file).
//!
//! One task owns the snapshot and the queue. Pod and node changes reach it as keys from the shared caches; it plans pod after pod, each on
//! the state that the previous one left, and hands the binding to a bounded set of tasks that write it through the API and
//! report back. What is said of pods that do not fit goes over a bounded channel to a writer.

mod board;
pub mod class;
pub mod classes;
pub mod config;
pub mod devices;
pub mod explain;
pub mod extender;
pub mod filters;
pub mod gang;
mod metrics;
pub mod neighbours;
pub mod owners;
pub mod plan;
pub mod preemption;
pub mod profile;
pub mod queue;
pub mod resources;
mod run;
pub mod scores;
pub mod snapshot;
pub mod volumes;

pub use run::{Config, run};
