//! Writes in tables, one line each: what is sent, and what becomes of it.
#![allow(dead_code)]

use serde_json::{Value, json};

use super::Api;

/// What is expected of a create.
pub enum Expect {
    Made,
    /// Made, and this stands at this pointer.
    Has(&'static str, Value),
    /// Refused with this code and a message that contains this.
    Refused(u16, &'static str),
}

pub use Expect::{Has, Made, Refused};

pub type Case = (&'static str, &'static str, Value, Expect);

/// Creates each object at its path and checks what comes of it.
pub async fn check(api: &Api, cases: Vec<Case>) {
    for (what, path, object, expected) in cases {
        let answer = api.post(path, object).await;
        match expected {
            Made => assert_eq!(answer.code, 201, "{what}: {}", answer.message()),
            Has(pointer, value) => {
                assert_eq!(answer.code, 201, "{what}: {}", answer.message());
                let found = answer.json().pointer(pointer).cloned().unwrap_or_default();
                assert_eq!(found, value, "{what}: {pointer}");
            }
            Refused(code, message) => {
                assert_eq!(answer.code, code, "{what}: {}", answer.message());
                assert!(answer.message().contains(message), "{what}: {}", answer.message());
            }
        }
    }
}

/// Creates what cases need; plugins read lists of it from the watch cache, which follows the store.
pub async fn make(api: &Api, path: &str, object: Value) -> Value {
    let answer = api.post(path, object).await;
    assert_eq!(answer.code, 201, "{path}: {}", answer.message());
    assert_eq!(api.get(&format!("{path}?resourceVersion={}", answer.version())).await.code, 200);
    answer.json()
}

/// A namespace in which pods can be made.
pub async fn namespace(api: &Api, name: &str, labels: Value, annotations: Value) {
    make(api, "/api/v1/namespaces", json!({"metadata": {"name": name, "labels": labels, "annotations": annotations}})).await;
    make(api, &format!("/api/v1/namespaces/{name}/serviceaccounts"), json!({"metadata": {"name": "default"}})).await;
}

/// A pod with one container and this more in its spec.
pub fn pod(name: &str, more: Value) -> Value {
    let mut spec = json!({"containers": [{"name": "c", "image": "i"}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"metadata": {"name": name}, "spec": spec})
}
