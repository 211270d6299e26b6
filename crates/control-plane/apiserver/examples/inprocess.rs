//! What requests cost without sockets, in microseconds: `cargo run --release -p apiserver --example inprocess`.

use std::sync::Arc;
use std::time::Instant;

use apiserver::{Body, Config, Server};
use auth::UserInfo;
use http::Request;
use http_body_util::{BodyExt, Full};

fn request(method: &str, path: &str, body: String) -> Request<Body> {
    let body = Full::new(bytes::Bytes::from(body)).map_err(|never| match never {}).boxed();
    let request = Request::builder().method(method).uri(path).header("user-agent", "bench/1").header("accept", "application/json");
    request.header("content-type", "application/json").body(body).expect("a request")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::new(Config::default(), Arc::new(store::memory::Memory::new()))?;
    server.bootstrap().await?;
    let maps = "/api/v1/namespaces/default/configmaps";
    for (what, user) in [
        ("masters", UserInfo::authenticated("admin", &["system:masters"])),
        ("rbac", UserInfo::authenticated("system:kube-controller-manager", &[])),
    ] {
        let text = "x".repeat(800);
        let mut names = 0;
        let mut measure = async |label: &str, times: u32, make: &dyn Fn(u32) -> Request<Body>| {
            let start = Instant::now();
            let mut failed = 0;
            for number in 0..times {
                let response = server.handle(make(number), Some(user.clone())).await;
                failed += u32::from(!response.status().is_success());
                let _ = response.into_body().collect().await;
            }
            names += 1;
            println!("{what} {label}: {:.2} us ({failed} failed)", start.elapsed().as_secs_f64() * 1e6 / f64::from(times));
        };
        measure("create", 2_000, &|number| {
            let name = format!("{what}-{number}");
            request(
                "POST",
                maps,
                format!("{{\"metadata\":{{\"name\":\"{name}\",\"labels\":{{\"a\":\"b\"}}}},\"data\":{{\"a\":\"{text}\"}}}}"),
            )
        })
        .await;
        measure("get", 200_000, &|number| request("GET", &format!("{maps}/masters-{}", number % 1_000), String::new())).await;
        measure("list 500", 2_000, &|_| request("GET", &format!("{maps}?limit=500"), String::new())).await;
        measure("version", 100_000, &|_| request("GET", "/version", String::new())).await;
    }
    Ok(())
}
