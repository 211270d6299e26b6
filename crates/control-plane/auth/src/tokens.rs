//! Service account tokens: JWTs signed with ES256, bound to a service account and, if wanted, to a Pod, Secret or Node.
//!
//! Source: KEP-1205 (bound service account tokens), KEP-4193 (node binding).

use std::sync::Arc;

use arc_swap::ArcSwap;
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
    /// When its holder should have asked for another one; the token lasts longer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
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
    /// Of a Secret's token, which has no end.
    pub fn is_legacy(&self) -> bool {
        self.iss == LEGACY_ISSUER
    }

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
        if !self.jti.is_empty() {
            extra("credential-id", &format!("JTI={}", self.jti));
        }
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

/// For the audience, and about whom it says it is.
fn checked(claims: Claims, audiences: &[String]) -> Result<Claims, Error> {
    if !claims.aud.iter().any(|given| audiences.contains(given)) {
        return Err(Error::Audience { given: claims.aud, wanted: audiences.to_vec() });
    }
    if claims.sub != username(&claims.kubernetes.namespace, &claims.kubernetes.serviceaccount.name) {
        return Err(Error::Subject);
    }
    Ok(claims)
}

const LEGACY_ISSUER: &str = "kubernetes/serviceaccount";

/// The claims of a token that a Secret holds.
#[derive(Serialize, Deserialize)]
struct Legacy {
    iss: String,
    #[serde(rename = "kubernetes.io/serviceaccount/namespace")]
    namespace: String,
    #[serde(rename = "kubernetes.io/serviceaccount/secret.name")]
    secret: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.name")]
    account: String,
    #[serde(rename = "kubernetes.io/serviceaccount/service-account.uid")]
    uid: String,
    sub: String,
}

impl Legacy {
    fn claims(self, audiences: &[String]) -> Claims {
        Claims {
            aud: audiences.to_vec(),
            exp: i64::MAX,
            iat: 0,
            iss: self.iss,
            jti: String::new(),
            kubernetes: Bound {
                namespace: self.namespace,
                secret: Some(Reference { name: self.secret, uid: String::new() }),
                serviceaccount: Reference { name: self.account, uid: self.uid },
                ..Bound::default()
            },
            nbf: 0,
            sub: self.sub,
        }
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
    #[error("no key of this issuer signed the token")]
    UnknownKey,
}

/// Signs with one key and believes it and those before it, so that a key is exchanged while tokens of the old one live.
pub struct Issuer {
    keys: ArcSwap<Keys>,
    issuer: String,
    /// Audiences of the API server itself.
    audiences: Vec<String>,
}

struct Keys {
    signing: EncodingKey,
    /// The signing key's public half first.
    public: Vec<Public>,
}

impl Keys {
    /// `signing` is a P-256 private key as PKCS#8 PEM, `trusted` are public keys as PEM.
    fn new<'a>(signing: &str, trusted: impl IntoIterator<Item = &'a String>) -> Result<Self, Error> {
        let pair = rcgen::KeyPair::from_pem(signing).map_err(|_| Error::Form("not a P-256 key in PKCS#8"))?;
        let mut public = vec![Public::new(pair.public_key_raw())?];
        for key in trusted {
            let key = Public::parse(key)?;
            if public.iter().all(|known| known.id != key.id) {
                public.push(key);
            }
        }
        Ok(Self { signing: EncodingKey::from_ec_pem(signing.as_bytes()).map_err(Error::Key)?, public })
    }
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issuer({})", self.issuer)
    }
}

struct Public {
    id: String,
    key: DecodingKey,
    /// x and y, 32 bytes each.
    point: [u8; 64],
}

impl Public {
    /// `raw` is the uncompressed point with its leading 4.
    fn new(raw: &[u8]) -> Result<Self, Error> {
        let point: [u8; 64] = raw.get(1..65).and_then(|point| point.try_into().ok()).ok_or(Error::Form("no uncompressed point"))?;
        Ok(Self { id: base64_url(&Sha256::digest(raw)), key: DecodingKey::from_ec_der(raw), point })
    }

    fn parse(pem: &str) -> Result<Self, Error> {
        use rustls::pki_types::pem::PemObject;
        let der = rustls::pki_types::SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes());
        let der = der.map_err(|_| Error::Form("no public key in PEM"))?;
        let raw = der.len().checked_sub(65).and_then(|start| der.get(start..)).ok_or(Error::Form("not a P-256 key"))?;
        Self::new(raw)
    }
}

impl Issuer {
    /// `key` is a P-256 private key as PKCS#8 PEM. The API server's audience is the issuer.
    pub fn new(key: &str, issuer: &str) -> Result<Self, Error> {
        Self::trusting(key, &[], issuer)
    }

    /// Tokens of the `trusted` keys (P-256 public keys as PEM) are believed too.
    pub fn trusting(key: &str, trusted: &[String], issuer: &str) -> Result<Self, Error> {
        let keys = ArcSwap::from_pointee(Keys::new(key, trusted)?);
        Ok(Self { keys, issuer: issuer.into(), audiences: vec![issuer.into()] })
    }

