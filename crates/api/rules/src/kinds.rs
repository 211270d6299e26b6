//! One file per kind.

pub mod deployment;
pub mod pod;
pub mod replica_set;
