//! Sternpost: all of Kubernetes in one binary.
//!
//! The binary is five programs, told apart before anything else happens: an applet of the built-in image ([`toolbox`]), the supervisor of
//! one pod (`runtime`'s shim), the [`keeper`] of the DNS sockets, the daemon that is the cluster ([`up`]), and the commands that talk to it ([`cli`]).

mod agent;
mod build;
mod certificates;
mod cli;
mod components;
mod config;
mod control;
mod daemon;
mod dns_service;
mod down;
mod identity;
mod image;
mod install;
mod join;
mod keeper;
mod kubeconfig;
mod memory;
mod names;
mod node;
mod nodes;
mod preflight;
mod progress;
mod rotate;
mod simulate;
mod status;
mod token;
mod toolbox;
mod transport;
mod up;
mod why;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() {
    if let Some(code) = toolbox::dispatch() {
        std::process::exit(code);
    }
    if runtime::is_shim_invocation() {
        runtime::run_shim();
    }
    if let Some(code) = keeper::dispatch() {
        std::process::exit(code);
    }
    std::process::exit(cli::run());
}
