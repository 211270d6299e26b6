//! Mutating and validating admission webhooks: who is called for a write, what they are told, what their answers mean.
//!
//! [`configuration`] holds the compiled webhooks, made again when their objects change; `review` is the question and the answer as JSON;
//! `call` puts both together for one webhook; [`transport`] speaks HTTPS with kept connections; [`endpoint`] finds a Service's addresses,
//! [`credentials`] say how the API server shows itself.
//! The two plugins, `plugins::mutating_webhook` and `plugins::validating_webhook`, decide order and what a failure means.

pub mod call;
pub mod configuration;
pub mod credentials;
pub mod endpoint;
pub mod review;
pub mod tls;
pub mod transport;
