//! The applets that are clients: an HTTP GET and a name look-up.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

use crate::names;

pub(super) fn fetch(args: &[String]) -> Result<i32, String> {
    let (mut timeout_seconds, mut count, mut url) = (10, 1, None);
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let mut number = || rest.next().and_then(|text| text.parse().ok()).ok_or_else(|| format!("{arg} wants a number"));
        match arg.as_str() {
            "-t" => timeout_seconds = number()?,
            "-n" => count = number()?,
            other => url = Some(other.to_owned()),
        }
    }
    let url: http::Uri = url.ok_or("which URL?")?.parse().map_err(|error| format!("invalid URL: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let mut code = 0;
    for _ in 0..count {
        code = runtime.block_on(get_within(Duration::from_secs(timeout_seconds), &url))?;
    }
    Ok(code)
}

async fn get_within(limit: Duration, url: &http::Uri) -> Result<i32, String> {
    tokio::time::timeout(limit, get(url)).await.unwrap_or_else(|_| Err("timed out".into()))
}

/// Prints the body; 0 for a 2xx answer, 22 for any other.
async fn get(url: &http::Uri) -> Result<i32, String> {
    if url.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err("only http:// is spoken here".into());
    }
    let host = url.host().ok_or("the URL names no host")?;
    let address = names::look_up(host.trim_matches(['[', ']'])).await?.into_iter().next().ok_or_else(|| format!("{host}: no address"))?;
    let address = SocketAddr::new(address, url.port_u16().unwrap_or(80));
    let stream = tokio::net::TcpStream::connect(address).await.map_err(|error| format!("{address}: {error}"))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = http::Request::get(path).header("Host", url.authority().map_or("", |authority| authority.as_str()));
    let request = request.header("User-Agent", "toolbox").body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| format!("{address}: {error}"))?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
    use std::io::Write;
    std::io::stdout().write_all(&body).map_err(|error| error.to_string())?;
    if !status.is_success() {
        eprintln!("fetch: HTTP {status}");
    }
    Ok(if status.is_success() { 0 } else { 22 })
}

pub(super) fn resolve(args: &[String]) -> Result<i32, String> {
    let name = args.first().ok_or("which name?")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|error| error.to_string())?;
    let addresses = runtime.block_on(names::look_up(name))?;
    addresses.iter().for_each(|address| println!("{address}"));
    if addresses.is_empty() {
        return Err(format!("{name}: no such name"));
    }
    Ok(0)
}
