//! Snapshots of volumes: the kinds of `snapshot.storage.k8s.io/v1`, which upstream keeps outside of its API as custom resources, typed for
//! whoever makes, restores or deletes snapshots.
//!
//! Read in this order: [`kinds`] (VolumeSnapshot, VolumeSnapshotContent, VolumeSnapshotClass), [`words`] (finalizers, annotations and labels
//! by which those who work on a snapshot know of each other), [`restore`] (claims made from snapshots and claims), [`definitions`] (the
//! CustomResourceDefinitions). The crate does no I/O.
//! Source: `kubernetes-csi/external-snapshotter`, client v8.

pub mod definitions;
pub mod kinds;
pub mod restore;
pub mod words;

pub use kinds::{
    ContentSource, ContentSpec, ContentStatus, SnapshotError, SnapshotSource, SnapshotSpec, SnapshotStatus, VolumeSnapshot,
    VolumeSnapshotClass, VolumeSnapshotContent,
};
