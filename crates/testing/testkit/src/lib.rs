//! What tests of several crates share; never part of the product.
//!
//! [`fake_api`]: an API server in memory behind `client::Transport`, for the loops of controllers. [`netns`]: network namespaces.

pub mod fake_api;
pub mod netns;
