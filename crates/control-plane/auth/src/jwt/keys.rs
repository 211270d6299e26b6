//! An issuer's public keys, as its `jwks_uri` has them (RFC 7517).

use aws_lc_rs::signature::{ECDSA_P521_SHA512_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Error;

/// Keys that can be used; others in the set are passed over.
#[derive(Default)]
pub struct Keys(Vec<Key>);

struct Key {
    id: String,
    key: Material,
    /// Keys may be for one algorithm alone.
    algorithm: Option<String>,
}

enum Material {
    Known(DecodingKey),
    /// A point of P-521, which jsonwebtoken does not know.
    P521(Vec<u8>),
}

/// Bytes of a coordinate of P-521.
const P521_BYTES: usize = 66;
const ES512: &str = "ES512";

#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
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
    pub fn verify(&self, token: &str, algorithms: &[&str]) -> Result<Map<String, Value>, Error> {
        let header = header(token).map_err(Error::Malformed)?;
        if !super::ALGORITHMS.contains(&header.alg.as_str()) {
            return Err(Error::Malformed(format!("unexpected signature algorithm {:?}; expected {algorithms:?}", header.alg)));
        }
        if !algorithms.contains(&header.alg.as_str()) {
            return Err(Error::Algorithm { expected: algorithms.iter().map(|name| (*name).to_owned()).collect(), given: header.alg });
        }
        let fits = |key: &&Key| {
            (header.kid.is_empty() || key.id == header.kid) && key.algorithm.as_ref().is_none_or(|algorithm| *algorithm == header.alg)
        };
        self.0.iter().filter(fits).find_map(|key| key.claims(token, &header.alg)).ok_or(Error::UnknownKey)
    }
}

fn header(token: &str) -> Result<Header, String> {
    let [head, _, _] = token.split('.').collect::<Vec<_>>()[..] else { return Err("a token has three parts".into()) };
    let bytes = URL_SAFE_NO_PAD.decode(head).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
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
        let material = match key["crv"] == "P-521" {
            true => Material::P521(point(key)?),
            false => Material::Known(DecodingKey::from_jwk(&serde_json::from_value::<Jwk>(key.clone()).ok()?).ok()?),
        };
        Some(Self {
            id: key["kid"].as_str().unwrap_or_default().to_owned(),
            key: material,
            algorithm: key["alg"].as_str().map(str::to_owned),
        })
    }

    /// What the token says, if this key signed it.
    fn claims(&self, token: &str, algorithm: &str) -> Option<Map<String, Value>> {
        match &self.key {
            Material::Known(key) => {
                let validation = signature_only(algorithm.parse::<Algorithm>().ok()?);
                jsonwebtoken::decode::<Map<String, Value>>(token, key, &validation).ok().map(|decoded| decoded.claims)
            }
            Material::P521(point) if algorithm == ES512 => {
                let (signed, signature) = token.rsplit_once('.')?;
                let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
                UnparsedPublicKey::new(&ECDSA_P521_SHA512_FIXED, point).verify(signed.as_bytes(), &signature).ok()?;
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(signed.rsplit_once('.')?.1).ok()?).ok()
            }
            Material::P521(_) => None,
        }
    }
}

/// The uncompressed point (SEC 1, 2.3.3) of a JWK; leading zeros may be left out there.
fn point(key: &Value) -> Option<Vec<u8>> {
    let mut point = vec![4];
    for name in ["x", "y"] {
        let coordinate = URL_SAFE_NO_PAD.decode(key[name].as_str()?).ok()?;
        let missing = P521_BYTES.checked_sub(coordinate.len())?;
        point.resize(point.len() + missing, 0);
        point.extend(coordinate);
    }
    Some(point)
}
