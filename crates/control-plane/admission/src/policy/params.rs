//! The objects that a policy is given as `params`.

use std::sync::Arc;

use meta::gvk::{GroupVersion, GroupVersionKind};
use meta::selector::LabelSelector;
use rules::value::{at, has, text};
use serde_json::Value;

use crate::{Attributes, Lookup};

#[derive(Clone, Debug)]
pub struct ParamKind {
    api_version: String,
    kind: String,
}

#[derive(Clone, Debug)]
pub struct ParamRef {
    name: String,
    namespace: String,
    selector: Option<LabelSelector>,
    /// Without a parameter the write is refused.
    demanded: bool,
}

impl ParamKind {
    pub fn read(kind: &Value) -> Self {
        Self { api_version: text(kind, "apiVersion").to_owned(), kind: text(kind, "kind").to_owned() }
    }
}

impl ParamRef {
    pub fn read(reference: &Value) -> Self {
        let selector = has(reference, "selector").then(|| LabelSelector::from_object(at(reference, "selector")));
        Self {
            name: text(reference, "name").to_owned(),
            namespace: text(reference, "namespace").to_owned(),
            selector: selector.map(|selector| selector.unwrap_or_else(|_| LabelSelector::nothing())),
            demanded: text(reference, "parameterNotFoundAction") == "Deny",
        }
    }
}

/// Each set of parameters with which the policy is evaluated; one without any where it takes none.
pub async fn collect(
    kind: Option<&ParamKind>,
    reference: Option<&ParamRef>,
    attributes: &Attributes,
    lookup: &dyn Lookup,
) -> Result<Vec<Option<Arc<Value>>>, String> {
    let (Some(kind), Some(reference)) = (kind, reference) else { return Ok(vec![None]) };
    let shown = format!("&ParamKind{{APIVersion:{},Kind:{},}}", kind.api_version, kind.kind);
    let version = GroupVersion::parse(&kind.api_version);
    let gvk = version.map(|version| GroupVersionKind::new(&version.group, &version.version, &kind.kind));
    let Some((gvr, namespaced)) = gvk.as_ref().and_then(|gvk| lookup.resource_of(gvk)) else {
        return Err(format!("paramKind kind `{shown}` not known"));
    };
    let namespace = match (namespaced, reference.namespace.as_str()) {
        (false, "") => "",
        (false, _) => return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".into()),
        (true, "") if attributes.namespace.is_empty() => {
            return Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".into());
        }
        (true, "") => attributes.namespace.as_str(),
        (true, given) => given,
    };
    let resource = gvr.group_resource();
    let mut found: Vec<Arc<Value>> = match (&reference.selector, reference.name.as_str()) {
        (None, "") => return Err("one of name or selector must be provided".into()),
        (None, name) => lookup.get(&resource, namespace, name).await.map_err(|status| status.message)?.into_iter().collect(),
        (Some(selector), _) => {
            let all = lookup.list(&resource, namespace).await.map_err(|status| status.message)?;
            all.into_iter().filter(|object| selector.matches_object(at(object, "metadata.labels"))).collect()
        }
    };
    if found.is_empty() && reference.demanded {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".into());
    }
    let mut params = Vec::with_capacity(found.len());
    for object in found.drain(..) {
        let wanted = gvk.as_ref().filter(|_| text(&object, "apiVersion") != kind.api_version);
        params.push(Some(match wanted {
            Some(gvk) => Arc::new(lookup.convert((*object).clone(), gvk).await.map_err(|status| status.message)?),
            None => object,
        }));
    }
    Ok(params)
}
