//! `componentstatuses`: nothing is stored; each read looks. Deprecated upstream since 1.19, and still what `kubectl get cs` asks for.
//!
//! Only the store can be asked from here: scheduler and controllers have no endpoints of their own that this server would know.

use std::sync::Arc;

use http::{Response, StatusCode};
use meta::Status;
use serde_json::{Value, json};

use crate::Inner;
use crate::context::Context;
use crate::negotiate::View;
use crate::registry::Target;
use crate::reply::{self, Body};
use crate::views::{self, Include};

/// The store's name, whatever the store is: tools look for it.
const STORE: &str = "etcd-0";

pub async fn read(server: &Arc<Inner>, context: &Context, target: Target<'_>) -> Result<Response<Body>, Status> {
    context.warn("v1 ComponentStatus is deprecated in v1.19+");
    let format = super::format(context, target.kind)?;
    let include = Include::parse(&context.query)?;
    if !target.name.is_empty() && target.name != STORE {
        return Err(target.not_found());
    }
    let object = store_status(server).await;
    let kind = target.kind;
    let value = match (format.view, target.name) {
        (View::Table(version), _) => views::table(kind, vec![object], version, include, json!({}), true),
        (View::PartialMetadata(_), _) => return Err(Status::not_acceptable(&["application/json"])),
        (View::Object, "") => {
            json!({"kind": kind.facts.list_kind, "apiVersion": kind.api_version(), "metadata": {}, "items": [object]})
        }
        (View::Object, _) => object,
    };
    Ok(reply::value(StatusCode::OK, &value, format))
}

async fn store_status(server: &Inner) -> Value {
    let asked = server.registry.store.get(b"/registry/health").await;
    let condition = match asked {
        Ok(_) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(error) => json!({"type": "Healthy", "status": "False", "error": error.to_string()}),
    };
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": STORE}, "conditions": [condition]})
}
