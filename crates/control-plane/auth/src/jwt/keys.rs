//! An issuer's public keys, as its `jwks_uri` has them (RFC 7517).

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::Error;

/// Keys that can be used; others in the set are passed over.
#[derive(Default)]
pub struct Keys(Vec<Key>);

struct Key {
    id: String,
    key: DecodingKey,
    /// Keys may be for one algorithm alone.
    algorithm: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

impl Keys {
    pub fn parse(set: &Value) -> Result<Self, String> {
        let keys = set["keys"].as_array().ok_or("it has no list of keys")?;
        Ok(Self(keys.iter().filter_map(Key::parse).collect()))
    }

    /// The claims of a token that one of these keys signed.
    pub fn verify(&self, token: &str, algorithms: &[Algorithm]) -> Result<Map<String, Value>, Error> {
        let header = jsonwebtoken::decode_header(token).map_err(|error| Error::Malformed(error.to_string()))?;
        if !algorithms.contains(&header.alg) {
            let expected = algorithms.iter().map(|algorithm| format!("{algorithm:?}")).collect();
            return Err(Error::Algorithm { expected, given: format!("{:?}", header.alg) });
        }
        let wanted = header.kid.unwrap_or_default();
        let validation = signature_only(header.alg);
        let fits = |key: &&Key| {
            (wanted.is_empty() || key.id == wanted)
                && key.algorithm.as_ref().is_none_or(|algorithm| *algorithm == format!("{:?}", header.alg))
        };
        for key in self.0.iter().filter(fits) {
            if let Ok(decoded) = jsonwebtoken::decode::<Map<String, Value>>(token, &key.key, &validation) {
                return Ok(decoded.claims);
            }
        }
        Err(Error::UnknownKey)
    }
}

/// The claims are judged by whoever knows the issuer.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.required_spec_claims.clear();
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation
}

impl Key {
    fn parse(key: &Value) -> Option<Self> {
        if key["use"].as_str().is_some_and(|usage| usage != "sig") {
            return None;
        }
        let parsed: Jwk = serde_json::from_value(key.clone()).ok()?;
        Some(Self {
            id: key["kid"].as_str().unwrap_or_default().to_owned(),
            key: DecodingKey::from_jwk(&parsed).ok()?,
            algorithm: key["alg"].as_str().map(str::to_owned),
        })
    }
}
