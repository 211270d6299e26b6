//! What the smaller subresources refuse, and in which words.

mod harness;

use std::sync::Arc;

use auth::tokens::Issuer;
use harness::Api;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";

/// A server with an issuer of tokens, a service account, a node and an unbound pod.
async fn with_pod() -> (Api, Arc<Issuer>) {
    let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
    let issuer = Arc::new(Issuer::new(&key, auth::tokens::ISSUER).unwrap());
    let api = Api::with(apiserver::Config { issuer: Some(issuer.clone()), ..apiserver::Config::default() }).await;
    let objects = [
        (ACCOUNTS, json!({"metadata": {"name": "default"}})),
        (ACCOUNTS, json!({"metadata": {"name": "bot"}})),
        ("/api/v1/nodes", json!({"metadata": {"name": "n"}})),
        (PODS, json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}})),
    ];
    for (path, object) in objects {
        let made = api.post(path, object).await;
        assert_eq!(made.code, 201, "{}", made.message());
    }
    (api, issuer)
}

async fn uid(api: &Api, path: &str) -> String {
    api.get(path).await.json()["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_token_is_only_made_for_whom_and_what_the_request_names() {
    let (api, _) = with_pod().await;
    let bot = uid(&api, &format!("{ACCOUNTS}/bot")).await;
    let pod = uid(&api, &format!("{PODS}/p")).await;
    let bound = |reference: Value| json!({"spec": {"boundObjectRef": reference}});
    let cases = [
        (json!({"metadata": {"name": "bot", "namespace": "default", "uid": bot}}), 201, String::new()),
        (
            json!({"metadata": {"name": "other"}}),
            422,
            "TokenRequest.authentication.k8s.io \"bot\" is invalid: metadata.name: Invalid value: \"other\": must match the service account name if specified".into(),
        ),
        (json!({"metadata": {"namespace": "other"}}), 400, "the namespace of the provided object does not match the namespace sent on the request".into()),
        (
            json!({"metadata": {"uid": "other"}}),
            409,
            format!("Operation cannot be fulfilled on TokenRequest.authentication.k8s.io \"bot\": the UID in the token request (other) does not match the UID of the service account ({bot})"),
        ),
        (bound(json!({"kind": "ConfigMap", "apiVersion": "v1", "name": "x"})), 400, "cannot bind token to object of type /v1, Kind=ConfigMap".into()),
        (
            bound(json!({"kind": "Deployment", "apiVersion": "apps/v1", "name": "x"})),
            400,
            "cannot bind token to object of type apps/v1, Kind=Deployment".into(),
        ),
        (bound(json!({"kind": "Secret", "apiVersion": "v1", "name": "x"})), 404, "secrets \"x\" not found".into()),
        (
            bound(json!({"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod})),
            400,
            "cannot bind token for serviceaccount \"bot\" to pod running with different serviceaccount name.".into(),
        ),
        (
            bound(json!({"kind": "Node", "apiVersion": "v1", "name": "n", "uid": "x"})),
            409,
            "Operation cannot be fulfilled on Node \"n\": the UID in the bound object reference (x) does not match the UID in record. The object might have been deleted and then recreated".into(),
        ),
    ];
    for (body, code, message) in cases {
        let answer = api.post(&format!("{ACCOUNTS}/bot/token"), body.clone()).await;
        assert_eq!((answer.code, answer.message()), (code, message), "{body}");
    }
    let made = api.post(&format!("{ACCOUNTS}/bot/token"), json!({})).await.json();
    assert_eq!((made["metadata"]["uid"].as_str(), made["metadata"]["name"].as_str()), (Some(bot.as_str()), Some("bot")));
}

#[tokio::test]
async fn a_pods_token_outlives_what_a_client_too_old_to_renew_it_believes() {
    let (api, issuer) = with_pod().await;
    let lifetime = async |seconds: i64, audiences: Value, bound: Value| {
        let spec = json!({"expirationSeconds": seconds, "audiences": audiences, "boundObjectRef": bound});
        let made = api.post(&format!("{ACCOUNTS}/default/token"), json!({"spec": spec})).await.json();
        assert_eq!(made["spec"]["expirationSeconds"], seconds, "{made}");
        let wanted = audiences.as_array().filter(|list| !list.is_empty()).map(|list| vec![list[0].as_str().unwrap().to_owned()]);
        let claims =
            issuer.verify(made["status"]["token"].as_str().unwrap(), &wanted.unwrap_or_else(|| issuer.audiences().to_vec())).unwrap();
        let until = meta::time::epoch(made["status"]["expirationTimestamp"].as_str().unwrap()).unwrap();
        assert_eq!(until - claims.iat, seconds, "the client is told what it asked for");
        (claims.exp - claims.iat, claims.kubernetes.warnafter.map(|at| at - claims.iat))
    };
    let pod = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    assert_eq!(lifetime(3607, json!([]), pod.clone()).await, (365 * 24 * 3600, Some(3607)));
    assert_eq!(lifetime(3607, json!(["vault"]), pod.clone()).await, (3607, None));
    assert_eq!(lifetime(3607, json!([]), Value::Null).await, (3607, None));
    assert_eq!(lifetime(3600, json!([]), pod).await, (3600, None));
}

#[tokio::test]
async fn a_binding_holds_for_the_pod_that_it_names_and_ends_its_nomination() {
    let (api, _) = with_pod().await;
    let (path, status) = (format!("{PODS}/p/binding"), format!("{PODS}/p/status"));
    assert_eq!(api.merge(&status, json!({"status": {"nominatedNodeName": "n"}})).await.code, 200);
    let binding = |metadata: Value| json!({"metadata": metadata, "target": {"kind": "Node", "name": "n"}});
    let found = "Operation cannot be fulfilled on pods \"p\": Precondition failed:";
    for (metadata, field) in [(json!({"name": "p", "uid": "x"}), "UID"), (json!({"name": "p", "resourceVersion": "1"}), "ResourceVersion")]
    {
        let refused = api.post(&path, binding(metadata)).await;
        assert_eq!(refused.code, 409);
        assert!(refused.message().starts_with(&format!("{found} {field} in precondition: ")), "{}", refused.message());
    }
    let (uid, version) = (uid(&api, &format!("{PODS}/p")).await, api.get(&format!("{PODS}/p")).await.version());
    assert_eq!(api.post(&path, binding(json!({"name": "p", "uid": uid, "resourceVersion": version}))).await.code, 201);
    let pod = api.get(&format!("{PODS}/p")).await.json();
    assert_eq!((pod["spec"]["nodeName"].as_str(), &pod["status"]["nominatedNodeName"]), (Some("n"), &Value::Null));
    let again = api.post(&path, binding(json!({"name": "p"}))).await;
    assert_eq!(again.message(), "Operation cannot be fulfilled on pods/binding \"p\": pod p is already assigned to node \"n\"");
}

#[tokio::test]
async fn a_patched_scale_is_a_scale_again() {
    let (api, _) = with_pod().await;
    let template = json!({"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let spec = json!({"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template});
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    assert_eq!(api.post(deployments, json!({"metadata": {"name": "d"}, "spec": spec})).await.code, 201);
    let path = format!("{deployments}/d/scale");
    let refused = api.merge(&path, json!({"spec": {"replicas": "x"}})).await;
    let why = "json: cannot unmarshal string into Go struct field ScaleSpec.spec.replicas of type int32";
    assert_eq!((refused.code, refused.message()), (400, format!("Scale in version \"v1\" cannot be handled as a Scale: {why}")));
    assert_eq!(api.get(&path).await.json()["spec"]["replicas"], 2);
    assert_eq!(api.merge(&path, json!({"spec": {"replicas": 3}})).await.json()["spec"]["replicas"], 3);
}

/// (path, object, whether what it says of its status at creation stays, whether a write of its status may change labels)
#[tokio::test]
async fn what_a_status_says_comes_from_who_writes_the_status() {
    let api = Api::new().await;
    let condition = json!({"type": "Ready", "status": "True", "reason": "R", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = json!({"conditions": [condition]});
    let cases = [
        ("/api/v1/nodes", json!({}), true, true),
        ("/apis/networking.k8s.io/v1/servicecidrs", json!({"cidrs": ["10.9.0.0/24"]}), true, false),
        ("/apis/resource.k8s.io/v1/namespaces/default/resourceclaims", json!({}), false, false),
        (
            "/apis/storage.k8s.io/v1/volumeattachments",
            json!({"attacher": "a", "nodeName": "n", "source": {"persistentVolumeName": "v"}}),
            false,
            false,
        ),
        ("/apis/policy/v1/namespaces/default/poddisruptionbudgets", json!({}), false, true),
        ("/apis/storagemigration.k8s.io/v1/storageversionmigrations", json!({"resource": {"resource": "pods"}}), false, false),
    ];
    for (path, spec, keeps_status, changes_labels) in cases {
        let mut told = status.clone();
        if path.ends_with("volumeattachments") {
            told = json!({"attached": true});
        }
        let object = json!({"metadata": {"name": "o"}, "spec": spec, "status": told});
        let made = api.post(path, object).await;
        if made.code == 404 {
            continue;
        }
        assert_eq!(made.code, 201, "{path}: {}", made.message());
        let mut object = made.json();
        let there = !object["status"]["conditions"].is_null() || object["status"]["attached"] == true;
        assert_eq!(there, keeps_status, "{path}: {object}");
        object["metadata"]["labels"] = json!({"a": "b"});
        object["status"] = told;
        let written = api.put(&format!("{path}/o/status"), object).await;
        assert_eq!(written.code, 200, "{path}: {}", written.message());
        assert_eq!(written.json()["metadata"]["labels"]["a"] == "b", changes_labels, "{path}: {}", written.json());
    }
}

#[tokio::test]
async fn a_review_of_oneself_says_when_it_was_made() {
    let api = Api::new().await;
    let review = api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", json!({"metadata": {"labels": {"a": "b"}}})).await.json();
    assert_eq!(review["status"]["userInfo"]["username"], "admin");
    assert!(review["metadata"]["creationTimestamp"].is_string() && review["metadata"]["labels"].is_null(), "{review}");
}