    /// Signs with another key from now on.
    pub fn replace(&self, key: &str, trusted: &[String]) -> Result<(), Error> {
        self.keys.store(Arc::new(Keys::new(key, trusted)?));
        Ok(())
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// A token from now (`now`, seconds since the epoch) for `seconds`. An empty `audiences` means the API server.
    pub fn issue(&self, bound: Bound, audiences: &[String], seconds: i64, now: i64) -> Result<String, Error> {
        self.sign(&Claims {
            aud: if audiences.is_empty() { self.audiences.clone() } else { audiences.to_vec() },
            exp: now + seconds,
            iat: now,
            iss: self.issuer.clone(),
            jti: meta::names::uid(),
            sub: username(&bound.namespace, &bound.serviceaccount.name),
            nbf: now,
            kubernetes: bound,
        })
    }

    /// The token of a Secret of type `kubernetes.io/service-account-token`: without an end, it counts as long as the Secret holds it.
    pub fn issue_legacy(&self, namespace: &str, account: &Reference, secret: &str) -> Result<String, Error> {
        self.sign(&Legacy {
            iss: LEGACY_ISSUER.into(),
            namespace: namespace.into(),
            secret: secret.into(),
            account: account.name.clone(),
            uid: account.uid.clone(),
            sub: username(namespace, &account.name),
        })
    }

    fn sign(&self, claims: &impl Serialize) -> Result<String, Error> {
        let mut header = Header::new(Algorithm::ES256);
        header.typ = None;
        let keys = self.keys.load();
        header.kid = keys.public.first().map(|key| key.id.clone());
        jsonwebtoken::encode(&header, claims, &keys.signing).map_err(Error::Sign)
    }

    /// Is this JWT one of ours, by its (unverified) issuer?
    pub fn issued(&self, token: &str) -> bool {
        let claims: Option<Value> = jsonwebtoken::dangerous::insecure_decode_claims(token).ok();
        claims.is_some_and(|claims| claims["iss"] == self.issuer.as_str() || claims["iss"] == LEGACY_ISSUER)
    }

    /// Signature, times, issuer and audience. Whether the objects still exist is the caller's question.
    pub fn verify(&self, token: &str, audiences: &[String]) -> Result<Claims, Error> {
        let kid = jsonwebtoken::decode_header(token).map_err(Error::Invalid)?.kid;
        let wanted = |key: &&Public| kid.as_ref().is_none_or(|kid| *kid == key.id);
        let mut failed = Error::UnknownKey;
        for key in self.keys.load().public.iter().filter(wanted) {
            match self.decode(token, key) {
                Ok(claims) => return checked(claims, audiences),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    fn decode(&self, token: &str, key: &Public) -> Result<Claims, Error> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.validate_aud = false;
        validation.validate_nbf = true;
        validation.leeway = 10;
        if self.issued_legacy(token) {
            validation.set_issuer(&[LEGACY_ISSUER]);
            validation.required_spec_claims.clear();
            validation.validate_exp = false;
            let legacy = jsonwebtoken::decode::<Legacy>(token, &key.key, &validation).map_err(Error::Invalid)?.claims;
            return Ok(legacy.claims(&self.audiences));
        }
        validation.set_issuer(&[&self.issuer]);
        Ok(jsonwebtoken::decode::<Claims>(token, &key.key, &validation).map_err(Error::Invalid)?.claims)
    }

    fn issued_legacy(&self, token: &str) -> bool {
        let claims: Option<Value> = jsonwebtoken::dangerous::insecure_decode_claims(token).ok();
        claims.is_some_and(|claims| claims["iss"] == LEGACY_ISSUER)
    }

    /// `/openid/v1/jwks`.
    pub fn key_set(&self) -> Value {
        let one = |key: &Public| {
            let (x, y) = key.point.split_at(32);
            json!({"use": "sig", "kty": "EC", "kid": key.id, "crv": "P-256", "alg": "ES256", "x": base64_url(x), "y": base64_url(y)})
        };
        json!({"keys": self.keys.load().public.iter().map(one).collect::<Vec<_>>()})
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
    fn a_new_key_leaves_the_tokens_of_the_old_one_alone() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let old = Issuer::new(&pair.serialize_pem(), ISSUER).unwrap();
        let token = old.issue(bound(), &[], 600, now()).unwrap();
        let new = issuer();
        assert!(new.verify(&token, new.audiences()).is_err());
        new.replace(&rcgen::KeyPair::generate().unwrap().serialize_pem(), &[pair.public_key_pem()]).unwrap();
        assert!(new.verify(&token, new.audiences()).is_ok());
        assert_eq!(new.key_set()["keys"].as_array().unwrap().len(), 2);
        assert!(old.verify(&new.issue(bound(), &[], 600, now()).unwrap(), old.audiences()).is_err());
    }

    #[test]
    fn a_secrets_token_has_no_end() {
        let issuer = issuer();
        let account = Reference { name: "builder".into(), uid: "u".into() };
        let token = issuer.issue_legacy("default", &account, "builder-token").unwrap();
        let claims = issuer.verify(&token, issuer.audiences()).unwrap();
        assert!(claims.is_legacy());
        assert_eq!(
            (claims.user().username.as_str(), claims.kubernetes.secret.unwrap().name.as_str()),
            ("system:serviceaccount:default:builder", "builder-token")
        );
        assert!(issuer.verify(&token, &["vault".into()]).is_err());
    }

    #[test]
    fn tokens_of_others_old_ones_and_those_for_others_are_refused() {
        let ours = issuer();
        let good = |issuer: &Issuer, audiences: &[String], at: i64| issuer.issue(bound(), audiences, 600, at).unwrap();
        assert!(matches!(ours.verify(&good(&issuer(), &[], now()), ours.audiences()), Err(Error::UnknownKey)));
        assert!(matches!(ours.verify(&good(&ours, &[], now() - 7200), ours.audiences()), Err(Error::Invalid(_))));
        assert!(matches!(ours.verify(&good(&ours, &["vault".into()], now()), ours.audiences()), Err(Error::Audience { .. })));
        assert!(matches!(ours.verify("a.b.c", ours.audiences()), Err(Error::Invalid(_))));
        assert!(!ours.issued("no token"));
    }
}
