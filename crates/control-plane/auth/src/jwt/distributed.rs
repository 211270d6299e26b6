//! Claims that a token does not carry but says where they are (OpenID Connect Core 5.6.2): groups too many for a token.
//!
//! Source: `apiserver/plugin/pkg/authenticator/token/oidc`, `claimResolver`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

/// Where a claim is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub claim: String,
    /// Answers with a signed token that has the claim.
    pub endpoint: String,
    /// Shown there as a bearer token; may be empty.
    pub access_token: String,
}

#[derive(Deserialize)]
struct Source {
    #[serde(default)]
    endpoint: String,
    #[serde(default)]
    access_token: String,
}

/// Where the claim is, if the token has it elsewhere; the failure is upstream's sentence.
pub fn place(claim: &str, claims: &Map<String, Value>) -> Result<Option<Place>, String> {
    let (None, Some(names)) = (claims.get(claim), claims.get("_claim_names")) else { return Ok(None) };
    let names: BTreeMap<String, String> =
        serde_json::from_value(names.clone()).map_err(|error| format!("oidc: error parsing distributed claim names: {error}"))?;
    let sources = claims.get("_claim_sources").ok_or("oidc: no claim sources")?;
    let mut sources: BTreeMap<String, Source> =
        serde_json::from_value(sources.clone()).map_err(|error| format!("oidc: could not parse claim sources: {error}"))?;
    let Some(name) = names.get(claim) else { return Ok(None) };
    let source =
        sources.remove(name).ok_or_else(|| format!("id token _claim_names contained a source {name} missing in _claims_sources"))?;
    // Without an endpoint it is an aggregated claim, which nobody reads.
    let place = Place { claim: claim.to_owned(), endpoint: source.endpoint, access_token: source.access_token };
    Ok(Some(place).filter(|place| !place.endpoint.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_claim_is_looked_for_where_the_token_says() {
        let there = json!({"endpoint": "https://groups.example/ann", "access_token": "secret"});
        let place_of = |claims: Value| place("groups", claims.as_object().unwrap());
        let found = Place { claim: "groups".into(), endpoint: "https://groups.example/ann".into(), access_token: "secret".into() };
        let names = json!({"groups": "src1"});
        let cases = [
            (json!({"groups": ["a"], "_claim_names": names, "_claim_sources": {"src1": there}}), Ok(None)),
            (json!({}), Ok(None)),
            (json!({"_claim_names": {"roles": "src1"}, "_claim_sources": {"src1": there}}), Ok(None)),
            (json!({"_claim_names": names, "_claim_sources": {"src1": there}}), Ok(Some(found))),
            (json!({"_claim_names": names, "_claim_sources": {"src1": {"JWT": "x"}}}), Ok(None)),
            (json!({"_claim_names": names}), Err("oidc: no claim sources")),
            (
                json!({"_claim_names": names, "_claim_sources": {}}),
                Err("id token _claim_names contained a source src1 missing in _claims_sources"),
            ),
        ];
        for (claims, expected) in cases {
            assert_eq!(place_of(claims.clone()), expected.map_err(str::to_owned), "{claims}");
        }
        assert!(place_of(json!({"_claim_names": 1, "_claim_sources": {}})).is_err());
    }
}
