//! What users do with a running cluster: one cluster for all of these tests, a namespace for each.

mod bad_input;
mod connect;
mod controllers;
mod csi;
mod custom_resources;
mod handlers;
mod images;
mod kubectl;
mod network;
mod node;
mod pods;
mod scale;
mod snapshots;
mod storage;
mod volumes;
