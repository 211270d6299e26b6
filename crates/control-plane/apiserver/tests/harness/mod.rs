//! A server on the store in memory, asked without sockets.
#![allow(dead_code)]

pub mod cases;
pub mod hooks;
pub mod https;

use std::sync::Arc;

use apiserver::{Body, Config, Server};
use auth::UserInfo;
use bytes::Bytes;
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::Value;

pub mod samples;

pub struct Api {
    pub server: Server,
    pub store: Arc<store::memory::Memory>,
}

/// An answer: its code, headers and body.
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub bytes: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&self.bytes).into_owned()))
    }
    pub fn message(&self) -> String {
        self.json()["message"].as_str().unwrap_or_default().to_owned()
    }
    pub fn version(&self) -> String {
        self.json()["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned()
    }
    pub fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

pub fn admin() -> UserInfo {
    UserInfo::authenticated("admin", &["system:masters"])
}

pub fn body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

impl Api {
    pub async fn new() -> Self {
        Self::with(Config::default()).await
    }
    /// A server that serves beta and alpha APIs too.
    pub async fn with_all_apis() -> Self {
        Self::with(Config { served: schema::resources::Served::parse("api/all=true").unwrap(), ..Config::default() }).await
    }
    pub async fn with(config: Config) -> Self {
        let store = Arc::new(store::memory::Memory::new());
        let server = Server::new(config, store.clone()).unwrap();
        server.bootstrap().await.unwrap();
        Self { server, store }
    }

    pub async fn send(&self, request: Request<Body>, user: UserInfo) -> Answer {
        let response = self.server.handle(request, Some(user)).await;
        let (parts, body) = response.into_parts();
        Answer { code: parts.status.as_u16(), headers: parts.headers, bytes: body.collect().await.unwrap().to_bytes() }
    }

    pub async fn ask(&self, method: &str, path: &str, content_type: &str, content: impl Into<Bytes>) -> Answer {
        let request = Request::builder().method(method.parse::<Method>().unwrap()).uri(path).header("content-type", content_type);
        self.send(request.body(body(content)).unwrap(), admin()).await
    }
    pub async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "", "").await
    }
    pub async fn post(&self, path: &str, object: Value) -> Answer {
        self.ask("POST", path, "application/json", object.to_string()).await
    }
    pub async fn put(&self, path: &str, object: Value) -> Answer {
        self.ask("PUT", path, "application/json", object.to_string()).await
    }
    pub async fn merge(&self, path: &str, patch: Value) -> Answer {
        self.ask("PATCH", path, "application/merge-patch+json", patch.to_string()).await
    }
    /// Any request with an `Accept`.
    pub async fn get_as(&self, path: &str, accept: &str) -> Answer {
        self.send(Request::builder().uri(path).header("accept", accept).body(body("")).unwrap(), admin()).await
    }
    pub async fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, "application/json", "").await
    }

    /// A running watch, read line by line.
    pub async fn watch(&self, path: &str) -> Watch {
        let request = Request::builder().uri(path).body(body("")).unwrap();
        let response = self.server.handle(request, Some(admin())).await;
        assert_eq!(response.status(), 200, "{path}");
        Watch { body: response.into_body(), rest: Vec::new() }
    }
}

pub struct Watch {
    body: Body,
    rest: Vec<u8>,
}

impl Watch {
    /// The next event; `None` at the end.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = self.body.frame().await?.unwrap();
            self.rest.extend_from_slice(&frame.into_data().unwrap());
        }
    }
    /// The next event as `ADDED name`.
    pub async fn line(&mut self) -> String {
        let event = self.next().await.expect("the watch goes on");
        format!("{} {}", event["type"].as_str().unwrap(), event["object"]["metadata"]["name"].as_str().unwrap_or_default())
    }
}
