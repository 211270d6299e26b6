//! A server on the store in memory, asked in-process.

use std::sync::Arc;

use apiserver::{Body, Config, Server};
use auth::UserInfo;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

pub const JSON: &str = "application/json";
pub const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

pub fn admin() -> UserInfo {
    UserInfo { username: "admin".into(), groups: vec!["system:masters".into(), "system:authenticated".into()], ..UserInfo::default() }
}

pub async fn server(config: Config) -> Server {
    let server = Server::new(config, Arc::new(store::memory::Memory::new())).unwrap();
    server.bootstrap().await.unwrap();
    server
}

/// A whole answer.
pub struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub async fn of(response: Response<Body>) -> Self {
        let (parts, body) = response.into_parts();
        Self { code: parts.status, headers: parts.headers, body: body.collect().await.unwrap().to_bytes() }
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&self.body)))
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

pub fn request(method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(body.into()).map_err(|never| match never {}).boxed()).unwrap()
}

pub async fn ask(server: &Server, method: Method, path: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
    Answer::of(server.handle(request(method, path, headers, body), Some(admin())).await).await
}

pub async fn get(server: &Server, path: &str, accept: &str) -> Answer {
    ask(server, Method::GET, path, &[("accept", accept)], "").await
}

/// Creates an object; panics where the server refuses.
pub async fn create(server: &Server, path: &str, object: &Value) -> Value {
    let answer = ask(server, Method::POST, path, &[("content-type", JSON)], object.to_string()).await;
    assert_eq!(answer.code, StatusCode::CREATED, "{}", answer.text());
    answer.json()
}
