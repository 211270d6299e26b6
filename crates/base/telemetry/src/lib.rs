//! Logs and metrics, set up once by the binary and used everywhere.
//!
//! [`init_logs`] is called in `main`. [`registry`] is the process's one metrics registry; a component registers its metrics there
//! under upstream's names and [`exposition`] prints them all. What every request counts is [`striped`].

pub mod striped;

use std::sync::OnceLock;

pub use prometheus;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people: time, level, target, message, fields.
    Text,
    /// The same without colours, for files.
    Plain,
}

/// Starts logging to standard error. `filter` is a `tracing` directive list such as `info,kubelet=debug`; a malformed one is an error
/// that names it.
pub fn init_logs(filter: &str, format: LogFormat) -> Result<(), String> {
    let filter: tracing_subscriber::EnvFilter = filter.parse().map_err(|error| format!("log filter {filter:?}: {error}"))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(format == LogFormat::Text)
        .with_writer(std::io::stderr)
        // A full disk below the log must not end who logs: the complaint about it would panic.
        .log_internal_errors(false)
        .finish();
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())
}

/// The process's metrics.
pub fn registry() -> &'static prometheus::Registry {
    static REGISTRY: OnceLock<prometheus::Registry> = OnceLock::new();
    REGISTRY.get_or_init(prometheus::Registry::new)
}

/// Every metric in Prometheus' text format 0.0.4.
pub fn exposition() -> String {
    prometheus::TextEncoder::new().encode_to_string(&registry().gather()).unwrap_or_default()
}
