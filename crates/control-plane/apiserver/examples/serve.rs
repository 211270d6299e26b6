//! A server on the store in memory, with its PKI and a kubeconfig in a directory: `cargo run -p apiserver --example serve -- DIR PORT RUNTIME-CONFIG`.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use base64::Engine;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    telemetry::init_logs(&std::env::var("LOG").unwrap_or_else(|_| "info".into()), telemetry::LogFormat::Plain)?;
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("which directory?")?);
    let port: u16 = arguments.next().unwrap_or_else(|| "6443".into()).parse()?;
    let served = schema::resources::Served::parse(&arguments.next().unwrap_or_default())?;
    let names = auth::pki::Names {
        api_hosts: vec![],
        api_addresses: vec![IpAddr::from(Ipv4Addr::new(10, 96, 0, 1))],
        cluster_domain: "cluster.local".into(),
        node_name: "node".into(),
        node_addresses: vec![IpAddr::from(Ipv4Addr::LOCALHOST)],
    };
    let pki = auth::pki::Pki::open(&directory, &names)?;
    let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, contexts: [{{name: c, context: {{cluster: c, user: c}}}}],\n\
         clusters: [{{name: c, cluster: {{server: 'https://127.0.0.1:{port}', certificate-authority-data: {}}}}}],\n\
         users: [{{name: c, user: {{client-certificate-data: {}, client-key-data: {}}}}}]}}\n",
        encode(&pki.ca),
        encode(&pki.admin.certificate),
        encode(&pki.admin.key)
    );
    std::fs::write(directory.join("kubeconfig"), kubeconfig)?;
    let config = apiserver::Config {
        issuer: Some(Arc::new(auth::tokens::Issuer::new(&pki.service_account_key, auth::tokens::ISSUER)?)),
        port,
        served,
        audit_file: std::env::var_os("AUDIT").map(|_| directory.join("audit.log")),
        ..apiserver::Config::default()
    };
    let server = apiserver::Server::new(config, Arc::new(store::memory::Memory::new()))?;
    server.bootstrap().await?;
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", port)).await?;
    let tls = pki.api_server.server_config(&pki.ca)?;
    let drain = stdx::drain();
    let stop = drain.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.stop();
    });
    server.serve(listener, Some(tls), drain).await?;
    Ok(())
}
