//! Service account tokens: JWTs signed with ES256, bound to a service account and, if wanted, to a Pod, Secret or Node.
//!
//! Source: KEP-1205 (bound service account tokens), KEP-4193 (node binding).

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::UserInfo;

pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
const USER_PREFIX: &str = "system:serviceaccount:";

/// A named object of which a token is part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// The private claim `kubernetes.io`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub namespace: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    pub serviceaccount: Reference,
}

/// All claims. Times are seconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Bound,
    pub nbf: i64,
    pub sub: String,
}

impl Claims {
    /// `system:serviceaccount:<namespace>:<name>` with its groups and, as extra, what the token is bound to.
    pub fn user(&self) -> UserInfo {
        let bound = &self.kubernetes;
        let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{}", bound.namespace)];
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        let mut user = UserInfo::authenticated(&username(&bound.namespace, &bound.serviceaccount.name), &groups);
        user.uid = bound.serviceaccount.uid.clone();
        let mut extra = |key: &str, value: &str| {
            if !value.is_empty() {
                user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
            }
        };
        extra("credential-id", &format!("JTI={}", self.jti));
        if let Some(pod) = &bound.pod {
            extra("pod-name", &pod.name);
            extra("pod-uid", &pod.uid);
        }
        if let Some(node) = &bound.node {
            extra("node-name", &node.name);
            extra("node-uid", &node.uid);
        }
        user
    }
}

/// The user name of a service account.
pub fn username(namespace: &str, name: &str) -> String {
    format!("{USER_PREFIX}{namespace}:{name}")
}

/// Namespace and name of the service account behind a user name.
pub fn account(username: &str) -> Option<(&str, &str)> {
    username.strip_prefix(USER_PREFIX)?.split_once(':')
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("service account signing key")]
    Key(#[source] jsonwebtoken::errors::Error),
    #[error("service account signing key: {0}")]
    Form(&'static str),
    #[error("signing a service account token")]
    Sign(#[source] jsonwebtoken::errors::Error),
    #[error("invalid bearer token")]
    Invalid(#[source] jsonwebtoken::errors::Error),
    #[error("token audiences {given:?} is invalid for the target audiences {wanted:?}")]
    Audience { given: Vec<String>, wanted: Vec<String> },
    #[error("service account token has no valid subject")]
    Subject,
}

/// Signs and verifies.
pub struct Issuer {
    signing: EncodingKey,
    verifying: DecodingKey,
    key_id: String,
    /// The public point: x and y, 32 bytes each.
    point: [u8; 64],
    issuer: String,
    /// Audiences of the API server itself.
    audiences: Vec<String>,
}

impl Issuer {
    /// `key` is a P-256 private key as PKCS#8 PEM. The API server's audience is the issuer.
    pub fn new(key: &str, issuer: &str) -> Result<Self, Error> {
        let signing = EncodingKey::from_ec_pem(key.as_bytes()).map_err(Error::Key)?;
        let pair = rcgen::KeyPair::from_pem(key).map_err(|_| Error::Form("not a P-256 key in PKCS#8"))?;
        let raw = pair.public_key_raw();
        let point: [u8; 64] = raw.get(1..65).and_then(|point| point.try_into().ok()).ok_or(Error::Form("no uncompressed point"))?;
        let verifying = DecodingKey::from_ec_der(raw);
        Ok(Self {
            signing,
            verifying,
            key_id: base64_url(&Sha256::digest(raw)),
            point,
            issuer: issuer.into(),
            audiences: vec![issuer.into()],
        })
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A token from now (`now`, seconds since the epoch) for `seconds`. An empty `audiences` means the API server.
    pub fn issue(&self, bound: Bound, audiences: &[String], seconds: i64, now: i64) -> Result<String, Error> {
        let claims = Claims {
            aud: if audiences.is_empty() { self.audiences.clone() } else { audiences.to_vec() },
            exp: now + seconds,
            iat: now,
            iss: self.issuer.clone(),
            jti: meta::names::uid(),
            sub: username(&bound.namespace, &bound.serviceaccount.name),
            nbf: now,
            kubernetes: bound,
        };
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        header.kid = Some(self.key_id.clone());
        jsonwebtoken::encode(&header, &claims, &self.signing).map_err(Error::Sign)
    }

    /// Is this JWT one of ours, by its (unverified) issuer?
    pub fn issued(&self, token: &str) -> bool {
        let claims: Option<Value> = jsonwebtoken::dangerous::insecure_decode_claims(token).ok();
        claims.is_some_and(|claims| claims["iss"] == self.issuer.as_str())
    }

    /// Signature, times, issuer and audience. Whether the objects still exist is the caller's question.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Claims, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[&self.issuer]);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 10;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation).map_err(Error::Invalid)?.claims;
        if !claims.aud.iter().any(|given| audiences.contains(given)) {
            return Err(Error::Audience { given: claims.aud, wanted: audiences.to_vec() });
        }
        if claims.sub != username(&claims.kubernetes.namespace, &claims.kubernetes.serviceaccount.name) {
            return Err(Error::Subject);
        }
        Ok(claims)
    }

    /// `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let (x, y) = self.point.split_at(32);
        let key =
            json!({"use": "sig", "kty": "EC", "kid": self.key_id, "crv": "P-256", "alg": "ES256", "x": base64_url(x), "y": base64_url(y)});
        json!({"keys": [key]})
    }

    /// `/.well-known/openid-configuration`.
    pub fn configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn issuer() -> Issuer {
        Issuer::new(&rcgen::KeyPair::generate().unwrap().serialize_pem(), ISSUER).unwrap()
    }
    fn bound() -> Bound {
        let reference = |name: &str| Reference { name: name.into(), uid: format!("{name}-uid") };
        Bound { namespace: "default".into(), serviceaccount: reference("builder"), pod: Some(reference("web-0")), ..Bound::default() }
    }
    fn now() -> i64 {
        meta::time::epoch(&meta::time::now()).unwrap()
    }

    #[test]
    fn a_token_says_who_it_is_for_and_what_it_is_bound_to() {
        let issuer = issuer();
        let token = issuer.issue(bound(), &[], 3600, now()).unwrap();
        assert!(issuer.issued(&token));
        let claims = issuer.verify(&token, issuer.audiences()).unwrap();
        let user = claims.user();
        assert_eq!(user.username, "system:serviceaccount:default:builder");
        assert_eq!(user.groups, ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"]);
        assert_eq!(user.extra["authentication.kubernetes.io/pod-name"], ["web-0"]);
    }

    #[test]
    fn tokens_of_others_old_ones_and_those_for_others_are_refused() {
        let ours = issuer();
        let good = |issuer: &Issuer, audiences: &[String], at: i64| issuer.issue(bound(), audiences, 600, at).unwrap();
        assert!(matches!(ours.verify(&good(&issuer(), &[], now()), ours.audiences()), Err(Error::Invalid(_))));
        assert!(matches!(ours.verify(&good(&ours, &[], now() - 7200), ours.audiences()), Err(Error::Invalid(_))));
        assert!(matches!(ours.verify(&good(&ours, &["vault".into()], now()), ours.audiences()), Err(Error::Audience { .. })));
        assert!(matches!(ours.verify("a.b.c", ours.audiences()), Err(Error::Invalid(_))));
        assert!(!ours.issued("no token"));
    }
}
