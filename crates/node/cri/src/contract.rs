//! What every runtime behind [`RuntimeService`] must do, as tests: run once for each implementation.
//!
//! [`run`] takes a [`Subject`] and runs every case on it, each in its own sandbox. A case is a sentence that is true, and an error says
//! why it is not. The subject's image must hold busybox (`/bin/sh` and the usual applets).

mod cases;
mod world;

use std::path::PathBuf;
use std::sync::Arc;

use crate::{ImageService, RuntimeService};

pub use world::{Outcome, World};

/// A runtime to be tested.
#[derive(Clone)]
pub struct Subject {
    pub runtime: Arc<dyn RuntimeService>,
    pub images: Arc<dyn ImageService>,
    /// A busybox image that is already on the node.
    pub image: String,
    /// For logs and volumes.
    pub directory: PathBuf,
}

/// Runs the cases whose names contain `filter`; returns how many failed.
pub async fn run(subject: &Subject, filter: &str) -> usize {
    let mut failed = 0;
    for (name, case) in cases::all().into_iter().filter(|(name, _)| name.contains(filter)) {
        let world = World::new(subject.clone(), name);
        let outcome = case(world.clone()).await;
        let cleaned = world.clean().await;
        match outcome.and(cleaned) {
            Ok(()) => println!("test contract::{name} ... ok"),
            Err(why) => {
                println!("test contract::{name} ... FAILED\n    {why}");
                failed += 1;
            }
        }
    }
    failed
}
